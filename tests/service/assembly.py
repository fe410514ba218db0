"""A scheduler on a real store and the real local backend, in the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from tesazure.api.ids import new_task_id
from tesazure.backends.local import LocalBackend, LocalConfig
from tesazure.callers import Visibility
from tesazure.lifecycle import Policy
from tesazure.model import TERMINAL, Executor, Resources, State, Task, TaskLog
from tesazure.plan import GB, Defaults, limits, runtime_limit
from tesazure.scheduler.config import SchedulerConfig
from tesazure.scheduler.granting import Grant, Granting, given
from tesazure.scheduler.loop import Scheduler
from tesazure.scheduler.retention import Kept
from tesazure.sealing import KEY_BYTES, Seal
from tesazure.store.base import Store
from tesazure.store.records import NewTask, Reservation, TaskRecord
from tesazure.store.sql_store import open_store
from tests.conftest import need_sandbox
from tests.services import base

DEADLINE_S = 60.0
MARKS = "/tes-wd/shared-global"
DEFAULTS = Defaults(cpu_cores=1, ram_gb=0.1, disk_gb=0.1, max_runtime_s=0)
EVERYONE = Visibility()


def config(**changes: object) -> SchedulerConfig:
    """A configuration for tests: short delays."""
    policy = Policy(max_retries=2, retry_delay_s=0.05, grace_s=1, cancel_grace_s=5)
    fields: dict[str, object] = {
        "policy": policy,
        "defaults": DEFAULTS,
        "kept": Kept(work_s=0, records_s=0),
        "backfill_s": 30.0,
        "lease_s": 3.0,
        "unseen_s": 0.2,
    }
    return SchedulerConfig(**(fields | changes))  # type: ignore[arg-type]


class Assembly:
    """Store, backend and scheduler of one server. `directory` holds what servers share."""

    kind: type[LocalBackend] = LocalBackend

    def __init__(self, directory: Path, name: str = "one", url: str = "") -> None:
        self.directory, self.name, self.url = directory, name, url
        self.marks = directory / "marks"
        self.marks.mkdir(exist_ok=True)
        self.marks.chmod(0o777)
        self.seal = Seal([bytes(KEY_BYTES)])
        self.grant: Grant = given

    async def start(
        self,
        scheduler: SchedulerConfig | None = None,
        cores: float = 4,
        disk_bytes: int = 100 * GB,
    ) -> None:
        """Start everything; again after `stop`, as a restarted server."""
        self.store: Store = await open_store(self.url, self.directory / f"{self.name}.db")
        self.backend = self.kind(
            LocalConfig(
                data_dir=self.directory / self.name,
                engine="sandbox",
                cpu_cores=cores,
                ram_bytes=8 * GB,
                disk_bytes=disk_bytes,
                shared_global=str(self.marks),
                allow_dirs=(self.marks,),
                register=self.directory / "register",
                network=False,
            )
        )
        await self.backend.start()
        self.begin(scheduler)
        await self.scheduler.start()

    def begin(self, scheduler: SchedulerConfig | None = None, store: Store | None = None) -> None:
        """Make a scheduler, on another store if one is given."""
        store = store or self.store
        self.scheduler = Scheduler(
            store, self.backend, self.granting(store), scheduler or config(), self.name
        )

    def granting(self, store: Store | None = None) -> Granting:
        """What gives attempts their access, as this server does now."""
        return Granting(store or self.store, self.seal, self.grant)

    async def restart(self, **changes: object) -> None:
        """Another scheduler in place of this one, with another configuration."""
        await self.scheduler.stop()
        self.begin(config(**changes))
        await self.scheduler.start()

    async def stop(self) -> None:
        """As at the end of a server that was told to stop."""
        await self.scheduler.stop()
        await self.backend.stop()
        await self.store.close()

    async def close(self) -> None:
        """Stop, after ending whatever the test left running."""
        for handle in (await self.backend.held(time.time() + 10)).values():
            await self.backend.release(handle)
        await self.stop()

    async def submit(
        self,
        script: str,
        resources: Resources | None = None,
        task: Task | None = None,
        **changes: object,
    ) -> str:
        """Submit a task of one shell script, `changes` made to what is stored; its id."""
        executor = Executor(image="unused", command=["sh", "-c", script])
        task = task or Task(executors=[executor], resources=resources)
        need = limits(task, DEFAULTS)
        task_id = new_task_id(time.time())
        new = NewTask(
            id=task_id,
            document=msgspec.json.encode(task),
            name="",
            owner=None,
            tags={},
            reservation=Reservation(
                need.reserved_cpu_cores, need.reserved_ram_bytes, need.reserved_disk_bytes
            ),
            max_runtime_s=runtime_limit(task, DEFAULTS),
            notes=[],
            created=time.time(),
        )
        await self.store.create(msgspec.structs.replace(new, **changes))
        self.scheduler.wake()
        return task_id

    async def cancel(self, task_id: str) -> bool | None:
        """As the API does."""
        changed = await self.store.request_cancel(task_id, EVERYONE)
        self.scheduler.wake()
        return changed

    async def record(self, task_id: str) -> TaskRecord:
        """A task as stored."""
        found = await self.store.get(task_id, EVERYONE)
        assert found is not None
        return found

    async def until(self, task_id: str, *states: State) -> TaskRecord:
        """The task once it is in one of the states; terminal ones if none are given."""
        wanted = states or tuple(TERMINAL)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            last = await self.store.last_event()
            record = await self.record(task_id)
            if record.state in wanted:
                return record
            assert record.state not in TERMINAL, (record.state, logs(record))
            assert time.monotonic() < deadline, (record.state, logs(record))
            await self.store.wait_for_events(last, 1)

    async def released(self, task_id: str) -> TaskRecord:
        """The task once it has ended and its attempt is released."""
        await self.until(task_id)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            record = await self.record(task_id)
            if all(attempt.released for attempt in record.attempts):
                return record
            assert time.monotonic() < deadline, record
            await asyncio.sleep(0.01)

    async def history(self, task_id: str) -> list[State]:
        """The states that a task went through."""
        events = await self.store.events_after(0, 1000, EVERYONE, [task_id])
        return [event.state for event in events]

    async def marked(self, name: str) -> None:
        """Until a script wrote the file `name` in `MARKS`."""
        await eventually(lambda: bool(self.mark(name)))

    def mark(self, name: str) -> str:
        """What the scripts wrote to a file of `MARKS`."""
        file = self.marks / name
        return file.read_text() if file.exists() else ""

    def runner(self, record: TaskRecord) -> int:
        """Process id of the runner of a task's newest attempt."""
        handle = record.attempts[-1].handle
        assert handle is not None
        first = (Path(handle["dir"]) / "report.jsonl").read_bytes().splitlines()[0]
        return int(first.split(b'"pid":')[1].split(b",")[0])


@contextlib.asynccontextmanager
async def running(directory: Path, kind: type[Assembly] = Assembly) -> AsyncIterator[Assembly]:
    """A started server, and nothing left of it afterwards."""
    need_sandbox()
    assembly = kind(directory)
    await assembly.start()
    yield assembly
    await assembly.close()


def logs(record: TaskRecord) -> list[TaskLog]:
    """The TaskLogs of a task, one for each attempt."""
    return [msgspec.json.decode(attempt.log, type=TaskLog) for attempt in record.attempts]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most `DEADLINE_S`."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


def processes(token: str) -> list[int]:
    """Processes with this word in their command line, or these, but for this one."""
    # Whole words: other tests' processes have paths and numbers with such digits in them.
    wanted = f" {token} ".encode()
    lines = ((pid, b" ".join(command.split(b"\0"))) for pid, command in base.command_lines())
    return [pid for pid, line in lines if wanted in b" " + line.replace(b"\n", b" ") + b" "]
