"""The server program, as operators start it: a process with a port of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tesazure.report import Started, decode
from tesazure.runner.config import AttemptDir
from tests.conftest import refuse

START_S = 60.0
TES = "/ga4gh/tes/v1"
OLD = "/v1"


@dataclass
class RunningServer:
    """One server process. `log` holds what it printed."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    data: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def client(self, **more: Any) -> httpx.Client:
        """An HTTP client for it."""
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **more)

    def stop(self, timeout_s: float = 15) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)


def command(data: Path, *arguments: str) -> list[str]:
    """How to start a server on a free port."""
    serve = [sys.executable, "-m", "tesazure.cli.main", "serve", "--port", "0"]
    return [*serve, "--data-dir", str(data), *arguments]


def environment(**settings: object) -> dict[str, str]:
    """The environment of a server with these settings and no others."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("APP_")}
    return kept | {f"APP_{name.upper()}": str(value) for name, value in settings.items()}


@contextlib.contextmanager
def start_server(directory: Path, **settings: object) -> Iterator[RunningServer]:
    """A server with its data below `directory`, ended on leaving.

    Tasks run in the sandbox engine unless `local_engine` says otherwise.
    """
    settings = {"local_engine": "sandbox", **settings}
    if settings["local_engine"] == "sandbox" and not shutil.which("bwrap"):
        refuse("bubblewrap is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "server.log"
    data = directory / "data"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(data), stdout=output, stderr=output, env=environment(**settings)
        )
    try:
        yield RunningServer(_url(process, log), process, log, data)
    finally:
        process.kill()
        process.wait()
        end_runners(data)


def end_runners(data: Path, timeout_s: float = 15.0) -> None:
    """End the attempts that outlived their server: nobody will look after them any more."""
    deadline = time.monotonic() + timeout_s
    for attempt in map(AttemptDir, data.glob("attempts/*")):
        number = signal.SIGTERM
        while _is_alive(attempt):
            first = decode(attempt.report.read_bytes()) if attempt.report.exists() else []
            if first and isinstance(first[0], Started):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(first[0].pid, number)
            if time.monotonic() > deadline:
                number = signal.SIGKILL
            time.sleep(0.02)


def _is_alive(attempt: AttemptDir) -> bool:
    try:
        with attempt.lock.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while True:
        found = re.findall(r"listening on (http://\S+)", log.read_text(errors="replace"))
        if found:
            return str(found[-1])
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the server did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)


def until(check: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """What `check` returns once that is true; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError("it did not come to pass in time")
        time.sleep(0.02)
    return found


def task(*command: str, **more: Any) -> dict[str, Any]:
    """A task document of one executor."""
    return {"executors": [{"image": "busybox", "command": list(command) or ["true"]}], **more}


def contents(directory: Path) -> Iterator[tuple[Path, bytes]]:
    """Each file below a directory and what it holds, but for files that are deleted meanwhile."""
    for parent, _, names in os.walk(directory):
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.read_bytes()


def create(client: httpx.Client, document: dict[str, Any] | None = None, prefix: str = TES) -> str:
    """Submit a task; its id."""
    reply = client.post(f"{prefix}/tasks", json=document or task())
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def get(client: httpx.Client, task_id: str, view: str = "FULL", prefix: str = TES) -> Any:
    """A task in a view."""
    reply = client.get(f"{prefix}/tasks/{task_id}", params={"view": view})
    assert reply.status_code == 200, reply.text
    return reply.json()


def ended(client: httpx.Client, task_id: str, timeout_s: float = 60.0) -> Any:
    """The task in FULL view once it has ended."""
    terminal = {"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED", "PREEMPTED"}
    until(lambda: get(client, task_id, "MINIMAL")["state"] in terminal, timeout_s)
    return get(client, task_id)
