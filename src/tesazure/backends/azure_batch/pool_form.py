"""Pools and jobs as they are asked of Batch. Pure, but for the SDK's models."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from tesazure.backends.azure_batch import autoscale, names
from tesazure.backends.azure_batch.autoscale import Scale
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.images import NodeImage
from tesazure.backends.azure_batch.shapes import Shape
from tesazure.backends.azure_batch.tasks import registry_of

if TYPE_CHECKING:
    from azure.batch import models

MOUNT_OPTIONS = "-o vers=3.1.1,dir_mode=0777,file_mode=0777,serverino"
"""SMB 3.1.1 encrypts; tasks are of any user."""
GUARD = (
    "/bin/sh -c 'set -e; PATH=/usr/sbin:/usr/bin:/sbin:/bin; "
    'deny() { iptables -w 60 -t mangle -C FORWARD "$@" -j DROP 2>/dev/null'
    ' || iptables -w 60 -t mangle -I FORWARD "$@" -j DROP; }; '
    "deny -d 169.254.169.254; "
    "deny -d 168.63.129.16 -p tcp ! --dport 53; "
    "deny -d 168.63.129.16 -p udp ! --dport 53'"
)
"""Keeps containers from the instance metadata service, which would give them tokens of the pool's
identity, whoever gave it one, and from the platform's wire server, but for names, for which it is
asked ("Azure Instance Metadata Service", "What is IP address 168.63.129.16?").

Table mangle, not Docker's chain DOCKER-USER: Docker never writes there, whichever of its backends
it uses, and it holds before Docker is up and after it starts anew. What the node itself sends is
not forwarded, so that Batch's agent is not concerned. Run again, it changes nothing."""
GUARD_RETRIES = 3
_OWNER, _SHAPE = "tesazure", "tesazure-shape"


def pool_id(config: BatchConfig, shape: Shape) -> str:
    """The id of the pool of a shape, and of its job; at most 64 characters. It tells what settings
    put into the pool apart, secrets included, so that changed settings make new pools."""
    own = names.prefix(config.installation)
    if shape.pool:
        return f"{own}on-{_hash(shape.pool.lower())}"
    content: tuple[str, ...] = (
        config.image,
        config.node_agent,
        config.subnet,
        str(config.public_addresses),
        config.file_share_url,
        config.runner_image,
        config.registry_host,
        config.registry_user,
        config.pool_identity,
        GUARD,
        msgspec.json.encode(shape).decode(),
    )
    content += _traces(config, "\0".join(content))
    kind = "spot" if shape.spot else "ded"
    size = shape.vm_size.lower().removeprefix("standard_")
    return f"{own}{size[:30]}-{kind}-{_hash(*content)}"


def describe_pool(
    config: BatchConfig, id_: str, shape: Shape, image: NodeImage, scale: Scale, *, encrypted: bool
) -> models.BatchPoolCreateOptions:
    """A pool of a shape. `encrypted`: disks are, on the host ("Create a pool with disk encryption
    enabled"). Nodes communicate as Batch has it since 2026, simplified."""
    from azure.batch import models

    registry = registry_of(config)
    machine = models.VirtualMachineConfiguration(
        image_reference=models.BatchVmImageReference(
            publisher=image.publisher, offer=image.offer, sku=image.sku, version=image.version
        ),
        node_agent_sku_id=image.agent,
        container_configuration=models.BatchContainerConfiguration(
            type="dockerCompatible",
            # Pulled once as a node starts, rather than by each task.
            container_image_names=[config.runner_image],
            container_registries=[registry] if registry is not None else None,
        ),
        os_disk=_os_disk(shape),
        node_placement_configuration=(
            models.BatchNodePlacementConfiguration(policy="zonal") if shape.zonal else None
        ),
        security_profile=models.SecurityProfile(encryption_at_host=True) if encrypted else None,
    )
    return models.BatchPoolCreateOptions(
        id=id_,
        vm_size=shape.vm_size,
        virtual_machine_configuration=machine,
        enable_auto_scale=True,
        auto_scale_formula=autoscale.formula(scale),
        auto_scale_evaluation_interval=autoscale.INTERVAL,
        start_task=_start_task(),
        task_slots_per_node=shape.slots,
        # One node is filled before the next, so that others become free and go.
        task_scheduling_policy=models.BatchTaskSchedulingPolicy(node_fill_type="pack"),
        network_configuration=_network(config),
        mount_configuration=_mounts(config),
        metadata=_metadata(config, shape),
    )


