"""What is in a request's way and can be known before anything is made.

Each check reads, and asks little; where one may not be made, what it would have found shows in the
step. Sources: "Skus - List", "Storage Accounts - Check Name Availability" (2023-05), "Location -
Check Name Availability", "Location - Get Quotas" (2024-07-01), "Create a Batch pool in a virtual
network" (Microsoft).
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tesazure.errors import FieldError
from tesazure.provision.azure import batch, storage
from tesazure.provision.azure.clients import Clients, Refused, explained, found, text_of
from tesazure.provision.azure.config import Place
from tesazure.provision.azure.group import needed
from tesazure.provision.azure.registry import registry_of
from tesazure.provision.azure.rights import Rights
from tesazure.provision.azure.words import field_of, is_sign_in
from tesazure.provisioning import SKUS

if TYPE_CHECKING:
    from azure.mgmt.resource.resources.models import Provider

_SUBSCRIPTION = ("SubscriptionNotFound", "InvalidSubscriptionId", "SubscriptionDisabled")


class Checks:
    """Of one request."""

    def __init__(self, place: Place, clients: Clients) -> None:
        self._place, self._clients, self._request = place, clients, place.request
        self._unregistered: list[str] = []
        """Namespaces of which nothing can be asked yet: names and quotas show in the steps."""
        self._roles: Rights | None = None
        self._is_nowhere = False
        """The location is none: Azure would say so whatever is asked there."""
        self._providers: dict[str, Provider] = {}

    def problems(self) -> Iterator[FieldError]:
        """All of them. Raises ProvisionFailed if Azure cannot be asked."""
        if self._request.service_principal is None and not self._place.uses_identity:
            yield FieldError(
                "service_principal",
                "is required, as this server has no identity: give one, or set"
                " AZURE_IDENTITY=default or AZURE_CLIENT_ID, AZURE_SECRET and AZURE_TENANT",
            )
            return
        yield from self._needing_identity()
        told: dict[FieldError, None] = {}
        for check in (
            self._registered,
            self._rights,
            self._regions,
            self._sku,
            self._group,
            self._storage_name,
            self._batch_name,
            self._batch_quota,
            self._storage_quota,
            self._registry_name,
            self._subnet,
            self._vault,
        ):
            try:
                for problem in check():
                    told[self._owned(problem)] = None
            except Refused as error:
                if error.refusal.status in (0, 429) or error.refusal.status >= 500:
                    raise
                if error.code == "AuthorizationFailed" and self._roles is not None:
                    if not self._roles.known:
                        text = f"{error.failure.message.rstrip('.')}; {self._roles.unknown()}"
                        told[self._owned(FieldError("service_principal", text))] = None
                        break
                    continue  # what the steps need has been looked at; this would have been a plus
                told[self._owned(field_of(error.refusal))] = None
                if is_sign_in(error.code, error.refusal.status) or error.code in _SUBSCRIPTION:
                    break  # every other check would be answered likewise
        yield from told

    def _owned(self, problem: FieldError) -> FieldError:
        """Who asks is the server itself where the request has no principal."""
        if self._request.service_principal is None and problem.field == "service_principal":
            return FieldError("", problem.message)
        return problem

    def _needing_identity(self) -> Iterator[FieldError]:
        if self._place.uses_identity:
            return
        remedy = "set AZURE_IDENTITY=default, or AZURE_CLIENT_ID, AZURE_SECRET and AZURE_TENANT"
        if self._request.pool_allocation_mode == "UserSubscription":
            text = f"Batch takes no keys in this mode, and this server has no identity: {remedy}"
            yield FieldError("pool_allocation_mode", text)
        if self._request.vnet:
            text = "Batch lets no key make pools in a subnet, and this server has no identity"
            yield FieldError("vnet", f"{text}: {remedy}")

    def _registered(self) -> Iterator[FieldError]:
        try:
            states = {each: self._provider(each).registration_state for each in needed(self._place)}
        except Refused as error:
            if error.code != "AuthorizationFailed":
                raise
        else:
            self._unregistered = [each for each in states if states[each] != "Registered"]
        yield from ()

    def _rights(self) -> Iterator[FieldError]:
        self._roles = Rights(self._place, self._clients)
        yield from self._roles.missing(self._unregistered)

    def _provider(self, namespace: str) -> Provider:
        if namespace not in self._providers:
            with explained():
                self._providers[namespace] = self._clients.resources.providers.get(namespace)
        return self._providers[namespace]

    @functools.cached_property
    def _skus(self) -> list[Any]:
        """Of general-purpose accounts, as this subscription may have them."""
        if "Microsoft.Storage" in self._unregistered:
            return []
        with explained():
            return [
                each
                for each in self._clients.storage.skus.list()
                if each.resource_type == "storageAccounts" and text_of(each.kind) == "StorageV2"
            ]

    def _regions(self) -> Iterator[FieldError]:
        regions = self._locations("Microsoft.Batch", "batchAccounts")
        regions &= self._locations("Microsoft.Storage", "storageAccounts")
        if self._skus:
            regions &= {_plain(each) for sku in self._skus for each in sku.locations or ()}
        wanted = self._request.location
        self._is_nowhere = wanted not in regions
        if not self._is_nowhere:
            return
        near = difflib.get_close_matches(wanted, sorted(regions), 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {_few(regions)}"
        text = "is no location where this subscription may have Batch and storage accounts"
        yield FieldError("location", f"{wanted} {text}; {hint}")

    def _locations(self, namespace: str, kind: str) -> set[str]:
        return {
            _plain(location)
            for each in self._provider(namespace).resource_types or ()
            if each.resource_type == kind
            for location in each.locations or ()
        }

    def _sku(self) -> Iterator[FieldError]:
        wanted, location = self._request.storage_sku, self._request.location
        here = [each for each in self._skus if location in map(_plain, each.locations or ())]
        offered = {text_of(each.name) for each in here if not each.restrictions}
        if here and wanted not in offered:
            text = f"{wanted} is not offered to this subscription in {location}"
            there = _few({name for name in offered if name in SKUS})
            yield FieldError("storage_sku", f"{text}; there are {there}")

    def _group(self) -> Iterator[FieldError]:
        name = self._request.resource_group
        group = found(lambda: self._clients.resources.resource_groups.get(name))
        state = group.properties.provisioning_state if group and group.properties else ""
        if state == "Deleting":
            text = f"{name} is being deleted: wait until it is gone, or choose another one"
            yield FieldError("resource_group", text)

    def _storage_name(self) -> Iterator[FieldError]:
        if not self._is_new(storage.account_of, "Microsoft.Storage"):
            return
        from azure.mgmt.storage.models import StorageAccountCheckNameAvailabilityParameters

        name = self._request.storage_account_name
        wanted = StorageAccountCheckNameAvailabilityParameters(name=name)
        with explained():
            told = self._clients.storage.storage_accounts.check_name_availability(wanted)
        yield from _taken("storage_account_name", name, told)

    def _batch_name(self) -> Iterator[FieldError]:
        if not self._is_new(batch.account_of, "Microsoft.Batch"):
            return
        from azure.mgmt.batch.models import CheckNameAvailabilityParameters

        name = self._request.batch_account_name
        wanted = CheckNameAvailabilityParameters(name=name, type="Microsoft.Batch/batchAccounts")
        with explained():
            told = self._clients.batch.location.check_name_availability(
                self._request.location, wanted
            )
        yield from _taken("batch_account_name", name, told)

    def _registry_name(self) -> Iterator[FieldError]:
        name = self._request.registry
        if not name or not self._is_new(registry_of, "Microsoft.ContainerRegistry"):
            return
        from azure.mgmt.containerregistry.models import RegistryNameCheckRequest

        wanted = RegistryNameCheckRequest(name=name, type="Microsoft.ContainerRegistry/registries")
        with explained():
            told = self._clients.registries.registries.check_name_availability(wanted)
        yield from _taken("registry", name, told)

    def _batch_quota(self) -> Iterator[FieldError]:
        if not self._is_new(batch.account_of, "Microsoft.Batch"):
            return
        location = self._request.location
        with explained():
            most = self._clients.batch.location.get_quotas(location).account_quota
            accounts = [_plain(each.location) for each in self._clients.batch.batch_account.list()]
        yield from self._used("Batch", accounts.count(location), most)

    def _storage_quota(self) -> Iterator[FieldError]:
        if not self._is_new(storage.account_of, "Microsoft.Storage"):
            return
        with explained():
            for usage in self._clients.storage.usages.list_by_location(self._request.location):
                yield from self._used("storage", usage.current_value or 0, usage.limit)

    def _used(self, what: str, used: int, most: int | None) -> Iterator[FieldError]:
        if most is not None and used >= most:
            text = f"has {used} {what} accounts of {most} that it may have"
            remedy = "delete one, choose another location, or ask for more in the portal (Quotas)"
            yield FieldError("location", f"{self._request.location} {text}: {remedy}")

    def _is_new(self, account_of: Callable[[Place, Clients], Any], namespace: str) -> bool:
        """Whether an account has to be made, and Azure can be asked about that. If it is there, its
        step tells whether it is ours."""
        known = namespace not in self._unregistered and not self._is_nowhere
        return known and account_of(self._place, self._clients) is None

    def _subnet(self) -> Iterator[FieldError]:
        id_ = self._place.subnet_id
        if not id_ or not self._place.uses_identity:
            return
        resources, version = self._clients.resources.resources, "2024-05-01"
        vnet_id = id_.rpartition("/subnets/")[0]
        vnet = found(lambda: resources.get_by_id(vnet_id, api_version=version))
        if vnet is None:
            yield FieldError("vnet", f"there is no virtual network {vnet_id}")
            return
        if _plain(vnet.location) != self._request.location:
            where = f"is in {_plain(vnet.location)}, and nodes will be in {self._request.location}"
            yield FieldError("vnet", f"{vnet.name} {where}: they must be in one location")
        subnet = found(lambda: resources.get_by_id(id_, api_version=version))
        if subnet is None:
            names = ", ".join(_subnets(vnet)) or "none"
            text = f"{vnet.name} has no subnet {self._request.subnet}; it has {names}"
            yield FieldError("subnet", text)
        elif (subnet.properties or {}).get("delegations"):
            text = f"{self._request.subnet} is delegated to another service: nodes need their own"
            yield FieldError("subnet", text)

    def _vault(self) -> Iterator[FieldError]:
        if self._request.pool_allocation_mode != "UserSubscription":
            return
        if batch.vault_of(self._place, self._clients) is None:
            text = f"{self._request.key_vault} is no Key Vault of this subscription"
            yield FieldError("key_vault", f"{text}, which the mode UserSubscription needs")


def _taken(field: str, name: str, told: Any) -> Iterator[FieldError]:
    if not told.name_available:
        reason = str(told.message or "is taken").rstrip(".")
        text = f"{name}: {reason}; choose another one, or leave it out to have one made"
        if field == "registry":
            text = f"{name}: {reason}; choose another one, or the group that has it"
        yield FieldError(field, text)


def _plain(location: Any) -> str:
    """East US -> eastus: Azure tells one or the other."""
    return str(location).replace(" ", "").lower()


def _few(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (", …" if len(listed) > 8 else "")


def _subnets(vnet: Any) -> list[str]:
    return [str(each.get("name")) for each in (vnet.properties or {}).get("subnets", ())]
