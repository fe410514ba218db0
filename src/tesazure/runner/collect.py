"""What a task left at an output path: the files and directories below it, within its own tree.

A link is followed as the container saw it, so it leads to another place in the tree or, when it
pointed to something of the image or of the host, nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence

import msgspec

from tesazure.errors import StorageError, StorageNotFound
from tesazure.runner.tree import Tree
from tesazure.storage.local import kind_of
from tesazure.storage.urls import printable

Warn = Callable[[str], None]
"""Takes a sentence for system_logs."""

_LEADS_NOWHERE = "is a symbolic link that leads nowhere or out of the task's own files"

MAX_LINKED = 1_000_000
"""Entries reached through links to directories: a few links can multiply without end."""


class Found(msgspec.Struct, frozen=True):
    """What lies at an output path. `files` and `empty` directories are container paths at or below
    it, sorted by their bytes; `reals` has the real paths of those that links lead to."""

    is_directory: bool
    files: list[str]
    empty: list[str]
    reals: dict[str, str]


def collect(tree: Tree, path: str, warn: Warn, max_linked: int = MAX_LINKED) -> Found:
    """What lies at the container path `path`. `warn` hears of what is left out below it.

    Raises StorageNotFound, which says why, if nothing there can be an output; StorageError for
    multiplying links; OSError.
    """
    try:
        real = resolve(tree, path)
        mode = tree.place(real).lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise StorageNotFound(_why_absent(tree, path)) from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise StorageNotFound("its symbolic links lead in a circle") from None
    if stat.S_ISREG(mode):
        unlock(tree, real)
        return Found(False, [path], [], {} if real == path else {path: real})
    if stat.S_ISDIR(mode):
        return _Walk(tree, path, warn, max_linked).walk(real)
    raise StorageNotFound(f"is {kind_of(mode)}")


def _why_absent(tree: Tree, path: str) -> str:
    """Of a path at which there is nothing: whether a link on the way is to blame."""
    names = path.strip("/").split("/")
    for count, name in enumerate(names):
        parent = resolve(tree, "/" + "/".join(names[:count]))
        link = tree.place(f"{parent.rstrip('/')}/{name}")
        if not os.path.lexists(link):
            break
        here = "/" + "/".join(names[: count + 1])
        if link.is_symlink() and not os.path.lexists(tree.place(resolve(tree, here))):
            return _LEADS_NOWHERE if here == path else f"{printable(here)} {_LEADS_NOWHERE}"
    return "the task left nothing at this path"


class _Walk:
    """One walk through a directory that is an output."""

    def __init__(self, tree: Tree, path: str, warn: Warn, max_linked: int) -> None:
        self._tree = tree
        self._path = path
        self._warn = warn
        self._max_linked = max_linked
        self._linked = 0
        self._files: list[str] = []
        self._empty: list[str] = []
        self._reals: dict[str, str] = {}
        self._pending: list[tuple[str, str, Sequence[str], bool]] = []

    def walk(self, top: str) -> Found:
        """All of the directory at the real path `top`."""
        self._pending.append((top, self._path, (), False))
        while self._pending:
            real, path, parents, linked = self._pending.pop()
            names = names_in(self._tree, real)
            if not names:
                self._empty.append(path)
            parents = (*parents, real)
            for name in names:
                below = f"{path.rstrip('/')}/{name}"
                self._visit(f"{real.rstrip('/')}/{name}", below, parents, linked)
        for found in (self._files, self._empty):
            found.sort(key=None if all(map(str.isascii, found)) else os.fsencode)
        return Found(True, self._files, self._empty, self._reals)

    def _visit(self, real: str, path: str, parents: Sequence[str], linked: bool) -> None:
        mode = self._mode(real)
        if stat.S_ISLNK(mode):
            target = self._follow(real, path, parents)
            if target is None:
                return
            real, linked = target, True
            mode = self._mode(real)
        if linked:
            self._linked += 1
            if self._linked > self._max_linked:
                raise StorageError(
                    f"{printable(self._path)}: its symbolic links lead to more than"
                    f" {self._max_linked} files"
                )
        if stat.S_ISDIR(mode):
            self._pending.append((real, path, parents, linked))
        elif stat.S_ISREG(mode):
            unlock(self._tree, real)
            self._files.append(path)
            if real != path:
                self._reals[path] = real
        elif mode:
            self._say(path, f"is {kind_of(mode)}, which is not uploaded")

    def _mode(self, real: str) -> int:
        """0 for what another task has just deleted."""
        try:
            return self._tree.place(real).lstat().st_mode
        except FileNotFoundError:
            if self._tree.is_private(real):
                raise
            return 0

    def _follow(self, link: str, path: str, parents: Sequence[str]) -> str | None:
        try:
            target = resolve(self._tree, link)
            self._tree.place(target).lstat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            self._say(path, f"{_LEADS_NOWHERE}; it is not uploaded")
            return None
        if target in parents:
            self._say(path, "is a symbolic link to its own parents; it is not followed")
            return None
        return target

    def _say(self, path: str, what: str) -> None:
        self._warn(f"{printable(path)}: {what}")


def resolve(tree: Tree, path: str) -> str:
    """As `Tree.real`, also through directories that we own but may not enter."""
    while True:
        try:
            return tree.real(path)
        except PermissionError as error:
            directory = tree.container_path(os.path.dirname(error.filename))  # noqa: PTH120
            if directory is None or not unlock(tree, directory, os.X_OK):
                raise


def names_in(tree: Tree, real: str) -> list[str]:
    """As `Tree.names`, also of a directory that we own but may not enter."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        unlock(tree, real, os.R_OK | os.X_OK)
    return tree.names(real)


def unlock(tree: Tree, real: str, needed: int = os.R_OK) -> bool:
    """Give ourselves the permission (as for os.access) to use what lies at a real path, which a
    task may have left without any; False if nothing was to do, or it is not the task's own. Raises
    PermissionError for what belongs to another user."""
    place = tree.place(real)
    if not tree.is_private(real) or os.access(place, needed):
        return False
    changed = False
    for part in (*reversed(place.parents), place):
        if tree.root in part.parents:
            mode = part.lstat().st_mode
            wanted = mode | (0o700 if stat.S_ISDIR(mode) else 0o400)
            if mode != wanted:
                part.chmod(stat.S_IMODE(wanted))
                changed = True
    return changed
