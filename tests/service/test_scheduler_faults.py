"""The scheduler when what it stands on fails, and what it deletes in time."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tesazure.backends.local import LocalBackend
from tesazure.errors import BackendUnavailable, StoreUnavailable
from tesazure.lifecycle import Handle
from tesazure.model import Executor, State, Task
from tesazure.plan import Plan, make_plan
from tesazure.scheduler.loop import Scheduler
from tesazure.scheduler.retention import Kept, Retention
from tests.service.assembly import DEFAULTS, EVERYONE, MARKS, Assembly, config, eventually, running


@pytest.fixture
async def one(short_dir: Path) -> AsyncIterator[Assembly]:
    async with running(short_dir) as assembly:
        yield assembly


# -- failures of what it stands on --------------------------------------------------------------


class Flaky:
    """A Store or Backend in front of another one, which fails while `down`."""

    def __init__(self, behind: object, error: Exception) -> None:
        self._behind, self._error = behind, error
        self.down = False
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._behind, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any) -> Any:
            if self.down:
                self.refused += 1
                raise self._error
            return await found(*arguments)

        return call


async def test_an_outage_of_the_store_is_survived(one: Assembly) -> None:
    await one.scheduler.stop()
    store = Flaky(one.store, StoreUnavailable("the database is away"))
    one.begin(store=store)  # type: ignore[arg-type]
    await one.scheduler.start()
    first = await one.submit(f"echo ran >> {MARKS}/r; sleep 0.3")
    await one.marked("r")
    store.down = True
    waiting = await one.submit(f"echo ran >> {MARKS}/w")
    await eventually(lambda: store.refused > 3)
    store.down = False
    for task_id in (first, waiting):
        record = await one.released(task_id)
        assert (record.state, len(record.attempts)) == (State.COMPLETE, 1)
    assert one.mark("r") == one.mark("w") == "ran\n"


async def test_an_outage_of_the_backend_changes_no_task(one: Assembly) -> None:
    await one.scheduler.stop()
    backend = Flaky(one.backend, BackendUnavailable("the node is away"))
    one.scheduler = Scheduler(one.store, backend, config(), one.name)  # type: ignore[arg-type]
    await one.scheduler.start()
    first = await one.submit(f"echo ran >> {MARKS}/r; sleep 0.3")
    await one.marked("r")
    backend.down = True
    waiting = await one.submit(f"echo ran >> {MARKS}/w")
    await eventually(lambda: backend.refused > 3)
    assert (await one.record(first)).state in (State.RUNNING, State.INITIALIZING)
    assert (await one.record(waiting)).state is State.QUEUED
    backend.down = False
    for task_id in (first, waiting):
        record = await one.released(task_id)
        assert (record.state, len(record.attempts)) == (State.COMPLETE, 1)


class Stubborn:
    """A Backend that cannot begin certain tasks, for a reason that it did not foresee."""

    def __init__(self, behind: LocalBackend) -> None:
        self._behind = behind
        self.refuses: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    async def submit(self, plan: Plan, key: str) -> Handle:
        if plan.task_id in self.refuses:
            raise RuntimeError("no idea what to do with this one")
        return await self._behind.submit(plan, key)


async def test_one_task_that_cannot_be_handled_holds_up_no_other(one: Assembly) -> None:
    await one.scheduler.stop()
    backend = Stubborn(one.backend)
    one.scheduler = Scheduler(one.store, backend, config(), one.name)  # type: ignore[arg-type]
    bad = await one.submit("true")
    backend.refuses.add(bad)
    await one.scheduler.start()
    for _ in range(3):
        assert (await one.released(await one.submit("true"))).state is State.COMPLETE
    await eventually(lambda: one.scheduler.waiting_for(bad) is not None)
    assert "no idea what to do" in str(one.scheduler.waiting_for(bad))
    backend.refuses.clear()
    assert (await one.released(bad)).state is State.COMPLETE


# -- retention ----------------------------------------------------------------------------------


async def test_work_files_and_records_are_kept_for_their_time(one: Assembly) -> None:
    record = await one.released(await one.submit("echo x"))
    await Retention(one.store, one.backend, Kept(work_s=3600, records_s=7200)).run()
    assert record.attempts[0].key in await held(one)
    await Retention(one.store, one.backend, Kept(work_s=1e-6, records_s=7200)).run()
    assert await held(one) == set()
    assert (await one.record(record.id)).attempts[0].discarded
    await Retention(one.store, one.backend, Kept(work_s=0, records_s=1e-6)).run()
    assert await one.store.get(record.id, EVERYONE) is None


async def test_the_scheduler_runs_retention_by_itself(one: Assembly) -> None:
    record = await one.released(await one.submit("echo x"))
    handle = record.attempts[0].handle
    assert handle is not None
    await one.restart(kept=Kept(work_s=0.2))
    await eventually(lambda: not Path(handle["dir"]).exists())


async def test_attempts_that_no_task_knows_are_deleted_unless_they_run(one: Assembly) -> None:
    task = Task(
        executors=[Executor(image="unused", command=["sh", "-c", "sleep $T"], env={"T": "0"})]
    )
    ended = await one.backend.submit(make_plan("gone", task, DEFAULTS, []), "gone-00000001")
    task.executors[0].env = {"T": "4718"}
    runs = await one.backend.submit(make_plan("lost", task, DEFAULTS, []), "lost-00000001")
    known = await one.released(await one.submit("true"))
    key = "gone-00000001"
    while (await one.backend.observe({key: ended}))[key].report.ended is None:
        await one.backend.changed(0.1)
    for handle in (ended, runs, known.attempts[0].handle):
        assert handle is not None
        os.utime(handle["dir"], (0, time.time() - 7200))
    await Retention(one.store, one.backend, Kept(work_s=0)).run()
    assert await held(one) == {"lost-00000001", known.attempts[0].key}


async def held(one: Assembly) -> set[str]:
    """The attempts that the backend holds anything of."""
    return set(await one.backend.held(time.time() + 10))
