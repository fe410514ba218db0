"""`ftp://`: files and directories, by passive connections in binary mode.

`ftp://user:password@host/a/b` is `a/b` in the user's home (RFC 1738, 3.2.2; without a user:
anonymous), `ftp://host//a/b` (or `/%2Fa/b`) is `/a/b`. FTP encrypts nothing, passwords included.
"""

from __future__ import annotations

import contextlib
import ftplib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageFull,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.storage.addresses import check_host
from tesazure.storage.base import Entry, Progress, Stat
from tesazure.storage.ftp_session import UNKNOWN, Facts, FtpSession, code_of, says_denied
from tesazure.storage.local import opened_directory, os_errors, whole_file, write_all
from tesazure.storage.patience import Again, Patience, persist
from tesazure.storage.sockets import Idle, Resolve, connect, resolve
from tesazure.storage.sources import Source, opened_source
from tesazure.storage.urls import host_of, printable, redact

T = TypeVar("T")

_BLOCK = 2**18
_SAME_MOST = 4
"""How many directories may lie in each other with the same list of names, sizes and times, where a
server does not identify them: more are taken for one, with a link to its own parents."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_SPACE = frozenset({"452", "552"})
_NOT_FOR_US = frozenset({"530", "532", "533", "534"})
_NOT_THIS = frozenset({"550", "553"})
_NO_RESTART = frozenset({"500", "501", "502", "504", "554"})


class _Place(NamedTuple):
    """What a URL names. `path` with one character per byte, absolute or below the user's home."""

    host: str
    port: int
    user: str
    password: str
    path: str


