"""An Azure subscription as a Ground: the steps from nothing to a Batch backend."""

from __future__ import annotations

from collections.abc import Sequence

from tesazure.errors import FieldError
from tesazure.provision.azure import batch, registry, storage
from tesazure.provision.azure.checks import Checks
from tesazure.provision.azure.clients import Clients
from tesazure.provision.azure.config import GroundConfig, Place
from tesazure.provision.azure.costs import idle_cost
from tesazure.provision.azure.group import Group, Providers
from tesazure.provision.azure.roles import Roles
from tesazure.provision.base import Ground, GroundOf, Step
from tesazure.provisioning import Failure, IdleCost, ProvisionFailed, Request
from tesazure.settings import Settings, identity_of
from tesazure.storage.registry import is_installed


class AzureGround:
    """See `base.Ground`. `request` has all its names."""

    def __init__(self, request: Request, run_id: str, config: GroundConfig) -> None:
        self._place = Place(request, run_id, config)
        self._clients = Clients(self._place)

    def problems(self) -> list[FieldError]:
        """What is wrong before anything is made, also what is in the way of a step."""
        problems = list(Checks(self._place, self._clients).problems())
        if not problems:
            looks = [step.look() for step in self.steps() if step.name in _NAMED]
            problems = [look.problem for look in looks if look.problem is not None]
        return problems

    def idle_cost(self) -> Sequence[IdleCost]:
        """By list price."""
        return idle_cost(self._place.request)

    def steps(self) -> Sequence[Step]:
        """In order. Without keys, roles take their place."""
        place, clients = self._place, self._clients
        steps: list[Step] = [
            Providers(place, clients),
            Group(place, clients),
            storage.Account(place, clients),
            storage.Containers(place, clients),
            storage.Share(place, clients),
            batch.Account(place, clients),
        ]
        if place.uses_identity:
            steps.append(Roles(place, clients))
        if place.request.registry:
            steps.append(registry.Registry(place, clients))
        return steps

    def values(self) -> dict[str, str]:
        """The settings that lead to what was made."""
        place, clients = self._place, self._clients
        return {
            **storage.values_of(place, clients),
            **batch.values_of(place, clients),
            **registry.values_of(place, clients),
        }

    def close(self) -> None:
        """Close connections."""
        self._clients.close()


_PACKAGES = (
    "azure.identity",
    "azure.mgmt.authorization",
    "azure.mgmt.batch",
    "azure.mgmt.containerregistry",
    "azure.mgmt.resource.resources",
    "azure.mgmt.storage",
)
_NAMED = (storage.Account.name, batch.Account.name)
"""Steps whose resource somebody else may have under the same name."""


def azure_grounds(settings: Settings, installation: str) -> GroundOf:
    """Grounds in the cloud that the settings name; `installation` is the store's identity. Making
    one raises ProvisionFailed without the packages of the extra `provision`."""
    config = GroundConfig(
        identity=identity_of(settings),
        authority=settings.azure_authority_host.rstrip("/"),
        ca_bundle=settings.ca_bundle,
        arm_url=settings.arm_endpoint.rstrip("/"),
        storage_suffix=settings.storage_endpoint_suffix,
        installation=installation,
        container=settings.batch_storage_container,
        cromwell_container=settings.cromwell_storage_container_name or "cromwell",
    )

    def ground_of(request: Request, run_id: str) -> Ground:
        if not all(map(is_installed, _PACKAGES)):
            text = "this server lacks the packages that Azure is asked with"
            raise ProvisionFailed(
                Failure("MissingPackages", text, "pip install 'tesazure[provision]'")
            )
        return AzureGround(request, run_id, config)

    return ground_of
