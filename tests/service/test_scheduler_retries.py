"""Retries that are due and cannot be placed, and attempts that are submitted a second time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tesazure.access import Access
from tesazure.api.ids import new_task_id
from tesazure.backends.local import LocalBackend
from tesazure.budgets import Budgets
from tesazure.errors import BackendUnavailable, StaleVersion, Unplaceable
from tesazure.lifecycle import Handle, Submit
from tesazure.model import Resources, State
from tesazure.plan import Plan
from tesazure.scheduler.loop import Scheduler
from tesazure.scheduler.perform import Performer
from tesazure.store.base import Store
from tesazure.store.records import Change
from tests.contract.spender import begun, cost, tagged
from tests.service.assembly import (
    DEFAULTS,
    MARKS,
    Assembly,
    config,
    eventually,
    logs,
    processes,
    running,
)

HELD_S = 3.0
"""Seconds that a retry is kept from its place."""
MOST_TRIES = 8
"""In these: one when it is due, one after each thing that happens meanwhile."""


@pytest.fixture
async def one(short_dir: Path) -> AsyncIterator[Assembly]:
    async with running(short_dir) as assembly:
        yield assembly


class Counted:
    """A Store in front of another one, which counts what it is asked."""

    def __init__(self, behind: Store) -> None:
        self._behind = behind
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._behind, name)


async def retry(one: Assembly, dollars: str = "0") -> str:
    """A task of which one attempt was lost, elsewhere and at that price; another one is due."""
    task = tagged({}, id=new_task_id(time.time()), owner="ann")
    store: Any = one.store
    await store.heartbeat("elsewhere", "another node", 3600)
    record = await begun(store, task, "another node")
    version = await cost(store, task.id, record.version, dollars, state=State.INITIALIZING)
    due = time.time() - 1
    again = Change(
        task_id=task.id, version=version, state=State.QUEUED, released=True, retry_at=due
    )
    await store.apply(again)
    return task.id


async def tries_while_held(one: Assembly, store: Counted) -> int:
    """How often the scheduler tries to place something in `HELD_S`, ticking all the time."""
    until = time.monotonic() + HELD_S
    await eventually(lambda: one.scheduler.last_tick > until)
    return store.asked["place"]


async def test_a_retry_beyond_a_budget_is_tried_now_and_then(one: Assembly) -> None:
    await one.scheduler.stop()
    held = await retry(one, "7")
    store, budgets = Counted(one.store), Budgets(["owner=5"])
    one.begin(config(budgets=budgets), store)  # type: ignore[arg-type]
    await one.scheduler.start()
    assert await tries_while_held(one, store) <= MOST_TRIES
    assert (await one.record(held)).state is State.QUEUED
    budgets.use([], "queue")
    assert len((await one.released(held)).attempts) == 2


async def test_a_retry_without_room_is_tried_now_and_then(one: Assembly) -> None:
    large = await one.submit(f"echo ran >> {MARKS}/l; sleep 4731", Resources(cpu_cores=4))
    await one.marked("l")
    await one.until(large, State.RUNNING)
    await one.scheduler.stop()
    held = await retry(one)
    store = Counted(one.store)
    one.begin(store=store)  # type: ignore[arg-type]
    await one.scheduler.start()
    assert await tries_while_held(one, store) <= MOST_TRIES
    assert "waiting for" in str(one.scheduler.waiting_for(held))
    await one.cancel(large)
    assert len((await one.released(held)).attempts) == 2
    await one.released(large)


class Changing:
    """A Backend that cannot say that it submitted an attempt, and takes no such attempt then."""

    def __init__(self, behind: LocalBackend) -> None:
        self._behind = behind
        self.submits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    async def submit(self, plan: Plan, key: str, access: Access) -> Handle:
        self.submits += 1
        if self.submits > 1:
            raise Unplaceable("no machine is that large any more")
        await self._behind.submit(plan, key, access)
        raise BackendUnavailable("the answer was lost")


async def test_what_an_earlier_submit_left_is_ended_with_its_task(one: Assembly) -> None:
    await one.scheduler.stop()
    backend = Changing(one.backend)
    one.scheduler = Scheduler(one.store, backend, one.granting(), config(), one.name)  # type: ignore[arg-type]
    task_id = await one.submit("sleep 4732")
    await one.scheduler.start()
    record = await one.released(task_id)
    assert (record.state, backend.submits) == (State.SYSTEM_ERROR, 2)
    assert "no machine is that large any more" in str(logs(record))
    assert await one.history(task_id) == [State.QUEUED, State.SYSTEM_ERROR]
    await eventually(lambda: not processes("sleep 4732"))
    assert await one.store.watched(one.name) == []


async def test_a_task_that_is_gone_is_not_submitted(one: Assembly) -> None:
    """Nor one of which the performer still held the record when it was told to forget it."""
    await one.scheduler.stop()
    performer = Performer(one.store, one.backend, one.granting(), DEFAULTS)
    store: Any = one.store
    record = await begun(store, tagged({}))
    gone = msgspec.structs.replace(record, id="gone")
    watched = performer.placed(gone)
    performer.forget("gone")
    with pytest.raises(StaleVersion, match="task gone is no longer there"):
        await performer.perform(watched, [Submit(gone.attempts[0].key)])
    assert await one.backend.held(time.time() + 10) == {}
