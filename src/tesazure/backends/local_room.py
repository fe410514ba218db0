"""How much disk attempts may reserve together at this moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tesazure.runner.config import AttemptDir

FRESH_S = 5.0
"""How long what was counted is believed, in seconds."""
MOST_FILES = 20_000
"""Files counted of one attempt. What is not counted is taken as not written yet, which errs on the
side of less room."""


class _Limits(msgspec.Struct):
    reserved_disk_bytes: int


class _Planned(msgspec.Struct):
    """The only part of a plan that is of interest here."""

    limits: _Limits


_planned = msgspec.json.Decoder(_Planned).decode


class Room:
    """The disk below one directory. Reservations are held against what is free and what their own
    attempts have written of them already, as that is no longer free. Blocks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._counted: dict[Path, int] = {}
        self._counted_at = -FRESH_S

    def free(self) -> int:
        """Bytes free. Raises OSError."""
        return shutil.disk_usage(self._directory).free

    def closely(self, live: Iterable[AttemptDir]) -> int:
        """Bytes free, and those that live attempts have written of what they reserved."""
        attempts = list(live)
        if time.monotonic() > self._counted_at + FRESH_S:
            self._counted = {attempt.path: _written(attempt) for attempt in attempts}
            self._counted_at = time.monotonic()
        # What an attempt wrote that lives no more is still on the disk, and reserved by nobody.
        return self.free() + sum(self._counted.get(attempt.path, 0) for attempt in attempts)


def _written(attempt: AttemptDir) -> int:
    try:
        reserved = _planned(attempt.plan.read_bytes()).limits.reserved_disk_bytes
    except (OSError, msgspec.MsgspecError):
        return 0  # it has just ended
    return min(reserved, _size(attempt.path))


def _size(path: Path) -> int:
    """Bytes of disk that the files below `path` take."""
    total, files, folders = 0, 0, [str(path)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                files += 1
                if files > MOST_FILES:
                    return total
                found = entry.stat(follow_symlinks=False)
                total += found.st_blocks * 512
                if stat.S_ISDIR(found.st_mode):
                    folders.append(entry.path)
    return total
