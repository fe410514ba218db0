"""Directories that tasks work in themselves, instead of in a copy: read-write, by opt-in.

Only what lies directly in a directory of MOUNT_DIR is mounted, never that itself nor anything
deeper. So no task can write where a name that is mounted stands, and put a link in its place
between the look at it and the mount, which engines make as root and which follows links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from tesazure.errors import PermissionDenied, StorageError
from tesazure.plan import SHARED_GLOBAL, TMP, WORK, contains
from tesazure.storage.local import os_errors
from tesazure.storage.urls import file_path, printable, scheme_of

Wanted = tuple[int, str, str]
"""An input of type DIRECTORY: its index, its URL, its normalised container path."""


class MountDirs:
    """What of a task's inputs is mounted."""

    def __init__(
        self, directories: Sequence[Path | str] = (), denied: Sequence[Path | str] = ()
    ) -> None:
        """`directories` are those of MOUNT_DIR; `denied` are closed to all tasks."""
        self._directories = tuple(os.path.realpath(directory) for directory in directories)
        self._denied = tuple(os.path.realpath(directory) for directory in denied)

    def find(self, wanted: Iterable[Wanted]) -> tuple[dict[int, Path], dict[int, StorageError]]:
        """The inputs to mount, as index -> directory of this machine, and why others cannot be,
        though they lie in a directory of MOUNT_DIR. What is in neither is no concern of these."""
        found: dict[int, Path] = {}
        refused: dict[int, StorageError] = {}
        targets: list[str] = []
        if not self._directories:
            return found, refused
        for index, url, path in wanted:
            try:
                source = self._source(url)
                if source is None:
                    continue
                _check_target(path, targets)
            except StorageError as error:
                refused[index] = error
                continue
            found[index] = source
            targets.append(path)
        return found, refused

    def _source(self, url: str) -> Path | None:
        """The directory that a URL names; None if it lies in no directory of MOUNT_DIR. Raises
        PermissionDenied for what cannot be mounted, StorageNotFound for what is not there."""
        if scheme_of(url) not in ("", "file"):
            return None
        parent, name = os.path.split(os.path.normpath(file_path(url)))
        shown = printable(f"{parent}/{name}")
        with os_errors(shown):
            parent = os.path.realpath(parent)
            place = os.path.join(parent, name)  # noqa: PTH118
            around = next((d for d in self._directories if contains(d, place)), None)
            if around is None:
                return None
            if parent != around:
                text = f"only a directory that lies directly in {printable(around)} can be mounted"
                raise PermissionDenied(f"{shown}: {text} (the setting MOUNT_DIR)")
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                raise PermissionDenied(f"{shown}: cannot be mounted: it is a link or a file")
        if any(contains(place, denied) or contains(denied, place) for denied in self._denied):
            raise PermissionDenied(
                f"{shown}: cannot be mounted: a server's data directory is there"
            )
        return Path(place)


def _check_target(path: str, targets: Iterable[str]) -> None:
    """Raises PermissionDenied where a mount would cover what every task has, or another mount."""
    for own in (TMP, WORK):
        if contains(path, own) or contains(SHARED_GLOBAL, path):
            raise PermissionDenied(f"{printable(path)}: nothing can be mounted there")
    if any(contains(path, other) or contains(other, path) for other in targets):
        raise PermissionDenied(f"{printable(path)}: another directory is mounted there")
