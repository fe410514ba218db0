"""The container registry, where one is asked for.

Sources: "Registries - Create", "Registries - List Credentials"; "Azure Container Registry
authentication options", admin account (Microsoft).
"""

from __future__ import annotations

from typing import Any

from tesazure.provision.azure.accounts import AccountStep
from tesazure.provision.azure.clients import Clients, deleted, explained, found, text_of, waited
from tesazure.provision.azure.config import Place
from tesazure.provision.base import Tell


class Registry(AccountStep):
    """A registry for images. One that is there already, anybody's, is used as it is. Nodes pull
    with a user and a password, so one that this run makes has its admin account on."""

    name = "registry"

    def __init__(self, place: Place, clients: Clients) -> None:
        super().__init__(place, clients, "Container registry", place.request.registry)

    def _get(self) -> Any:
        return registry_of(self._place, self._clients)

    def _problem(self, there: Any) -> None:
        return None

    def _is_right(self, there: Any) -> bool:
        return text_of(there.provisioning_state) == "Succeeded"

    def _put_right(self, there: Any, tell: Tell) -> Any:
        create = self._clients.registries.registries.begin_create
        return waited(self.title, lambda: create(*self._names, self._wanted()), tell)

    def _delete(self) -> None:
        delete = self._clients.registries.registries.begin_delete
        deleted(self.title, lambda: delete(*self._names))

    def _detail(self, there: Any) -> str:
        if there.admin_user_enabled:
            return str(there.login_server)
        return f"{there.login_server}; its admin account is off: set PRIVATE_DOCKER_REGISTRY_*"

    def _wanted(self) -> Any:
        from azure.mgmt.containerregistry import models

        return models.Registry(
            location=self._place.request.location,
            tags=self._place.tags,
            sku=models.Sku(name="Basic"),
            properties=models.RegistryProperties(admin_user_enabled=True),
        )


def registry_of(place: Place, clients: Clients) -> Any:
    """The registry of the request; None if there is none."""
    request = place.request
    get = clients.registries.registries.get
    return found(lambda: get(request.resource_group, request.registry))


def values_of(place: Place, clients: Clients) -> dict[str, str]:
    """The login with which images are pulled, where the registry has one. Raises
    ProvisionFailed."""
    request = place.request
    registry = registry_of(place, clients) if request.registry else None
    if registry is None or not registry.admin_user_enabled:
        return {}
    with explained():
        login = clients.registries.registries.list_credentials(
            request.resource_group, request.registry
        )
    return {
        "private_docker_registry_url": str(registry.login_server),
        "private_docker_registry_username": str(login.username),
        "private_docker_registry_password": str((login.passwords or [])[0].value),
    }
