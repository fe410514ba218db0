"""`sftp://user@host/path`: files and directories over SSH.

The path is absolute; `/~/path` is below the user's home. The user is let in by the password in the
URL, or else by the configured private key. Servers must be known by their host keys.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageNotFound,
    UnsupportedUrl,
)
from tesazure.storage.addresses import check_host
from tesazure.storage.base import Entry, Progress, Stat, settled
from tesazure.storage.beside import is_beside
from tesazure.storage.local import opened_directory, os_errors, whole_file
from tesazure.storage.patience import Again, Patience, persist
from tesazure.storage.sftp_session import (
    NO_SUCH_FILE,
    PERMISSION_DENIED,
    Attributes,
    Refused,
    SftpSession,
)
from tesazure.storage.sftp_transfers import Download, Upload, make_directories, require_file
from tesazure.storage.sockets import Idle, Resolve, connect, resolve
from tesazure.storage.sources import opened_source
from tesazure.storage.ssh import Login, opened, require_paramiko
from tesazure.storage.urls import host_of, printable, redact

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CLEAN_UP_S = 5.0
"""How long a server that may not answer any more is waited for to delete what it was sent."""


class SftpStorage:
    """Files on SFTP servers; a connection is kept for the next file.

    Relative to the Protocol: SFTP has no checksums of files (SSH has them for what it carries), so
    a file's size is what is verified. A file replaced within a second by one of the same size has
    the same `version`.
    """

    has_directories = True

    def __init__(
        self,
        key: str = "",
        known_hosts: str = "",
        *,
        allow_private: bool = True,
        patience: Patience | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        """`key`: the text of a private key; `known_hosts`: that of an OpenSSH known_hosts file."""
        self._key = key
        self._known_hosts = known_hosts
        self._allow_private = allow_private
        self._patience = patience or Patience()
        self._resolve = resolve
        self._idle: Idle[Login, SftpSession] = Idle()

    def check(self, url: str, *, writing: bool) -> None:
        """Raises UnsupportedUrl for what is no SFTP URL, PermissionDenied for a refused address."""
        login, _ = _parsed(url)
        try:
            check_host(login.host, allow_private=self._allow_private)
        except PermissionDenied as error:
            raise PermissionDenied(f"{redact(url)}: {error}") from None

    def stat(self, url: str) -> Stat:
        """What lies at `url`; a special file is a StorageError."""
        found = self._persist("stat", url, lambda session, path: session.stat(path))
        if found.is_directory:
            return Stat(is_directory=True)
        require_file(found, redact(url))
        is_firm = found.modified is not None and settled(found.modified)
        return Stat(False, found.size, version=_version(found), is_firm=is_firm)

    def list(self, url: str) -> Iterator[Entry]:
        """Asks for one directory at a time. Links are followed; one that leads nowhere or back to
        its own parents is a StorageError, as is a special file."""
        top = self._persist("list", url, lambda session, path: _top(session, path, redact(url)))
        pending: list[tuple[str, tuple[bytes, ...]]] = [("", (top,))]
        while pending:
            relative, parents = pending.pop()
            children = self._children(url, parents)
            if not children and relative:
                yield Entry(relative, 0, is_directory=True)
            for name, found, real in children:
                below = f"{relative}/{name}" if relative else name
                shown = f"{redact(url)}: {printable(below)}"
                if not found.is_directory:
                    require_file(found, shown)
                    yield Entry(below, found.size or 0)
                elif real in parents:
                    raise StorageError(f"{shown}: this symbolic link leads to its own parents")
                else:
                    pending.append((below, (*parents, real)))

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """A broken transfer goes on where it broke if the file is still the same."""
        with (
            os_errors(f"{redact(url)} to {printable(str(path))}"),
            opened_directory(path.parent) as directory,
            whole_file(directory, path.name, 0o666) as target,
        ):
            download = Download(redact(url), target, progress)
            return self._persist("get", url, download.receive, progress, lambda: download.furthest)

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """Writes beside the destination, then renames; goes on after a broken connection. Where a
        server has no posix-rename as OpenSSH has, the old file gets another name just before, and
        is deleted afterwards."""
        if not _parsed(url)[1].rpartition(b"/")[2]:
            raise StorageError(f"{redact(url)}: names a directory, where a file is to be written")
        with os_errors(f"{printable(str(path))} to {redact(url)}"), opened_source(path) as source:
            upload = Upload(redact(url), source, progress)
            try:
                self._persist("put", url, upload.send, progress, lambda: upload.furthest)
            except BaseException as error:
                self._clean_up(url, upload)
                if upload.old and isinstance(error, StorageError):
                    kept = f"what was there may be {printable(os.fsdecode(upload.old))} now"
                    raise type(error)(f"{error}; {kept}") from error
                raise
            return source.size

    def make_directory(self, url: str) -> None:
        """Make the directory and its parents; succeeds if it is there."""

        def make(session: SftpSession, path: bytes) -> None:
            try:
                found = session.stat(path)
            except Refused:
                make_directories(session, path)
                found = session.stat(path)
            if not found.is_directory:
                raise StorageError(f"{redact(url)}: a file is already there")

        self._persist("mkdir", url, make)

    def close(self) -> None:
        """Close idle connections."""
        self._idle.close()

    def _children(
        self, url: str, parents: tuple[bytes, ...]
    ) -> Sequence[tuple[str, Attributes, bytes]]:
        """Name, attributes and real path of what is in the last of these directories."""
        directory = parents[-1]

        def ask(session: SftpSession, _: bytes) -> Sequence[tuple[str, Attributes, bytes]]:
            return [
                _child(session, directory, name, found, redact(url))
                for name, found in session.names(directory)
                if name not in (b".", b"..") and (found.is_directory or not _is_beside(name))
            ]

        return self._persist("list", url, ask)

    def _clean_up(self, url: str, upload: Upload) -> None:
        """Undo what an upload that was given up has left, in one try."""
        login, _ = _parsed(url)
        patience = self._patience
        brief = msgspec.structs.replace(
            patience,
            connect_s=min(patience.connect_s, _CLEAN_UP_S),
            read_s=min(patience.read_s, _CLEAN_UP_S),
        )
        if upload.temporary or upload.old:
            with (
                contextlib.suppress(StorageError, Again, Refused),
                self._session(login, None, brief) as session,
            ):
                upload.undo(session)

    def _persist(
        self,
        verb: str,
        url: str,
        act: Callable[[SftpSession, bytes], T],
        progress: Progress | None = None,
        furthest: Callable[[], int] = lambda: 0,
    ) -> T:
        """What `act` returns, given a session and a path, repeated as patience allows."""
        login, path = _parsed(url)
        shown = redact(url)

        def once() -> T:
            with self._session(login, progress) as session:
                home = session.real_path(b".") + b"/" if path.startswith(b"~/") else b""
                return act(session, home + path[2:] if home else path)

        try:
            return persist(self._patience, f"{verb} {shown}", once, progress, furthest)
        except Refused as refused:
            raise _error_of(refused, shown) from None
        except (PermissionDenied, UnsupportedUrl) as error:
            text = str(error)
            raise type(error)(text if shown in text else f"{shown}: {text}") from None

    @contextlib.contextmanager
    def _session(
        self, login: Login, progress: Progress | None, patience: Patience | None = None
    ) -> Iterator[SftpSession]:
        """An open session; kept afterwards unless the block ends in the middle of something, or a
        patience of its own was asked for."""
        session = None if patience else self._idle.take(login)
        session = session or self._opened(login, patience or self._patience)
        session.progress = progress
        in_order = False
        try:
            yield session
            in_order = True
        finally:
            session.progress = None
            if in_order and not patience:
                self._idle.keep(login, session)
            else:
                session.close()

    def _opened(self, login: Login, patience: Patience) -> SftpSession:
        require_paramiko()
        connected = connect(
            login.host,
            login.port,
            allow_private=self._allow_private,
            timeout_s=patience.connect_s,
            resolve=self._resolve,
        )
        return opened(connected, login, self._key, self._known_hosts, patience)


def _is_beside(name: bytes) -> bool:
    return is_beside(os.fsdecode(name))


def _top(session: SftpSession, path: bytes, shown: str) -> bytes:
    if not session.stat(path).is_directory:
        raise StorageError(f"{shown}: is not a directory")
    return session.real_path(path)


def _child(
    session: SftpSession, directory: bytes, name: bytes, found: Attributes, shown: str
) -> tuple[str, Attributes, bytes]:
    text = os.fsdecode(name)
    if b"/" in name or b"\0" in name or not name:
        raise StorageError(f"{shown}: the server lists {text!r}, which is no name of a file")
    path = directory.rstrip(b"/") + b"/" + name
    if found.mode is not None and not stat.S_ISLNK(found.mode):
        return text, found, path
    try:
        found = session.stat(path)
        return text, found, session.real_path(path) if found.is_directory else path
    except Refused as refused:
        if refused.code != NO_SUCH_FILE:
            raise
        raise StorageError(
            f"{shown}: {printable(text)}: this symbolic link leads nowhere"
        ) from None


def _version(found: Attributes) -> str | None:
    if found.modified is None or found.size is None:
        return None
    return f"{found.modified:x}-{found.size:x}"


def _error_of(refused: Refused, shown: str) -> StorageError:
    kind = {NO_SUCH_FILE: StorageNotFound, PERMISSION_DENIED: PermissionDenied}
    return kind.get(refused.code, StorageError)(f"{shown}: {printable(str(refused))}")


def _parsed(url: str) -> tuple[Login, bytes]:
    """Raises UnsupportedUrl for what is no SFTP URL."""
    host = host_of(url)
    if "?" in url or "#" in url:
        raise UnsupportedUrl(
            f"{redact(url)}: an sftp URL has neither ? nor #; in names, write them as %3F and %23"
        )
    parts = urlsplit(url)
    user, password = (
        unquote_to_bytes(word or "").decode("utf-8", "replace")
        for word in (parts.username, parts.password)
    )
    path = unquote_to_bytes(parts.path.encode("utf-8", "surrogateescape")) or b"/"
    if _CONTROL.search(url) or _CONTROL.search(user) or b"\0" in path:
        raise UnsupportedUrl(f"{redact(url)!r}: an sftp URL cannot hold control characters")
    if not user:
        raise UnsupportedUrl(f"{redact(url)}: names no user: sftp://user@host/path")
    if path == b"/~" or path.startswith(b"/~/"):
        path = b"~/" + path[3:]
    return Login(host, parts.port or 22, user, password), path
