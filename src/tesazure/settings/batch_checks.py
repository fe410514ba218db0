"""What is wrong with the settings of the Azure Batch backend, each problem with its remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tesazure.settings.clouds import batch_url_of, identity_of
from tesazure.settings.declarations import Settings
from tesazure.settings.forms import (
    ACCOUNT,
    CONTAINER,
    CONTAINER_FORM,
    endpoint,
    is_base64,
    is_loopback,
)

_SUBNET = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.Network"
    r"/virtualNetworks/[^/]+/subnets/[^/]+",
    re.IGNORECASE,
)
_IDENTITY = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.ManagedIdentity"
    r"/userAssignedIdentities/[^/]+",
    re.IGNORECASE,
)
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_POOL = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Batch, "Pool - Add Pool", id."""
_OWN = "tesazure-"
"""What pools are called that a server makes, and deletes."""
_SHARE = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*")
"""Microsoft, "Naming and referencing shares, directories, files, and metadata"."""


def batch_conflicts(s: Settings) -> list[str]:
    """Every problem."""
    problems = [*_account(s), *_forms(s), *_nodes(s), *_pool_identity(s)]
    if s.compute_backend == "batch":
        problems += _missing(s)
    return problems


def _account(s: Settings) -> Iterator[str]:
    name, key, url = s.batch_account_name, s.batch_account_key, s.batch_account_url
    if name and not ACCOUNT.fullmatch(name):
        yield "BATCH_ACCOUNT_NAME: must be 3 to 24 lower-case letters and digits"
    if key and not name:
        yield "BATCH_ACCOUNT_KEY: is a key of which account? set BATCH_ACCOUNT_NAME"
    if key and not is_base64(key):
        yield "BATCH_ACCOUNT_KEY: must be base64, as the portal shows it under Keys"
    if url:
        parsed, problems = endpoint("BATCH_ACCOUNT_URL", url)
        yield from problems
        # A signature does not give the key away, but requests hold signed URLs.
        near = parsed is not None and is_loopback(parsed.hostname or "")
        if parsed is not None and parsed.scheme == "http" and not (key and near):
            yield (
                "BATCH_ACCOUNT_URL: must begin with https://, as tasks hold signed URLs of their"
                " files; http is for a key and this machine"
            )


def _missing(s: Settings) -> Iterator[str]:
    """What the backend cannot do without."""
    needs = "COMPUTE_BACKEND=batch needs"
    for setting, value, what in (
        ("BATCH_ACCOUNT_NAME", s.batch_account_name, "an account's name and URL"),
        ("BATCH_ACCOUNT_URL", batch_url_of(s), "an account's URL, or BATCH_REGION, where it is"),
        (
            "FILETRANSFER_CONTAINER_IMAGE",
            s.filetransfer_container_image,
            "the image that carries the runner to its nodes; build deploy/images/runner",
        ),
        (
            "STORAGE_ACCOUNT_NAME",
            s.storage_account_name,
            "a storage account through which server and nodes exchange plans and reports",
        ),
    ):
        if not value:
            yield f"{setting}: is missing; {needs} {what}"
    has_identity = identity_of(s).exists
    for setting, key, account in (
        ("BATCH_ACCOUNT_KEY", s.batch_account_key, s.batch_account_name),
        ("STORAGE_ACCOUNT_KEY", s.storage_account_key, s.storage_account_name),
    ):
        if account and not key and not has_identity:
            yield (
                f"{setting}: is missing, and there is no identity; set it, or AZURE_CLIENT_ID,"
                " AZURE_SECRET and AZURE_TENANT, or AZURE_IDENTITY=default"
            )


