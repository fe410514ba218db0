"""One file to or from an SFTP server, over as many connections as it takes."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from tesazure.errors import StorageError
from tesazure.storage.base import Progress
from tesazure.storage.beside import old_name, part_name, says_forbidden
from tesazure.storage.local import kind_of
from tesazure.storage.patience import Again
from tesazure.storage.sftp_session import (
    BLOCK,
    EOF,
    FAILURE,
    FILE_EXISTS,
    NO_SUCH_FILE,
    READ,
    WRITE_NEW,
    WRITE_ON,
    Attributes,
    Refused,
    SftpSession,
)
from tesazure.storage.sources import Source


class _Frontier:
    """How far a file has come from its beginning, told of blocks in any order."""

    def __init__(self) -> None:
        self.reached = 0
        self._later: dict[int, int] = {}

    def add(self, offset: int, length: int) -> None:
        """Note that a block is done."""
        self._later[offset] = length
        while self.reached in self._later:
            self.reached += self._later.pop(self.reached)

    def go_on(self) -> None:
        """Forget what lies further on: it will be done anew."""
        self._later.clear()


class Download:
    """What is known of a file while it comes in, over as many connections as it takes."""

    def __init__(self, shown: str, target: int, progress: Progress | None) -> None:
        self._shown = shown
        self._target = target
        self._progress = progress
        self._found: Attributes | None = None
        self._frontier = _Frontier()
        self.furthest = 0

    def receive(self, session: SftpSession, path: bytes) -> int:
        """Take in the file, or what of it is missing; its size once it is whole. Raises Again."""
        found = session.stat(path)
        require_file(found, self._shown)
        if found.size is None:
            raise StorageError(f"{self._shown}: the server does not tell the file's size")
        self._frontier.go_on()
        if found != self._found:
            self._restart(found)
        handle = session.open_file(path, READ)
        try:
            session.read(handle, self._frontier.reached, found.size, self._take)
        except Refused as refused:
            if refused.code != EOF:
                raise
            self._restart(None)
            raise Again("the file became shorter while it was read") from None
        after = session.stat_open(handle)
        session.close_file(handle)
        if (after.size, after.modified) != (found.size, found.modified):
            self._restart(None)
            raise Again("the file changed while it was read")
        return found.size

    def _take(self, offset: int, data: memoryview) -> None:
        length = len(data)
        self._frontier.add(offset, length)
        while data:
            written = os.pwrite(self._target, data, offset)
            data, offset = data[written:], offset + written
        self.furthest = max(self.furthest, self._frontier.reached)
        if self._progress:
            self._progress(length)

    def _restart(self, found: Attributes | None) -> None:
        os.ftruncate(self._target, 0)
        self._found = found
        self._frontier = _Frontier()


class Upload:
    """A file on its way out. `temporary` is the path of what has been left on the server, `old` the
    one at which the file that is being replaced may be."""

    def __init__(self, shown: str, source: Source, progress: Progress | None) -> None:
        self._shown = shown
        self._source = source
        self._progress = progress
        self._frontier = _Frontier()
        self._path = b""
        self._is_renaming = False
        self.temporary = b""
        self.old = b""
        self.furthest = 0

    def send(self, session: SftpSession, path: bytes) -> None:
        """Write the file, or what of it is missing, and give it its name. Raises Again."""
        self._path = path
        if self._is_renaming and self._is_renamed(session, path):
            self._done(session)
            return
        handle = self._opened(session, path)
        session.write(handle, self._blocks(), self._written)
        size = session.stat_open(handle).size
        session.close_file(handle)
        if size not in (self._source.size, None):
            self._frontier = _Frontier()
            raise Again(f"the server has {size} bytes of {self._source.size} sent")
        self._source.check_unchanged()
        self._is_renaming = True
        self._rename(session, path)
        self._done(session)

    def undo(self, session: SftpSession) -> None:
        """Delete what was written, and give what was there its name back."""
        if self.temporary:
            with contextlib.suppress(Refused):
                session.remove(self.temporary)
            self.temporary = b""
        if self.old and session.find(self.old) is None:
            self.old = b""
        if self.old and session.find(self._path) is None:
            self._put_back(session, self._path)

    def _is_renamed(self, session: SftpSession, path: bytes) -> bool:
        """Whether an earlier try has done it, and only the answer was lost."""
        found = session.find(path) if session.find(self.temporary) is None else None
        return found is not None and found.size == self._source.size

    def _rename(self, session: SftpSession, path: bytes) -> None:
        try:
            session.rename(self.temporary, path)
            return
        except Refused as refused:
            with contextlib.suppress(Refused):
                if session.stat(path).is_directory:
                    raise StorageError(f"{self._shown}: a directory is already there") from None
            in_the_way = refused.code in (FAILURE, FILE_EXISTS) and session.find(path)
            if session.replaces or not in_the_way or says_forbidden(str(refused)):
                raise
            self._move_away(session, path, refused)
        try:
            session.rename(self.temporary, path)
        except Refused:
            self._put_back(session, path)
            raise

    def _move_away(self, session: SftpSession, path: bytes, refusal: Refused) -> None:
        """Give the old file another name; raises `refusal` if that is refused as well."""
        before = self.old
        self.old = before or path.rpartition(b"/")[0] + b"/" + old_name().encode()
        try:
            session.rename(path, self.old)
        except Refused:
            self.old = before
            raise refusal from None

    def _put_back(self, session: SftpSession, path: bytes) -> None:
        with contextlib.suppress(Refused):
            session.rename(self.old, path)
            self.old = b""

    def _done(self, session: SftpSession) -> None:
        self.temporary = b""
        if self.old:
            with contextlib.suppress(Refused):
                session.remove(self.old)

    def _opened(self, session: SftpSession, path: bytes) -> bytes:
        self._frontier.go_on()
        if self.temporary:
            # What a broken connection may still write is the same bytes at the same places.
            try:
                return session.open_file(self.temporary, WRITE_ON)
            except Refused:
                self._frontier = _Frontier()
        self._is_renaming = False
        directory = path.rpartition(b"/")[0]
        self.temporary = directory + b"/" + part_name().encode()
        try:
            return session.open_file(self.temporary, WRITE_NEW)
        except Refused as refused:
            if refused.code != NO_SUCH_FILE:
                raise
            make_directories(session, directory)
            return session.open_file(self.temporary, WRITE_NEW)

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        offset = self._frontier.reached
        while offset < self._source.size:
            data = self._source.read(offset, min(BLOCK, self._source.size - offset))
            yield offset, data
            offset += len(data)

    def _written(self, offset: int, length: int) -> None:
        self._frontier.add(offset, length)
        self.furthest = max(self.furthest, self._frontier.reached)
        if self._progress:
            self._progress(length)


def make_directories(session: SftpSession, path: bytes) -> None:
    """Make a directory and its parents. Raises Refused for the last of them."""
    missing: list[bytes] = []
    while path:
        try:
            session.stat(path)
            break
        except Refused as refused:
            if refused.code != NO_SUCH_FILE:
                raise
        missing.append(path)
        path = path.rpartition(b"/")[0]
    for directory in reversed(missing):
        try:
            session.make_directory(directory)
        except Refused:
            if not session.stat(directory).is_directory:  # somebody else may have made it
                raise


def require_file(found: Attributes, shown: str) -> None:
    """Raises StorageError for what the server says is another thing."""
    if found.mode is not None and not stat.S_ISREG(found.mode):
        raise StorageError(f"{shown}: is {kind_of(found.mode)}, not a file")
