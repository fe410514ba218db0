"""One file to or from an FTP server, over as many connections as it takes."""

from __future__ import annotations

import contextlib
import ftplib
import os

from tesazure.errors import StorageError, StorageNotFound
from tesazure.storage.base import Progress
from tesazure.storage.beside import beside, old_name, part_name, says_forbidden
from tesazure.storage.ftp_session import UNKNOWN, FtpSession, code_of
from tesazure.storage.local import write_all
from tesazure.storage.patience import Again
from tesazure.storage.sources import Source

NOT_THIS = frozenset({"550", "553"})
"""Codes of replies that refuse a path, for whatever reason."""

_BLOCK = 2**18
_NO_RESTART = frozenset({"500", "501", "502", "504", "554"})


class Download:
    """What is known of a file while it comes in, over as many connections as it takes."""

    def __init__(self, shown: str, target: int, progress: Progress | None) -> None:
        self._shown = shown
        self._target = target
        self._progress = progress
        self._facts = UNKNOWN
        self._offset = 0
        self.furthest = 0

    def receive(self, session: FtpSession, path: str) -> int:
        """Take in the file, or what of it is missing; its size once it is whole. Raises Again."""
        facts = session.look(path)
        if facts is None:
            raise StorageNotFound(f"{self._shown}: no such file")
        if facts.is_directory:
            raise StorageError(f"{self._shown}: is a directory, not a file")
        if facts != self._facts or facts.version is None:
            self._restart()
        self._facts = facts
        if facts.size is None or self._offset < facts.size or not facts.size:
            self._take(session, path)
        if facts.size is not None and self._offset != facts.size:
            reason = f"{self._offset} bytes came of {facts.size} announced"
            if self._offset > facts.size:
                self._restart()
            raise Again(reason)
        return self._offset

    def _take(self, session: FtpSession, path: str) -> None:
        try:
            with session.data(f"RETR {path}", self._offset) as connected:
                for block in session.blocks(connected):
                    write_all(self._target, block)
                    self._offset += len(block)
                    self.furthest = max(self.furthest, self._offset)
                    if self._progress:
                        self._progress(len(block))
        except ftplib.error_perm as error:
            if not self._offset or code_of(error) not in _NO_RESTART:
                raise
            self._restart()
            raise Again("the server cannot go on in the middle of a file") from error

    def _restart(self) -> None:
        if self._offset:
            os.ftruncate(self._target, 0)
            os.lseek(self._target, 0, os.SEEK_SET)
        self._offset = 0


class Upload:
    """A file on its way out. `temporary` is the path of what has been left on the server, `old` the
    one at which the file that is being replaced may be."""

    def __init__(self, source: Source, progress: Progress | None) -> None:
        self._source = source
        self._progress = progress
        self._is_sent = False
        self._is_renaming = False
        self.temporary = ""
        self.old = ""
        self.furthest = 0

    def send(self, session: FtpSession, path: str) -> int:
        """Write the whole file and give it its name; its size."""
        if self._is_sent:
            # Perhaps only the server's word for it was lost: a firewall forgets a control
            # connection that was silent while a large file went by another one.
            facts = session.look(self.temporary)
            if facts is None and self._is_renaming and self._is_at(session, path):
                return self._done(session)
            self._is_sent = facts is not None and facts.size == self._source.size
        if not self._is_sent:
            self._write(session, path)
        self._source.check_unchanged()
        self._rename(session, path)
        return self._done(session)

    def undo(self, session: FtpSession, path: str) -> None:
        """Delete what was written, and give what was there its name back."""
        if self.temporary:
            with contextlib.suppress(ftplib.error_perm):
                session.voidcmd(f"DELE {self.temporary}")
            self.temporary = ""
        if self.old and session.look(self.old) is None:
            self.old = ""
        if self.old and session.look(path) is None:
            self._put_back(session, path)

    def _is_at(self, session: FtpSession, path: str) -> bool:
        facts = session.look(path)
        return facts is not None and facts.size == self._source.size

    def _write(self, session: FtpSession, path: str) -> None:
        """Write all of it to a new file."""
        if self.temporary:
            with contextlib.suppress(ftplib.error_perm):
                session.voidcmd(f"DELE {self.temporary}")
        self._is_sent = self._is_renaming = False
        self.temporary = beside(path, part_name())
        try:
            self._store(session)
        except ftplib.error_perm as error:
            self._is_sent = False
            if code_of(error) not in NOT_THIS or self.furthest:
                raise
            session.make_directories(path.rpartition("/")[0])
            self._store(session)
        except ftplib.Error:
            self._is_sent = False
            raise
        facts = session.look(self.temporary)
        if facts and facts.size not in (self._source.size, None):
            self._is_sent = False
            raise Again(f"the server has {facts.size} bytes of {self._source.size} sent")

    def _store(self, session: FtpSession) -> None:
        sent = 0
        with session.data(f"STOR {self.temporary}") as connected:
            while sent < self._source.size:
                block = self._source.read(sent, min(_BLOCK, self._source.size - sent))
                session.send(connected, block)
                sent += len(block)
                self.furthest = max(self.furthest, sent)
                if self._progress:
                    self._progress(len(block))
            self._is_sent = True

    def _rename(self, session: FtpSession, path: str) -> None:
        session.sendcmd(f"RNFR {self.temporary}")
        self._is_renaming = True
        try:
            session.voidcmd(f"RNTO {path}")
            return
        except ftplib.error_perm as error:
            if code_of(error) not in NOT_THIS or says_forbidden(str(error).replace(path, "")):
                raise
            facts = session.look(path)
            if facts is None or facts.is_directory:
                raise
            self._move_away(session, path, error)
        try:
            session.sendcmd(f"RNFR {self.temporary}")
            session.voidcmd(f"RNTO {path}")
        except ftplib.error_perm:
            self._put_back(session, path)
            raise

    def _move_away(self, session: FtpSession, path: str, refusal: ftplib.error_perm) -> None:
        """Give the old file another name; raises `refusal` if that is refused as well."""
        before = self.old
        self.old = before or beside(path, old_name())
        try:
            session.sendcmd(f"RNFR {path}")
            session.voidcmd(f"RNTO {self.old}")
        except ftplib.error_perm:
            self.old = before
            raise refusal from None

    def _put_back(self, session: FtpSession, path: str) -> None:
        with contextlib.suppress(ftplib.error_perm):
            session.sendcmd(f"RNFR {self.old}")
            session.voidcmd(f"RNTO {path}")
            self.old = ""

    def _done(self, session: FtpSession) -> int:
        self.temporary = ""
        if self.old:
            with contextlib.suppress(ftplib.error_perm):
                session.voidcmd(f"DELE {self.old}")
        return self._source.size
