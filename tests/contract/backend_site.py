"""For the suite of the Backend Protocol: backends under test, and how to look at their attempts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from tesazure.access import Access
from tesazure.backends.base import Backend
from tesazure.backends.local import LocalBackend, LocalConfig
from tesazure.lifecycle import Handle, Observation, Phase
from tesazure.model import Executor, Resources, Task
from tesazure.plan import Defaults, Plan, make_plan
from tests.services import base

DEFAULTS = Defaults(cpu_cores=1, ram_gb=0.1, disk_gb=0.1, max_runtime_s=0)
DEADLINE_S = 40.0
MARKS = "/tes-wd/shared-global"


class Site:
    """A backend under test, and servers that share its scope."""

    def __init__(self, directory: Path, engine: str, host: str, image: str) -> None:
        self.directory, self.engine, self.host, self.image = directory, engine, host, image
        self.marks = directory / "marks"
        self.marks.mkdir(mode=0o777)
        self.marks.chmod(0o777)
        self.stack = AsyncExitStack()
        self.submitted: list[tuple[Backend, Handle]] = []

    async def server(self, name: str = "one") -> LocalBackend:
        """A started backend with a data directory of this name."""
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

    async def close(self) -> None:
        """Leave nothing."""
        last = await self.server("cleaner")
        for _, handle in self.submitted:
            await last.release(handle)
        await self.stack.aclose()


async def look(backend: Backend, handle: Handle) -> Observation:
    """How one attempt stands."""
    key = handle["dir"].rpartition("/")[2]
    return (await backend.observe({key: handle}))[key]


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
    """What lies in an attempt's directory."""
    return {path.name for path in Path(handle["dir"]).iterdir()}


def runner_of(handle: Handle) -> int:
    """Process id of an attempt's runner, as it told itself."""
    first = (Path(handle["dir"]) / "report.jsonl").read_bytes().splitlines()[0]
    return int(first.split(b'"pid":')[1].split(b",")[0])
