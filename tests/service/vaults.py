"""A Key Vault and who issues tokens for it, as a server's settings name them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer
from tests.services.key_vault_server import KeyVaultServer


@dataclass
class Site:
    """A vault, and `settings` that lead a service principal to it."""

    entra: EntraServer
    vault: KeyVaultServer
    ca_bundle: Path

    @property
    def settings(self) -> dict[str, str]:
        """Setting, in lower case -> value."""
        return {
            **self.anonymous,
            "azure_client_id": CLIENT,
            "azure_secret": SECRET,
            "azure_tenant": TENANT,
        }

    @property
    def anonymous(self) -> dict[str, str]:
        """The same without an identity."""
        return {
            "keyvault_url": self.vault.url,
            "keyvault_verify_challenge": "false",
            "azure_authority_host": self.entra.authority,
            "ca_bundle": str(self.ca_bundle),
        }


@contextlib.contextmanager
def site(directory: Path, page: int = 25) -> Iterator[Site]:
    """A running site; its vault lists `page` secrets at a time."""
    with (
        EntraServer(directory / "entra") as entra,
        KeyVaultServer(directory / "vault", entra, page) as vault,
    ):
        bundle = directory / "authorities.pem"
        bundle.write_text("".join(Path(each.ca_bundle).read_text() for each in (entra, vault)))
        yield Site(entra, vault, bundle)
