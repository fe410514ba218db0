"""Container registries of the stand-in for Azure, and what else may lie in a subscription.

Sources: "Registries - Create", "Registries - Check Name Availability", "Virtual Networks - Get",
"Resources - Get By Id". No images can be pushed to such a registry. Virtual networks and key
vaults are placed by tests.
"""

from __future__ import annotations

import re
from typing import Any

from tests.services.azure_cloud_groups import Groups
from tests.services.azure_cloud_state import (
    Call,
    Refused,
    Reply,
    Resource,
    Route,
    State,
    not_found,
)

KIND = "Microsoft.ContainerRegistry/registries"
_NAME = re.compile(r"[a-zA-Z0-9]{5,50}")
_ANY = "/subscriptions/{subscription}/resourceGroups/{group}/providers/{namespace}/{type}/{name}"
_SUBNETS = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network"


class Registries:
    """Container registries, followed by Azure-AsyncOperation; and any resource by its id."""

    def __init__(self, state: State, groups: Groups) -> None:
        self._state, self._groups = state, groups
        self.taken: set[str] = set()
        """Names that other subscriptions have."""

    def routes(self) -> list[Route]:
        """What clients ask for."""
        top = "/subscriptions/{subscription}/providers"
        group = "/subscriptions/{subscription}/resourceGroups/{group}/providers"
        one = f"{group}/{KIND}/{{name}}"
        return [
            Route(
                "POST",
                f"{top}/Microsoft.ContainerRegistry/checkNameAvailability",
                "Registries_CheckNameAvailability",
                "Microsoft.ContainerRegistry/checkNameAvailability/read",
                self._check_name,
            ),
            Route("PUT", one, "Registries_Create", f"{KIND}/write", self._put),
            Route(
                "POST",
                f"{one}/listCredentials",
                "Registries_ListCredentials",
                f"{KIND}/listCredentials/action",
                self._list_credentials,
            ),
            Route(
                "GET",
                f"{_SUBNETS}/virtualNetworks/{{name}}/subnets/{{subnet}}",
                "Subnets_Get",
                "Microsoft.Network/virtualNetworks/subnets/read",
                self._subnet,
            ),
            Route("GET", _ANY, "Resources_GetById", "{namespace}/{type}/read", self._get),
            Route(
                "DELETE", _ANY, "Resources_DeleteById", "{namespace}/{type}/delete", self._delete
            ),
        ]

    def place(self, group: str, kind: str, name: str, body: dict[str, Any]) -> str:
        """A resource that was there before; its id. `group` is the id of a resource group."""
        made = Resource(f"{group}/providers/{kind}/{name}", kind, body)
        made.properties.setdefault("provisioningState", "Succeeded")
        self._state.put(made)
        return made.id

    # ------------------------------------------------------------------ what clients ask for

    def _check_name(self, call: Call) -> Reply:
        name = call.body["name"]
        if not _NAME.fullmatch(name):
            said = "The specified registry name is invalid."
            return Reply(200, {"nameAvailable": False, "reason": "Invalid", "message": said})
        if self._is_taken(name):
            said = f"The registry {name} is already in use."
            return Reply(200, {"nameAvailable": False, "reason": "AlreadyExists", "message": said})
        return Reply(200, {"nameAvailable": True})

    def _is_taken(self, name: str) -> bool:
        own = [each.name.lower() for each in self._state.of_type(KIND)]
        return name.lower() in [*own, *(each.lower() for each in self.taken)]

    def _put(self, call: Call) -> Reply:
        name, given = call["name"], call.body
        if not _NAME.fullmatch(name):
            raise Refused(400, "InvalidResourceName", f"The registry name '{name}' is invalid.")
        location = self._groups.check_location(KIND, given["location"], name)
        found = self._state.get(call.request.path)
        if found is not None:
            found.body["tags"] = given.get("tags", {})
            found.body["sku"] = {"name": given["sku"]["name"], "tier": given["sku"]["name"]}
            found.properties.update(given.get("properties") or {})
            found.properties["provisioningState"] = "Succeeded"
            return Reply(200, found.told())
        if self._is_taken(name):
            said = f"The registry {name} is already in use."
            raise Refused(409, "AlreadyInUse", said)
        sku = given["sku"]["name"]
        body = {"location": location, "tags": given.get("tags", {})}
        body |= {"sku": {"name": sku, "tier": sku}}
        made = Resource(f"{call.group_path}/providers/{KIND}/{name}", KIND, body)
        made.properties.update(adminUserEnabled=False, loginServer=f"{name.lower()}.azurecr.io")
        made.properties.update(given.get("properties") or {})
        where = f"{made.id}/operationStatuses"
        return self._state.begin_creation(made, where, style="async")

    def _list_credentials(self, call: Call) -> Reply:
        found = self._state.get(call.request.path.rpartition("/")[0])
        if found is None:
            raise not_found(KIND, call["name"], call["group"])
        if not found.properties["adminUserEnabled"]:
            said = "Admin user has not been enabled for this registry."
            raise Refused(400, "UnAuthorizedForCredentialOperations", said)
        passwords = [
            {"name": name, "value": f"{found.name}-{name}"} for name in ("password", "password2")
        ]
        return Reply(200, {"username": found.name, "passwords": passwords})

    def _subnet(self, call: Call) -> Reply:
        net = f"{call.group_path}/providers/Microsoft.Network/virtualNetworks/{call['name']}"
        found = self._state.get(net)
        if found is None:
            raise not_found("Microsoft.Network/virtualNetworks", call["name"], call["group"])
        for each in found.properties.get("subnets", []):
            if each["name"].lower() == call["subnet"].lower():
                told = {"id": f"{net}/subnets/{each['name']}", "name": each["name"]}
                return Reply(200, told | {"properties": each.get("properties", {})})
        said = f"Resource {net}/subnets/{call['subnet']} not found."
        raise Refused(404, "NotFound", said)

    def _found(self, call: Call) -> Resource:
        self._groups.group(call)
        found = self._state.get(call.request.path)
        if found is None:
            raise not_found(f"{call['namespace']}/{call['type']}", call["name"], call["group"])
        return found

    def _get(self, call: Call) -> Reply:
        return Reply(200, self._found(call).told())

    def _delete(self, call: Call) -> Reply:
        found = self._state.get(call.request.path)
        if found is None:
            return Reply(204)
        found.properties["provisioningState"] = "Deleting"
        where = f"/subscriptions/{call['subscription']}/operationresults"

        def finish() -> None:
            self._state.remove(found.id)

        return self._state.begin(self._state.pace.deletion_s, found.id, where, finish)
