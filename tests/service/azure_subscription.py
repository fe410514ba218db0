"""A subscription of the stand-in for Azure, and what provisions it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tesazure.azure_identity import Identity
from tesazure.provision.azure.config import GroundConfig
from tesazure.provision.azure.roles import ROLE_NAMES
from tesazure.provision.azure_ground import AzureGround
from tesazure.provision.base import Outcome
from tesazure.provisioning import Request, ServicePrincipal, named
from tests.services.azure_cloud import AzureCloud
from tests.services.azure_cloud_groups import SUBSCRIPTION
from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer

RUN = "11111111-2222-3333-4444-555555555555"
OTHER_RUN = "22222222-2222-3333-4444-555555555555"
INSTALLATION = "an-installation"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/tesazure"
KEYED = Request(
    subscription_id=SUBSCRIPTION, service_principal=ServicePrincipal(CLIENT, SECRET, TENANT)
)
"""In the name of a service principal; the server has no identity of its own."""
OWNED = Request(subscription_id=SUBSCRIPTION)
"""In the name of the server itself."""
NAME = named(OWNED, RUN).storage_account_name
STORAGE = f"{GROUP}/providers/Microsoft.Storage/storageAccounts/{NAME}"
BATCH = f"{GROUP}/providers/Microsoft.Batch/batchAccounts/{NAME}"
STEPS = (
    "providers",
    "resource-group",
    "storage-account",
    "containers",
    "file-share",
    "batch-account",
)
"""Those of every request, in order."""


class Subscription:
    """An empty one, but for the rights of `CLIENT`, who owns it."""

    def __init__(self, entra: EntraServer, cloud: AzureCloud) -> None:
        self.entra, self.cloud = entra, cloud
        self.told: list[str] = []

    def identity(self, client: str = CLIENT) -> Identity:
        """A server's own."""
        return Identity(
            tenant=TENANT,
            client_id=client,
            secret=self.entra.secrets[client],
            authority=self.entra.authority,
            ca_bundle=self.cloud.ca_bundle,
        )

    def config(self, **more: Any) -> GroundConfig:
        usual = GroundConfig(
            authority=self.entra.authority,
            ca_bundle=self.cloud.ca_bundle,
            arm_url=self.cloud.url,
            installation=INSTALLATION,
        )
        return msgspec.structs.replace(usual, **more)

    @contextmanager
    def ground(
        self, request: Request = KEYED, run_id: str = RUN, **config: Any
    ) -> Iterator[AzureGround]:
        """As a run sees the subscription."""
        ground = AzureGround(named(request, run_id), run_id, self.config(**config))
        try:
            yield ground
        finally:
            ground.close()

    @contextmanager
    def owned(self, request: Request = OWNED, run_id: str = RUN) -> Iterator[AzureGround]:
        """As a server with an identity sees it, in whose name all is made."""
        with self.ground(request, run_id, identity=self.identity()) as ground:
            yield ground

    def make(self, ground: AzureGround) -> dict[str, Outcome]:
        """All steps, as the Conductor has them made; what those did that did anything, by name."""
        outcomes = {}
        for step in ground.steps():
            found = step.look()
            assert found.state != "foreign", found.problem
            if found.state != "right":
                outcomes[step.name] = step.make(self.told.append, found.state == "ours")
        return outcomes

    def remove(self, ground: AzureGround) -> list[str]:
        """All of them, the last first; what stays."""
        return [step.remove() for step in reversed(ground.steps())]

    def states(self, ground: AzureGround) -> dict[str, str]:
        """What is found where each step makes something."""
        return {step.name: step.look().state for step in ground.steps()}


def roles_of(azure: Subscription, client: str) -> set[tuple[str, str]]:
    """Role and last part of its scope, of all roles of a principal."""
    kept = azure.cloud.state.resources.values()
    held = [each.properties for each in kept if each.type.endswith("/roleAssignments")]
    return {
        (
            ROLE_NAMES.get(each["roleDefinitionId"].rpartition("/")[2], "?"),
            each["scope"].rpartition("/")[2],
        )
        for each in held
        if each["principalId"] == client
    }


@contextmanager
def subscription(directory: Path) -> Iterator[Subscription]:
    """A new one."""
    with EntraServer(directory / "entra") as entra, AzureCloud(directory / "cloud", entra) as cloud:
        yield Subscription(entra, cloud)
