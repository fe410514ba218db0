"""Signing in to Azure Database for PostgreSQL by a token of Entra ID instead of a password.

Source: "Microsoft Entra authentication with Azure Database for PostgreSQL" (Microsoft).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

from tesazure.azure_identity import credential_of, token_of
from tesazure.errors import ConfigurationError, StoreUnavailable
from tesazure.settings import Settings, database_scope_of, identity_of
from tesazure.trust import authorities_file


def database_sign_in_of(settings: Settings) -> EntraSignIn | None:
    """How connections sign in; None: with what DATABASE_URL says. Raises ConfigurationError."""
    if settings.database_auth == "password":
        return None
    return EntraSignIn(settings)


class EntraSignIn:
    """Called for each new connection, which outlives the token that it was opened with."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError without the packages."""
        self._wanted = identity, scope = identity_of(settings), database_scope_of(settings)
        try:
            self._token = partial(token_of, credential_of(identity), scope)
        except ImportError:
            raise ConfigurationError(
                ["DATABASE_AUTH: entra needs a package; pip install 'tesazure[azure]'"]
            ) from None
        self._authorities = authorities_file(identity.ca_bundle)

    @contextlib.asynccontextmanager
    async def changing(self, settings: Settings) -> AsyncIterator[None]:
        """Within, there is a token for whom these settings say, as those that lock the server out
        of its database could only be mended by a restart. Left in order, new connections are opened
        with such tokens from then on; left by an exception, nothing has changed. Raises
        StoreUnavailable when there is no token."""
        wanted = identity, scope = identity_of(settings), database_scope_of(settings)
        if wanted == self._wanted:
            yield
            return
        token = partial(token_of, credential_of(identity), scope)
        try:
            await asyncio.to_thread(token)
        except ConnectionError as error:
            raise StoreUnavailable(f"DATABASE_AUTH: {error}") from error
        yield
        self._wanted, self._token = wanted, token

    def __call__(self) -> dict[str, str]:
        """Arguments for libpq. The server sees the token, so it proves first who it is, whatever
        the URL says. Raises ConnectionError when there is no token."""
        return {
            "password": self._token(),
            "sslmode": "verify-full",
            "sslrootcert": self._authorities,
        }
