"""The data directory: one server's alone while it runs, and closed to other users."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tesazure.errors import ConfigurationError, TesazureError

_log = logging.getLogger(__name__)


class Occupied(TesazureError):
    """Somebody else has what this server needs: its port, its data directory."""


@dataclass(frozen=True, slots=True)
class Home:
    """A data directory that is ours alone while the server runs. Times since the epoch."""

    path: Path
    server: str
    """Names this server in the store; the same after a restart, which so finds its own tasks."""
    created: float


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Home]:
    """The data directory, made if need be, locked against other servers while this is open.

    Raises ConfigurationError when it cannot be used, Occupied when another server has it.
    """
    path = path.absolute()
    make_private(path)
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context((path / "lock").open("a+"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read().strip() or "unknown"
                raise Occupied(
                    f"another server (process {owner}) uses the data directory {path};"
                    " stop it, or give this one another --data-dir"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            server, created = _server_id(path / "server-id")
        except OSError as error:
            raise _unusable(error) from error
        yield Home(path, server, created)


def make_private(path: Path) -> None:
    """Make a data directory, closed to others. Raises ConfigurationError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(path)
    except OSError as error:
        raise _unusable(error) from error


def _unusable(error: OSError) -> ConfigurationError:
    remedy = "make it writable for this server's user, or choose another one"
    return ConfigurationError([f"DATA_DIR: {error}; {remedy} with --data-dir"])


def _close_to_others(path: Path) -> None:
    """See to it that only our user enters the data directory: a task can leave programs below it
    that run with their owner's rights (setuid). Raises ConfigurationError, OSError."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        problem = f"DATA_DIR: {path} belongs to user {found.st_uid}, not to this server's user"
        remedy = f"{os.geteuid()}; chown it, or choose another one with --data-dir"
        raise ConfigurationError([f"{problem} {remedy}"])
    if found.st_mode & 0o077 == 0:
        return
    if not (path / "server-id").exists() and any(path.iterdir()):
        problem = f"DATA_DIR: {path} is open to other users and holds other things"
        remedy = "name a directory of its own with --data-dir, or chmod 700 this one"
        raise ConfigurationError([f"{problem}; {remedy}"])
    path.chmod(0o700)
    _log.warning("the data directory %s was open to other users; now it is not", path)


def _server_id(path: Path) -> tuple[str, float]:
    """This installation's id, made when first asked for, and when that was."""
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.write_text(f"{uuid.uuid4().hex}\n", encoding="ascii")
        fresh.replace(path)
    return path.read_text(encoding="ascii").strip(), path.stat().st_mtime
