"""The first steps: Azure's resource providers, and the resource group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tesazure.provision.azure.clients import (
    Clients,
    Refused,
    deleted,
    explained,
    found,
    pauses,
    too_late,
)
from tesazure.provision.azure.config import UNTAGGED, Place
from tesazure.provision.base import Found, Outcome, Tell

if TYPE_CHECKING:
    from azure.mgmt.resource.resources.models import GenericResourceExpanded, ResourceGroup


class Providers:
    """A subscription must have registered those whose resources it has ("Azure resource providers
    and types"). That lasts, and costs nothing: it is not undone."""

    name = "providers"
    title = "Resource providers"

    def __init__(self, place: Place, clients: Clients) -> None:
        self._place, self._clients = place, clients

    def look(self) -> Found:
        """Right once all are registered; as far as one may see that."""
        try:
            missing = self._missing()
        except Refused as error:
            if error.code != "AuthorizationFailed":
                raise
            # A role in the resource group alone: the account's own step will tell.
            return Found(state="right", detail="may not be seen; taken to be registered")
        if missing:
            return Found(state="missing", detail=f"not registered: {', '.join(missing)}")
        return Found(state="right", detail=f"registered: {', '.join(needed(self._place))}")

    def make(self, tell: Tell, is_ours: bool) -> Outcome:
        """Register what is missing, and wait until it is."""
        missing = self._missing()
        for namespace in missing:
            with explained():
                self._clients.resources.providers.register(namespace)
        registered = f"registered: {', '.join(needed(self._place))}"
        for _ in pauses(tell, f"{', '.join(missing)} to be registered"):
            if not (missing := self._missing()):
                return Outcome(detail=registered)
        raise too_late(f"the registration of {', '.join(missing)}")

    def remove(self) -> str:
        """Nothing: others may use them."""
        return ""

    def _missing(self) -> list[str]:
        providers = self._clients.resources.providers
        with explained():
            return [
                each
                for each in needed(self._place)
                if providers.get(each).registration_state != "Registered"
            ]


def needed(place: Place) -> list[str]:
    """The namespaces of what the request is made of."""
    registry = ["Microsoft.ContainerRegistry"] if place.request.registry else []
    return ["Microsoft.Storage", "Microsoft.Batch", *registry]


class Group:
    """The resource group. One that is there already is used as it is."""

    name = "resource-group"

    def __init__(self, place: Place, clients: Clients) -> None:
        self._place, self._clients = place, clients
        self.title = f"Resource group {place.request.resource_group}"

    def look(self) -> Found:
        """Ours by its tag; anybody's is right."""
        group = self._get()
        if group is None:
            return Found(state="missing")
        ours = self._place.made(group.tags)
        return Found(
            state="ours" if ours else "right", resource_id=str(group.id), detail=str(group.location)
        )

    def make(self, tell: Tell, is_ours: bool) -> Outcome:
        """Make it in the request's location, unless there is one."""
        group, made = self._get(), is_ours
        if group is None:
            from azure.mgmt.resource.resources.models import ResourceGroup

            request = self._place.request
            wanted = ResourceGroup(location=request.location, tags=self._place.tags)
            groups = self._clients.resources.resource_groups
            with explained():
                group = groups.create_or_update(request.resource_group, wanted)
            made = True
        return Outcome(resource_id=str(group.id), made=made, detail=str(group.location))

    def remove(self) -> str:
        """Delete it, if this run made it and nothing of others is in it."""
        group = self._get()
        if group is None:
            return ""
        if not self._place.made(group.tags):
            return UNTAGGED
        for _ in pauses(_silent, "what was deleted to be listed no more"):
            left = self._contents()
            if others := [str(each.name) for each in left if not self._place.made(each.tags)]:
                return f"it holds {', '.join(others)}"
            if not left:
                break
        name = self._place.request.resource_group
        delete = self._clients.resources.resource_groups.begin_delete
        deleted(self.title, lambda: delete(name))
        return ""

    def _get(self) -> ResourceGroup | None:
        groups = self._clients.resources.resource_groups
        return found(lambda: groups.get(self._place.request.resource_group))

    def _contents(self) -> list[GenericResourceExpanded]:
        listed = self._clients.resources.resources.list_by_resource_group
        with explained():
            return list(listed(self._place.request.resource_group))


def _silent(_: str) -> None:
    pass
