"""What the settings say about Azure Batch, for whoever puts the parts together."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.names import installation_of
from tesazure.errors import ConfigurationError
from tesazure.settings import Settings, batch_scope_of, batch_url_of, identity_of
from tesazure.storage.configured import endpoints_of
from tesazure.storage.registry import is_installed

_PACKAGES = (
    "azure.batch",
    "azure.identity",
    "azure.mgmt.batch",
    "azure.storage.blob",
)


def config_of(s: Settings, identity: str, cache_dir: Path) -> BatchConfig:
    """The backend's configuration; `identity` is the store's. Raises ConfigurationError when the
    packages are not installed, OSError when a file that was there is not any more."""
    if not all(map(is_installed, _PACKAGES)):
        text = "needs packages that are not installed: pip install 'tesazure[batch]'"
        raise ConfigurationError([f"COMPUTE_BACKEND: batch {text}"])
    endpoints = endpoints_of(s)
    url = batch_url_of(s)
    return BatchConfig(
        installation=installation_of(identity),
        account=s.batch_account_name,
        url=url,
        key=s.batch_account_key,
        identity=identity_of(s),
        scope=batch_scope_of(s),
        ca_bundle=endpoints.ca_bundle,
        storage_url=endpoints.blob,
        storage_account=s.storage_account_name,
        storage_key=s.storage_account_key,
        container=s.batch_storage_container,
        runner_image=s.filetransfer_container_image,
        registry_url=s.private_docker_registry_url,
        registry_user=s.private_docker_registry_username,
        registry_password=s.private_docker_registry_password,
        pool_identity=s.batch_pool_identity_id,
        image=s.batch_image,
        node_agent=s.batch_node_agent,
        subnet=s.batch_subnet_id,
        public_addresses=s.batch_public_addresses,
        file_share=s.batch_file_share,
        file_share_url=f"{endpoints.file}/{s.batch_file_share}" if s.batch_file_share else "",
        override_pool=s.batch_override_pool_id,
        pool_ids=s.batch_pool_ids,
        sizes=s.batch_vm_sizes,
        sizes_denied=s.batch_vm_sizes_denied,
        spot=s.batch_spot,
        spot_fallback=s.batch_spot_fallback,
        min_nodes=s.batch_min_nodes,
        max_nodes=s.batch_max_nodes,
        max_pools=s.batch_max_pools,
        idle_s=s.batch_pool_idle_min * 60,
        region=s.batch_region or _region(url),
        subscription=s.azure_subscription_id,
        resource_group=s.batch_resource_group,
        arm_url=s.arm_endpoint.rstrip("/"),
        prices_url=s.retail_prices_url,
        cache_dir=cache_dir,
        endpoints=endpoints,
        allow_private=s.allow_private_addresses,
        network=s.task_network,
        tail_bytes=s.log_tail_bytes,
        credential_s=s.credential_hours * 3600,
    )


def _region(url: str) -> str:
    """https://name.region.batch.azure.com -> region; empty for other hosts."""
    parts = (urlsplit(url).hostname or "").split(".")
    return parts[1] if len(parts) > 3 and parts[2] == "batch" else ""
