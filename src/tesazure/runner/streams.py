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
from tesazure.runner.journal import FULL
from tesazure.runner.tree import make_directories, resolve_inside

Name = Literal["stdout", "stderr"]

_LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""


class Stream:
    """One output stream of an executor: a file in the attempt's streams, and, when the executor
    names a path for it, the same file in the task's tree."""

    def __init__(self, path: Path, target: Path | None) -> None:
        """`path` exists. It is kept open: a task may take all permissions from its file."""
        self.path = path
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
        """Complete what the task is to find at its path, and let go of the file."""
        try:
            os.fchmod(self._file, 0o644)
            if self._target is not None:
                _copy(self._file, self._target)
        finally:
            os.close(self._file)


def _from_character(data: bytes) -> bytes:
    start = 0
    while start < min(len(data), _LONGEST_CHARACTER - 1) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:]


def _copy(source: int, target: Path) -> None:
    target.unlink(missing_ok=True)
    with open(source, "rb", closefd=False) as reader, target.open("xb") as writer:
        reader.seek(0)
        shutil.copyfileobj(reader, writer, 2**20)


@contextmanager
def open_streams(directory: AttemptDir, index: int, step: Step) -> Iterator[tuple[Stream, Stream]]:
    """stdout and stderr of executor `index`, empty; one and the same if they have the same path.

    A path in the tree is made afresh, so that neither a link planted there nor an earlier
    executor's file is written to. On leaving, the files in the tree are whole.
    Raises StorageError naming the path.
    """
    directory.streams.mkdir(exist_ok=True)
    with ExitStack() as stack:
        stdout = _make(directory, index, "stdout", step.stdout)
        stack.callback(stdout.close)
        if step.stderr is not None and step.stderr == step.stdout:
            with contextlib.suppress(OSError):
                os.link(stdout.path, directory.stream(index, "stderr"))
            yield stdout, stdout
            return
        stderr = _make(directory, index, "stderr", step.stderr)
        stack.callback(stderr.close)
        yield stdout, stderr


def _make(directory: AttemptDir, index: int, name: Name, wanted: str | None) -> Stream:
    path = directory.stream(index, name)
    target = None
    if wanted is not None:
        try:
            target = _fresh(directory.root, wanted)
        except OSError as error:
            kind = StorageFull if error.errno in FULL else StorageError
            raise kind(f"executor {index}: {name} {wanted}: {error.strerror}") from error
        with contextlib.suppress(OSError):
            # One file with two names, so that a huge output is stored once.
            os.link(target, path, follow_symlinks=False)
            return Stream(path, None)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    return Stream(path, target)


def _fresh(root: Path, container_path: str) -> Path:
    """A new empty file in the tree."""
    parent, _, name = container_path.rpartition("/")
    target = make_directories(root, parent) / name
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(target.lstat().st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.unlink()
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644))
    return target


def find_stdin(root: Path, index: int, container_path: str) -> Path:
    """The host file of executor `index`'s stdin. Raises StorageError naming the path."""
    try:
        path = resolve_inside(root, container_path)
        if stat.S_ISREG(path.lstat().st_mode):
            return path
        reason = "not a regular file"
    except OSError as error:
        reason = error.strerror or str(error)
    raise StorageError(f"executor {index}: stdin {container_path}: {reason}")