class FtpStorage:
    """Files on FTP servers; a session is kept for the next file.

    Relative to the Protocol: FTP has no checksums, so a file's size is what is verified. A file
    replaced within a second by one of the same size may have the same `version`.
    """

    has_directories = True

    def __init__(
        self,
        *,
        allow_private: bool = True,
        patience: Patience | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        self._allow_private = allow_private
        self._patience = patience or Patience()
        self._resolve = resolve
        self._idle: Idle[_Place, FtpSession] = Idle()

    def check(self, url: str, *, writing: bool) -> None:
        """Raises UnsupportedUrl for what is no FTP URL, PermissionDenied for a refused address."""
        try:
            check_host(_place_of(url).host, allow_private=self._allow_private)
        except PermissionDenied as error:
            raise PermissionDenied(f"{redact(url)}: {error}") from None

    def stat(self, url: str) -> Stat:
        """What lies at `url`. `size` and `version` are None where the server cannot tell."""
        facts = self._facts("stat", url)
        return Stat(facts.is_directory, facts.size, version=facts.version)

    def list(self, url: str) -> Iterator[Entry]:
        """Asks for one directory at a time. Links are followed; one that leads back to its own
        parents is a StorageError."""
        top = self._facts("list", url)
        if not top.is_directory:
            raise StorageError(f"{redact(url)}: is not a directory")
        pending: list[tuple[str, str, tuple[str, ...]]] = [("", top.identity, ())]
        while pending:
            relative, identity, parents = pending.pop()
            children = self._children(url, relative)
            mark = identity or repr(children)
            if children and parents.count(mark) > (0 if identity else _SAME_MOST):
                raise StorageError(
                    f"{redact(url)}: {printable(_text(relative))}: this symbolic link leads to its"
                    " own parents"
                )
            if not children and relative:
                yield Entry(_text(relative), 0, is_directory=True)
            for name, facts in children:
                below = f"{relative}/{name}" if relative else name
                if facts.is_directory:
                    pending.append((below, facts.identity, (*parents, mark)))
                else:
                    yield Entry(_text(below), facts.size or 0)

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """A broken transfer goes on where it broke if the server still has the same version."""
        with (
            os_errors(f"{redact(url)} to {path}"),
            opened_directory(path.parent) as directory,
            whole_file(directory, path.name, 0o666) as target,
        ):
            download = _Download(redact(url), target, progress)
            return self._persist("RETR", url, download.receive, progress, lambda: download.furthest)

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """Writes beside the destination, then renames. A server that does not replace by renaming
        (IIS) has the old file deleted just before. A broken upload starts over: what the server
        still does with the rest of the broken connection, nobody knows."""
        if not _place_of(url).path.rpartition("/")[2]:
            raise StorageError(f"{redact(url)}: names a directory, where a file is to be written")
        with os_errors(f"{path} to {redact(url)}"), opened_source(path) as source:
            upload = _Upload(source, progress)
            try:
                return self._persist("STOR", url, upload.send, progress, lambda: upload.furthest)
            except StorageUnavailable:
                raise
            except BaseException:
                self._clean_up(url, upload)
                raise

    def make_directory(self, url: str) -> None:
        """Make the directory and its parents; succeeds if it is there."""

        def make(session: FtpSession, path: str) -> None:
            facts = session.look(path)
            if facts is None or facts is UNKNOWN:
                said = session.make_directories(path)
                facts = session.look(path)
                if facts is None:
                    kind = PermissionDenied if says_denied(said, path) else StorageError
                    raise kind(f"{redact(url)}: {printable(_text(said))}")
            if not facts.is_directory:
                raise StorageError(f"{redact(url)}: a file is already there")

        self._persist("MKD", url, make)

    def close(self) -> None:
        """Close idle sessions."""
        self._idle.close()

    def _facts(self, verb: str, url: str) -> Facts:
        facts = self._persist(verb, url, lambda session, path: session.look(path))
        if facts is None:
            raise StorageNotFound(f"{redact(url)}: no such file or directory")
        return facts

    def _children(self, url: str, relative: str) -> Sequence[tuple[str, Facts]]:
        def ask(session: FtpSession, path: str) -> Sequence[tuple[str, Facts]]:
            return session.children(f"{path.rstrip('/')}/{relative}" if relative else path)

        children = self._persist("list", url, ask)
        for name, _ in children:
            if "/" in name or name in ("", "..") or _CONTROL.search(name):
                raise StorageError(
                    f"{redact(url)}: the server lists {_text(name)!r}, which is no name of a file"
                )
        return children

    def _clean_up(self, url: str, upload: _Upload) -> None:
        """Delete what an upload that was given up has left, if that can be done at once."""

        def delete(session: FtpSession, _: str) -> None:
            session.voidcmd(f"DELE {upload.temporary}")

        if upload.temporary:
            with contextlib.suppress(StorageError, Again), self._session(_place_of(url), None) as s:
                _replies_as_errors(url, s, delete)

    def _persist(
        self,
        verb: str,
        url: str,
        act: Callable[[FtpSession, str], T],
        progress: Progress | None = None,
        furthest: Callable[[], int] = lambda: 0,
    ) -> T:
        """What `act` returns, given a session and a path, repeated as patience allows."""
        place = _place_of(url)

        def once() -> T:
            with self._session(place, progress) as session:
                return _replies_as_errors(url, session, act)

        try:
            return persist(self._patience, f"{verb} {redact(url)}", once, progress, furthest)
        except PermissionDenied as error:
            text = str(error)
            raise PermissionDenied(
                text if redact(url) in text else f"{redact(url)}: {error}"
            ) from None

    @contextlib.contextmanager
    def _session(self, place: _Place, progress: Progress | None) -> Iterator[FtpSession]:
        """A logged-in session; kept afterwards unless the block ends in the middle of something."""
        key = place._replace(path="")
        session = self._idle.take(key) or self._logged_in(place, progress)
        session.progress = progress
        in_order = False
        try:
            yield session
            in_order = True
        except (StorageNotFound, PermissionDenied):
            in_order = True
            raise
        finally:
            session.progress = None
            if in_order:
                self._idle.keep(key, session)
            else:
                session.close()

    def _logged_in(self, place: _Place, progress: Progress | None) -> FtpSession:
        connected = connect(
            place.host,
            place.port,
            allow_private=self._allow_private,
            timeout_s=self._patience.connect_s,
            resolve=self._resolve,
        )
        session = FtpSession(connected, self._patience)
        session.progress = progress
        try:
            session.enter(place.user, place.password)
        except ftplib.error_perm as error:
            session.close()
            said = _scrubbed(str(error), place)
            raise PermissionDenied(
                f"the server does not let the user {place.user} in: {said}"
            ) from None
        except ftplib.Error as error:
            session.close()
            raise Again(_scrubbed(str(error), place)) from None
        except BaseException:
            session.close()
            raise
        return session


class _Download:
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


class _Upload:
    """A file on its way out. `temporary` is the path of what has been left on the server."""

    def __init__(self, source: Source, progress: Progress | None) -> None:
        self._source = source
        self._progress = progress
        self.temporary = ""
        self.furthest = 0

    def send(self, session: FtpSession, path: str) -> int:
        """Write the whole file and give it its name; its size."""
        if self.temporary:
            with contextlib.suppress(ftplib.error_perm):
                session.voidcmd(f"DELE {self.temporary}")
        directory = path.rpartition("/")[0]
        self.temporary = f"{directory}/.tesazure-{secrets.token_hex(8)}.part"
        try:
            sent = self._store(session)
        except ftplib.error_perm as error:
            if code_of(error) not in _NOT_THIS or self.furthest:
                raise
            session.make_directories(directory)
            sent = self._store(session)
        facts = session.look(self.temporary)
        if facts and facts.size not in (sent, None):
            raise Again(f"the server has {facts.size} bytes of {sent} sent")
        self._rename(session, path)
        self.temporary = ""
        return sent

    def _store(self, session: FtpSession) -> int:
        sent = 0
        with session.data(f"STOR {self.temporary}") as connected:
            while sent < self._source.size:
                block = self._source.read(sent, min(_BLOCK, self._source.size - sent))
                session.send(connected, block)
                sent += len(block)
                self.furthest = max(self.furthest, sent)
                if self._progress:
                    self._progress(len(block))
        self._source.check_unchanged()
        return sent

    def _rename(self, session: FtpSession, path: str) -> None:
        session.sendcmd(f"RNFR {self.temporary}")
        try:
            session.voidcmd(f"RNTO {path}")
        except ftplib.error_perm:
            facts = session.look(path)
            if facts is None or facts.is_directory:
                raise
            session.voidcmd(f"DELE {path}")
            session.sendcmd(f"RNFR {self.temporary}")
            session.voidcmd(f"RNTO {path}")


def _replies_as_errors(url: str, session: FtpSession, act: Callable[[FtpSession, str], T]) -> T:
    """What `act` returns; replies that refuse something as StorageErrors or Again."""
    place = _place_of(url)
    path = place.path
    if not path.startswith("/") and session.home:
        path = f"{session.home.rstrip('/')}/{path}"
    shown = redact(url)
    try:
        return act(session, path)
    except ftplib.error_perm as error:
        said = _scrubbed(str(error), place)
        code = code_of(error)
        if code in _NO_SPACE:
            raise StorageFull(f"{shown}: the server has no space left: {said}") from None
        if code in _NOT_FOR_US or (code in _NOT_THIS and says_denied(str(error), path)):
            raise PermissionDenied(f"{shown}: {said}") from None
        if code not in _NOT_THIS:
            raise StorageError(f"{shown}: {said}") from None
        facts = session.look(path)
        if facts is None:
            raise StorageNotFound(f"{shown}: {said}") from None
        if facts.is_directory:
            raise StorageError(f"{shown}: is a directory: {said}") from None
        raise PermissionDenied(f"{shown}: {said}") from None
    except ftplib.error_temp as error:
        said = _scrubbed(str(error), place)
        if code_of(error) in _NO_SPACE:
            raise StorageFull(f"{shown}: the server has no space left: {said}") from None
        raise Again(said) from None
    except ftplib.Error as error:
        raise Again(
            f"the server does not keep to the protocol: {_scrubbed(str(error), place)}"
        ) from None


def _scrubbed(reply: str, place: _Place) -> str:
    """A reply for messages: its first line, without the password that a server may repeat."""
    text = reply.partition("\n")[0][:300]
    if place.password:
        text = text.replace(place.password, "***")
    return printable(_text(text))


def _text(path: str) -> str:
    """A path of one character per byte as the rest of this program has it."""
    return os.fsdecode(path.encode("latin-1"))


def _bytewise(escaped: str) -> str:
    return unquote_to_bytes(escaped.encode("utf-8", "surrogateescape")).decode("latin-1")


def _place_of(url: str) -> _Place:
    """Raises UnsupportedUrl for what is no FTP URL, or could carry a command of its own."""
    host = host_of(url)
    if "?" in url or "#" in url:
        raise UnsupportedUrl(
            f"{redact(url)}: an ftp URL has neither ? nor #; in names, write them as %3F and %23"
        )
    parts = urlsplit(url)
    user = _bytewise(parts.username or "")
    password = _bytewise(parts.password or "")
    path = _bytewise(parts.path.removeprefix("/"))
    if any(map(_CONTROL.search, (url, user, password, path))):
        raise UnsupportedUrl(f"{redact(url)!r}: an ftp URL cannot hold control characters")
    return _Place(host, parts.port or 21, user or "anonymous", password, path)
