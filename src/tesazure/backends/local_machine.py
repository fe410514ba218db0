"""What this machine is: its name, and what it has of cores, memory and disk."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from tesazure.backends.base import Capacity, Gauge

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def node_name() -> str:
    """Name of what one server can reach of another one's attempts: this machine, as this user.

    Two machines made from one disk image share a machine-id, two containers a host name: both are
    in the name. So is the user, who alone may signal the runners and delete their files.
    """
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()[:12]
    except (OSError, UnicodeDecodeError):
        machine = ""
    return "/".join(filter(None, (socket.gethostname(), machine, f"uid{os.geteuid()}")))


def capacity(directory: Path, cpu_cores: float, ram_bytes: int, disk_bytes: int) -> Capacity:
    """What tasks may ever use together: as given, or where 0 is given, all there is. Disk is the
    whole file system of `directory`, whatever lies on it now."""
    return Capacity(
        cpu_cores=cpu_cores or cores(),
        ram_bytes=ram_bytes or memory(),
        disk_bytes=disk_bytes or shutil.disk_usage(directory).total,
    )


def lets_others_gain_rights(directory: Path) -> bool:
    """Whether a setuid program left in `directory` can be run by other users of this machine: they
    can enter all directories above it, and its file system heeds such programs."""
    if os.statvfs(directory).f_flag & os.ST_NOSUID:
        return False
    return all(above.stat().st_mode & 0o011 for above in directory.resolve().parents)


def cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """Cores this process may use: its affinity, or less by the quota of its control group."""
    found = float(len(os.sched_getaffinity(0)))
    for group in _groups(proc, cgroups, "cpu"):
        match _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us"):
            case [quota, period] if quota.isdigit():
                found = min(found, int(quota) / int(period))
            case [quota] if quota.isdigit():
                period = (_words(group / "cpu.cfs_period_us") or ["100000"])[0]
                found = min(found, int(quota) / int(period))
    return found


def memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes of memory: the machine's, or less by the limit of this process's control group."""
    found = 0
    for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            found = int(line.split()[1]) * 1024
    for group in _groups(proc, cgroups, "memory"):
        match _words(group / "memory.max") or _words(group / "memory.limit_in_bytes"):
            case [limit] if limit.isdigit():
                found = min(found, int(limit))
    return found


def gauges(capacity: Capacity | None) -> list[Gauge]:
    """What tasks may use together, for operators."""
    if capacity is None:
        return []
    amounts = {
        "cpu_cores": capacity.cpu_cores,
        "ram_bytes": capacity.ram_bytes,
        "disk_bytes": capacity.disk_bytes,
    }
    text = "What tasks may use together of this machine."
    return [
        Gauge("tesazure_capacity", text, amount, {"resource": resource})
        for resource, amount in amounts.items()
    ]


def _groups(proc: Path, cgroups: Path, controller: str) -> list[Path]:
    """The directories of this process's control groups that may limit it, version 1 and 2, with
    their parents: a limit above holds as well (cgroups(7))."""
    try:
        lines = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    groups: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for root in (cgroups / controllers, cgroups / controller) if controllers else (cgroups,):
            here = root / path.lstrip("/")
            groups += [p for p in (here, *here.parents) if p.is_relative_to(root)]
    return groups


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except OSError:
        return []
