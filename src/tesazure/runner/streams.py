"""Where an executor's stdin comes from and where its stdout and stderr go, on the host."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from tesazure.errors import StorageError, StorageFull
from tesazure.plan import Step
from tesazure.runner.config import AttemptDir
from tesazure.runner.tree import Tree
from tesazure.storage.local import FULL

Name = Literal["stdout", "stderr"]

_LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""


class Stream:
    """One output stream of an executor: a file in the attempt's streams, and, when the executor
    names a path for it, the same file in the task's tree."""

    def __init__(self, path: Path, tree: Tree | None = None, target: str = "") -> None:
        """`path` exists. It is kept open: a task may take all permissions from its file. With a
        `tree`, the container path `target` is to get a copy in the end."""
        self.path = path
        self._tree = tree
        self._target = target
        self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def tail(self, limit: int) -> str:
        """At most the last `limit` bytes as text, from the beginning of a character."""
        size = os.fstat(self._file).st_size
        data = os.pread(self._file, min(size, limit), max(0, size - limit))
        if size > limit:
            data = _from_character(data)
        return data.decode("utf-8", "replace")

    def close(self) -> None:
        """Complete what the task is to find at its path, and let go of the file. Raises OSError."""
        try:
            os.fchmod(self._file, 0o644)
            if self._tree is not None:
                _copy(self._file, self._tree, self._target)
        finally:
            os.close(self._file)


def _from_character(data: bytes) -> bytes:
    start = 0
    while start < min(len(data), _LONGEST_CHARACTER - 1) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:]


def _copy(source: int, tree: Tree, target: str) -> None:
    """The way to the target is gone anew: the task may have changed it meanwhile."""
    with (
        tree.held(_fresh(tree, target)) as place,
        open(source, "rb", closefd=False) as reader,
        os.fdopen(os.open(place, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb") as writer,
    ):
        reader.seek(0)
        shutil.copyfileobj(reader, writer, 2**20)


@contextmanager
def open_streams(
    directory: AttemptDir, tree: Tree, index: int, step: Step
) -> Iterator[tuple[Stream, Stream]]:
    """stdout and stderr of executor `index`, empty; one and the same if they have the same path.

    A path in the tree is made afresh, so that neither a link planted there nor an earlier
    executor's file is written to. On leaving, the files in the tree are whole.
    Raises StorageError naming the path.
    """
    directory.streams.mkdir(exist_ok=True)
    with ExitStack() as stack:
        stdout = _make(directory, tree, index, "stdout", step.stdout)
        stack.callback(stdout.close)
        if step.stderr is not None and step.stderr == step.stdout:
            with contextlib.suppress(OSError):
                os.link(stdout.path, directory.stream(index, "stderr"))
            yield stdout, stdout
            return
        stderr = _make(directory, tree, index, "stderr", step.stderr)
        stack.callback(stderr.close)
        yield stdout, stderr


def _make(directory: AttemptDir, tree: Tree, index: int, name: Name, wanted: str | None) -> Stream:
    path = directory.stream(index, name)
    if wanted is not None:
        try:
            target = _fresh(tree, wanted)
        except OSError as error:
            kind = StorageFull if error.errno in FULL else StorageError
            raise kind(f"executor {index}: {name} {wanted}: {error.strerror}") from error
        if tree.is_private(target):
            with contextlib.suppress(OSError):
                # One file with two names, so that a huge output is stored once.
                os.link(tree.place(target), path, follow_symlinks=False)
                return Stream(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    return Stream(path) if wanted is None else Stream(path, tree, wanted)


def _fresh(tree: Tree, container_path: str) -> str:
    """A new empty file in the tree; its real path."""
    parent, _, name = container_path.rpartition("/")
    real = f"{tree.make_directories(parent).rstrip('/')}/{name}"
    with tree.held(real) as place:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(place.lstat().st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            place.unlink()
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644))
    return real


class StdinError(Exception):
    """There is no file for an executor's stdin. `exit_code` as a shell's for a program: 127 if
    nothing is there, 126 if it is of no use."""

    def __init__(self, exit_code: int, reason: str) -> None:
        self.exit_code = exit_code
        super().__init__(reason)


@contextmanager
def opened_stdin(tree: Tree, container_path: str) -> Iterator[Path]:
    """A path of the host at which an executor's stdin can be opened while the body runs: always
    the same file, whatever is at its path by then. Raises StdinError naming the path."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with tree.held(tree.real(container_path)) as place:
            file = os.open(place, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise StdinError(127, f"stdin {container_path} is not there") from None
    except OSError as error:
        raise StdinError(126, f"stdin {container_path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise StdinError(126, f"stdin {container_path} is not a regular file")
        yield Path(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
