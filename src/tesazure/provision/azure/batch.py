"""The Batch account.

Sources: "Batch Account - Create", "Batch Account - Get" (2024-07-01); "Configure a managed identity
for an autostorage account" (Microsoft).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tesazure.errors import FieldError
from tesazure.provision.azure.accounts import AccountStep
from tesazure.provision.azure.clients import Clients, deleted, explained, found, text_of, waited
from tesazure.provision.azure.config import Place
from tesazure.provision.base import Tell

if TYPE_CHECKING:
    from azure.mgmt.batch.models import BatchAccount


class Account(AccountStep):
    """A Batch account with the storage account as its auto-storage, which it uses with an identity
    of its own where the server has one, too, and else by the key. One of another run of this
    installation may be used, too. Removed with its pools, jobs and tasks, and nodes that still
    run."""

    name = "batch-account"

    def __init__(self, place: Place, clients: Clients) -> None:
        super().__init__(place, clients, "Batch account", place.request.batch_account_name)

    def _get(self) -> BatchAccount | None:
        return account_of(self._place, self._clients)

    def _problem(self, there: BatchAccount) -> FieldError | None:
        mode = text_of(there.pool_allocation_mode)
        right = self._is_right(there) and mode == self._place.request.pool_allocation_mode
        text = "of an earlier run, with other storage, authentication or pool allocation"
        return self._unusable(there, "batch_account_name", "" if right else text)

    def _put_right(self, there: BatchAccount | None, tell: Tell) -> BatchAccount:
        create = self._clients.batch.batch_account.begin_create
        return waited(self.title, lambda: create(*self._names, self._wanted()), tell)

    def _delete(self) -> None:
        delete = self._clients.batch.batch_account.begin_delete
        deleted(self.title, lambda: delete(*self._names))

    def _detail(self, there: BatchAccount) -> str:
        return quota_of(there)

    def _wanted(self) -> Any:
        from azure.mgmt.batch import models

        request = self._place.request
        reference = None
        if request.pool_allocation_mode == "UserSubscription":
            vault = vault_of(self._place, self._clients)
            if vault is not None:
                reference = models.KeyVaultReference(id=vault[0], url=vault[1])
        return models.BatchAccountCreateParameters(
            location=request.location,
            tags=self._place.tags,
            identity=models.BatchAccountIdentity(type="SystemAssigned"),
            properties=models.BatchAccountCreateProperties(
                auto_storage=models.AutoStorageBaseProperties(
                    storage_account_id=self._place.storage_id,
                    authentication_mode=self._storage_mode,
                ),
                pool_allocation_mode=request.pool_allocation_mode,
                key_vault_reference=reference,
                allowed_authentication_modes=self._authentication,
            ),
        )

    @property
    def _storage_mode(self) -> str:
        return "BatchAccountManagedIdentity" if self._place.uses_identity else "StorageKeys"

    @property
    def _authentication(self) -> list[str]:
        return ["AAD"] if self._place.uses_identity else ["SharedKey", "AAD"]

    def _is_right(self, there: BatchAccount) -> bool:
        storage = there.auto_storage
        modes = {text_of(each) for each in there.allowed_authentication_modes or ()}
        return (
            text_of(there.provisioning_state) == "Succeeded"
            and storage is not None
            and str(storage.storage_account_id).lower() == self._place.storage_id.lower()
            and text_of(storage.authentication_mode) == self._storage_mode
            # Azure tells none where all are allowed.
            and (not modes or set(self._authentication) <= modes)
        )


def account_of(place: Place, clients: Clients) -> BatchAccount | None:
    """The account of the request; None if there is none."""
    request = place.request
    get = clients.batch.batch_account.get
    return found(lambda: get(request.resource_group, request.batch_account_name))


def quota_of(account: BatchAccount) -> str:
    """How many cores tasks can have: new subscriptions often have none at all."""
    if text_of(account.pool_allocation_mode) == "UserSubscription":
        return "cores as the subscription's quota has them"
    dedicated, spot = account.dedicated_core_quota or 0, account.low_priority_core_quota or 0
    told = f"quota: {dedicated} dedicated cores, {spot} of Spot"
    if not dedicated and not spot:
        told += "; no task can run before you ask for more, in the portal under Quotas"
    return told


def vault_of(place: Place, clients: Clients) -> tuple[str, str] | None:
    """Resource id and URL of the request's Key Vault, if the subscription has it."""
    name = place.request.key_vault
    if "://" in name:
        name = name.partition("://")[2].partition(".")[0]
    wanted = "resourceType eq 'Microsoft.KeyVault/vaults'"
    with explained():
        ids = [
            str(each.id)
            for each in clients.resources.resources.list(filter=wanted)
            if str(each.name).lower() == name.lower()
        ]
    if not ids:
        return None
    with explained():
        vault = clients.resources.resources.get_by_id(ids[0], api_version="2023-07-01")
    return ids[0], str((vault.properties or {}).get("vaultUri", ""))


def values_of(place: Place, clients: Clients) -> dict[str, str]:
    """The settings of the Batch backend. Raises ProvisionFailed."""
    request = place.request
    names = request.resource_group, request.batch_account_name
    with explained():
        account = clients.batch.batch_account.get(*names)
    endpoint = str(account.account_endpoint)
    values = {
        "compute_backend": "batch",
        "batch_account_name": request.batch_account_name,
        "batch_account_url": endpoint if "://" in endpoint else f"https://{endpoint}",
        "batch_region": str(account.location).replace(" ", "").lower(),
    }
    if place.subnet_id:
        values["batch_subnet_id"] = place.subnet_id
    if place.uses_identity:
        values["azure_subscription_id"] = request.subscription_id
        values["batch_resource_group"] = request.resource_group
        values["batch_account_key"] = ""
    else:
        with explained():
            values["batch_account_key"] = str(clients.batch.batch_account.get_keys(*names).primary)
    return values
