"""Whether the kernel killed something in a container for want of memory, from its cgroup.

Engines do not always tell. Sources: the kernel's admin-guide/cgroup-v1/memory.rst (10.
OOM Control) and cgroup-v2.rst (memory.events).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self


class OomWatch:
    """The counter of kills in the memory cgroup of a process. It goes with the cgroup, so `look`
    as long as the container's end is fresh."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.killed = False

    @classmethod
    def open(
        cls, pid: int, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
    ) -> Self | None:
        """None where there is nothing to watch, such as on another machine's engine."""
        with contextlib.suppress(OSError, KeyError):
            membership = (proc / str(pid) / "cgroup").read_text().splitlines()
            groups = dict(line.split(":", 2)[1:] for line in membership)
            if "memory" in groups:
                counter = cgroups / "memory" / groups["memory"].lstrip("/") / "memory.oom_control"
            else:
                counter = cgroups / groups[""].lstrip("/") / "memory.events"
            return cls(os.open(counter, os.O_RDONLY | os.O_CLOEXEC))
        return None

    def look(self) -> None:
        """Read the counter, if it is still there."""
        with contextlib.suppress(OSError):
            self.killed |= kills(os.pread(self._descriptor, 4096, 0)) > 0

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


def kills(counters: bytes) -> int:
    """`oom_kill` of a `memory.oom_control` or `memory.events`."""
    values = dict(line.split() for line in counters.decode().splitlines())
    return int(values.get("oom_kill", 0))
