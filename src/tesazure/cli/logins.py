"""What `tesazure login` got, kept for each server in a file that its user alone can read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from tesazure.cli.exits import Code, Failure

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})
"""What file systems without locks answer: some of networks."""
_RETRY_S = 0.05


class Login(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token for one server, and how to get the next one. Nothing but an API token has no end."""

    server: str
    token: str
    name: str
    """Who is signed in, for people to read."""
    expires: float | None = None
    """When the token ends, in seconds since the epoch."""
    refresh_token: str = ""
    client_id: str = ""
    scope: str = ""
    token_endpoint: str = ""

    def __repr__(self) -> str:
        return f"Login({self.name} at {self.server})"


class Logins:
    """The files of a directory, one for each server. Methods raise Failure when it is unusable."""

    def __init__(self, directory: Path, patience_s: float = 30.0) -> None:
        """`patience_s`: how long another process may hold a lock, as it does while a provider
        answers."""
        self._directory = directory
        self._patience_s = patience_s

    def of(self, server: str) -> Login | None:
        """The login at a server's root URL."""
        file = self._file(server)
        with _failures(file):
            try:
                with file.open("rb") as opened:
                    mode, raw = os.fstat(opened.fileno()).st_mode, opened.read()
            except FileNotFoundError:
                return None
        if mode & 0o077:
            said = f"{file} can be read by other users, and so can the token in it"
            raise Failure(Code.USAGE, said, "delete it and sign in again: tesazure login")
        try:
            found = msgspec.json.decode(raw, type=Login)
        except (msgspec.DecodeError, UnicodeDecodeError):
            said = f"{file} is damaged"
            raise Failure(Code.USAGE, said, "sign in again: tesazure login") from None
        return found if found.server == server else None

    def keep(self, login: Login) -> None:
        """Keep a login in place of the one before: whole or not at all, for its user alone. Call
        it `alone`."""
        file = self._file(login.server)
        with _failures(file):
            self._make()
            # Made with mode 0600.
            number, fresh = tempfile.mkstemp(dir=self._directory, prefix=".fresh-")
            try:
                with os.fdopen(number, "wb") as output:
                    output.write(msgspec.json.encode(login))
                    output.flush()
                    os.fsync(output.fileno())
                Path(fresh).replace(file)
            except BaseException:
                Path(fresh).unlink(missing_ok=True)
                raise

    def forget(self, server: str) -> bool:
        """Delete the login at a server; whether there was one. Call it `alone`."""
        file = self._file(server)
        with _failures(file):
            try:
                file.unlink()
            except FileNotFoundError:
                return False
        return True

    @contextlib.contextmanager
    def alone(self, server: str) -> Iterator[None]:
        """No other process changes this server's login meanwhile: a refresh token is good for one
        use. Where the file system knows no locks there is none."""
        file = self._file(server).with_suffix(".lock")
        with _failures(file):
            self._make()
            lock = file.open("ab")
        with lock:
            with _failures(file):
                _lock(lock, self._patience_s, file)
            yield

    def _make(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _file(self, server: str) -> Path:
        return self._directory / f"{hashlib.sha256(server.encode()).hexdigest()[:32]}.json"


def _lock(lock: IO[bytes], patience_s: float, file: Path) -> None:
    """Raises Failure when another process does not let go, OSError."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                said = f"another process has held {file} for {patience_s:g} s"
                raise Failure(Code.USAGE, said, "is a tesazure of yours stuck? end it") from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            raise
        time.sleep(_RETRY_S)


@contextlib.contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = f"{path}: {error.strerror}"
        raise Failure(Code.USAGE, said, "tokens are kept below XDG_STATE_HOME") from error
