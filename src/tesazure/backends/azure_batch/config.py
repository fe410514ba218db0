"""What the Batch backend needs of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from tesazure.access import Endpoints, RegistryIdentity
from tesazure.azure_identity import Identity


class BatchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Holds secrets. Times in seconds unless the name says otherwise."""

    installation: str
    """See `names.installation_of`."""
    account: str
    url: str
    """The account's endpoint, https://name.region.batch.azure.com."""
    key: str = ""
    """One of the account's keys; empty: `identity`."""
    identity: Identity = Identity()
    scope: str = "https://batch.core.windows.net//.default"
    """What the identity's tokens are asked for: Batch, in its cloud."""
    ca_bundle: str = ""
    """PEM file of the authorities that TLS trusts; empty: the system's."""

    storage_url: str
    """Blob service that attempts' own blobs are kept in, no slash at the end."""
    storage_account: str
    storage_key: str = ""
    """Its key; empty: `identity`."""
    container: str = "batchtmp"

    runner_image: str
    """FILETRANSFER_CONTAINER_IMAGE."""
    registry_url: str = ""
    registry_user: str = ""
    registry_password: str = ""
    """PRIVATE_DOCKER_REGISTRY_*: also for pulling the runner's own image."""
    pool_identity: str = ""
    """ARM id of a user-assigned identity that nodes have; it pulls the registry's images, for which
    there is no password then."""

    image: str = "microsoft-dsvm:ubuntu-hpc:2404:latest"
    """Of the nodes: publisher:offer:sku:version; the node agent is discovered from
    ListSupportedImages. Empty: the newest supported image that can run containers."""
    node_agent: str = ""
    """Empty: what ListSupportedImages says of `image`."""
    subnet: str = ""
    """ARM id of the subnet that nodes are in; empty: a network of Batch's own."""
    public_addresses: bool = True
    """Whether nodes have them; without, there must be a subnet."""
    file_share: str = ""
    """Azure Files share of `storage_account` that nodes mount as /tes-wd/shared-global; needs its
    key."""
    file_share_url: str = ""
    """https://account.file.core.windows.net/share"""

    override_pool: str = ""
    """Id of an existing pool that all attempts run on."""
    pool_ids: tuple[str, ...] = ()
    """Ids of existing pools that tasks may name."""
    sizes: tuple[str, ...] = ()
    """VM sizes that may be used; empty: all but `sizes_denied`. `*` and `?` are wildcards."""
    sizes_denied: tuple[str, ...] = ()
    spot: bool = False
    """Whether tasks that do not say `preemptible` run on Spot nodes."""
    spot_fallback: bool = True
    """Whether dedicated nodes are taken while Spot ones cannot be had."""
    min_nodes: int = 0
    max_nodes: int = 20
    """Of one pool."""
    max_pools: int = 20
    idle_s: float = 900.0
    """How long a pool without attempts is kept."""
    region: str = ""
    """Of the account; empty: as its URL says."""
    subscription: str = ""
    resource_group: str = ""
    """Where the account is, for reading quotas and sizes from Azure Resource Manager; empty: the
    bundled table, and no quota but Batch's own refusals."""
    arm_url: str = "https://management.azure.com"
    prices_url: str = "https://prices.azure.com/api/retail/prices"
    """The Retail Prices API; empty: the bundled table."""
    cache_dir: Path = Path()
    """Where what was read of sizes and prices is kept between starts."""

    node_engine: Literal["auto", "docker", "podman", "sandbox"] = "auto"
    """With which nodes run executors; auto: Docker, which Batch's images for containers have."""
    endpoints: Endpoints = Endpoints()
    allow_private: bool = True
    network: bool = True
    tail_bytes: int = 65536
    credential_s: float = 7 * 86400.0
    """How long signatures for nodes live at most."""

    @property
    def registry_host(self) -> str:
        """Host or host:port of the private registry, in lower case."""
        url = self.registry_url
        return urlsplit(url if "://" in url else f"//{url}").netloc.lower()

    @property
    def registry_identity(self) -> RegistryIdentity | None:
        """By which nodes log in to the private registry; None: not by an identity."""
        if not self.pool_identity or not self.registry_host:
            return None
        return RegistryIdentity(host=self.registry_host, id=self.pool_identity)

    def __repr__(self) -> str:
        return f"BatchConfig({self.account})"
