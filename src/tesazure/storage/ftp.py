"""`ftp://`: files and directories, by passive connections in binary mode.

`ftp://user:password@host/a/b` is `a/b` in the user's home (RFC 1738, 3.2.2; without a user:
anonymous), `ftp://host//a/b` (or `/%2Fa/b`) is `/a/b`. FTP encrypts nothing, passwords included.
"""

from __future__ import annotations

import contextlib
import ftplib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageFull,
    StorageNotFound,
    UnsupportedUrl,
)
from tesazure.storage.addresses import check_host
from tesazure.storage.base import Entry, Progress, Stat, settled
from tesazure.storage.beside import is_beside
from tesazure.storage.ftp_session import UNKNOWN, Facts, FtpSession, below, code_of, says_denied
from tesazure.storage.ftp_transfers import NOT_THIS, Download, Upload
from tesazure.storage.local import opened_directory, os_errors, whole_file
from tesazure.storage.patience import Again, Patience, persist
from tesazure.storage.sockets import Idle, Resolve, connect, resolve
from tesazure.storage.sources import opened_source
from tesazure.storage.urls import host_of, printable, redact

T = TypeVar("T")

_CLEAN_UP_S = 5.0
"""How long a server that may not answer any more is waited for to delete what it was sent."""
_SAME_MOST = 4
"""How many directories may lie in each other with the same list of names, sizes and times, where a
server does not identify them: more are taken for one, with a link to its own parents."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_SPACE = frozenset({"452", "552"})
_NOT_FOR_US = frozenset({"530", "532", "533", "534"})


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
        is_firm = facts.is_directory or _is_settled(facts.version)
        return Stat(facts.is_directory, facts.size, version=facts.version, is_firm=is_firm)

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
                path = below(relative, name)
                if facts.is_directory:
                    pending.append((path, facts.identity, (*parents, mark)))
                else:
                    yield Entry(_text(path), facts.size or 0)

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """A broken transfer goes on where it broke if the server still has the same version."""
        with (
            os_errors(f"{redact(url)} to {printable(str(path))}"),
            opened_directory(path.parent) as directory,
            whole_file(directory, path.name, 0o666) as target,
        ):
            download = Download(redact(url), target, progress)
            return self._persist("RETR", url, download.receive, progress, lambda: download.furthest)

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """Writes beside the destination, then renames. Where a server does not replace by renaming
        (IIS), the old file gets another name just before, and is deleted afterwards. A broken
        upload starts over: what the server still does with the rest of the broken connection,
        nobody knows."""
        if not _place_of(url).path.rpartition("/")[2]:
            raise StorageError(f"{redact(url)}: names a directory, where a file is to be written")
        with os_errors(f"{printable(str(path))} to {redact(url)}"), opened_source(path) as source:
            upload = Upload(source, progress)
            try:
                return self._persist("STOR", url, upload.send, progress, lambda: upload.furthest)
            except BaseException as error:
                self._clean_up(url, upload)
                if upload.old and isinstance(error, StorageError):
                    kept = f"what was there may be {printable(_text(upload.old))} now"
                    raise type(error)(f"{error}; {kept}") from error
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
            return session.children(below(path, relative) if relative else path)

        children = [
            (name, facts)
            for name, facts in self._persist("list", url, ask)
            if facts.is_directory or not is_beside(name)
        ]
        for name, _ in children:
            if "/" in name or name in ("", "..") or _CONTROL.search(name):
                raise StorageError(
                    f"{redact(url)}: the server lists {_text(name)!r}, which is no name of a file"
                )
        return children

    def _clean_up(self, url: str, upload: Upload) -> None:
        """Undo what an upload that was given up has left, in one try."""
        patience = self._patience
        brief = msgspec.structs.replace(
            patience,
            connect_s=min(patience.connect_s, _CLEAN_UP_S),
            read_s=min(patience.read_s, _CLEAN_UP_S),
        )
        if upload.temporary or upload.old:
            with (
                contextlib.suppress(StorageError, Again),
                self._session(_place_of(url), None, brief) as session,
            ):
                _replies_as_errors(url, session, upload.undo)

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
    def _session(
        self, place: _Place, progress: Progress | None, patience: Patience | None = None
    ) -> Iterator[FtpSession]:
        """A logged-in session; kept afterwards unless the block ends in the middle of something, or
        a patience of its own was asked for."""
        key = place._replace(path="")
        session = None if patience else self._idle.take(key)
        session = session or self._logged_in(place, progress, patience or self._patience)
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
            if in_order and not patience:
                self._idle.keep(key, session)
            else:
                session.close()

    def _logged_in(
        self, place: _Place, progress: Progress | None, patience: Patience
    ) -> FtpSession:
        connected = connect(
            place.host,
            place.port,
            allow_private=self._allow_private,
            timeout_s=patience.connect_s,
            resolve=self._resolve,
        )
        session = FtpSession(connected, patience)
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
        if code in _NOT_FOR_US or (code in NOT_THIS and says_denied(str(error), path)):
            raise PermissionDenied(f"{shown}: {said}") from None
        if code not in NOT_THIS:
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


def _is_settled(version: str | None) -> bool:
    """Of a version, which begins with a time (RFC 3659, 2.3)."""
    try:
        modified = datetime.strptime((version or "")[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return False
    return settled(modified.timestamp())


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
