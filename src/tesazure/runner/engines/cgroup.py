"""Control groups of the sandbox engine: limits, and a note of who was killed for memory.

Source: the kernel's admin-guide/cgroup-v1/memory.rst, scheduler/sched-bwc.rst, cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_PREFIX = "tesazure-"
_PERIOD_US = 100_000
_SMALLEST_QUOTA_US = 1_000
_PATIENCE_S = 5.0
"""For killed processes to be gone; the kernel frees their memory first."""


class Hierarchy(NamedTuple):
    """Where groups with a controller can be made: below the group `parent`."""

    version: int
    parent: Path


class Mounted(NamedTuple):
    """A mounted control group file system. `own` is this process's group in it."""

    version: int
    controllers: frozenset[str]
    top: Path
    own: Path


def mounted(mountinfo: str, membership: str) -> list[Mounted]:
    """From /proc/self/mountinfo and /proc/self/cgroup (proc_pid_mountinfo(5), cgroups(7))."""
    groups: dict[str, str] = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            groups[name] = path
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split(None, 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(options.split(",")) & groups.keys()
        path = groups.get("" if kind == "cgroup2" else next(iter(controllers), "-"), "")
        own = Path(point, os.path.relpath(path or "/", root))
        inside = path.startswith(root.rstrip("/") + "/") and own.is_dir()
        found.append(
            Mounted(
                2 if kind == "cgroup2" else 1,
                controllers,
                Path(point),
                own if inside else Path(point),
            )
        )
    return found


def find(mounts: Iterable[Mounted]) -> dict[str, Hierarchy]:
    """For `memory` and `cpu`, where this process can make groups that have the controller."""
    found: dict[str, Hierarchy] = {}
    for mount in mounts:
        if mount.version == 1:
            for name in mount.controllers & {"memory", "cpu"}:
                if os.access(mount.own, os.W_OK):
                    found[name] = Hierarchy(1, mount.own)
        else:
            parent, controllers = _delegated(mount)
            for name in controllers:
                found.setdefault(name, Hierarchy(2, parent))
    return found


def _delegated(mount: Mounted) -> tuple[Path, set[str]]:
    """The group nearest to ours in which groups with a controller for memory can be made, and which
    controllers these have; a process is in one group of version 2 only.

    The kernel gives controllers only to groups whose parent holds no process (except the top), so
    look upwards from our own. Moving a process needs the common ancestor's cgroup.procs as well.
    """
    group = mount.own
    while True:
        controllers = set()
        if os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK):
            controllers = {name for name in ("memory", "cpu") if _enabled(group, name)}
        if "memory" in controllers or group == mount.top:
            return group, controllers
        group = group.parent


def _enabled(group: Path, name: str) -> bool:
    """Whether groups made in `group` have the controller, after trying to have it so."""
    control = group / "cgroup.subtree_control"
    try:
        if name not in control.read_text().split():
            control.write_text(f"+{name}")
        return name in control.read_text().split()
    except OSError:
        return False


class Group:
    """The groups of one sandbox: one directory, or one for each controller with version 1."""

    def __init__(
        self,
        where: dict[str, Hierarchy],
        name: str,
        cpu_cores: float | None = None,
        ram_bytes: int | None = None,
    ) -> None:
        """Makes the groups that the limits need, none without limits: to move a process into one
        can take the kernel 15 ms. `limited` says which of `memory` and `cpu` are in force. Never
        raises."""
        self._directories: list[Path] = []
        self._memory: Path | None = None
        self.limited: set[str] = set()
        for controller, wanted in (("memory", ram_bytes), ("cpu", cpu_cores)):
            if controller not in where or wanted is None:
                continue
            hierarchy = where[controller]
            directory = hierarchy.parent / (_PREFIX + name)
            with contextlib.suppress(OSError):
                directory.mkdir(exist_ok=True)
                if directory not in self._directories:
                    self._directories.append(directory)
                if controller == "memory":
                    self._memory = directory
                    _limit_memory(hierarchy.version, directory, int(wanted))
                else:
                    _limit_cpu(hierarchy.version, directory, wanted)
                self.limited.add(controller)

    def enter(self) -> None:
        """Move the calling process into the groups. For a child before it starts its program."""
        for directory in self._directories:
            (directory / "cgroup.procs").write_text(str(os.getpid()))

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed a process of the group because the group was full."""
        if self._memory is None:
            return False
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                for line in (self._memory / name).read_text().splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1]) > 0
        return False

    def remove(self) -> None:
        """Kill what is in the groups and remove them. Never raises."""
        for directory in self._directories:
            _remove(directory)


def sweep(mounts: Iterable[Mounted], key: str) -> None:
    """Remove all groups of an attempt, wherever a runner made them, and kill what is in them."""
    for mount in mounts:
        if mount.version == 2 or mount.controllers & {"memory", "cpu"}:
            for directory, names, _ in os.walk(mount.top):
                for name in names:
                    if name.startswith(f"{_PREFIX}{key}-"):
                        _remove(Path(directory, name))


def _limit_memory(version: int, directory: Path, ram_bytes: int) -> None:
    if version == 2:
        (directory / "memory.max").write_text(str(ram_bytes))
        with contextlib.suppress(OSError):  # not there without swap
            (directory / "memory.swap.max").write_text("0")
        return
    (directory / "memory.limit_in_bytes").write_text(str(ram_bytes))
    with contextlib.suppress(OSError):  # not there without swap accounting
        (directory / "memory.memsw.limit_in_bytes").write_text(str(ram_bytes))


def _limit_cpu(version: int, directory: Path, cpu_cores: float) -> None:
    quota = max(_SMALLEST_QUOTA_US, int(cpu_cores * _PERIOD_US))
    if version == 2:
        (directory / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        return
    (directory / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
    (directory / "cpu.cfs_quota_us").write_text(str(quota))


def _remove(directory: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(OSError, ValueError):
            for pid in (directory / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            directory.rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return
        time.sleep(0.002)
