"""The attempts' directories on this machine: made once for each key, and read as they grow."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tesazure.model import State
from tesazure.plan import Plan
from tesazure.report import Report, Started, decode, fold
from tesazure.runner.config import AttemptDir, NodeConfig
from tesazure.runner.engines.choose import make_engine
from tesazure.runner.tree import remove_tree

log = logging.getLogger(__name__)

_NEW = ".new-"

SETTLE_S = 1.5
"""How long a container that a killed runner asked for may take to appear, in seconds; Docker and
Podman make one in a tenth of that."""

_CLEAN = frozenset({State.COMPLETE, State.EXECUTOR_ERROR})
"""Ends after which the engine has nothing left: `Engine.run` promised that."""


class Register:
    """The data directories of this user's servers on this machine.

    Servers that share a database take over each other's attempts, also one that its server began
    and did not live to tell of. So each data directory is named here, and beginning an attempt is
    exclusive among all servers: a key has one directory on the machine, or none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def enter(self, attempts: Path) -> None:
        """Name a directory of attempts; drop those that are no longer there. Raises OSError."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        found = self.path.lstat()
        if self.path.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(f"{self.path} is another user's, or open to others: remove it")
        with self.locked():
            for entry in self._entries():
                if not Path(os.fsdecode(entry.read_bytes())).is_dir():
                    entry.unlink()
            name = hashlib.sha256(os.fsencode(attempts)).hexdigest()[:16]
            entry = self.path / f"{name}.attempts"
            entry.with_suffix(".new").write_bytes(os.fsencode(attempts))
            entry.with_suffix(".new").replace(entry)

    def directories(self) -> list[Path]:
        """All directories of attempts that are named here."""
        found = []
        for entry in self._entries():
            with contextlib.suppress(FileNotFoundError):
                found.append(Path(os.fsdecode(entry.read_bytes())))
        return found

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Held by one process (or thread) of the machine at a time."""
        file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _entries(self) -> list[Path]:
        return list(self.path.glob("*.attempts"))


class Attempts:
    """The attempts below one data directory. `register` is where the `Register` lies."""

    def __init__(self, data_dir: Path, register: Path) -> None:
        self.path = data_dir / "attempts"
        self._register = Register(register)

    def open(self) -> None:
        """Make ready, and delete what an earlier server left half made. Raises OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._register.enter(self.path)
        except OSError as error:
            log.warning("no attempts are shared with other servers of this machine: %s", error)
            self._register = Register(self.path.parent / "register")
            self._register.enter(self.path)
        for left in self.path.glob(f"{_NEW}*"):
            remove_tree(left)

    def data_dirs(self) -> tuple[str, ...]:
        """Where this server and the others of this user on this machine keep their data: ours
        first. Real paths, of what is there."""
        found = [self.path, *sorted(self._register.directories())]
        return tuple(dict.fromkeys(os.path.realpath(path.parent) for path in found))

    def begin(self, plan: Plan, node: NodeConfig) -> AttemptDir:
        """The directory of the attempt `node.key`, made whole unless there is one on this machine.

        Not synced to the disk: after a loss of power no runner lives that could have read it.
        Raises OSError.
        """
        made = self.path / f"{_NEW}{node.key}-{secrets.token_hex(4)}"
        made.mkdir(mode=0o700)
        try:
            new = AttemptDir(made)
            _write_private(new.plan, msgspec.json.encode(plan))
            _write_private(new.node, msgspec.json.encode(node))
            return self._settle(made, node.key)
        finally:
            if made.exists():
                remove_tree(made)

    def claim(self, key: str) -> AttemptDir:
        """The directory of an attempt that may have begun. Where there is none, one is made in
        which nothing can begin, so that whoever is still about to begin it does not."""
        made = self.path / f"{_NEW}{key}-{secrets.token_hex(4)}"
        made.mkdir(mode=0o700)
        try:
            fence(AttemptDir(made))
            return self._settle(made, key)
        finally:
            if made.exists():
                remove_tree(made)

    def _settle(self, made: Path, key: str) -> AttemptDir:
        with self._register.locked():
            for attempts in {self.path, *self._register.directories()}:
                if (attempts / key).is_dir():
                    return AttemptDir(attempts / key)
            made.rename(self.path / key)
        return AttemptDir(self.path / key)

    def begun_before(self, then: float) -> dict[str, AttemptDir]:
        """The attempts made before then (seconds since the epoch), by key."""
        found = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if not entry.name.startswith(".") and entry.stat().st_mtime < then:
                        found[entry.name] = AttemptDir(Path(entry.path))
        return found


def fence(attempt: AttemptDir) -> None:
    """See to it that no runner begins this attempt any more, unless one has. A runner begins by
    creating the report, which only the first can."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(attempt.report, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def is_alive(attempt: AttemptDir) -> bool:
    """Whether the attempt's runner lives: it holds the lock for as long as it does.

    To be asked only once there is a report: before, this look at the lock could be in the way of
    the runner that is about to take it.
    """
    try:
        file = os.open(attempt.lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def last_words(attempt: AttemptDir) -> str:
    """The last line that a runner printed: why it died, if it could tell."""
    try:
        with attempt.output.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


class Follower:
    """Reads one attempt's report as it grows: each line once."""

    def __init__(self, attempt: AttemptDir) -> None:
        self.attempt = attempt
        self.report = Report()
        self.pid: int | None = None
        """The runner's process id, once it has told."""
        self.spoilt = ""
        """What was wrong with a line that could not be understood."""
        self._offset = 0

    def read(self) -> None:
        """Take in what was added since. A last line without its end waits for the rest.
        Raises FileNotFoundError when there is no report."""
        with self.attempt.report.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        for line in data[:whole].splitlines(keepends=True):
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            events = decode(line)
            fold(events, self.report)
        except (msgspec.MsgspecError, IndexError, UnicodeDecodeError) as error:
            self.spoilt = f"a line of the report cannot be understood: {error}"
            return
        for event in events:
            if isinstance(event, Started):
                self.pid = event.pid


def clean_up(attempt: AttemptDir, report: Report) -> None:
    """For an attempt whose runner is gone. Done once: it ends with the loss of node.json."""
    try:
        node = msgspec.json.decode(attempt.node.read_bytes(), type=NodeConfig)
    except FileNotFoundError:
        node = None
    except msgspec.MsgspecError:
        log.warning("node.json is spoilt", extra={"attempt": attempt.path.name})
        node = None
    if node is not None and (report.ended is None or report.ended.state not in _CLEAN):
        root = attempt.root if attempt.root.exists() else None
        if report.started:
            settle_s = 0.0 if report.ended else SETTLE_S
            make_engine(node.engine, node.engine_host).sweep(node.key, root, settle_s)
    attempt.plan.unlink(missing_ok=True)
    attempt.node.unlink(missing_ok=True)


def _write_private(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "wb") as out:
        out.write(data)
