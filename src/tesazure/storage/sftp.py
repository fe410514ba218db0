"""`sftp://user@host/path`: files and directories over SSH.

The path is absolute; `/~/path` is below the user's home. The user is let in by the password in the
URL, or else by the configured private key. Servers must be known by their host keys.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.storage.addresses import check_host
from tesazure.storage.base import Entry, Progress, Stat
from tesazure.storage.local import kind_of, opened_directory, os_errors, whole_file
from tesazure.storage.patience import Again, Patience, persist
from tesazure.storage.sftp_session import (
    BLOCK,
    EOF,
    NO_SUCH_FILE,
    PERMISSION_DENIED,
    READ,
    WRITE_NEW,
    WRITE_ON,
    Attributes,
    Refused,
    SftpSession,
)
from tesazure.storage.sockets import Idle, Resolve, connect, resolve
from tesazure.storage.sources import Source, opened_source
from tesazure.storage.ssh import Login, opened, require_paramiko
from tesazure.storage.urls import host_of, printable, redact

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


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
        _require_file(found, redact(url))
        return Stat(is_directory=False, size=found.size, version=_version(found))

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
                    _require_file(found, shown)
                    yield Entry(below, found.size or 0)
                elif real in parents:
                    raise StorageError(f"{shown}: this symbolic link leads to its own parents")
                else:
                    pending.append((below, (*parents, real)))

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """A broken transfer goes on where it broke if the file is still the same."""
        with (
            os_errors(f"{redact(url)} to {path}"),
            opened_directory(path.parent) as directory,
            whole_file(directory, path.name, 0o666) as target,
        ):
            download = _Download(redact(url), target, progress)
            return self._persist("get", url, download.receive, progress, lambda: download.furthest)

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """Writes beside the destination, then renames; goes on after a broken connection. A server
        without OpenSSH's posix-rename has the old file deleted just before."""
        if not _parsed(url)[1].rpartition(b"/")[2]:
            raise StorageError(f"{redact(url)}: names a directory, where a file is to be written")
        with os_errors(f"{path} to {redact(url)}"), opened_source(path) as source:
            upload = _Upload(redact(url), source, progress)
            try:
                self._persist("put", url, upload.send, progress, lambda: upload.furthest)
            except StorageUnavailable:
                raise
            except BaseException:
                self._clean_up(url, upload)
                raise
            return source.size

    def make_directory(self, url: str) -> None:
        """Make the directory and its parents; succeeds if it is there."""

        def make(session: SftpSession, path: bytes) -> None:
            try:
                found = session.stat(path)
            except Refused:
                _make_directories(session, path)
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
                if name not in (b".", b"..")
            ]

        return self._persist("list", url, ask)

    def _clean_up(self, url: str, upload: _Upload) -> None:
        """Delete what an upload that was given up has left, if that can be done at once."""
        login, _ = _parsed(url)
        if upload.temporary:
            with (
                contextlib.suppress(StorageError, Again, Refused),
                self._session(login, None) as session,
            ):
                session.remove(upload.temporary)

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
    def _session(self, login: Login, progress: Progress | None) -> Iterator[SftpSession]:
        """An open session; kept afterwards unless the block ends in the middle of something."""
        session = self._idle.take(login) or self._opened(login)
        session.progress = progress
        in_order = False
        try:
            yield session
            in_order = True
        finally:
            session.progress = None
            if in_order:
                self._idle.keep(login, session)
            else:
                session.close()

    def _opened(self, login: Login) -> SftpSession:
        require_paramiko()
        connected = connect(
            login.host,
            login.port,
            allow_private=self._allow_private,
            timeout_s=self._patience.connect_s,
            resolve=self._resolve,
        )
        return opened(connected, login, self._key, self._known_hosts, self._patience)


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


class _Download:
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
        _require_file(found, self._shown)
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


class _Upload:
    """A file on its way out. `temporary` is the path of what has been left on the server."""

    def __init__(self, shown: str, source: Source, progress: Progress | None) -> None:
        self._shown = shown
        self._source = source
        self._progress = progress
        self._frontier = _Frontier()
        self.temporary = b""
        self.furthest = 0

    def send(self, session: SftpSession, path: bytes) -> None:
        """Write the file, or what of it is missing, and give it its name. Raises Again."""
        handle = self._opened(session, path)
        session.write(handle, self._blocks(), self._written)
        size = session.stat_open(handle).size
        session.close_file(handle)
        if size not in (self._source.size, None):
            self._frontier = _Frontier()
            raise Again(f"the server has {size} bytes of {self._source.size} sent")
        self._source.check_unchanged()
        try:
            session.rename(self.temporary, path)
        except Refused:
            with contextlib.suppress(Refused):
                if session.stat(path).is_directory:
                    raise StorageError(f"{self._shown}: a directory is already there") from None
            raise
        self.temporary = b""

    def _opened(self, session: SftpSession, path: bytes) -> bytes:
        self._frontier.go_on()
        if self.temporary:
            # What a broken connection may still write is the same bytes at the same places.
            try:
                return session.open_file(self.temporary, WRITE_ON)
            except Refused:
                self._frontier = _Frontier()
        directory = path.rpartition(b"/")[0]
        self.temporary = directory + f"/.tesazure-{secrets.token_hex(8)}.part".encode()
        try:
            return session.open_file(self.temporary, WRITE_NEW)
        except Refused as refused:
            if refused.code != NO_SUCH_FILE:
                raise
            _make_directories(session, directory)
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


def _make_directories(session: SftpSession, path: bytes) -> None:
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


def _require_file(found: Attributes, shown: str) -> None:
    if found.mode is not None and not stat.S_ISREG(found.mode):
        raise StorageError(f"{shown}: is {kind_of(found.mode)}, not a file")


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
