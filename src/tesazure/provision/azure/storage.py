"""The storage account, with what server and nodes need in it.

Sources: "Storage Accounts - Create", "Blob Containers - Create", "File Shares - Create" (2023-05),
"Prevent Shared Key authorization for an Azure Storage account" (Microsoft).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tesazure.errors import FieldError
from tesazure.provision.azure.accounts import AccountStep
from tesazure.provision.azure.clients import Clients, asked, explained, found, text_of, waited
from tesazure.provision.azure.config import UNTAGGED, Place
from tesazure.provision.base import Found, Outcome, Tell

if TYPE_CHECKING:
    from azure.mgmt.storage.models import StorageAccount

_RUN = "tesazurerun"
"""Metadata of containers and shares, which carry no tags; their names have no hyphen."""
SHARE_GIB = 5120
"""The most that the share may hold; what it does not hold costs nothing."""


class Account(AccountStep):
    """A general-purpose account: TLS 1.2 at least, nothing public, and without keys where the
    server has an identity. One of another run of this installation may be used, too."""

    name = "storage-account"

    def __init__(self, place: Place, clients: Clients) -> None:
        super().__init__(place, clients, "Storage account", place.request.storage_account_name)

    def _get(self) -> StorageAccount | None:
        return account_of(self._place, self._clients)

    def _problem(self, there: StorageAccount) -> FieldError | None:
        wrong = ", ".join(self._wrong(there))
        text = f"of an earlier run, and is not as it should be ({wrong})" if wrong else ""
        return self._unusable(there, "storage_account_name", text)

    def _is_right(self, there: StorageAccount) -> bool:
        return _is_whole(there) and not self._wrong(there)

    def _put_right(self, there: StorageAccount | None, tell: Tell) -> StorageAccount:
        if there is not None and _is_whole(there):
            return self._mend(self._wrong(there), tell)
        create = self._clients.storage.storage_accounts.begin_create
        return waited(self.title, lambda: create(*self._names, self._wanted()), tell)

    def _delete(self) -> None:
        found(lambda: self._clients.storage.storage_accounts.delete(*self._names))

    def _detail(self, there: StorageAccount) -> str:
        return str(there.location)

    def _settings(self) -> dict[str, Any]:
        return {
            "enable_https_traffic_only": True,
            "minimum_tls_version": "TLS1_2",
            "allow_blob_public_access": False,
            "allow_cross_tenant_replication": False,
            "allow_shared_key_access": not self._place.uses_identity,
        }

    def _wanted(self) -> Any:
        from azure.mgmt.storage import models

        request = self._place.request
        return models.StorageAccountCreateParameters(
            sku=models.Sku(name=request.storage_sku),
            kind="StorageV2",
            location=request.location,
            tags=self._place.tags,
            properties=models.StorageAccountPropertiesCreateParameters(
                access_tier="Hot", **self._settings()
            ),
        )

    def _wrong(self, account: StorageAccount) -> dict[str, Any]:
        """Settings that an account lacks. Of keys Azure tells no value where it takes its default,
        which is to allow them."""
        told: dict[str, Any] = {name: getattr(account, name) for name in self._settings()}
        told["minimum_tls_version"] = text_of(told["minimum_tls_version"])
        if told["allow_shared_key_access"] is None:
            told["allow_shared_key_access"] = True
        if told["minimum_tls_version"] == "TLS1_3":
            told["minimum_tls_version"] = "TLS1_2"
        return {name: value for name, value in self._settings().items() if told[name] != value}

    def _mend(self, wrong: Mapping[str, Any], tell: Tell) -> StorageAccount:
        from azure.mgmt.storage import models

        properties = models.StorageAccountPropertiesUpdateParameters(**wrong)
        wanted = models.StorageAccountUpdateParameters(properties=properties)
        update = self._clients.storage.storage_accounts.update
        return asked(self.title, lambda: update(*self._names, wanted), tell)


class Containers:
    """Blob containers: the one of attempts, and Cromwell's."""

    name = "containers"

    def __init__(self, place: Place, clients: Clients) -> None:
        self._place, self._clients = place, clients
        self._wanted = list(
            dict.fromkeys(filter(None, (place.config.container, place.config.cromwell_container)))
        )
        self.title = f"Blob containers {', '.join(self._wanted)}"

    def look(self) -> Found:
        """Ours if any was made by this run."""
        there = {name: self._get(name) for name in self._wanted}
        if any(self._is_ours(each) for each in there.values()):
            return Found(state="ours", resource_id=self._id)
        missing = [name for name, each in there.items() if each is None]
        if missing:
            return Found(state="missing", detail=", ".join(missing))
        return Found(state="right", resource_id=self._id)

    def make(self, tell: Tell, is_ours: bool) -> Outcome:
        """Make those that are missing."""
        made = is_ours
        for name in self._wanted:
            there = self._get(name)
            if there is None:
                self._create(name, tell)
            made |= there is None or self._is_ours(there)
        return Outcome(resource_id=self._id, made=made, detail=", ".join(self._wanted))

    def remove(self) -> str:
        """With all of their blobs, where this run made the container."""
        containers = self._clients.storage.blob_containers
        there = {name: self._get(name) for name in self._wanted}
        ours = [name for name, each in there.items() if self._is_ours(each)]
        for name in ours:
            found(functools.partial(containers.delete, *self._account, name))
        return UNTAGGED if any(there.values()) and not ours else ""

    def _create(self, name: str, tell: Tell) -> None:
        from azure.mgmt.storage.models import BlobContainer, ContainerProperties

        properties = ContainerProperties(public_access="None", metadata={_RUN: self._place.run_id})
        wanted = BlobContainer(container_properties=properties)
        create = self._clients.storage.blob_containers.create
        asked(f"container {name}", lambda: create(*self._account, name, wanted), tell)

    @property
    def _account(self) -> tuple[str, str]:
        return self._place.request.resource_group, self._place.request.storage_account_name

    @property
    def _id(self) -> str:
        return f"{self._place.storage_id}/blobServices/default"

    def _get(self, name: str) -> Any:
        return found(lambda: self._clients.storage.blob_containers.get(*self._account, name))

    def _is_ours(self, container: Any) -> bool:
        return container is not None and _made(self._place, container)


