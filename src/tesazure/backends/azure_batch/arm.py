"""What Azure Resource Manager says of a Batch account: quotas, and the VM sizes of its region. And
the pools that it alone can make, which are those with an identity."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tesazure.azure_identity import credential_of, short
from tesazure.backends.azure_batch.account import refusal_of
from tesazure.backends.azure_batch.arm_pool import resource_of
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.resource_skus import ResourceSku, resource_skus
from tesazure.backends.azure_batch.sizes import GIB, MIB, Quotas, VmSize
from tesazure.errors import BackendUnavailable

if TYPE_CHECKING:
    from azure.batch.models import BatchPoolCreateOptions
    from azure.core.exceptions import HttpResponseError
    from azure.mgmt.batch import BatchManagementClient

log = logging.getLogger(__name__)

TIMEOUTS_S = {"connection_timeout": 10, "read_timeout": 120}
"""The list of a region's sizes is some MB long."""
RETRIES = 2
"""Within a call; the catalog asks again some minutes later."""


class Arm:
    """Its methods block, and raise BackendUnavailable. Needs an identity with the roles that
    docs/batch.md names."""

    def __init__(self, config: BatchConfig) -> None:
        from azure.mgmt.batch import BatchManagementClient

        self._config = config
        credential = credential_of(config.identity)
        options: dict[str, Any] = {
            "base_url": config.arm_url,
            "credential_scopes": [f"{config.arm_url}/.default"],
            "connection_verify": config.ca_bundle or True,
            # As storage has it: proxies that the environment names are not used.
            "use_env_settings": False,
            "retry_total": RETRIES,
            **TIMEOUTS_S,
        }
        self._batch: BatchManagementClient = BatchManagementClient(
            credential, config.subscription, **options
        )

    def close(self) -> None:
        """Let go."""
        self._batch.close()

    def quotas(self) -> Quotas:
        """Batch Account - Get."""
        from azure.core.exceptions import AzureError

        config = self._config
        try:
            account = self._batch.batch_account.get(config.resource_group, config.account)
        except AzureError as error:
            raise _unavailable("the account's quotas", error) from error
        families = {
            str(each.name).lower(): each.core_quota or 0
            for each in account.dedicated_core_quota_per_vm_family or ()
        }
        by_family = bool(account.dedicated_core_quota_per_vm_family_enforced)
        return Quotas(
            dedicated_cores=account.dedicated_core_quota,
            spot_cores=account.low_priority_core_quota,
            family_cores=families if by_family else None,
        )

    def sizes(self) -> tuple[VmSize, ...]:
        """Location - List Supported Virtual Machine Skus, with the zones and the restrictions of
        this subscription from Resource Skus - List, where that may be read."""
        from azure.core.exceptions import AzureError

        region = self._config.region
        try:
            listed = list(self._batch.location.list_supported_virtual_machine_skus(region))
        except AzureError as error:
            raise _unavailable("the VM sizes that Batch supports", error) from error
        try:
            arm_url, subscription = self._config.arm_url, self._config.subscription
            found = list(resource_skus(self._batch, arm_url, subscription, region))
        except (AzureError, BackendUnavailable) as error:
            log.warning("zones and restrictions of VM sizes are not known: %s", short(error))
            found = []
        skus = {sku.name.lower(): sku for sku in found if sku.resource_type == "virtualMachines"}
        return tuple(
            size
            for each in listed
            if (size := size_of(each, skus.get(str(each.name).lower()), region)) is not None
        )

    def make_pool(self, form: BatchPoolCreateOptions) -> None:
        """Pool - Create, with the identity that settings name. May be called again. Raises Exists
        where there is one of its id, Gone while that is being deleted, Refused."""
        from azure.core import MatchConditions
        from azure.core.exceptions import AzureError, HttpResponseError

        config = self._config
        try:
            self._batch.pool.create(
                config.resource_group,
                config.account,
                form.id,
                resource_of(form, config.pool_identity),
                match_condition=MatchConditions.IfMissing,
            )
        except HttpResponseError as error:
            if error.status_code is None:  # a credential's, which gets no token
                text = f"this server cannot sign in to make a pool: {short(error)}"
                raise BackendUnavailable(text) from error
            raise _refusal(error) from error
        except AzureError as error:
            text = f"Azure Resource Manager cannot be reached to make a pool: {short(error)}"
            raise BackendUnavailable(text) from error


def _refusal(error: HttpResponseError) -> BackendUnavailable:
    status = error.status_code or 0
    code = (error.error.code if error.error is not None else None) or ""
    said = (error.error.message if error.error is not None else None) or short(error)
    said = said.strip().partition("\n")[0][:500]
    if status in (401, 403):
        said += (
            "; check the roles of this server's identity on the account, and Managed Identity"
            " Operator on BATCH_POOL_IDENTITY_ID"
        )
    text = f"Azure Resource Manager would not make a pool: {said} ({code or status})"
    return refusal_of(text, code, status)


def size_of(supported: Any, sku: ResourceSku | None, region: str) -> VmSize | None:
    """A size from a SupportedSku and a ResourceSku (None: not known); None for one that cannot be
    used: of another architecture than the runner's image, confidential (no container host),
    supported by Batch no more, or not open to this subscription."""
    end: datetime | None = supported.batch_support_end_of_life
    told = _capabilities(sku.capabilities if sku is not None else ())
    told |= _capabilities(supported.capabilities)
    if (
        told.get("cpuarchitecturetype", "x64").lower() != "x64"
        or told.get("confidentialcomputingtype")
        or "v2" not in told.get("hypervgenerations", "V2").lower()
        or (end is not None and end <= datetime.now(end.tzinfo))
        or (sku is not None and not _is_open(sku, region))
    ):
        return None
    try:
        cores = int(told.get("vcpusavailable") or told["vcpus"])
        ram_gib = float(told["memorygb"])
    except (KeyError, ValueError):
        return None
    return VmSize(
        name=str(supported.name),
        cores=cores,
        ram_bytes=int(ram_gib * GIB),
        disk_bytes=int(_number(told, "maxresourcevolumemb")) * MIB,
        family=str(supported.family_name or ""),
        gpus=int(_number(told, "gpus")),
        zones=_zones(sku, region) if sku is not None else (),
        can_be_spot=told.get("lowprioritycapable", "true").lower() == "true",
        encryption_at_host=told.get("encryptionathostsupported", "").lower() == "true",
        ends=end is not None,
    )


def _capabilities(listed: Iterable[Any] | None) -> dict[str, str]:
    return {str(each.name).lower(): str(each.value) for each in listed or ()}


def _number(told: Mapping[str, str], name: str) -> float:
    try:
        return float(told.get(name) or 0)
    except ValueError:
        return 0


def _is_open(sku: ResourceSku, region: str) -> bool:
    """Whether a subscription may have a size in a region: restrictions of zones do not close it."""
    for each in sku.restrictions or ():
        places = {value.lower() for value in each.values or ()}
        if each.type.lower() == "location" and region.lower() in places:
            return False
    return True


def _zones(sku: ResourceSku, region: str) -> tuple[str, ...]:
    closed = {
        zone
        for each in sku.restrictions or ()
        if each.type.lower() == "zone"
        for zone in (each.restriction_info.zones or () if each.restriction_info else ())
    }
    zones = {
        zone
        for each in sku.location_info or ()
        if each.location.lower() == region.lower()
        for zone in each.zones or ()
    }
    return tuple(sorted(zones - closed))


def _unavailable(what: str, error: Exception) -> BackendUnavailable:
    return BackendUnavailable(f"Azure Resource Manager does not tell {what}: {short(error)}")
