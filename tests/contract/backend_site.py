"""For the suite of the Backend Protocol: backends under test, and how to look at their attempts."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from tesazure.access import Access
from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tesazure.backends.base import Backend
from tesazure.backends.local import LocalBackend, LocalConfig
from tesazure.lifecycle import Handle, Observation, Phase
from tesazure.model import Executor, Resources, State, Task
from tesazure.plan import Defaults, Plan, make_plan
from tesazure.telemetry.attempts import TracedBackend
from tesazure.telemetry.spans import Span
from tests.services import base
from tests.services.batch_lab import QUICK, BatchLab

DEFAULTS = Defaults(cpu_cores=1, ram_gb=0.1, disk_gb=0.1, max_runtime_s=0)
DEADLINE_S = 40.0
MARKS = "/tes-wd/shared-global"


class Site(ABC):
    """A backend under test, and servers that share its scope. `marks` is the directory that scripts
    see as `MARKS`."""

    name: str
    """Of the backend."""
    engine: str
    """Of its capabilities."""

    def __init__(self, directory: Path, image: str, marks: Path) -> None:
        self.directory, self.image, self.marks = directory, image, marks
        self.stack = AsyncExitStack()
        self.submitted: list[tuple[Backend, Handle]] = []

    @abstractmethod
    async def server(self, name: str = "one") -> Backend:
        """A started backend, of the server with this name."""

    @abstractmethod
    def unknown(self, key: str) -> Handle:
        """A handle as the backend would give it, of an attempt that there is not."""

    @abstractmethod
    def work_of(self, handle: Handle) -> Path:
        """The directory of an attempt that runs."""

    def plan(self, script: str, **resources: object) -> Plan:
        """One executor that runs a shell script."""
        executor = Executor(image=self.image, command=["sh", "-c", script])
        task = Task(executors=[executor], resources=Resources(**resources))  # type: ignore[arg-type]
        return make_plan("task", task, DEFAULTS, [])

    async def submit(self, backend: Backend, script: str, key: str) -> Handle:
        """Submit, to be released at the end of the test whatever happens."""
        handle = await backend.submit(self.plan(script), key, Access())
        self.submitted.append((backend, handle))
        return handle

    def mark(self, name: str) -> str:
        """What the scripts wrote to a file of `MARKS`."""
        file = self.marks / name
        return file.read_text() if file.exists() else ""

    def runner_of(self, handle: Handle) -> int:
        """Process id of an attempt's runner, as it told itself."""
        first = (self.work_of(handle) / "report.jsonl").read_bytes().splitlines()[0]
        return int(first.split(b'"pid":')[1].split(b",")[0])

    async def close(self) -> None:
        """Leave nothing."""
        last = await self.server("cleaner")
        for _, handle in self.submitted:
            await last.release(handle)
        await self.stack.aclose()


class LocalSite(Site):
    """This machine."""

    name = "local"

    def __init__(self, directory: Path, engine: str, host: str, image: str) -> None:
        super().__init__(directory, image, directory / "marks")
        self.engine, self.host = engine, host
        self.marks.mkdir(mode=0o777)
        self.marks.chmod(0o777)

    async def server(self, name: str = "one") -> LocalBackend:
        """With a data directory of this name."""
        backend = LocalBackend(
            LocalConfig(
                data_dir=self.directory / name,
                engine=self.engine,  # type: ignore[arg-type]
                docker_host=self.host,
                shared_global=str(self.marks),
                register=self.directory / "register",
                network=False,
            )
        )
        await backend.start()
        self.stack.push_async_callback(backend.stop)
        return backend

    def unknown(self, key: str) -> Handle:
        """One whose directory is gone."""
        return {"dir": str(self.directory / "one/attempts" / key), "node": "n"}

    def work_of(self, handle: Handle) -> Path:
        """As the handle says."""
        return Path(handle["dir"])


class TracedSite(LocalSite):
    """This machine, its attempts traced."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "sandbox", "", "unused")
        self.spans: list[Span] = []

    async def server(self, name: str = "one") -> Backend:  # type: ignore[override]
        """As without."""
        return TracedBackend(await super().server(name), self.spans.append, 1)


class BatchSite(Site):
    """An Azure Batch account, whose nodes are directories of this machine."""

    name = engine = "batch"

    def __init__(self, directory: Path, lab: BatchLab) -> None:
        super().__init__(directory, "unused", lab.marks)
        self.lab = lab

    async def server(self, name: str = "one") -> AzureBatchBackend:
        """They are all alike."""
        backend = AzureBatchBackend(self.lab.config(), QUICK)
        await backend.start()
        self.stack.push_async_callback(backend.stop)
        return backend

    def unknown(self, key: str) -> Handle:
        """In a job that there is not, either."""
        return {"job": "nojob", "task": key}

    def work_of(self, handle: Handle) -> Path:
        """On the node."""
        return self.lab.work_of(handle["job"], handle["task"])


async def look(backend: Backend, handle: Handle) -> Observation:
    """How one attempt stands."""
    key = key_of(handle)
    return (await backend.observe({key: handle}))[key]


def key_of(handle: Handle) -> str:
    """The attempt's key."""
    return str(handle["task"] if "task" in handle else handle["dir"].rpartition("/")[2])


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Wait for a condition, at most `DEADLINE_S`."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        answer = condition()
        if await answer if isinstance(answer, Awaitable) else answer:
            return
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


async def ended(backend: Backend, handle: Handle) -> Observation:
    """The observation of an attempt whose runner is gone."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        seen = await look(backend, handle)
        if seen.phase not in (Phase.PENDING, Phase.RUNNING):
            return seen
        assert time.monotonic() < deadline, f"still {seen.phase}: {seen.report}"
        await backend.changed(1)


async def complete(backend: Backend, handle: Handle) -> None:
    """Wait for its end, which is a good one."""
    seen = await ended(backend, handle)
    assert seen.report.ended is not None, seen
    assert seen.report.ended.state is State.COMPLETE, seen


def runs(token: str) -> bool:
    """Whether a process with this word in its command line runs on the machine."""
    return any(token.encode() in command for _, command in base.command_lines())


def sleeper(token: str) -> str:
    """A script that tells it runs, and whose process can be found by `token`."""
    return f"echo begun; echo {token} > {MARKS}/{token}; sleep 1{abs(hash(token)) % 10**6:06d}"


def seconds(token: str) -> str:
    """What the process of `sleeper(token)` sleeps."""
    return sleeper(token).rsplit(" ", 1)[1]


def files(handle: Handle) -> set[str]:
    """What lies in the directory of an attempt on this machine."""
    return {path.name for path in Path(handle["dir"]).iterdir()}