def describe_job(
    config: BatchConfig, id_: str, pool: str, shape: Shape
) -> models.BatchJobCreateOptions:
    """The job through which tasks reach a pool. It never ends by itself, and knows the pool's
    shape, should somebody delete that."""
    from azure.batch import models

    return models.BatchJobCreateOptions(
        id=id_,
        pool_info=models.BatchPoolInfo(pool_id=pool),
        all_tasks_complete_mode="noaction",
        metadata=_metadata(config, shape),
    )


def shape_in(metadata: Iterable[models.BatchMetadataItem] | None) -> Shape | None:
    """The shape that a pool or job of ours was made for; None: it tells none."""
    for item in metadata or ():
        if item.name == _SHAPE:
            try:
                return msgspec.json.decode(item.value, type=Shape)
            except msgspec.MsgspecError:
                return None
    return None


def _metadata(config: BatchConfig, shape: Shape) -> list[models.BatchMetadataItem]:
    from azure.batch import models

    return [
        models.BatchMetadataItem(name=_OWNER, value=config.installation),
        models.BatchMetadataItem(name=_SHAPE, value=msgspec.json.encode(shape).decode()),
    ]


def _traces(config: BatchConfig, content: str) -> tuple[str, ...]:
    """What changes with the secrets that a pool keeps. Whoever sees pools' names can try words
    against them, so there is little to see: of 65,536 words one passes, as does one change."""
    secrets = [config.registry_password]
    if config.file_share:
        secrets.append(config.storage_key)
    return tuple(
        hmac.digest(secret.encode(), content.encode(), "sha256")[:2].hex() if secret else ""
        for secret in secrets
    )


def _start_task() -> models.BatchStartTask:
    """What a node does before it takes tasks; if that fails it takes none."""
    from azure.batch import models

    administrator = models.AutoUserSpecification(scope="pool", elevation_level="admin")
    return models.BatchStartTask(
        command_line=GUARD,
        user_identity=models.UserIdentity(auto_user=administrator),
        max_task_retry_count=GUARD_RETRIES,
        wait_for_success=True,
    )


def _os_disk(shape: Shape) -> models.BatchOsDisk | None:
    from azure.batch import models

    if not shape.os_disk_gib:
        return None
    return models.BatchOsDisk(
        disk_size_gb=shape.os_disk_gib,
        managed_disk=models.ManagedDisk(storage_account_type="standardssd_lrs"),
    )


def _network(config: BatchConfig) -> models.NetworkConfiguration | None:
    from azure.batch import models

    if not config.subnet and config.public_addresses:
        return None
    addresses = None
    if not config.public_addresses:
        addresses = models.BatchPublicIpAddressConfiguration(
            ip_address_provisioning_type="nopublicipaddresses"
        )
    return models.NetworkConfiguration(
        subnet_id=config.subnet or None, public_ip_address_configuration=addresses
    )


def _mounts(config: BatchConfig) -> list[models.MountConfiguration] | None:
    from azure.batch import models

    if not config.file_share:
        return None
    return [
        models.MountConfiguration(
            azure_file_share_configuration=models.AzureFileShareConfiguration(
                account_name=config.storage_account,
                account_key=config.storage_key,
                azure_file_url=config.file_share_url,
                relative_mount_path=config.file_share,
                mount_options=MOUNT_OPTIONS,
            )
        )
    ]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]
