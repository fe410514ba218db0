"""`file://` URLs and bare paths, within the allowed directories of this machine.

What a path leads to is decided by the kernel, once: a path is opened with O_PATH (which has no
effect on what lies there), the descriptor's real place is read from /proc/self/fd, and only then
the same object is opened for reading. Nobody can exchange a link between check and use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tesazure.errors import PermissionDenied, StorageError, StorageNotFound, StorageUnavailable
from tesazure.storage.base import Entry, Progress, Stat
from tesazure.storage.local import copy_bytes, kind_of, opened_directory, os_errors, whole_file
from tesazure.storage.urls import file_path, printable

_ATTEMPTS = 3
"""How often a source that changes while it is read is read anew."""
_CHECKED_S = 1.0
_CHECKED_MOST = 4096
_LONGEST_PATH = 4095
"""Linux's PATH_MAX, without the NUL."""
_A_DATA_DIR = "a server's data directory (the setting DATA_DIR), which is closed to all tasks"


class FileStorage:
    """Files of this machine below `allow_dirs`; symbolic links may lead anywhere in these.

    Relative to the Protocol: `get` and `put` keep a file's executable bit, other permissions are
    the process's (umask). What `put` wrote is on disk before it appears.
    """

    has_directories = True

    def __init__(self, allow_dirs: Sequence[Path], denied: Sequence[Path] = ()) -> None:
        """`denied`: data directories of servers, closed even inside an allowed directory."""
        self._allowed = tuple(os.path.realpath(directory) for directory in allow_dirs)
        self._denied = tuple(os.path.realpath(directory) for directory in denied)
        self._checked: dict[str, tuple[str, bool]] = {}
        self._checked_until = 0.0
        self._named = ", ".join(map(str, allow_dirs)) or "none"

    def check(self, url: str, *, writing: bool) -> None:
        """Raises PermissionDenied or UnsupportedUrl, having looked at this machine's links.

        An early word for whoever submits: each transfer looks again, and is the one that counts.
        """
        path = os.path.normpath(file_path(url))
        # A file's own link is replaced when written, so it does not matter where that leads.
        if self._is_open(path.rpartition("/")[0]) and (writing or not _is_link(path)):
            return
        with os_errors(printable(path)):
            leads_to = os.path.realpath(path)
            place = f"{os.path.realpath(Path(path).parent).rstrip('/')}/{Path(path).name}"
        if not (writing and self._is_inside(place)) and not self._is_inside(leads_to):
            raise self._outside(path)
        self._deny(place, path)
        self._deny(leads_to, path)
        if not writing and any(_is_below(denied, leads_to) for denied in self._denied):
            raise PermissionDenied(f"{printable(path)}: contains {_A_DATA_DIR}")

    def stat(self, url: str) -> Stat:
        """What lies at `url`; a special file is a StorageError."""
        path = file_path(url)
        with self._found(path) as handle:
            found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            return Stat(is_directory=True)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{printable(path)}: is {kind_of(found.st_mode)}, not a file")
        version = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
        return Stat(is_directory=False, size=found.st_size, version=version)

    def list(self, url: str) -> Iterator[Entry]:
        """Everything below `url`, links followed. A link out of the allowed directories, one that
        leads nowhere or back to its own parents, and a special file end it with an error."""
        top = file_path(url)
        with self._found(top) as handle:
            here = _identity(os.fstat(handle))
        pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (here,))]
        while pending:
            relative, parents = pending.pop()
            entries = self._scan(top, relative)
            if not entries and relative:
                yield Entry(relative, 0, is_directory=True)
            for name, found in entries:
                below = f"{relative}/{name}" if relative else name
                if not stat.S_ISDIR(found.st_mode):
                    yield Entry(below, found.st_size)
                    continue
                identity = _identity(found)
                if identity in parents:
                    shown = printable(f"{top}/{below}")
                    raise StorageError(f"{shown}: this symbolic link leads to its own parents")
                pending.append((below, (*parents, identity)))

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """A private copy of the file; never a link to it."""
        source_path = file_path(url)
        both = f"{printable(source_path)} to {printable(str(path))}"
        with self._readable(source_path) as source, os_errors(both):
            for _ in range(_ATTEMPTS):
                before = os.fstat(source)
                mode = 0o777 if before.st_mode & 0o111 else 0o666
                try:
                    with (
                        opened_directory(path.parent) as directory,
                        whole_file(directory, path.name, mode) as target,
                    ):
                        os.lseek(source, 0, os.SEEK_SET)
                        size = copy_bytes(source, target, before.st_size, progress)
                        after = os.fstat(source)
                        if _state(before) != _state(after):
                            raise _Changed
                except _Changed:
                    continue
                return size
        raise StorageUnavailable(f"{printable(source_path)}: keeps changing while it is copied")

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """Write the file beside its destination, then rename it. A link at the destination is
        replaced, not followed."""
        destination = file_path(url)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os_errors(f"{printable(str(path))} to {printable(destination)}"):
            source = os.open(path, flags)
            try:
                found = os.fstat(source)
                if not stat.S_ISREG(found.st_mode):
                    shown = printable(str(path))
                    raise StorageError(f"{shown}: is {kind_of(found.st_mode)}, not a file")
                mode = 0o777 if found.st_mode & 0o111 else 0o666
                head, name = os.path.split(os.path.normpath(destination))
                with self._made_directory(head) as directory:
                    _refuse_to_replace(directory, name, destination)
                    with whole_file(directory, name, mode) as target:
                        size = copy_bytes(source, target, found.st_size, progress)
                        os.fdatasync(target)
                    return size
            finally:
                os.close(source)

    def make_directory(self, url: str) -> None:
        """Make the directory and its parents; succeeds if it is there."""
        path = file_path(url)
        with os_errors(printable(path)), self._made_directory(path):
            pass

    def close(self) -> None:
        """Nothing is kept open."""

    def _is_open(self, directory: str) -> bool:
        """Whether whatever lies in this normalised directory may be used, unless it is a link.

        Found out anew every `_CHECKED_S` seconds: tasks name the same few directories, and new ones
        in these, all the time.
        """
        now = time.monotonic()
        if now > self._checked_until or len(self._checked) >= _CHECKED_MOST:
            self._checked, self._checked_until = {}, now + _CHECKED_S
        known = self._checked.get(directory)
        if known is None:
            if not 0 < len(directory) <= _LONGEST_PATH:
                return False
            head, _, name = directory.rpartition("/")
            parent = self._checked.get(head)
            if parent is not None and not _is_link(directory):
                known = self._note(directory, f"{parent[0].rstrip('/')}/{name}")
            else:
                known = self._note(directory, os.path.realpath(directory))
                self._note(head, os.path.realpath(head or "/"))
        return known[1]

    def _note(self, directory: str, real: str) -> tuple[str, bool]:
        """Remember where a directory really lies, and whether it is open."""
        is_open = self._is_inside(real) and not any(
            real == d or _is_below(real, d) or _is_below(d, real) for d in self._denied
        )
        known = self._checked[directory] = (real, is_open)
        return known

    def _is_inside(self, real: str) -> bool:
        return any(real == a or _is_below(real, a) for a in self._allowed)

    def _admit(self, real: str, path: str) -> None:
        """Raises PermissionDenied unless the real path that `path` leads to may be used."""
        if not self._is_inside(real):
            raise self._outside(path)
        self._deny(real, path)

    def _deny(self, real: str, path: str) -> None:
        if any(real == denied or _is_below(real, denied) for denied in self._denied):
            raise PermissionDenied(f"{printable(path)}: is in {_A_DATA_DIR}")

    def _outside(self, path: str) -> PermissionDenied:
        return PermissionDenied(
            f"{printable(path)}: not in an allowed directory ({self._named});"
            " the setting ALLOW_DIR (--allow-dir) names these"
        )

    @contextlib.contextmanager
    def _found(self, path: str) -> Iterator[int]:
        """An O_PATH descriptor of what `path` leads to, which is inside the allowed directories."""
        with os_errors(printable(path)):
            try:
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                # What is missing elsewhere is nobody's business.
                self._admit(os.path.realpath(path), path)
                raise
            try:
                self._admit(_place_of(handle), path)
                yield handle
            finally:
                os.close(handle)

    @contextlib.contextmanager
    def _readable(self, path: str) -> Iterator[int]:
        """A descriptor to read the regular file that `path` leads to."""
        with self._found(path) as handle:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                raise StorageError(f"{printable(path)}: is {kind_of(mode)}, not a file")
            source = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield source
        finally:
            os.close(source)

    def _scan(self, top: str, relative: str) -> Sequence[tuple[str, os.stat_result]]:
        """Names in a directory, and what each leads to: a directory or a file."""
        path = f"{top}/{relative}" if relative else top
        with self._found(path) as handle:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                raise StorageError(f"{printable(path)}: is not a directory")
            directory = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                with os.scandir(directory) as found:
                    return [(e.name, self._entry(directory, path, e)) for e in found]
            finally:
                os.close(directory)

    def _entry(self, directory: int, path: str, entry: os.DirEntry[str]) -> os.stat_result:
        full = f"{path}/{entry.name}"
        if entry.is_symlink():
            self._admit(os.path.realpath(full), full)
            shown = printable(full)
            try:
                with os_errors(f"{shown}: this symbolic link"):
                    found = os.stat(entry.name, dir_fd=directory)
            except StorageNotFound:
                remedy = "remove it, or name the files that are wanted one by one"
                raise StorageNotFound(
                    f"{shown}: this symbolic link leads nowhere; {remedy}"
                ) from None
        else:
            found = entry.stat(follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
            what = kind_of(found.st_mode)
            raise StorageError(f"{printable(full)}: is {what}, neither file nor directory")
        return found

    @contextlib.contextmanager
    def _made_directory(self, path: str) -> Iterator[int]:
        """A descriptor of a directory inside the allowed ones, made with its parents if need be."""
        real = os.path.realpath(path)
        self._admit(real, path)
        missing: list[str] = []
        while (handle := _open_directory(real)) is None:
            real, name = os.path.split(real)
            missing.append(name)
        try:
            self._admit(_place_of(handle), path)
            for name in reversed(missing):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=handle)
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(name, flags, dir_fd=handle)
                os.close(handle)
                handle = below
            yield handle
        finally:
            os.close(handle)


class _Changed(Exception):
    """The source changed while it was copied."""


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def _is_link(path: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return False


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _state(found: os.stat_result) -> tuple[int, int]:
    return found.st_mtime_ns, found.st_size


def _place_of(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115 - runs for every file


def _open_directory(path: str) -> int | None:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _refuse_to_replace(directory: int, name: str, destination: str) -> None:
    """Raises StorageError where a rename would replace something that is not a file or link."""
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise StorageError(
            f"{printable(destination)}: {kind_of(mode)} is already there, which a file cannot"
            " replace"
        ) from OSError(errno.EEXIST, os.strerror(errno.EEXIST))
