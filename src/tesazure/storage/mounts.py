"""Whether the file systems of this machine answer at once, or may hang as those of a network do."""

from __future__ import annotations

import time
from pathlib import Path

_LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "squashfs", "xfs", "zfs"} | {
    *("devpts", "devtmpfs", "hugetlbfs", "mqueue", "nsfs", "ramfs", "rootfs", "tmpfs"),
    *("exfat", "iso9660", "ntfs3", "vfat"),
}
_KERNEL = ("/proc", "/sys", "/dev")
"""What is mounted there is the kernel's own."""
_LOOK_S = 5.0


class Mounts:
    """The mount table, read again every few seconds."""

    def __init__(self, table: Path = Path("/proc/self/mountinfo")) -> None:
        self._table = table
        self._local = False
        self._due = 0.0

    def are_local(self) -> bool:
        """Whether nothing is mounted that depends on a network or on another process (FUSE)."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _LOOK_S
            self._local = self._look()
        return self._local

    def _look(self) -> bool:
        try:
            lines = self._table.read_text(errors="replace").splitlines()
        except OSError:
            return False
        return all(_is_local(line) for line in lines)


def _is_local(line: str) -> bool:
    """One line of mountinfo (proc_pid_mountinfo(5)): the fifth field is the mount point, the first
    one after the separator is the type."""
    head, _, tail = line.partition(" - ")
    point, kind = head.split()[4], tail.split()[0]
    return kind in _LOCAL or any(point == k or point.startswith(f"{k}/") for k in _KERNEL)
