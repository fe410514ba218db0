"""Storage accounts of the stand-in for Azure: accounts, keys, containers, shares.

Sources: "Storage Accounts - Create", "Storage Accounts - Check Name Availability", "Blob Containers
- Create", "File Shares - Create", "Skus - List"; the 2023-05-01 definition. An account's Blob
service is an Azurite behind a gate, see `storage_gate`.
"""

from __future__ import annotations

import base64
import datetime as dt
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from tests.services.azure_cloud_groups import LOCATIONS, SUBSCRIPTION, Groups
from tests.services.azure_cloud_state import (
    Call,
    Refused,
    Reply,
    Resource,
    Route,
    State,
    not_found,
)
from tests.services.batch_files import Failed
from tests.services.storage_gate import StorageGate

KIND = "Microsoft.Storage/storageAccounts"
SKUS = ("Standard_LRS", "Standard_GRS", "Standard_RAGRS", "Standard_ZRS", "Premium_LRS")
_NAME = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*|\$root")
_DEFAULTS = {
    "allowBlobPublicAccess": False,
    "minimumTlsVersion": "TLS1_0",
    "supportsHttpsTrafficOnly": True,
    "accessTier": "Hot",
}


class StorageAccounts:
    """All of them. `open_gate` begins to serve an account's blobs."""

    def __init__(
        self, state: State, groups: Groups, open_gate: Callable[[Resource, list[str]], StorageGate]
    ) -> None:
        self._state, self._groups, self._open_gate = state, groups, open_gate
        self.quota = 250
        """Accounts of a subscription in a location."""
        self.taken: set[str] = set()
        """Names that other subscriptions have."""
        self.restricted: dict[str, str] = {}
        """Location -> a SKU that this subscription may not have there."""
        self.gates: dict[str, StorageGate] = {}
        """Account name -> its Blob service."""
        self._keys: dict[str, list[str]] = {}

    def routes(self) -> list[Route]:
        """What clients ask for."""
        top = "/subscriptions/{subscription}/providers/Microsoft.Storage"
        group = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Storage"
        one = f"{group}/storageAccounts/{{account}}"
        right = KIND
        routes = [
            Route("GET", f"{top}/skus", "Skus_List", "Microsoft.Storage/skus/read", self._skus),
            Route(
                "GET",
                f"{top}/locations/{{location}}/usages",
                "Usages_ListByLocation",
                "Microsoft.Storage/locations/usages/read",
                self._usages,
            ),
            Route(
                "POST",
                f"{top}/checkNameAvailability",
                "StorageAccounts_CheckNameAvailability",
                "Microsoft.Storage/checknameavailability/read",
                self._check_name,
            ),
            Route(
                "GET", f"{top}/storageAccounts", "StorageAccounts_List", f"{right}/read", self._list
            ),
            Route(
                "GET",
                f"{group}/storageAccounts",
                "StorageAccounts_ListByResourceGroup",
                f"{right}/read",
                self._list,
            ),
            Route("PUT", one, "StorageAccounts_Create", f"{right}/write", self._put),
            Route("GET", one, "StorageAccounts_GetProperties", f"{right}/read", self._get),
            Route("PATCH", one, "StorageAccounts_Update", f"{right}/write", self._patch),
            Route("DELETE", one, "StorageAccounts_Delete", f"{right}/delete", self._delete),
            Route(
                "POST",
                f"{one}/listKeys",
                "StorageAccounts_ListKeys",
                f"{right}/listkeys/action",
                self._list_keys,
            ),
        ]
        for service, item, prefix, single in (
            ("blobServices", "containers", "BlobContainers", "BlobServices"),
            ("fileServices", "shares", "FileShares", "FileServices"),
        ):
            below = f"{one}/{service}/default"
            each = f"{below}/{item}/{{item}}"
            action = f"{right}/{service}"
            routes += [
                Route(
                    "GET",
                    below,
                    f"{single}_GetServiceProperties",
                    f"{action}/read",
                    self._get_service,
                ),
                Route(
                    "PUT",
                    below,
                    f"{single}_SetServiceProperties",
                    f"{action}/write",
                    self._put_service,
                ),
                Route(
                    "GET",
                    f"{below}/{item}",
                    f"{prefix}_List",
                    f"{action}/{item}/read",
                    self._list_items,
                ),
                Route("GET", each, f"{prefix}_Get", f"{action}/{item}/read", self._get_item),
                Route("PUT", each, f"{prefix}_Create", f"{action}/{item}/write", self._put_item),
                Route(
                    "DELETE", each, f"{prefix}_Delete", f"{action}/{item}/delete", self._delete_item
                ),
            ]
        return routes

    # ------------------------------------------------------------------ what others ask for

    def shares(self) -> set[tuple[str, str]]:
        """Account and name of every file share."""
        kind = f"{KIND}/fileServices/shares"
        found = [each.id.split("/") for each in self._state.of_type(kind)]
        return {(parts[8], parts[12]) for parts in found}

    def mount(self, mount: Mapping[str, Any]) -> str:
        """`account/share` that an azureFileShareConfiguration of a Batch pool names. Raises Failed,
        as a node does that cannot mount it: shares are mounted by an account's key."""
        name = mount["accountName"]
        share = mount["azureFileUrl"].rstrip("/").rpartition("/")[2]
        account = next((each for each in self._accounts() if each.name == name), None)
        where = "" if account is None else f"{account.id}/fileServices/default/shares/{share}"
        if account is None or self._state.get(where) is None:
            raise _unmounted(f"No such file or directory: {mount['azureFileUrl']}")
        if mount.get("accountKey") not in self._keys[name]:
            raise _unmounted(f"Permission denied: wrong key of {name}")
        if account.properties.get("allowSharedKeyAccess") is False:
            raise _unmounted(f"Permission denied: {name} takes no keys")
        return f"{name}/{share}"

    def end(self, resource: Resource) -> None:
        """An account goes."""
        self._keys.pop(resource.name, None)
        gate = self.gates.pop(resource.name, None)
        if gate is not None:
            gate.close()

    # ------------------------------------------------------------------ what clients ask for

    def _skus(self, _: Call) -> Reply:
        value = []
        for location in LOCATIONS:
            for name in SKUS:
                closed = {
                    "type": "Location",
                    "values": [location],
                    "reasonCode": "NotAvailableForSubscription",
                }
                is_closed = self.restricted.get(location) == name
                value.append(
                    {
                        "name": name,
                        "tier": name.partition("_")[0],
                        "kind": "StorageV2",
                        "resourceType": "storageAccounts",
                        "locations": [location],
                        "capabilities": [],
                        "restrictions": [closed] if is_closed else [],
                    }
                )
        return Reply(200, {"value": value})

    def _usages(self, call: Call) -> Reply:
        name = {"value": "StorageAccounts", "localizedValue": "Storage Accounts"}
        used = {"unit": "Count", "currentValue": self._count(call["location"]), "limit": self.quota}
        return Reply(200, {"value": [used | {"name": name}]})

    def _count(self, location: str) -> int:
        return sum(each.body["location"] == location for each in self._accounts())

    def _accounts(self) -> list[Resource]:
        return self._state.of_type(KIND)

    def _check_name(self, call: Call) -> Reply:
        name = call.body["name"]
        if not _NAME.fullmatch(name):
            said = (
                f"{name} is not a valid storage account name. Storage account name must be between"
                " 3 and 24 characters in length and use numbers and lower-case letters only."
            )
            reason = {"reason": "AccountNameInvalid", "message": said}
            return Reply(200, {"nameAvailable": False} | reason)
        if name in self.taken or name in self._keys:
            said = f"The storage account named {name} is already taken."
            reason = {"reason": "AlreadyExists", "message": said}
            return Reply(200, {"nameAvailable": False} | reason)
        return Reply(200, {"nameAvailable": True})

    def _list(self, call: Call) -> Reply:
        return self._state.listed(call, KIND)

    def _put(self, call: Call) -> Reply:
        name, given = call["account"], call.body
        if not _NAME.fullmatch(name):
            said = (
                f"{name} is not a valid storage account name. Storage account name must be between"
                " 3 and 24 characters in length and use numbers and lower-case letters only."
            )
            raise Refused(400, "AccountNameInvalid", said)
        location = self._groups.check_location(KIND, given["location"], name)
        sku = given["sku"]["name"]
        if sku not in SKUS:
            said = f"Values for request parameters are invalid: sku. {sku}"
            raise Refused(400, "InvalidValuesForRequestParameters", said)
        if self.restricted.get(location) == sku:
            said = f"The sku '{sku}' is not available in location '{location}' for subscription."
            raise Refused(409, "SkuNotAvailable", said)
        found = self._state.get(call.request.path)
        if found is not None:
            return self._put_again(found, given, location)
        if name in self._keys:
            said = f"The account {name} is already in another resource group in this subscription."
            raise Refused(409, "StorageAccountInAnotherResourceGroup", said)
        if name in self.taken:
            said = f"The storage account named {name} is already taken."
            raise Refused(409, "StorageAccountAlreadyTaken", said)
        if self._count(location) >= self.quota:
            said = (
                f"Subscription {SUBSCRIPTION} already contains {self.quota} storage accounts in"
                f" location {location} and the maximum allowed is {self.quota}."
            )
            raise Refused(409, "MaxStorageAccountsCountPerSubscriptionExceeded", said)
        made = Resource(f"{call.group_path}/providers/{KIND}/{name}", KIND, {})
        self._set(made, given, location)
        self._keys[name] = [_new_key(), _new_key()]
        self.gates[name] = self._open_gate(made, self._keys[name])
        self._tell_endpoints(made)

        where = (
            f"/subscriptions/{call['subscription']}/providers/Microsoft.Storage/locations"
            f"/{location}/asyncoperations"
        )

        def undo() -> None:  # there is no account that has failed
            self.end(made)
            self._state.remove(made.id)

        return self._state.begin_creation(made, where, undo)

    def _put_again(self, found: Resource, given: dict[str, Any], location: str) -> Reply:
        own = found.body["location"]
        if own != location:
            said = (
                f"The resource '{found.name}' already exists in location '{own}' in resource group"
                f" '{found.id.split('/')[4]}'. A resource with the same name cannot be created in"
                f" location '{location}'. Please select a new resource name."
            )
            raise Refused(409, "InvalidResourceLocation", said)
        if found.properties["provisioningState"] == "Creating":
            said = f"An operation is currently performing on this storage account: {found.name}."
            raise Refused(409, "StorageAccountOperationInProgress", said)
        self._set(found, given, location)
        found.properties["provisioningState"] = "Succeeded"
        return Reply(200, found.told())

    def _set(self, resource: Resource, given: dict[str, Any], location: str) -> None:
        sku = given["sku"]["name"]
        resource.body |= {
            "location": location,
            "kind": given["kind"],
            "sku": {"name": sku, "tier": sku.partition("_")[0]},
            "tags": given.get("tags", {}),
        }
        for name, usual in _DEFAULTS.items():
            resource.properties.setdefault(name, usual)
        resource.properties.update(given.get("properties", {}))

    def _tell_endpoints(self, made: Resource) -> None:
        name = made.name
        made.properties.update(
            creationTime=f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            primaryLocation=made.body["location"],
            statusOfPrimary="available",
            primaryEndpoints={
                "blob": f"{self.gates[name].endpoint}/",
                "file": f"https://{name}.file.core.windows.net/",
                "queue": f"https://{name}.queue.core.windows.net/",
                "table": f"https://{name}.table.core.windows.net/",
            },
        )

    def _found(self, call: Call) -> Resource:
        id_ = f"{call.group_path}/providers/{KIND}/{call['account']}"
        found = self._state.get(id_)
        if found is None:
            raise not_found(KIND, call["account"], call["group"])
        return found

    def _get(self, call: Call) -> Reply:
        return Reply(200, self._found(call).told())

    def _patch(self, call: Call) -> Reply:
        found, given = self._found(call), call.body
        if "tags" in given:
            found.body["tags"] = given["tags"]
        found.properties.update(given.get("properties", {}))
        return Reply(200, found.told())

    def _delete(self, call: Call) -> Reply:
        id_ = f"{call.group_path}/providers/{KIND}/{call['account']}"
        found = self._state.get(id_)
        if found is None:
            return Reply(204)
        self.end(found)
        self._state.remove(found.id)
        return Reply(200)

    def _list_keys(self, call: Call) -> Reply:
        found = self._found(call)
        keys = [
            {"keyName": f"key{number}", "value": value, "permissions": "Full"}
            for number, value in enumerate(self._keys[found.name], 1)
        ]
        return Reply(200, {"keys": keys})

    # ------------------------------------------------------------------ what is in an account

    def _service(self, call: Call) -> Resource:
        found = self._found(call)
        service = call.request.path.removeprefix(found.id).split("/")[1]
        id_ = f"{found.id}/{service}/default"
        kept = self._state.get(id_)
        if kept is None:
            kept = Resource(id_, f"{KIND}/{service}", {"sku": found.body["sku"]})
            kept.properties.update({})
        return kept

    def _get_service(self, call: Call) -> Reply:
        return Reply(200, self._service(call).told())

    def _put_service(self, call: Call) -> Reply:
        kept = self._service(call)
        kept.properties.update(call.body.get("properties", {}))
        self._state.put(kept)
        return Reply(200, kept.told())

    def _item(self, call: Call) -> tuple[str, str]:
        """Id and kind of a container or a share."""
        found = self._found(call)
        _, service, _, item, name = call.request.path[len(found.id) :].split("/")
        return f"{found.id}/{service}/default/{item}/{name}", f"{KIND}/{service}/{item}"

    def _put_item(self, call: Call) -> Reply:
        id_, kind = self._item(call)
        account = self._found(call)
        if account.properties["provisioningState"] == "Creating":
            said = f"The storage account {account.name} provisioning state must be 'Succeeded'."
            raise Refused(409, "StorageAccountIsNotProvisioned", said)
        if not _CONTAINER.fullmatch(call["item"]):
            what = "Container" if kind.endswith("containers") else "Share"
            said = f"The specified resource name contains invalid characters: {call['item']}"
            raise Refused(400, f"{what}NameInvalid", said)
        given = (call.body or {}).get("properties") or {}
        found = self._state.get(id_)
        if found is not None:
            found.properties.update(given)
            return Reply(200, self._item_told(found))
        usual: dict[str, Any] = {"publicAccess": "None"}
        if kind.endswith("shares"):
            usual = {
                "shareQuota": 5120,
                "enabledProtocols": "SMB",
                "accessTier": "TransactionOptimized",
            }
        elif given.get("publicAccess", "None") != "None":
            self._check_public(account)
        made = Resource(id_, kind, {"properties": usual | given})
        if kind.endswith("containers"):
            self.gates[account.name].create_container(call["item"])
        self._state.put(made)
        return Reply(201, self._item_told(made))

    def _check_public(self, account: Resource) -> None:
        if not account.properties["allowBlobPublicAccess"]:
            said = "Public access is not permitted on this storage account."
            raise Refused(409, "PublicAccessNotPermitted", said)

    def _item_told(self, found: Resource) -> dict[str, Any]:
        return found.told() | {"etag": f'"0x{abs(hash(found.id)) % 16**15:X}"'}

    def _get_item(self, call: Call) -> Reply:
        id_, kind = self._item(call)
        found = self._state.get(id_)
        if found is None:
            code = "ContainerNotFound" if kind.endswith("containers") else "ShareNotFound"
            what = "container" if kind.endswith("containers") else "share"
            raise Refused(404, code, f"The specified {what} does not exist.")
        return Reply(200, self._item_told(found))

    def _delete_item(self, call: Call) -> Reply:
        id_, kind = self._item(call)
        found = self._state.get(id_)
        if found is None:
            return Reply(204)
        self._state.remove(id_)
        if kind.endswith("containers"):
            self.gates[call["account"]].delete_container(call["item"])
        return Reply(200)

    def _list_items(self, call: Call) -> Reply:
        account = self._found(call)
        below = call.request.path[len(account.id) :]
        start = f"{account.id}{below}".lower()
        found = [
            self._item_told(each)
            for each in self._state.below(account.id)
            if each.id.lower().startswith(f"{start}/")
        ]
        return Reply(200, {"value": found})


def _unmounted(why: str) -> Failed:
    said = "An exception occurred while configuring specified mount configuration(s)"
    return Failed("MountConfigurationException", f"{said}: {why}")


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(64)).decode()
