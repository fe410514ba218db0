"""For tests of the runner: attempts in a directory of their own, run by real runner processes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from tesazure import report
from tesazure.model import Executor, Resources, Task
from tesazure.plan import Defaults, Plan, make_plan
from tesazure.report import AnyEvent, Ended, Report
from tesazure.runner.config import AttemptDir, NodeConfig
from tesazure.runner.tree import remove_tree
from tests.conftest import need_sandbox

DEFAULTS = Defaults(cpu_cores=1, ram_gb=1, disk_gb=1, max_runtime_s=0)
DEADLINE_S = 60


def executor(*command: str, **fields: Any) -> Executor:
    """An executor of an image that no engine needs."""
    return Executor(image="an/image:1", command=list(command), **fields)


def shell(script: str, **fields: Any) -> Executor:
    """An executor that runs a shell script."""
    return executor("sh", "-c", script, **fields)


def runtime(seconds: float) -> Resources:
    """A time limit."""
    return Resources(backend_parameters={"max_runtime_s": str(seconds)})


def events(attempt: AttemptDir) -> list[AnyEvent]:
    """What the report says so far."""
    return report.decode(attempt.report.read_bytes())


def folded(attempt: AttemptDir) -> Report:
    """The report so far."""
    return report.fold(events(attempt))


def wait_for_exit(pid: int, deadline_s: float = DEADLINE_S) -> None:
    """Returns once the process has ended, whoever its parent is."""
    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(file, select.POLLIN)
    try:
        assert poll.poll(deadline_s * 1000), f"process {pid} did not end"
    finally:
        os.close(file)


def descriptors(pid: int) -> list[str]:
    """What a process has open, but for what it closes meanwhile."""
    names = []
    for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/{pid}/fd/{number}"))  # noqa: PTH115
    return names


class SpawnerProcess:
    """The real spawner, and its protocol."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tesazure.runner.spawner", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.ready = self.read()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def read(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None
        reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        return reply

    def ask(self, directory: Path | str, **more: Any) -> dict[str, Any]:
        """Have an attempt begun; the reply."""
        self._stdin.write(json.dumps({"directory": str(directory), **more}).encode() + b"\n")
        self._stdin.flush()
        return self.read()

    def close(self) -> int:
        """End its standard input; its exit code."""
        self._stdin.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(DEADLINE_S)


@dataclass
class RunnerBench:
    """Makes attempts and has them run."""

    path: Path
    spawner: SpawnerProcess
    files: Path
    """What `file://` URLs may name."""
    made: int = 0
    pids: list[int] = field(default_factory=list)
    last: AttemptDir = field(default_factory=lambda: AttemptDir(Path("/nonexistent")))
    """Of the last `run`."""

    def plan(self, *executors: Executor, **fields: Any) -> Plan:
        """A plan; `notes` are the submission's warnings."""
        notes = fields.pop("notes", [])
        return make_plan("a-task", Task(executors=list(executors), **fields), DEFAULTS, notes)

    def attempt(self, plan: Plan, **node: Any) -> AttemptDir:
        """A new attempt's directory, as a backend makes it."""
        self.made += 1
        key = f"{self.path.name}-{self.made}"
        attempt = AttemptDir(self.path / "attempts" / key)
        attempt.path.mkdir(parents=True, mode=0o700)
        config = {"key": key, "engine": "sandbox", "allow_dirs": (str(self.files),), **node}
        attempt.plan.write_bytes(msgspec.json.encode(plan))
        attempt.node.write_bytes(msgspec.json.encode(NodeConfig(**config)))
        return attempt

    def begin(self, attempt: AttemptDir) -> int:
        """Have a runner begin; its process id."""
        reply = self.spawner.ask(attempt.path)
        assert "pid" in reply, reply
        self.pids.append(reply["pid"])
        pid: int = reply["pid"]
        return pid

    def run(self, *executors: Executor, **fields: Any) -> Report:
        """Run a task to its end. Fields of the task, and `node` for those of its NodeConfig."""
        node = fields.pop("node", {})
        self.last = self.attempt(self.plan(*executors, **fields), **node)
        wait_for_exit(self.begin(self.last))
        return folded(self.last)

    def end(self) -> None:
        """End the runners that a failed test left."""
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            wait_for_exit(pid)


@contextlib.contextmanager
def open_bench() -> Iterator[RunnerBench]:
    """A RunnerBench in a new directory; what is left of it is ended and deleted."""
    need_sandbox()
    path = Path(tempfile.mkdtemp(prefix="tz-"))
    (path / "files").mkdir()
    bench = RunnerBench(path, SpawnerProcess("--preload", "sandbox"), path / "files")
    try:
        yield bench
    finally:
        bench.spawner.close()
        bench.end()
        remove_tree(path)


def ended(found: Report) -> Ended:
    """The last event."""
    assert found.ended is not None, found.log.system_logs
    return found.ended


def lines(found: Report) -> str:
    """system_logs as one text."""
    return "\n".join(found.log.system_logs)
