"""A server under load whose processes are killed, and the account of what came of it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.service import server
from tests.services import base

SHARED = "/tes-wd/shared-global"
TERMINAL = {"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED", "PREEMPTED"}
BIG = 3_000_000
"""Bytes of the large outputs."""


def documents(number: int, image: str, out: str) -> tuple[str, dict[str, Any], str]:
    """(kind, task, state in which it is to end) of the task with this number. Every executor adds
    a line to a file of its own when it begins. Outputs go below the URL `out`."""

    def executor(index: int, script: str, **more: Any) -> dict[str, Any]:
        begin = f"echo begun >> {SHARED}/{number}.{index}; "
        return {"image": image, "command": ["sh", "-c", begin + script], **more}

    kind = ("ok", "fails", "long", "big", "two", "ignored", "ok", "big")[number % 8]
    task: dict[str, Any] = {"name": f"crash-{number}"}
    match kind:
        case "fails":
            task["executors"] = [executor(0, "exit 3")]
        case "long":
            task["executors"] = [executor(0, f"sleep {1 + number % 2}.{number % 7}")]
        case "big":
            script = f"yes {number} | head -c {BIG} > /out/big; echo {number} > /out/small"
            task["executors"] = [executor(0, script)]
            task["outputs"] = [
                {"path": f"/out/{name}", "url": f"{out}/{number}.{name}"}
                for name in ("big", "small")
            ]
        case "two":
            task["executors"] = [executor(0, "sleep 0.2"), executor(1, "sleep 0.2")]
        case "ignored":
            task["executors"] = [executor(0, "exit 1", ignore_error=True), executor(1, "true")]
        case _:
            task["executors"] = [executor(0, "sleep 0.1")]
    return kind, task, "EXECUTOR_ERROR" if kind == "fails" else "COMPLETE"


def big_output(number: int) -> bytes:
    """What the task with this number leaves in its large output."""
    line = f"{number}\n".encode()
    return (line * (BIG // len(line) + 1))[:BIG]


class Crash:
    """One server, restarted whenever it is killed, and those who kill."""

    def __init__(self, directory: Path, seed: int, image: str, **settings: object) -> None:
        self.directory = directory
        self.data, self.out, self.marks = (directory / n for n in ("data", "out", "marks"))
        for path in (self.out, self.marks):
            path.mkdir()
            path.chmod(0o777)
        self.chance = random.Random(seed)
        self.image = image
        self.outputs = str(self.out)
        """URL of a directory."""
        self.settings: dict[str, object] = {
            "allow_dir": self.out,
            "shared_global_dir": self.marks,
            "local_cpu_cores": 6,
            "local_ram_gb": 8,
            "local_disk_gb": 100,
            "default_ram_gb": 0.1,
            "default_disk_gb": 0.01,
            "max_retries": 10,
            "retry_delay_s": 0.05,
            "lease_s": 5,
            "log_level": "warning",
            **settings,
        }
        self.kills: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        """Task id -> how often its runner was killed."""
        self.hit: set[str] = set()
        """Tasks of which a process in the container was killed."""
        self.accepted: dict[str, int] = {}
        """Task id -> number."""
        self.unanswered = 0
        self._sent = 0
        self._starts = 0
        self._url = ""
        self._process: subprocess.Popen[bytes] | None = None

    # -- the server -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server; returns when it listens."""
        self._starts += 1
        log = self.directory / f"server-{self._starts}.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                server.command(self.data),
                stdout=output,
                stderr=output,
                env=server.environment(**self.settings),
            )
        self._url = server._url(self._process, log)

    @contextlib.contextmanager
    def started(self) -> Iterator[httpx.Client]:
        """The server started, and a client for it."""
        self.start()
        with self.client() as client:
            yield client

    def end(self, number: signal.Signals) -> None:
        """Signal the server and wait for its end."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(20)

    def close(self) -> None:
        """Leave nothing, however the test went."""
        if self._process is not None:
            self.end(signal.SIGKILL)
        for _, runner in list(self.runners()):
            with contextlib.suppress(OSError), opened(runner) as process:
                signal.pidfd_send_signal(process, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while self.is_busy() and time.monotonic() < deadline:
            time.sleep(0.05)

    def client(self) -> httpx.Client:
        """An HTTP client for the server that runs now."""
        return httpx.Client(base_url=self._url, timeout=20, trust_env=False)

    # -- load -----------------------------------------------------------------------------------

    def submit(self, count: int) -> None:
        """Have `count` tasks accepted, whatever happens to the server meanwhile."""
        while len(self.accepted) < count:
            _, task, _ = documents(self._sent, self.image, self.outputs)
            try:
                with self.client() as client:
                    task_id = server.create(client, task)
                self.accepted[task_id] = self._sent
            except httpx.HTTPError:
                self.unanswered += 1  # it may have been accepted all the same
                time.sleep(0.05)
            self._sent += 1
            time.sleep(0.01)

    @contextlib.contextmanager
    def submitting(self, count: int) -> Iterator[None]:
        """`submit` beside the body, and to its end after it."""
        thread = threading.Thread(target=self.submit, args=(count,), daemon=True)
        thread.start()
        yield
        thread.join(120)
        assert not thread.is_alive(), "the tasks could not be submitted"

    def is_busy(self) -> bool:
        """Whether anything runs that could be killed."""
        return any(True for _ in self.runners())

    # -- killing --------------------------------------------------------------------------------

    def runners(self) -> Iterator[tuple[str, int]]:
        """(task id, process id) of the runners that live now."""
        for report in self.data.glob("attempts/*/report.jsonl"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                pid = int(report.read_bytes().split(b'"pid":')[1].split(b",")[0])
                if is_locked(report.with_name("runner.lock")):
                    yield report.parent.name.rpartition("-")[0], pid

    def kill_server(self) -> None:
        """kill -9, and a new one after a moment."""
        self.end(signal.SIGKILL)
        time.sleep(self.chance.random() * 0.3)
        self.start()
        self.kills["server"] += 1

    def kill_runner(self) -> None:
        """kill -9 of one of the runners."""
        running = sorted(self.runners())
        if running:
            task_id, pid = self.chance.choice(running)
            with contextlib.suppress(OSError), opened(pid) as process:
                if (task_id, pid) in set(self.runners()):  # still the same process
                    self.lost[task_id] += 1
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    self.kills["runner"] += 1

    def kill_container(self) -> None:
        """kill -9 of a process below one of the runners: the sandbox, or what runs in it."""
        below = [(t, p, c) for t, p in sorted(self.runners()) for c in descendants(p)]
        if below:
            task_id, runner, pid = self.chance.choice(below)
            with contextlib.suppress(OSError), opened(pid) as process:
                if pid in descendants(runner):
                    self.hit.add(task_id)
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    self.kills["container"] += 1

    def kill_spawner(self) -> None:
        """kill -9 of the process that starts the runners."""
        assert self._process is not None
        for pid in children(self._process.pid):
            with contextlib.suppress(OSError), opened(pid) as process:
                if pid in children(self._process.pid):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    self.kills["spawner"] += 1

    # -- the account ----------------------------------------------------------------------------

    def output(self, name: str) -> bytes:
        """What a task has left below `outputs`."""
        return (self.out / name).read_bytes()

    def tasks(self) -> dict[str, Any]:
        """All tasks of the server by id, whole."""
        found: dict[str, Any] = {}
        token = ""
        with self.client() as client:
            while True:
                query = {"view": "FULL", "page_size": "200"}
                if token:
                    query["page_token"] = token
                page = client.get(f"{server.TES}/tasks", params=query).json()
                found.update({task["id"]: task for task in page["tasks"]})
                token = page.get("next_page_token") or ""
                if not token:
                    return found

    def settled(self, timeout_s: float = 240) -> dict[str, Any]:
        """All tasks, once they have ended and nothing of them runs any more."""
        deadline = time.monotonic() + timeout_s
        while True:
            tasks = self.tasks()
            live = [task for task in tasks.values() if task["state"] not in TERMINAL]
            if not live and not list(self.data.glob("attempts/*/node.json")):
                return tasks
            assert time.monotonic() < deadline, live[:3]
            time.sleep(0.2)

    def check(self, tasks: dict[str, Any]) -> Counter[str]:
        """Every promise about every task; counts of what was seen."""
        seen: Counter[str] = Counter()
        assert set(self.accepted) <= set(tasks), "an accepted task was lost"
        for task_id, task in tasks.items():
            number = int(task["name"].removeprefix("crash-"))
            kind, _, expected = documents(number, self.image, self.outputs)
            self._check_state(task, expected, kind, seen)
            attempts = len(task["logs"])
            allowed = 1 + self.lost[task_id]
            assert attempts <= allowed, f"{attempts} attempts, {allowed - 1} runners killed: {task}"
            self._check_runs(number, task, attempts, seen)
            if kind == "big" and task["state"] == "COMPLETE":
                self._check_outputs(number, task)
                seen["whole outputs"] += 2
            seen["attempts"] += attempts
        return seen

    def _check_state(self, task: Any, expected: str, kind: str, seen: Counter[str]) -> None:
        state = task["state"]
        seen[state] += 1
        if task["id"] in self.hit and state != expected:
            # The command was killed: its own failure, with the exit code of a killed process.
            assert state == "EXECUTOR_ERROR", task
            assert task["logs"][-1]["logs"][-1]["exit_code"] == 137, task
            return
        assert state == expected, (kind, task)
        for log in task["logs"][:-1]:
            assert "another attempt follows" in log["system_logs"][-1], log

    def _check_runs(self, number: int, task: Any, attempts: int, seen: Counter[str]) -> None:
        for index in range(len(task["executors"])):
            mark = self.marks / f"{number}.{index}"
            runs = len(mark.read_text().split()) if mark.exists() else 0
            assert runs <= attempts, f"executor {index} ran {runs} times in {task}"
            started = sum(len(log["logs"]) > index for log in task["logs"])
            assert runs <= started or task["id"] in self.lost, (runs, task)
            if task["state"] == "COMPLETE":
                assert runs >= 1, task
            seen["executor runs"] += runs

    def _check_outputs(self, number: int, task: Any) -> None:
        big = self.output(f"{number}.big")
        assert hashlib.sha256(big).digest() == hashlib.sha256(big_output(number)).digest(), number
        assert self.output(f"{number}.small") == b"%d\n" % number
        sizes = {o["path"]: o["size_bytes"] for o in task["logs"][-1]["outputs"]}
        assert sizes["/out/big"] == str(BIG)

    def check_nothing_remains(self) -> None:
        """After the server was told to stop: no process, lock, control group."""
        deadline = time.monotonic() + 10
        while (left := list(base.processes_naming(self.directory))) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        assert not list(self.runners())
        keys = {path.name for path in self.data.glob("attempts/*")}
        groups = {name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names}
        assert not [group for group in groups if any(key in group for key in keys)]
        for path in self.out.iterdir():  # nothing half written under a final name
            assert path.name.startswith(".") or path.name.endswith((".big", ".small")), path


@contextlib.contextmanager
def opened(pid: int) -> Iterator[int]:
    """A descriptor of a process, which stays that of this very process."""
    process = os.pidfd_open(pid)
    try:
        yield process
    finally:
        os.close(process)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    below = children(pid)
    return below + [deeper for child in below for deeper in descendants(child)]
