"""Local files while they are sent: opened once, hashed, and held to stay as they were."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tesazure.errors import StorageError
from tesazure.storage.base import Progress
from tesazure.storage.local import kind_of, os_errors
from tesazure.storage.urls import printable
from tesazure.storage.wire import FilePart

_BLOCK = 2**20
_TICK_S = 0.2


class Source:
    """An open file. `size` in bytes, as it was when it was opened."""

    def __init__(self, descriptor: int, shown: str) -> None:
        self._descriptor = descriptor
        self._shown = shown
        self._found = os.fstat(descriptor)
        self.size = self._found.st_size

    def part(self, offset: int, length: int) -> FilePart:
        """Bytes of the file as a request's body."""
        return FilePart(self._descriptor, offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """At least one byte from `offset` on, at most `length`. Raises StorageError when the file
        has become shorter."""
        data = os.pread(self._descriptor, length, offset)
        if not data:
            raise self._changed()
        return data

    def md5(self, offset: int, length: int, wanted: Callable[[], bool] = lambda: True) -> str:
        """The MD5 of a part in base64, as HTTP has it. `wanted`: whether to go on."""
        digest = hashlib.md5(usedforsecurity=False)
        end = offset + length
        while offset < end and wanted():
            data = os.pread(self._descriptor, min(_BLOCK, end - offset), offset)
            if not data:
                raise self._changed()
            digest.update(data)
            offset += len(data)
        return base64.b64encode(digest.digest()).decode()

    @contextlib.contextmanager
    def md5_meanwhile(self) -> Iterator[Callable[[Progress | None], str]]:
        """What waits for the MD5 of the whole file, which is computed beside the block; the
        Progress may end the wait."""
        ended = threading.Event()
        result: list[str | Exception] = []

        def compute() -> None:
            try:
                result.append(self.md5(0, self.size, lambda: not ended.is_set()))
            except Exception as error:
                result.append(error)

        thread = threading.Thread(target=compute, name="md5", daemon=True)

        def wait(progress: Progress | None) -> str:
            while thread.is_alive():
                thread.join(_TICK_S)
                if progress:
                    progress(0)
            if isinstance(result[0], Exception):
                raise result[0]
            return result[0]

        thread.start()
        try:
            yield wait
        finally:
            ended.set()
            thread.join()

    def check_unchanged(self) -> None:
        """Raises StorageError if somebody wrote to the file since it was opened."""
        now = os.fstat(self._descriptor)
        before = self._found
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise self._changed()

    def _changed(self) -> StorageError:
        return StorageError(f"{self._shown}: changed while it was copied")


@contextlib.contextmanager
def opened_source(path: Path) -> Iterator[Source]:
    """A regular file for sending; links are not followed. Raises StorageError and its kind."""
    shown = printable(str(path))
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os_errors(shown):
        descriptor = os.open(path, flags)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise StorageError(f"{shown}: is {kind_of(mode)}, not a file")
            yield Source(descriptor, shown)
        finally:
            os.close(descriptor)
