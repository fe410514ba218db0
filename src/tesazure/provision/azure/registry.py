"""The container registry, where one is asked for.

Sources: "Registries - Create", "Registries - List Credentials"; "Azure Container Registry
authentication options", admin account (Microsoft).
"""

from __future__ import annotations

from typing import Any

from tesazure.provision.azure.clients import Clients, explained, found, text_of, waited
from tesazure.provision.azure.config import UNTAGGED, Place
from tesazure.provision.base import Found, Outcome, Tell


class Registry:
    """A registry for images. One that is there already is used as it is. Nodes pull with a user
    and a password, so one that this run makes has its admin account on."""

    name = "registry"

    def __init__(self, place: Place, clients: Clients) -> None:
        self._place, self._clients = place, clients
        self._names = place.request.resource_group, place.request.registry
        self.title = f"Container registry {place.request.registry}"

    def look(self) -> Found:
        """Anybody's in the resource group is right."""
        registry = registry_of(self._place, self._clients)
        if registry is None:
            return Found(state="missing")
        ours = self._place.made(registry.tags)
        return Found(
            state="ours" if ours else "right",
            resource_id=str(registry.id),
            detail=_detail(registry),
        )

    def make(self, tell: Tell, is_ours: bool) -> Outcome:
        """Make it, unless there is one."""
        registry = registry_of(self._place, self._clients)
        made = is_ours or registry is None
        if registry is None or (made and text_of(registry.provisioning_state) != "Succeeded"):
            registries = self._clients.registries.registries
            registry = waited(
                self.title, lambda: registries.begin_create(*self._names, self._wanted()), tell
            )
        return Outcome(resource_id=str(registry.id), made=made, detail=_detail(registry))

    def remove(self) -> str:
        """With all of its images."""
        registry = registry_of(self._place, self._clients)
        if registry is None:
            return ""
        if not self._place.made(registry.tags):
            return UNTAGGED
        delete = self._clients.registries.registries.begin_delete
        what = f"{self.title} to be deleted"
        found(lambda: waited(what, lambda: delete(*self._names), lambda _: None))
        return ""

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


def _detail(registry: Any) -> str:
    if registry.admin_user_enabled:
        return str(registry.login_server)
    return f"{registry.login_server}; its admin account is off: set PRIVATE_DOCKER_REGISTRY_*"