class Share:
    """The Azure Files share that nodes mount as /tes-wd/shared-global."""

    name = "file-share"

    def __init__(self, place: Place, clients: Clients) -> None:
        self._place, self._clients = place, clients
        request = place.request
        self._names = request.resource_group, request.storage_account_name, place.config.share
        self.title = f"Azure Files share {place.config.share}"
        self._id = f"{place.storage_id}/fileServices/default/shares/{place.config.share}"

    def look(self) -> Found:
        """Ours by its metadata."""
        share = self._get()
        if share is None:
            return Found(state="missing")
        state = "ours" if _made(self._place, share) else "right"
        return Found(state=state, resource_id=self._id, detail=self._detail)  # type: ignore[arg-type]

    def make(self, tell: Tell, is_ours: bool) -> Outcome:
        """Make it, unless there is one."""
        share = self._get()
        made = is_ours or share is None
        if share is None:
            from azure.mgmt.storage.models import FileShare, FileShareProperties

            marked = {_RUN: self._place.run_id}
            properties = FileShareProperties(share_quota=SHARE_GIB, metadata=marked)
            wanted = FileShare(file_share_properties=properties)
            create = self._clients.storage.file_shares.create
            asked(self.title, lambda: create(*self._names, wanted), tell)
        return Outcome(resource_id=self._id, made=made, detail=self._detail)

    def remove(self) -> str:
        """With all of its files."""
        share = self._get()
        if share is None:
            return ""
        if not _made(self._place, share):
            return UNTAGGED
        found(lambda: self._clients.storage.file_shares.delete(*self._names))
        return ""

    @property
    def _detail(self) -> str:
        if self._place.uses_identity:
            return "not mounted: nodes mount shares by the account's key, which is off"
        return "mounted by nodes as /tes-wd/shared-global"

    def _get(self) -> Any:
        return found(lambda: self._clients.storage.file_shares.get(*self._names))


def _is_whole(account: StorageAccount) -> bool:
    return text_of(account.provisioning_state) == "Succeeded"


def _made(place: Place, thing: Any) -> bool:
    """Whether this run made a container or share."""
    return bool((thing.metadata or {}).get(_RUN) == place.run_id)


def account_of(place: Place, clients: Clients) -> StorageAccount | None:
    """The account of the request; None if there is none."""
    request = place.request
    get = clients.storage.storage_accounts.get_properties
    return found(lambda: get(request.resource_group, request.storage_account_name))


def values_of(place: Place, clients: Clients) -> dict[str, str]:
    """The settings of storage. Raises ProvisionFailed."""
    request = place.request
    names = request.resource_group, request.storage_account_name
    with explained():
        account = clients.storage.storage_accounts.get_properties(*names)
    values = {
        "storage_account_name": request.storage_account_name,
        "batch_storage_container": place.config.container,
        "cromwell_storage_container_name": place.config.cromwell_container,
    }
    endpoints = account.primary_endpoints
    for kind in ("blob", "file"):
        url = str(getattr(endpoints, kind, None) or "").rstrip("/")
        if url != f"https://{request.storage_account_name}.{kind}.{place.config.storage_suffix}":
            values[f"storage_{kind}_endpoint"] = url
    if place.uses_identity:
        values |= {"storage_account_key": "", "batch_file_share": ""}
    else:
        with explained():
            keys = clients.storage.storage_accounts.list_keys(*names).keys_property or []
        values["storage_account_key"] = str(keys[0].value)
        values["batch_file_share"] = place.config.share
    return values