def _forms(s: Settings) -> Iterator[str]:
    if not CONTAINER.fullmatch(s.batch_storage_container):
        yield f"BATCH_STORAGE_CONTAINER: {CONTAINER_FORM}"
    if s.batch_subnet_id and not _SUBNET.fullmatch(s.batch_subnet_id):
        yield (
            "BATCH_SUBNET_ID: must be a resource id, /subscriptions/…/resourceGroups/…/providers/"
            "Microsoft.Network/virtualNetworks/…/subnets/…"
        )
    elif s.batch_subnet_id and s.batch_account_key:
        # "Create a Batch pool in a virtual network", prerequisites.
        yield (
            "BATCH_ACCOUNT_KEY: must be empty with BATCH_SUBNET_ID, as Batch lets only identities"
            " make pools in a subnet; set AZURE_CLIENT_ID, AZURE_SECRET and AZURE_TENANT, or"
            " AZURE_IDENTITY=default"
        )
    if not s.batch_public_addresses and not s.batch_subnet_id:
        yield "BATCH_SUBNET_ID: is missing; nodes without public addresses need a subnet"
    if s.azure_subscription_id and not _GUID.fullmatch(s.azure_subscription_id):
        yield "AZURE_SUBSCRIPTION_ID: must be a GUID, as `az account show` prints it"
    elif bool(s.azure_subscription_id) != bool(s.batch_resource_group):
        missing = "BATCH_RESOURCE_GROUP" if s.azure_subscription_id else "AZURE_SUBSCRIPTION_ID"
        yield f"{missing}: is missing; sizes and quotas are read with both or not at all"
    if s.retail_prices_url:
        yield from endpoint("RETAIL_PRICES_URL", s.retail_prices_url, path=True)[1]


def _pool_identity(s: Settings) -> Iterator[str]:
    if not s.batch_pool_identity_id:
        return
    if not _IDENTITY.fullmatch(s.batch_pool_identity_id):
        yield (
            "BATCH_POOL_IDENTITY_ID: must be a resource id, /subscriptions/…/resourceGroups/…/"
            "providers/Microsoft.ManagedIdentity/userAssignedIdentities/…"
        )
    if not s.private_docker_registry_url:
        yield "PRIVATE_DOCKER_REGISTRY_URL: is missing; BATCH_POOL_IDENTITY_ID pulls images of it"
    if s.private_docker_registry_password:
        yield (
            "BATCH_POOL_IDENTITY_ID: is in place of PRIVATE_DOCKER_REGISTRY_USERNAME and"
            " PRIVATE_DOCKER_REGISTRY_PASSWORD; set one or the other"
        )
    # "Configure managed identities in Batch pools".
    can_ask_arm = identity_of(s).exists and s.azure_subscription_id and s.batch_resource_group
    if not can_ask_arm and not s.batch_override_pool_id:
        yield (
            "BATCH_POOL_IDENTITY_ID: pools with an identity are made by Azure Resource Manager; set"
            " AZURE_SUBSCRIPTION_ID, BATCH_RESOURCE_GROUP, and AZURE_CLIENT_ID, AZURE_SECRET and"
            " AZURE_TENANT, or AZURE_IDENTITY=default"
        )


def _nodes(s: Settings) -> Iterator[str]:
    named = [("BATCH_POOL_IDS", pool) for pool in s.batch_pool_ids]
    for setting, pool in [("BATCH_OVERRIDE_POOL_ID", s.batch_override_pool_id), *named]:
        if pool and not _POOL.fullmatch(pool):
            yield f"{setting}: must be at most 64 letters, digits, - and _"
        elif pool.lower().startswith(_OWN):
            yield f"{setting}: must not begin with {_OWN}, as servers make such pools themselves"
    if len(s.batch_image.split(":")) != 4 or not all(s.batch_image.split(":")):
        yield "BATCH_IMAGE: must be publisher:offer:sku:version, such as that of the default"
    if s.batch_file_share and not _SHARE.fullmatch(s.batch_file_share):
        yield f"BATCH_FILE_SHARE: {CONTAINER_FORM}"
    if s.batch_file_share and not s.storage_account_key:
        yield "BATCH_FILE_SHARE: nodes mount a share with STORAGE_ACCOUNT_KEY, which is missing"
    if s.batch_max_nodes < 1 or s.batch_max_pools < 1:
        yield "BATCH_MAX_NODES and BATCH_MAX_POOLS: must be at least 1"
    elif not 0 <= s.batch_min_nodes <= s.batch_max_nodes:
        yield "BATCH_MIN_NODES: must be at least 0 and at most BATCH_MAX_NODES"
    if s.batch_pool_idle_min < 0:
        yield "BATCH_POOL_IDLE_MIN: must be at least 0"
