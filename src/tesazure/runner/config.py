"""What a runner must know of its node, and where things lie in an attempt's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from tesazure.access import Endpoints, RegistryIdentity


class NodeConfig(msgspec.Struct, omit_defaults=True, frozen=True):
    """The node's side of an attempt; the task's side is the Plan."""

    key: str
    engine: Literal["docker", "podman", "sandbox"]
    engine_host: str = ""
    """URL of the engine's API socket, for docker and podman."""
    allow_dirs: tuple[str, ...] = ()
    mount_dirs: tuple[str, ...] = ()
    """See `storage.mounted`."""
    shared_global: str = ""
    """Host directory seen as /tes-wd/shared-global; empty: a private one."""
    shared_is_mounted: bool = False
    """Whether something must be mounted there: a plain directory is the node's own disk then."""
    hidden: tuple[str, ...] = ()
    """Data directories of this machine's servers: no task sees them, reads them or writes there,
    whatever `allow_dirs` says."""
    allow_private: bool = True
    """Whether URLs may lead to private network addresses."""
    endpoints: Endpoints = Endpoints()
    network: bool = True
    cache_dir: str = ""
    """Where inputs that attempts have in common are kept; see `runner.input_cache`. No task may see
    it, so it lies below one of `hidden`."""
    cache_bytes: int = 0
    """How large that may become; 0: nothing is kept."""
    tail_bytes: int = 65536
    registry_identity: RegistryIdentity | None = None
    """With which the private registry's images are pulled, where there is no password for it."""
    facts: dict[str, str] = {}
    """For the attempt's metadata, noted first."""
    cost_per_hour_usd: float | None = None
    """Of what the attempt takes of the node, for `estimated_cost_usd` at its end."""
    notify: str = ""
    """Path of a Unix datagram socket that gets an empty datagram after each event; best effort."""


class AttemptDir:
    """The files of one attempt below one directory.

    `report` is created exclusively by the runner, so a key runs at most once; `lock` is held with
    flock for as long as the runner lives.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.json"
        self.node = path / "node.json"
        self.report = path / "report.jsonl"
        self.lock = path / "runner.lock"
        self.output = path / "runner.log"
        self.root = path / "root"
        self.streams = path / "streams"

    def stream(self, executor: int, name: str) -> Path:
        """Where executor `executor`'s whole stdout or stderr is kept."""
        return self.streams / f"{executor}.{name}"
