"""Whether who asks may do what the steps do, as its role assignments say.

Azure alone decides; conditions and deny assignments are not looked at. Sources: "Role Assignments -
List For Subscription", assignedTo; "Understand Azure role definitions" (Microsoft).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tesazure.errors import FieldError
from tesazure.provision.azure.clients import Clients, Refused, explained, found
from tesazure.provision.azure.config import Place
from tesazure.provision.azure.words import covers, is_within, right_remedy

_STORAGE = "Microsoft.Storage/storageAccounts"
_BATCH = "Microsoft.Batch/batchAccounts"
_REGISTRY = "Microsoft.ContainerRegistry/registries"
_ASSIGNMENTS = "Microsoft.Authorization/roleAssignments"

IN_GROUP = (
    "Microsoft.Resources/subscriptions/resourceGroups/read",
    f"{_STORAGE}/read",
    f"{_STORAGE}/write",
    f"{_STORAGE}/blobServices/containers/read",
    f"{_STORAGE}/blobServices/containers/write",
    f"{_STORAGE}/fileServices/shares/read",
    f"{_STORAGE}/fileServices/shares/write",
    f"{_BATCH}/read",
    f"{_BATCH}/write",
    # Azure wants it of whoever gives a Batch account its auto-storage.
    f"{_STORAGE}/listKeys/action",
)
WITH_KEYS = (f"{_BATCH}/listKeys/action",)
WITH_IDENTITY = (f"{_ASSIGNMENTS}/read", f"{_ASSIGNMENTS}/write")
WITH_REGISTRY = (
    f"{_REGISTRY}/read",
    f"{_REGISTRY}/write",
    f"{_REGISTRY}/listCredentials/action",
)
MAKE_GROUP = "Microsoft.Resources/subscriptions/resourceGroups/write"


class _Held(NamedTuple):
    scope: str
    actions: list[str]
    not_actions: list[str]


class Rights:
    """Of who asks. `known`: whether its roles could be read; if not, nothing is missing."""

    def __init__(self, place: Place, clients: Clients) -> None:
        self._place, self._clients = place, clients
        self._principal = clients.asker().id
        self._held = self._read()
        self.known = self._held is not None

    def missing(self, unregistered: Sequence[str]) -> Iterator[FieldError]:
        """One problem for each scope at which rights are missing. `unregistered`: namespaces."""
        for scope, actions in self._needed(unregistered):
            missing = [action for action in actions if not self._may(action, scope)]
            if missing:
                remedy = right_remedy(missing, scope, self._principal)
                text = f"may not do {', '.join(missing)} at {scope}: {remedy}"
                yield FieldError("service_principal", f"who asks ({self._principal}) {text}")

    def unknown(self) -> str:
        """The remedy where not even the roles may be read."""
        subscription = f"/subscriptions/{self._place.request.subscription_id}"
        identity = WITH_IDENTITY if self._place.uses_identity else ()
        return right_remedy([*IN_GROUP, *identity], subscription, self._principal)

    def _needed(self, unregistered: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        place, request = self._place, self._place.request
        at_subscription = [f"{namespace}/register/action" for namespace in unregistered]
        groups = self._clients.resources.resource_groups
        if found(lambda: groups.get(request.resource_group)) is None:
            at_subscription.append(MAKE_GROUP)
        yield f"/subscriptions/{request.subscription_id}", at_subscription
        keys = WITH_IDENTITY if place.uses_identity else WITH_KEYS
        yield place.group_id, [*IN_GROUP, *keys, *(WITH_REGISTRY if request.registry else ())]
        if place.subnet_id:
            join = "Microsoft.Network/virtualNetworks/subnets/join/action"
            yield place.subnet_id, [join, *WITH_IDENTITY]

    def _may(self, action: str, scope: str) -> bool:
        return self._held is None or any(
            is_within(scope, each.scope)
            and any(covers(pattern, action) for pattern in each.actions)
            and not any(covers(pattern, action) for pattern in each.not_actions)
            for each in self._held
        )

    def _read(self) -> list[_Held] | None:
        """From the widest scope that may be seen: of what is above it, all count."""
        for scope in (
            f"/subscriptions/{self._place.request.subscription_id}",
            self._place.group_id,
        ):
            try:
                return [held for assignment in self._assigned(scope) for held in assignment]
            except Refused as error:
                if error.code != "AuthorizationFailed" and not error.is_absent:
                    raise
        return None

    def _assigned(self, scope: str) -> Iterator[list[_Held]]:
        listed = self._clients.roles.role_assignments.list_for_scope(
            scope, filter=f"assignedTo('{self._principal}')"
        )
        with explained():
            for each in listed:
                definition = str(each.role_definition_id).rpartition("/")[2]
                yield [
                    _Held(str(each.scope), actions, not_actions)
                    for actions, not_actions in self._permissions(scope, definition)
                ]

    def _permissions(self, scope: str, definition: str) -> list[tuple[list[str], list[str]]]:
        role = self._clients.roles.role_definitions.get(scope, definition)
        return [(p.actions or [], p.not_actions or []) for p in role.permissions or ()]
