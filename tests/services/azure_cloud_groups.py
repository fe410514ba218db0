"""Subscriptions, locations, providers, resource groups, tags, and resources in general.

Sources: "Subscriptions - List Locations", "Providers - Register", "Resource Groups - Create Or
Update", "Resource Groups - Delete", "Resources - List", "Tags - Create Or Update At Scope",
"Resolve errors for resource provider registration", "Naming rules and restrictions".
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from tests.services.azure_cloud_rights import Rights
from tests.services.azure_cloud_state import Call, Refused, Reply, Resource, Route, State, no_group

SUBSCRIPTION = "99999999-2222-3333-4444-555555555555"
REGION = "eastus"
LOCATIONS = {
    "eastus": "East US",
    "westeurope": "West Europe",
    "westus2": "West US 2",
    "brazilsoutheast": "Brazil Southeast",
}
"""Name -> display name."""
TYPES: dict[str, tuple[str, ...]] = {
    "Microsoft.Storage": ("storageAccounts", "checkNameAvailability", "locations"),
    "Microsoft.Batch": ("batchAccounts", "locations", "locations/quotas"),
    "Microsoft.ContainerRegistry": ("registries", "checkNameAvailability"),
    "Microsoft.Network": ("virtualNetworks", "virtualNetworks/subnets"),
    "Microsoft.Compute": ("virtualMachines", "locations/usages"),
    "Microsoft.KeyVault": ("vaults",),
    "Microsoft.Authorization": ("roleAssignments", "roleDefinitions"),
    "Microsoft.Resources": ("resourceGroups", "subscriptions", "tags"),
}
"""Namespace -> resource types."""
_ALWAYS = {"Microsoft.Authorization", "Microsoft.Resources"}
_GROUP = "Microsoft.Resources/resourceGroups"
_GROUP_NAME = re.compile(r"[\w().-]{0,89}[\w()-]")
_RIGHT = "Microsoft.Resources/subscriptions"


class Groups:
    """Of all subscriptions. `end` is called with each resource that goes with its group."""

    def __init__(self, state: State, rights: Rights, end: Callable[[Resource], None]) -> None:
        self._state, self._rights, self._end = state, rights, end
        self.subscriptions = {SUBSCRIPTION: "Lab"}
        """Id -> display name."""
        self.not_offered: set[tuple[str, str]] = {("Microsoft.Batch", "brazilsoutheast")}
        """Namespaces that locations lack."""
        self._registered: dict[tuple[str, str], float] = {}

    def routes(self) -> list[Route]:
        """What clients ask for."""
        one = "/subscriptions/{subscription}"
        providers, group = f"{one}/providers", f"{one}/resourcegroups/{{group}}"
        groups = f"{_RIGHT}/resourceGroups"
        tags = "{scope}/providers/Microsoft.Resources/tags/default"
        seen = f"{_RIGHT}/providers/read"
        return [
            Route("GET", "/subscriptions", "Subscriptions_List", "", self._subscriptions),
            Route("GET", one, "Subscriptions_Get", f"{_RIGHT}/read", self._subscription),
            Route(
                "GET",
                f"{one}/locations",
                "Subscriptions_ListLocations",
                f"{_RIGHT}/locations/read",
                self._locations,
            ),
            Route("GET", providers, "Providers_List", seen, self._providers),
            Route("GET", f"{providers}/{{namespace}}", "Providers_Get", seen, self._provider),
            Route(
                "POST",
                f"{providers}/{{namespace}}/register",
                "Providers_Register",
                "{namespace}/register/action",
                self._register,
            ),
            Route("GET", f"{one}/resourcegroups", "ResourceGroups_List", "", self._list),
            Route("PUT", group, "ResourceGroups_CreateOrUpdate", f"{groups}/write", self._put),
            Route("GET", group, "ResourceGroups_Get", f"{groups}/read", self._get),
            Route("HEAD", group, "ResourceGroups_CheckExistence", f"{groups}/read", self._head),
            Route("PATCH", group, "ResourceGroups_Update", f"{groups}/write", self._patch),
            Route("DELETE", group, "ResourceGroups_Delete", f"{groups}/delete", self._delete),
            Route("GET", f"{one}/resources", "Resources_List", "", self._resources),
            Route(
                "GET",
                f"{group}/resources",
                "Resources_ListByResourceGroup",
                f"{groups}/resources/read",
                self._resources,
            ),
            Route("GET", tags, "Tags_GetAtScope", "Microsoft.Resources/tags/read", self._tags),
            Route(
                "PATCH",
                tags,
                "Tags_UpdateAtScope",
                "Microsoft.Resources/tags/write",
                self._patch_tags,
            ),
        ]

    # ------------------------------------------------------------------ what others ask for

    def register(self, namespace: str, subscription: str = SUBSCRIPTION) -> None:
        """As if it had been registered for long."""
        self._registered[subscription.lower(), namespace.lower()] = 0.0

    def forget(self, *namespaces: str) -> None:
        """The subscription uses these no more."""
        for each in namespaces:
            self._registered.pop((SUBSCRIPTION, each.lower()), None)

    def state_of(self, namespace: str, subscription: str = SUBSCRIPTION) -> str:
        """NotRegistered, Registering or Registered."""
        if namespace in _ALWAYS:
            return "Registered"
        ready = self._registered.get((subscription.lower(), namespace.lower()))
        if ready is None:
            return "NotRegistered"
        return "Registered" if time.monotonic() >= ready else "Registering"

    def check_registered(self, namespace: str, subscription: str) -> None:
        """Raises Refused for a namespace that the subscription does not use yet."""
        if self.state_of(namespace, subscription) != "Registered":
            said = (
                f"The subscription is not registered to use namespace '{namespace}'. See"
                " https://aka.ms/rps-not-found for how to register subscriptions."
            )
            target = {"code": "MissingSubscriptionRegistration", "message": said}
            details = [target | {"target": namespace}]
            raise Refused(409, "MissingSubscriptionRegistration", said, details=details)

    def check_location(self, kind: str, location: str, name: str) -> str:
        """The location's name. Raises Refused for one where a type is not."""
        found = location.lower().replace(" ", "")
        namespace = kind.partition("/")[0]
        if found not in LOCATIONS or (namespace, found) in self.not_offered:
            offered = [each for each in LOCATIONS if (namespace, each) not in self.not_offered]
            said = (
                f"The provided location '{location}' is not available for resource type '{kind}'."
                f" List of available regions for the resource type is '{','.join(offered)}'."
            )
            raise Refused(400, "LocationNotAvailableForResourceType", said, target=name)
        return found

    def group(self, call: Call) -> Resource:
        """The group of a call. Raises Refused."""
        found = self._state.get(call.group_path)
        if found is None:
            raise no_group(call["group"])
        return found

    # ------------------------------------------------------------------ what clients ask for

    def _subscriptions(self, _: Call) -> Reply:
        return Reply(200, {"value": [self._told(each) for each in self.subscriptions]})

    def _subscription(self, call: Call) -> Reply:
        return Reply(200, self._told(call["subscription"]))

    def _told(self, id_: str) -> dict[str, Any]:
        return {
            "id": f"/subscriptions/{id_}",
            "subscriptionId": id_,
            "displayName": self.subscriptions[id_],
            "state": "Enabled",
        }

    def _locations(self, call: Call) -> Reply:
        start = f"/subscriptions/{call['subscription']}/locations"
        value = [
            {
                "id": f"{start}/{name}",
                "name": name,
                "displayName": shown,
                "regionalDisplayName": shown,
                "type": "Region",
                "metadata": {"regionType": "Physical", "regionCategory": "Recommended"},
            }
            for name, shown in LOCATIONS.items()
        ]
        return Reply(200, {"value": value})

    def _providers(self, call: Call) -> Reply:
        return Reply(200, {"value": [self._provider_told(each, call) for each in TYPES]})

    def _provider(self, call: Call) -> Reply:
        return Reply(200, self._provider_told(self._namespace(call), call))

    def _register(self, call: Call) -> Reply:
        namespace = self._namespace(call)
        ready = time.monotonic() + self._state.pace.registration_s
        key = call["subscription"].lower(), namespace.lower()
        self._registered.setdefault(key, ready)
        return Reply(200, self._provider_told(namespace, call))

    def _namespace(self, call: Call) -> str:
        for each in TYPES:
            if each.lower() == call["namespace"].lower():
                return each
        said = f"The resource namespace '{call['namespace']}' is invalid."
        raise Refused(404, "InvalidResourceNamespace", said)

    def _provider_told(self, namespace: str, call: Call) -> dict[str, Any]:
        shown = [v for k, v in LOCATIONS.items() if (namespace, k) not in self.not_offered]
        return {
            "id": f"/subscriptions/{call['subscription']}/providers/{namespace}",
            "namespace": namespace,
            "registrationState": self.state_of(namespace, call["subscription"]),
            "registrationPolicy": "RegistrationRequired",
            "resourceTypes": [
                {
                    "resourceType": each,
                    "locations": shown,
                    "apiVersions": [],
                    "capabilities": "None",
                }
                for each in TYPES[namespace]
            ],
        }

    def _list(self, call: Call) -> Reply:
        start = f"/subscriptions/{call['subscription']}/resourcegroups"
        found = [
            each.told()
            for each in self._state.below(f"/subscriptions/{call['subscription']}")
            if each.id.lower().startswith(start.lower())
            and each.type == _GROUP
            and self._is_seen(call, each)
        ]
        return Reply(200, {"value": _filtered(call, found)})

    def _is_seen(self, call: Call, resource: Resource) -> bool:
        """Lists show what the caller may read, and refuse nobody."""
        kind = f"{_RIGHT}/resourceGroups" if resource.type == _GROUP else resource.type
        return self._rights.may(call.caller, f"{kind}/read", resource.id)

    def _put(self, call: Call) -> Reply:
        name, given = call["group"], call.body
        if not _GROUP_NAME.fullmatch(name):
            said = (
                f"The provided resource group name '{name}' has these invalid characters or is too"
                " long. The name can only be a letter, digit, '-', '.', '(', ')' or '_'."
            )
            raise Refused(400, "InvalidResourceGroup", said)
        location = given["location"].lower().replace(" ", "")
        if location not in LOCATIONS:
            said = (
                f"The provided location '{given['location']}' is not available for resource group."
                f" List of available regions is '{','.join(LOCATIONS)}'."
            )
            raise Refused(400, "LocationNotAvailableForResourceGroup", said)
        found = self._state.get(call.group_path)
        if found is not None:
            self._check_alive(found)
            own = found.body["location"]
            if own != location:
                said = (
                    f"Invalid resource group location '{location}'. The Resource group already"
                    f" exists in location '{own}'."
                )
                raise Refused(409, "InvalidResourceGroupLocation", said)
            # A PUT replaces: tags that it does not name are gone.
            found.body["tags"] = given.get("tags", {})
            return Reply(200, found.told())
        body = {"location": location, "tags": given.get("tags", {})}
        made = Resource(call.group_path, _GROUP, body)
        made.properties["provisioningState"] = "Succeeded"
        self._state.put(made)
        return Reply(201, made.told())

    def _get(self, call: Call) -> Reply:
        return Reply(200, self.group(call).told())

    def _head(self, call: Call) -> Reply:
        return Reply(204 if self._state.get(call.group_path) else 404)

    def _patch(self, call: Call) -> Reply:
        found = self.group(call)
        self._check_alive(found)
        if "tags" in call.body:
            found.body["tags"] = call.body["tags"]
        return Reply(200, found.told())

    def _check_alive(self, group: Resource) -> None:
        if group.properties["provisioningState"] == "Deleting":
            said = (
                f"The resource group '{group.name}' is in deprovisioning state and cannot perform"
                " this operation."
            )
            raise Refused(409, "ResourceGroupBeingDeleted", said)

    def check_alive(self, call: Call) -> None:
        """Raises Refused when the group of a call is not there, or going."""
        self._check_alive(self.group(call))

    def _delete(self, call: Call) -> Reply:
        found = self.group(call)
        found.properties["provisioningState"] = "Deleting"

        def finish() -> None:
            for each in [*self._state.below(found.id)]:
                self._end(each)
            self._state.remove(found.id)

        where = f"/subscriptions/{call['subscription']}/operationresults"
        return self._state.begin(self._state.pace.deletion_s, found.id, where, finish)

    def _resources(self, call: Call) -> Reply:
        start = call.group_path if "group" in call.ids else f"/subscriptions/{call['subscription']}"
        if "group" in call.ids:
            self.group(call)
        kept = ("id", "name", "type", "location", "tags", "kind", "sku", "identity")
        found = []
        for each in self._state.below(start):
            # Extension resources and children that are not tracked are not listed.
            if "location" not in each.body or each.type == _GROUP or not self._is_seen(call, each):
                continue
            found.append({key: value for key, value in each.told().items() if key in kept})
        return Reply(200, {"value": _filtered(call, found)})

    def _tagged(self, call: Call) -> Resource:
        found = self._state.get(call["scope"])
        if found is None:
            raise Refused(404, "ResourceNotFound", f"'{call['scope']}' was not found.")
        return found

    def _tags(self, call: Call) -> Reply:
        return self._tags_reply(call, self._tagged(call))

    def _tags_reply(self, call: Call, found: Resource) -> Reply:
        id_ = f"{call['scope']}/providers/Microsoft.Resources/tags/default"
        head = {"id": id_, "name": "default", "type": "Microsoft.Resources/tags"}
        return Reply(200, head | {"properties": {"tags": dict(found.body.get("tags") or {})}})

    def _patch_tags(self, call: Call) -> Reply:
        found = self._tagged(call)
        given = call.body["properties"].get("tags", {})
        tags = dict(found.body.get("tags") or {})
        match call.body["operation"]:
            case "Merge":
                tags |= given
            case "Replace":
                tags = dict(given)
            case "Delete":
                tags = {key: value for key, value in tags.items() if key not in given}
            case other:
                raise Refused(400, "InvalidTagsPatchOperation", f"'{other}' is not an operation.")
        found.body["tags"] = tags
        return self._tags_reply(call, found)


def _filtered(call: Call, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `$filter` leaves: by a tag, or by the type."""
    wanted = call.request.query.get("$filter", "")
    if not wanted:
        return found
    tag = re.fullmatch(r"tagName eq '([^']*)'(?: and tagValue eq '([^']*)')?", wanted)
    if tag:
        name, value = tag[1].lower(), tag[2]
        return [
            each
            for each in found
            if any(
                key.lower() == name and (value is None or value == held)
                for key, held in (each.get("tags") or {}).items()
            )
        ]
    kind = re.fullmatch(r"resourceType eq '([^']*)'", wanted)
    if kind:
        return [each for each in found if each["type"].lower() == kind[1].lower()]
    raise Refused(400, "InvalidFilterInQueryString", f"Invalid $filter '{wanted}'.")
