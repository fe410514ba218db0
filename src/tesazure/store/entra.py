"""Signing in to Azure Database for PostgreSQL by a token of Entra ID instead of a password.

Source: "Microsoft Entra authentication with Azure Database for PostgreSQL" (Microsoft).
"""

from __future__ import annotations

from tesazure.azure_identity import Identity, credential_of, token_of
from tesazure.errors import ConfigurationError
from tesazure.settings import Settings, database_scope_of, identity_of
from tesazure.trust import authorities_file


def database_sign_in_of(settings: Settings) -> EntraSignIn | None:
    """How connections sign in; None: with what DATABASE_URL says. Raises ConfigurationError."""
    if settings.database_auth == "password":
        return None
    return EntraSignIn(identity_of(settings), database_scope_of(settings))


class EntraSignIn:
    """Called for each new connection, which outlives the token that it was opened with."""

    def __init__(self, identity: Identity, scope: str) -> None:
        """`scope` is what tokens for databases are asked for. Raises ConfigurationError without
        the packages."""
        try:
            self._credential = credential_of(identity)
        except ImportError:
            raise ConfigurationError(
                ["DATABASE_AUTH: entra needs a package; pip install 'tesazure[azure]'"]
            ) from None
        self._scope = scope
        self._authorities = authorities_file(identity.ca_bundle)

    def __call__(self) -> dict[str, str]:
        """Arguments for libpq. The server sees the token, so it proves first who it is, whatever
        the URL says. Raises ConnectionError when there is no token."""
        return {
            "password": token_of(self._credential, self._scope),
            "sslmode": "verify-full",
            "sslrootcert": self._authorities,
        }
