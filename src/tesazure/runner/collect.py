"""What a task left at an output path: the files and directories below it, within its own tree.

A link is followed as the container saw it, so it leads to another place in the tree or, when it
pointed to something of the image or of the host, nowhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tesazure.errors import StorageError
from tesazure.runner.tree import resolve_inside
from tesazure.storage.local import kind_of
from tesazure.storage.urls import printable

Warn = Callable[[str], None]
"""Takes a sentence for system_logs."""

MAX_LINKED = 1_000_000
"""Entries reached through links to directories: a few links can multiply without end."""


class Found(msgspec.Struct, frozen=True):
    """What lies at an output path. `files` are (place on the host, path relative to the output),
    sorted; the output itself is "". `empty` are the relative paths of empty directories."""

    is_directory: bool
    files: list[tuple[Path, str]]
    empty: list[str]


def collect(root: Path, path: str, warn: Warn, max_linked: int = MAX_LINKED) -> Found | None:
    """What lies at the container path `path`; None if there is nothing that can be an output,
    with a warning if there is something else. Raises OSError, StorageError for multiplying links.
    """
    try:
        place = resolve(root, path)
        mode = place.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        warn(f"{printable(path)}: its symbolic links lead in a circle")
        return None
    if stat.S_ISREG(mode):
        unlock(root, place)
        return Found(False, [(place, "")], [])
    if stat.S_ISDIR(mode):
        return _Walk(root, path, warn, max_linked).walk(place)
    warn(f"{printable(path)}: is {kind_of(mode)}, which is not uploaded")
    return None


class _Walk:
    """One walk through a directory that is an output."""

    def __init__(self, root: Path, path: str, warn: Warn, max_linked: int) -> None:
        self._root = root
        self._path = path
        self._warn = warn
        self._max_linked = max_linked
        self._linked = 0
        self._files: list[tuple[Path, str]] = []
        self._empty: list[str] = []
        self._pending: list[tuple[Path, str, Sequence[Path], bool]] = []

    def walk(self, top: Path) -> Found:
        """All of `top`, in no particular order of visits, sorted in the end."""
        self._pending.append((top, "", (), False))
        while self._pending:
            place, relative, parents, linked = self._pending.pop()
            names = names_in(self._root, place)
            if not names:
                self._empty.append(relative)
            parents = (*parents, place)
            for name in names:
                below = f"{relative}/{name}" if relative else name
                self._visit(place / name, below, parents, linked)
        self._files.sort(key=lambda found: os.fsencode(found[1]))
        return Found(True, self._files, sorted(self._empty))

    def _visit(self, place: Path, relative: str, parents: Sequence[Path], linked: bool) -> None:
        mode = place.lstat().st_mode
        if stat.S_ISLNK(mode):
            target = self._follow(place, relative, parents)
            if target is None:
                return
            place, linked = target, True
            mode = place.lstat().st_mode
        if linked:
            self._linked += 1
            if self._linked > self._max_linked:
                raise StorageError(
                    f"{printable(self._path)}: its symbolic links lead to more than"
                    f" {self._max_linked} files"
                )
        if stat.S_ISDIR(mode):
            self._pending.append((place, relative, parents, linked))
        elif stat.S_ISREG(mode):
            unlock(self._root, place)
            self._files.append((place, relative))
        else:
            self._say(relative, f"is {kind_of(mode)}, which is not uploaded")

    def _follow(self, link: Path, relative: str, parents: Sequence[Path]) -> Path | None:
        try:
            target = resolve(self._root, "/" + os.fspath(link.relative_to(self._root)))
            target.lstat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            self._say(
                relative,
                "is a symbolic link that leads nowhere or out of the task's own files; it is not"
                " uploaded",
            )
            return None
        if target in parents:
            self._say(relative, "is a symbolic link to its own parents; it is not followed")
            return None
        return target

    def _say(self, relative: str, what: str) -> None:
        self._warn(f"{printable(f'{self._path}/{relative}')}: {what}")


def resolve(root: Path, path: str) -> Path:
    """As `tree.resolve_inside`, also through directories that we own but may not enter."""
    while True:
        try:
            return resolve_inside(root, path)
        except PermissionError as error:
            if not unlock(root, Path(error.filename).parent, os.X_OK):
                raise


def names_in(root: Path, directory: Path) -> list[str]:
    """Names in a directory of the tree; none if it is not one."""
    try:
        unlock(root, directory, os.R_OK | os.X_OK)
        return os.listdir(directory)  # noqa: PTH208 - names are what is wanted
    except (FileNotFoundError, NotADirectoryError):
        return []


def unlock(root: Path, place: Path, needed: int = os.R_OK) -> bool:
    """Give ourselves the permission (as for os.access) to use `place`, below `root`, which a task
    may have left without any; False if nothing was to do. Raises PermissionError for what belongs
    to another user."""
    if os.access(place, needed):
        return False
    changed = False
    for part in (*reversed(place.parents), place):
        if root in part.parents:
            mode = part.lstat().st_mode
            wanted = mode | (0o700 if stat.S_ISDIR(mode) else 0o400)
            if mode != wanted:
                part.chmod(stat.S_IMODE(wanted))
                changed = True
    return changed
