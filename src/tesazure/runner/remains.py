"""What attempts leave on a node that runs one after another: containers of those whose runner was
killed, with no chance to end them.

Each runner holds the lock of a file, named after its key, in a directory of the node. Whoever comes
next finds the files that nobody holds. Locks work across containers that see the same directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from tesazure.errors import EngineError


class Remains:
    """This runner's file, and those of others, in a directory of the node."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mine: Path | None = None
        self._lock = -1
        self._told: set[str] = set()

    def enter(self, key: str) -> None:
        """From now on, until this process ends, attempt `key` is alive here. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mine = self._directory / key
        while True:
            self._lock = os.open(self._mine, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # Whoever held the lock until now may have deleted the file.
            with contextlib.suppress(FileNotFoundError):
                if self._mine.stat().st_ino == os.fstat(self._lock).st_ino:
                    return
            os.close(self._lock)

    def leave(self) -> None:
        """Nothing of this attempt is left here."""
        if self._mine is not None:
            self._mine.unlink(missing_ok=True)

    def sweep(self, end: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Call `end`, which may raise EngineError, for each attempt whose runner is gone, as long
        as it does. `warn` hears of each failure once. Raises OSError when there is no directory."""
        for path in self._directory.iterdir():
            if path == self._mine:
                continue
            try:
                _end(path, end)
            except (FileNotFoundError, BlockingIOError):
                continue  # its runner lives, or somebody else has ended it
            except (EngineError, OSError) as error:
                said = f"what is left of attempt {path.name} cannot be ended: {error}"
                if said not in self._told:
                    self._told.add(said)
                    warn(said)


def _end(path: Path, end: Callable[[str], None]) -> None:
    lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        end(path.name)
        path.unlink()
    finally:
        os.close(lock)
