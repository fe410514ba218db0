"""What all test services have in common: a directory, a start, a stop, and clear refusals."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self


class Unavailable(Exception):
    """A service cannot run on this machine; the message says what is missing."""


class StartFailed(Exception):
    """A service should run here but did not; the message ends with the tail of its log."""


class Service(ABC):
    """A real program that runs below `root`, as a context manager.

    `root` should be short (it holds Unix sockets, whose paths are limited to 107 bytes) and
    is removed by `stop`. Another object made with the same `root`, in another process too,
    may stop what this one started. `name` is the kind's own.
    """

    name: ClassVar[str]

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def start(self) -> None:
        """Start and wait until ready. Raises Unavailable or StartFailed."""

    @abstractmethod
    def stop(self) -> None:
        """Stop and remove every trace; succeeds if nothing runs."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def require_program(name: str, package: str) -> str:
    """Path of a program, or Unavailable with the Debian package that carries it."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise Unavailable(f"{name} is not installed (Debian package {package})")
    return path


def require_root(what: str) -> None:
    """Raises Unavailable unless this process is root."""
    if os.geteuid() != 0:
        raise Unavailable(f"{what} needs root")


def run(argv: Sequence[object], *, timeout: float = 60, user: str | None = None) -> str:
    """Standard output of a program; StartFailed with its standard error if it fails."""
    done = subprocess.run(
        [str(word) for word in argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        user=user,
        cwd="/",
    )
    if done.returncode != 0:
        raise StartFailed(
            f"{' '.join(map(str, argv))}: exit {done.returncode}: {done.stderr.strip()}"
        )
    return done.stdout


def spawn(argv: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> int:
    """Start a daemon in its own session, output to `log`; its process id.

    It outlives the caller and is found again by `processes_naming(root)`.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, **(env or {})},
            cwd="/",
        )
    # Not waited for here: the child is left to whoever is its parent at its end.
    process.returncode = 0
    return process.pid


def wait_until(ready: Callable[[], bool], what: str, log: Path, timeout: float = 40) -> None:
    """Poll until `ready()`; StartFailed with the tail of the log after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else "(no log)"
            raise StartFailed(f"{what} was not ready within {timeout} s:\n{tail}")
        time.sleep(0.05)


def answers(path: Path) -> bool:
    """Whether something listens on the Unix socket at `path`."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A loopback TCP port that nobody listens on. It is below those that the system gives to
    whoever asks for any: none of the other tests' servers and connections gets it before its
    use."""
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    while True:
        port = random.randrange(10_000, max(int(given[0]), 20_000))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def nobodys_port() -> Iterator[int]:
    """A loopback TCP port that refuses connections: no other process can get it meanwhile."""
    with socket.socket() as holder:  # bound, and it does not listen
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_lines() -> Iterator[tuple[int, bytes]]:
    """Id and command line, its words each ended by NUL, of every process that lives but this."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if command := (entry / "cmdline").read_bytes():  # empty of what has ended
                    yield int(entry.name), command


def processes_naming(root: Path) -> Iterator[int]:
    """Processes whose command line names `root` or something below it; never this one."""
    needles = (f"{root}/".encode(), f"{root}\0".encode())
    for pid, command in command_lines():
        if any(needle in command for needle in needles):
            yield pid


def end_process(pid: int, timeout: float = 20) -> None:
    """SIGTERM, then SIGKILL after `timeout` seconds; returns when it is gone."""
    for sign, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
        deadline = time.monotonic() + patience
        while is_alive(pid):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            break
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def end_processes_naming(root: Path) -> None:
    """End whatever still runs with `root` on its command line."""
    for pid in list(processes_naming(root)):
        end_process(pid, timeout=2)


def unmount_below(root: Path) -> None:
    """Detach every mount at or below `root`, innermost first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [point for point in mounts if Path(point).is_relative_to(root)]
    for point in sorted(below, key=len, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def remove_tree(root: Path) -> None:
    """Delete `root`, whoever owns what is in it, after detaching what is mounted there."""
    if root.exists():
        unmount_below(root)
        shutil.rmtree(root, ignore_errors=True)
