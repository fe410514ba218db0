"""Signing in to Azure Database for PostgreSQL by a token of Entra ID instead of a password.

Source: "Microsoft Entra authentication with Azure Database for PostgreSQL" (Microsoft).
"""

from __future__ import annotations

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
        self._identity = identity_of(settings)
        try:
            self._credential = credential_of(self._identity)
        except ImportError:
            raise ConfigurationError(
                ["DATABASE_AUTH: entra needs a package; pip install 'tesazure[azure]'"]
            ) from None
        self._scope = database_scope_of(settings)
        self._authorities = authorities_file(self._identity.ca_bundle)

    def use(self, settings: Settings) -> None:
        """Sign in as these say from now on; connections that are open stay so. Asks for a token, as
        settings that lock the server out of its database could only be mended by a restart. Raises
        StoreUnavailable when there is none, and goes on as before."""
        identity = identity_of(settings)
        if identity == self._identity:
            return
        credential = credential_of(identity)
        try:
            token_of(credential, self._scope)
        except ConnectionError as error:
            raise StoreUnavailable(f"DATABASE_AUTH: {error}") from error
        self._identity, self._credential = identity, credential

    def __call__(self) -> dict[str, str]:
        """Arguments for libpq. The server sees the token, so it proves first who it is, whatever
        the URL says. Raises ConnectionError when there is no token."""
        return {
            "password": token_of(self._credential, self._scope),
            "sslmode": "verify-full",
            "sslrootcert": self._authorities,
        }
