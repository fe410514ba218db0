"""What the provisioner of Azure needs of the settings."""

from __future__ import annotations

import msgspec

from tesazure.azure_identity import Identity
from tesazure.provisioning import INSTALLATION_TAG, RUN_TAG, Request

UNTAGGED = "it carries the tag of this run no more"
"""Why something stays that a run made."""


class GroundConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Holds secrets."""

    identity: Identity = Identity()
    """The server's own: with one, what is made takes no keys."""
    authority: str = "https://login.microsoftonline.com"
    """Who issues tokens to the service principal of a request."""
    ca_bundle: str = ""
    """PEM file of the authorities that TLS trusts; empty: the system's."""
    arm_url: str = "https://management.azure.com"
    storage_suffix: str = "core.windows.net"
    installation: str
    """The store's identity."""
    container: str = "batchtmp"
    """Through which server and nodes exchange plans and reports."""
    cromwell_container: str = "cromwell"
    share: str = "batchfiles"

    def __repr__(self) -> str:
        return f"GroundConfig({self.arm_url})"


class Place(msgspec.Struct, frozen=True):
    """One run: what it is to make, and how its resources are known again."""

    request: Request
    """With all names."""
    run_id: str
    config: GroundConfig

    @property
    def uses_identity(self) -> bool:
        """Whether the server does without keys of what is made."""
        return self.config.identity.exists

    @property
    def group_id(self) -> str:
        """Id of the resource group."""
        request = self.request
        return f"/subscriptions/{request.subscription_id}/resourceGroups/{request.resource_group}"

    @property
    def storage_id(self) -> str:
        """Id of the storage account."""
        return self._of("Microsoft.Storage/storageAccounts", self.request.storage_account_name)

    @property
    def batch_id(self) -> str:
        """Id of the Batch account."""
        return self._of("Microsoft.Batch/batchAccounts", self.request.batch_account_name)

    @property
    def registry_id(self) -> str:
        """Id of the container registry."""
        return self._of("Microsoft.ContainerRegistry/registries", self.request.registry)

    @property
    def subnet_id(self) -> str:
        """Id of the subnet of the nodes; empty: they have none of ours."""
        vnet = self.request.vnet
        if vnet and not vnet.startswith("/"):
            vnet = self._of("Microsoft.Network/virtualNetworks", vnet)
        return f"{vnet}/subnets/{self.request.subnet}" if vnet else ""

    @property
    def tags(self) -> dict[str, str]:
        """Of everything that the run makes."""
        own = {RUN_TAG: self.run_id, INSTALLATION_TAG: self.config.installation}
        return {**self.request.tags, **own}

    def made(self, tags: dict[str, str] | None) -> bool:
        """Whether this run has made what carries the tags."""
        return (tags or {}).get(RUN_TAG) == self.run_id

    def known(self, tags: dict[str, str] | None) -> bool:
        """Whether this or another run of this installation has."""
        return (tags or {}).get(INSTALLATION_TAG) == self.config.installation

    def _of(self, kind: str, name: str) -> str:
        return f"{self.group_id}/providers/{kind}/{name}"
