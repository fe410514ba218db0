"""Batch accounts of the stand-in for Azure. Each is a `BatchServer`, which really runs its tasks.

Sources: "Batch Account - Create", "Location - Get Quotas", "Location - Check Name Availability",
"Batch service quotas and limits"; the 2024-02-01 definition.
"""

from __future__ import annotations

import base64
import re
import secrets
import uuid
from collections.abc import Callable
from typing import Any

from tests.services.azure_cloud_groups import Groups
from tests.services.azure_cloud_rights import Rights
from tests.services.azure_cloud_state import (
    Call,
    Refused,
    Reply,
    Resource,
    Route,
    State,
    not_found,
)
from tests.services.batch_server import BatchServer

KIND = "Microsoft.Batch/batchAccounts"
_NAME = re.compile(r"[a-z0-9]{3,24}")
_BOTH = ["SharedKey", "AAD", "TaskAuthenticationToken"]


class BatchAccounts:
    """All of them. `open_server` begins to serve an account: name, keys, id."""

    def __init__(
        self,
        state: State,
        groups: Groups,
        rights: Rights,
        tenant: str,
        open_server: Callable[[str, list[str], str], BatchServer],
    ) -> None:
        self._state, self._groups, self._rights = state, groups, rights
        self._tenant, self._open_server = tenant, open_server
        self.quota = 3
        """Accounts of a subscription in a location."""
        self.taken: set[tuple[str, str]] = set()
        """Location and name of accounts of other subscriptions."""
        self.core_quotas: dict[str, Any] = {
            "dedicatedCoreQuota": 100,
            "lowPriorityCoreQuota": 50,
            "dedicatedCoreQuotaPerVMFamily": [{"name": "standardDADSv5Family", "coreQuota": 20}],
            "dedicatedCoreQuotaPerVMFamilyEnforced": True,
            "poolQuota": 40,
            "activeJobAndJobScheduleQuota": 60,
        }
        """What new accounts may have."""
        self.servers: dict[str, BatchServer] = {}
        """Account name -> the service that it opened."""
        self._keys: dict[str, list[str]] = {}

    def routes(self) -> list[Route]:
        """What clients ask for."""
        top = "/subscriptions/{subscription}/providers/Microsoft.Batch"
        here = f"{top}/locations/{{location}}"
        group = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Batch"
        one, right = f"{group}/batchAccounts/{{account}}", KIND
        places = "Microsoft.Batch/locations"
        return [
            Route(
                "GET", f"{here}/quotas", "Location_GetQuotas", f"{places}/quotas/read", self._quotas
            ),
            Route(
                "POST",
                f"{here}/checkNameAvailability",
                "Location_CheckNameAvailability",
                f"{places}/checkNameAvailability/action",
                self._check_name,
            ),
            Route("GET", f"{top}/batchAccounts", "BatchAccount_List", f"{right}/read", self._list),
            Route(
                "GET",
                f"{group}/batchAccounts",
                "BatchAccount_ListByResourceGroup",
                f"{right}/read",
                self._list,
            ),
            Route("PUT", one, "BatchAccount_Create", f"{right}/write", self._put),
            Route("GET", one, "BatchAccount_Get", f"{right}/read", self._get),
            Route("PATCH", one, "BatchAccount_Update", f"{right}/write", self._patch),
            Route("DELETE", one, "BatchAccount_Delete", f"{right}/delete", self._delete),
            Route(
                "POST",
                f"{one}/listKeys",
                "BatchAccount_GetKeys",
                f"{right}/listkeys/action",
                self._list_keys,
            ),
            Route(
                "POST",
                f"{one}/syncAutoStorageKeys",
                "BatchAccount_SynchronizeAutoStorageKeys",
                f"{right}/syncAutoStorageKeys/action",
                self._sync,
            ),
        ]

    # ------------------------------------------------------------------ what others ask for

    def add(self, group: str, name: str, given: dict[str, Any]) -> Resource:
        """An account, in a group by id, and its server. Its document is as clients give it."""
        location = given["location"]
        made = Resource(f"{group}/providers/{KIND}/{name}", KIND, {"location": location})
        self._keys[name] = [_new_key(), _new_key()]
        server = self.servers[name] = self._open_server(name, self._keys[name], made.id)
        made.properties.update(
            self.core_quotas,
            accountEndpoint=server.url.partition("://")[2],
            allowedAuthenticationModes=_BOTH,
            encryption={"keySource": "Microsoft.Batch"},
            nodeManagementEndpoint=f"{name}.{location}.service.batch.azure.com",
            poolAllocationMode="BatchService",
            privateEndpointConnections=[],
            provisioningState="Succeeded",
            publicNetworkAccess="Enabled",
        )
        self._set(made, given)
        self._state.put(made)
        return made

    def found(self, call: Call) -> Resource:
        """The account that a request names. Raises Refused."""
        found = self._state.get(f"{call.group_path}/providers/{KIND}/{call['account']}")
        if found is None:
            raise not_found(KIND, call["account"], call["group"])
        return found

    def end(self, resource: Resource) -> None:
        """An account goes, with its pools and jobs."""
        self._keys.pop(resource.name, None)
        server = self.servers.pop(resource.name, None)
        if server is not None:
            server.__exit__(None, None, None)

    # ------------------------------------------------------------------ what clients ask for

    def _accounts(self) -> list[Resource]:
        return self._state.of_type(KIND)

    def _quotas(self, call: Call) -> Reply:
        self._groups.check_location(KIND, call["location"], "location")
        return Reply(200, {"accountQuota": self.quota})

    def _is_taken(self, location: str, name: str) -> bool:
        own = any(e.name == name and e.body["location"] == location for e in self._accounts())
        return own or (location, name) in self.taken

    def _check_name(self, call: Call) -> Reply:
        name, location = call.body["name"], call["location"].lower()
        self._groups.check_location(KIND, location, name)
        if not _NAME.fullmatch(name):
            said = (
                "The specified account name is not valid. It must be 3 to 24 characters of"
                " lower-case letters and digits."
            )
            return Reply(200, {"nameAvailable": False, "reason": "Invalid", "message": said})
        if self._is_taken(location, name):
            said = f"An account named '{name}' already exists in region '{location}'."
            return Reply(200, {"nameAvailable": False, "reason": "AlreadyExists", "message": said})
        return Reply(200, {"nameAvailable": True})

    def _list(self, call: Call) -> Reply:
        return self._state.listed(call, KIND)

    def _put(self, call: Call) -> Reply:
        name, given = call["account"], call.body
        properties = given.get("properties") or {}
        if not _NAME.fullmatch(name):
            said = "The specified account name is not valid."
            raise Refused(400, "InvalidAccountName", said)
        location = self._groups.check_location(KIND, given["location"], name)
        self._check_properties(call, properties, location)
        found = self._state.get(call.request.path)
        if found is not None:
            return self._put_again(found, given, location)
        if self._is_taken(location, name):
            said = f"An account named '{name}' already exists in region '{location}'."
            raise Refused(409, "AccountAlreadyExists", said)
        if sum(each.body["location"] == location for each in self._accounts()) >= self.quota:
            said = (
                "The regional account quota for the specified subscription has been reached."
                f" Region: {location}, quota: {self.quota}."
            )
            raise Refused(409, "SubscriptionQuotaExceeded", said)
        made = self.add(call.group_path, name, {**given, "location": location})
        return self._state.begin_creation(made, _operations(made))

    def _put_again(self, found: Resource, given: dict[str, Any], location: str) -> Reply:
        if found.body["location"] != location:
            said = f"The resource '{found.name}' already exists in '{found.body['location']}'."
            raise Refused(409, "InvalidResourceLocation", said)
        mode = (given.get("properties") or {}).get("poolAllocationMode")
        if mode not in (None, found.properties["poolAllocationMode"]):
            said = "The pool allocation mode of an account cannot be changed."
            raise Refused(409, "AccountPropertyCannotBeUpdated", said)
        self._set(found, given)
        found.properties["provisioningState"] = "Succeeded"
        return Reply(200, found.told())

    def _check_properties(self, call: Call, properties: dict[str, Any], location: str) -> None:
        storage = (properties.get("autoStorage") or {}).get("storageAccountId")
        if storage is not None:
            found = self._state.get(storage)
            if found is None:
                said = f"The specified auto storage account '{storage}' was not found."
                raise Refused(400, "InvalidAutoStorageAccount", said)
            self._rights.check(
                call.caller, "Microsoft.Storage/storageAccounts/listkeys/action", storage
            )
            if found.body["location"] != location:
                said = "The auto storage account is in another region than the Batch account."
                raise Refused(400, "InvalidAutoStorageAccount", said)
        in_subscription = properties.get("poolAllocationMode") == "UserSubscription"
        if in_subscription and not properties.get("keyVaultReference"):
            said = "A key vault reference must be specified for this pool allocation mode."
            raise Refused(400, "InvalidRequestBody", said)

    def _set(self, resource: Resource, given: dict[str, Any]) -> None:
        if "tags" in given:
            resource.body["tags"] = given["tags"]
        identity = given.get("identity")
        if identity is not None:
            kept = resource.body.get("identity", {})
            resource.body["identity"] = dict(identity)
            if identity["type"] == "SystemAssigned":
                own = kept.get("principalId") or self._rights.new_principal()
                resource.body["identity"] |= {"principalId": own, "tenantId": self._tenant}
            for each in (identity.get("userAssignedIdentities") or {}).values():
                each.update(principalId=self._rights.new_principal(), clientId=str(uuid.uuid4()))
        resource.body.setdefault("identity", {"type": "None"})
        given_properties = {
            k: v for k, v in (given.get("properties") or {}).items() if v is not None
        }
        resource.properties.update(given_properties)
        if "autoStorage" in given_properties:
            synced = "2026-01-01T00:00:00Z"
            resource.properties["autoStorage"] = {
                "authenticationMode": "StorageKeys",
                **given_properties["autoStorage"],
                "lastKeySync": synced,
            }
        server = self.servers[resource.name]
        modes = resource.properties["allowedAuthenticationModes"]
        server.doorkeeper.forbids_keys = "SharedKey" not in modes

    def _get(self, call: Call) -> Reply:
        return Reply(200, self.found(call).told())

    def _patch(self, call: Call) -> Reply:
        found = self.found(call)
        self._check_properties(call, call.body.get("properties") or {}, found.body["location"])
        self._set(found, call.body)
        return Reply(200, found.told())

    def _delete(self, call: Call) -> Reply:
        found = self._state.get(f"{call.group_path}/providers/{KIND}/{call['account']}")
        if found is None:
            return Reply(204)
        found.properties["provisioningState"] = "Deleting"

        def finish() -> None:
            self.end(found)
            self._state.remove(found.id)

        return self._state.begin(self._state.pace.deletion_s, found.id, _operations(found), finish)

    def _list_keys(self, call: Call) -> Reply:
        name = self.found(call).name
        primary, secondary = self._keys[name]
        keys = {"accountName": name, "primary": primary, "secondary": secondary}
        return Reply(200, keys)

    def _sync(self, call: Call) -> Reply:
        if "autoStorage" not in self.found(call).properties:
            raise Refused(409, "NoAutoStorageAccount", "The account has no auto storage account.")
        return Reply(204)


def _operations(account: Resource) -> str:
    """Where clients ask how far what an account waits for is."""
    subscription, location = account.id.split("/")[2], account.body["location"]
    top = f"/subscriptions/{subscription}/providers/Microsoft.Batch/locations"
    return f"{top}/{location}/accountOperationResults"


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(64)).decode()
