"""What the settings say about a station."""

from __future__ import annotations

import os
from pathlib import Path

from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.local import LocalBackend, LocalConfig
from tesazure.budgets import Budgets
from tesazure.errors import ConfigurationError
from tesazure.home import Home
from tesazure.lifecycle import Policy
from tesazure.plan import GB, Defaults
from tesazure.scheduler.config import SchedulerConfig
from tesazure.scheduler.retention import Kept
from tesazure.settings import Settings, passed_on
from tesazure.storage.configured import endpoints_of, grant_config_of
from tesazure.storage.grant import Granter
from tesazure.storage.mounted import MountDirs
from tesazure.storage.registry import Storages
from tesazure.storage.shared import SharedStorage
from tesazure.submitters.cromwell_paths import PathMapping


def backend_config(s: Settings, identity: str, home: Home) -> LocalConfig | BatchConfig:
    """The backend's configuration; `identity` is the store's. Raises ConfigurationError."""
    try:
        if s.compute_backend == "local":
            return _local_config(s, home)
        from tesazure.backends.azure_batch.configured import config_of

        return config_of(s, identity, home.path / "azure-batch")
    except OSError as error:
        raise ConfigurationError([f"COMPUTE_BACKEND: {s.compute_backend}: {error}"]) from error


def urls_of(s: Settings, home: Home, local: LocalBackend | None) -> Storages:
    """What checks the URLs of tasks; `local` is the started backend of this machine, if it is what
    runs them. Nodes elsewhere have none of its files."""
    hidden = local.data_dirs() if local else ()
    urls = Storages(
        s.allow_dir if local else (),
        hidden,
        allow_private=s.allow_private_addresses,
        endpoints=endpoints_of(s),
    )
    if local:
        urls.mount(MountDirs(s.mount_dir, hidden))
    if local or s.batch_file_share:
        urls.serve_shared(SharedStorage(Path(s.shared_global_dir or home.path)))
    return urls


def mapping_of(s: Settings) -> PathMapping:
    """What the paths of Cromwell's tasks mean."""
    name = s.cromwell_storage_container_name
    container = f"{endpoints_of(s).blob}/{name}" if name else ""
    return PathMapping(container, s.cromwell_map_shared_global)


def granter_of(s: Settings) -> Granter:
    """What signs for attempts. Raises ConfigurationError."""
    try:
        return Granter(grant_config_of(s))
    except OSError as error:
        raise ConfigurationError([f"credentials for storage: {error.strerror}"]) from error


def scheduler_config(s: Settings, budgets: Budgets) -> SchedulerConfig:
    """The scheduler's."""
    return SchedulerConfig(
        policy=Policy(
            max_retries=s.max_retries,
            retry_delay_s=s.retry_delay_s,
            credential_s=s.credential_hours * 3600 if s.compute_backend == "batch" else 0,
        ),
        defaults=Defaults(
            s.default_cpu_cores, s.default_ram_gb, s.default_disk_gb, s.max_runtime_s
        ),
        kept=kept_of(s),
        budgets=budgets,
        backfill_s=s.backfill_s,
        lease_s=s.lease_s,
    )


def kept_of(s: Settings) -> Kept:
    """How long what is kept."""
    return Kept(work_s=s.work_retention_hours * 3600, records_s=s.task_retention_days * 86400)


def runtime_dir() -> str:
    """Where systemd puts XDG_RUNTIME_DIR: a user's Podman has its socket there."""
    return f"/run/user/{os.geteuid()}"


def _local_config(s: Settings, home: Home) -> LocalConfig:
    return LocalConfig(
        data_dir=home.path,
        engine=s.local_engine,
        docker_host=s.docker_host,
        podman_host=s.podman_host,
        runtime_dir=runtime_dir(),
        cpu_cores=s.local_cpu_cores,
        ram_bytes=int(s.local_ram_gb * GB),
        disk_bytes=int(s.local_disk_gb * GB),
        allow_dirs=s.allow_dir,
        mount_dirs=s.mount_dir,
        shared_global=s.shared_global_dir,
        allow_private=s.allow_private_addresses,
        endpoints=endpoints_of(s),
        cache_bytes=int(s.input_cache_gb * GB),
        network=s.task_network,
        tail_bytes=s.log_tail_bytes,
        environment=passed_on(),
    )
