"""Events, and what becomes of finished tasks: what every Store promises, on each database."""

from __future__ import annotations

import asyncio
import time

import pytest

from tesazure.callers import Visibility
from tesazure.model import State
from tesazure.store.records import Change, ListQuery, StateEvent
from tesazure.store.sql_store import SqlStore
from tests.contract.store_tasks import (
    ALL,
    SCOPE,
    Place,
    advanced,
    created,
    finished,
    listed,
    new_task,
    only,
    placed,
)


async def test_events_tell_each_change_in_order(store: SqlStore) -> None:
    assert await store.last_event() == 0
    [other] = await created(store, owner="ann", tenant="lab")
    task = await finished(store)
    events = await store.events_after(0, 100, ALL)
    assert [event.number for event in events] == sorted({event.number for event in events})
    assert await store.last_event() == events[-1].number
    assert events[0] == StateEvent(1, other.id, State.QUEUED, other.created, "ann", "lab")
    assert [event.state for event in events if event.task_id == task.id] == [
        State.QUEUED,
        State.INITIALIZING,
        State.RUNNING,
        State.COMPLETE,
    ]
    assert await store.events_after(0, 100, ALL, [task.id]) == events[1:]
    assert await store.events_after(events[2].number, 1, ALL) == events[3:4]


async def test_events_of_others_are_not_told(store: SqlStore) -> None:
    [anns] = await created(store, owner="ann", tenant="lab")
    [bobs] = await created(store, owner="bob", tenant="lab")
    [nobodys] = await created(store)
    await store.request_cancel(anns.id, ALL)
    for visibility, seen in (
        (Visibility(everyone=False, owner="ann"), [anns.id]),
        (Visibility(everyone=False, tenant="lab"), [anns.id, bobs.id]),
        (Visibility(everyone=False, owner="bob", tenant="lab"), [bobs.id]),
        (Visibility(everyone=False, owner="bob", tenant="other"), []),
        (Visibility(everyone=False), []),
        (ALL, [anns.id, bobs.id, nobodys.id]),
    ):
        told = await store.events_after(0, 100, visibility)
        assert {event.task_id for event in told} == set(seen)
        every = [anns.id, bobs.id, nobodys.id]
        assert await store.events_after(0, 100, visibility, every) == told
        if anns.id in seen:
            states = [event.state for event in told if event.task_id == anns.id]
            assert states == [State.QUEUED, State.CANCELING, State.CANCELED]


async def test_no_event_appears_behind_one_already_seen(place: Place) -> None:
    writers = [await place.open() for _ in range(3)]
    reader = await place.open()
    seen: list[int] = []
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set() or await reader.last_event() > (seen[-1] if seen else 0):
            after = seen[-1] if seen else 0
            seen.extend(event.number for event in await reader.events_after(after, 50, ALL))

    async def write(store: SqlStore) -> None:
        for _ in range(20):
            await asyncio.gather(*(store.create(new_task()) for _ in range(5)))

    async with asyncio.timeout(60):
        reading = asyncio.ensure_future(read())
        await asyncio.gather(*map(write, writers))
        done.set()
        await reading
    assert seen == list(range(1, 301))


async def test_waiting_ends_with_an_event_or_with_the_time(place: Place) -> None:
    store, other = await place.open(), await place.open()
    assert not await store.wait_for_events(0, 0.05)
    long = 3600
    async with asyncio.timeout(60):  # it is the event that ends them
        waiters = [asyncio.ensure_future(store.wait_for_events(0, long)) for _ in range(10)]
        await asyncio.sleep(0)
        await created(store)
        assert await asyncio.gather(*waiters) == [True] * 10
        assert await store.wait_for_events(0, long)
        if place.url:
            waiter = asyncio.ensure_future(store.wait_for_events(1, long))
            await asyncio.sleep(0)
            await created(other)
            assert await waiter


async def test_counts_follow_every_change(store: SqlStore) -> None:
    assert set((await store.count_by_state()).values()) == {0}
    await created(store, 3)
    task = await finished(store)
    [gone] = await created(store)
    await store.request_cancel(gone.id, ALL)
    counts = {state: n for state, n in (await store.count_by_state()).items() if n}
    assert counts == {State.QUEUED: 3, State.COMPLETE: 1, State.CANCELED: 1}
    await store.mark_discarded([task.attempts[0].key])
    assert await store.forget(time.time() + 10, 100) == 2
    counts = {state: n for state, n in (await store.count_by_state()).items() if n}
    assert counts == {State.QUEUED: 3}


async def test_work_files_go_when_the_task_ended_long_enough_ago(store: SqlStore) -> None:
    task = await finished(store)
    unreleased = await placed(store)
    await advanced(store, unreleased, State.INITIALIZING, State.EXECUTOR_ERROR)
    await placed(store)
    now = time.time()
    assert await store.discardable(SCOPE, now - 1000, 10) == []
    assert await store.discardable("node-2", now + 10, 10) == []
    assert await store.discardable(SCOPE, now + 10, 10) == [task]
    await store.mark_discarded([task.attempts[0].key])
    assert await store.discardable(SCOPE, now + 10, 10) == []


async def test_what_a_scope_has_left(store: SqlStore) -> None:
    assert not await store.holds(SCOPE)
    task = await placed(store)
    assert task.attempts[0].scope == SCOPE
    assert await store.holds(SCOPE)
    assert not await store.holds("node-2")
    await placed(store, scope="node-3")
    assert await store.live_attempts() == {SCOPE: 1, "node-3": 1}
    version = await advanced(store, task, State.INITIALIZING, State.RUNNING, State.COMPLETE)
    assert await store.holds(SCOPE, live=True)
    await store.apply(Change(task_id=task.id, version=version, released=True))
    assert await store.holds(SCOPE)
    assert not await store.holds(SCOPE, live=True)
    assert await store.live_attempts() == {"node-3": 1}
    await store.mark_discarded([task.attempts[0].key])
    assert not await store.holds(SCOPE)


async def test_a_scope_is_abandoned_once_nothing_of_it_lives(store: SqlStore) -> None:
    await finished(store)
    again = await placed(store)
    version = await advanced(store, again, State.INITIALIZING, released=True)
    await store.apply(Change(task_id=again.id, version=version, state=State.QUEUED))
    elsewhere = await finished(store, scope="node-2")
    [waits] = await created(store)
    chosen = only(waits.id)
    [live] = await store.place("server-1", SCOPE, chosen, 10, time.time())
    assert await store.abandon(SCOPE) == 1
    assert len(await store.discardable(SCOPE, time.time() + 10, 10)) == 1
    await advanced(store, live, State.INITIALIZING, State.EXECUTOR_ERROR, released=True)
    assert await store.abandon(SCOPE) == 0
    assert not await store.holds(SCOPE)
    for task_id in (again.id, live.id):
        record = await store.get(task_id, ALL)
        assert record is not None
        assert all(attempt.discarded for attempt in record.attempts)
    assert await store.discardable("node-2", time.time() + 10, 10) == [elsewhere]


async def test_the_ends_of_attempts_of_any_scope(store: SqlStore) -> None:
    gone = await finished(store, scope="a name of before")
    runs = await placed(store)
    unreleased = await placed(store)
    await advanced(store, unreleased, State.INITIALIZING, State.EXECUTOR_ERROR)
    keys = [task.attempts[0].key for task in (gone, runs, unreleased)]
    found = await store.ends([*keys, "unknown"])
    ended = found.pop(keys[0])
    assert ended is not None
    assert abs(ended - time.time()) < 60
    assert found == {keys[1]: None, keys[2]: None}


async def test_each_node_discards_its_own_attempts(store: SqlStore) -> None:
    task = await placed(store, "server-1", SCOPE)
    version = await advanced(store, task, State.INITIALIZING, released=True)
    await store.apply(Change(task_id=task.id, version=version, state=State.QUEUED))
    [task] = await store.place(
        "server-2", "node-2", lambda queue, _: {queue[0].id: "second"}, 10, time.time()
    )
    states = (State.INITIALIZING, State.RUNNING, State.COMPLETE)
    await advanced(store, task, *states, released=True)
    soon = time.time() + 10
    [here] = await store.discardable(SCOPE, soon, 10)
    [there] = await store.discardable("node-2", soon, 10)
    assert [[a.number for a in record.attempts] for record in (here, there)] == [[1], [2]]
    await store.mark_discarded([here.attempts[0].key])
    assert await store.discardable(SCOPE, soon, 10) == []
    assert await store.forget(soon, 10) == 0
    [there] = await store.discardable("node-2", soon, 10)
    await store.mark_discarded([there.attempts[0].key])
    assert await store.forget(soon, 10) == 1


async def test_forgetting_leaves_no_trace(store: SqlStore) -> None:
    long = "x" * 5000
    [task] = await created(
        store,
        tags={"a": None, long: long},
        document=b'{"tags":{"a":null,"%s":"%s"}}' % ((long.encode(),) * 2),
    )
    [kept] = await created(store, tags={"a": None})
    assert {b.id for b in await listed(store, ListQuery(limit=9, tags=(("a", ""),)))} == {
        task.id,
        kept.id,
    }
    await store.request_cancel(task.id, ALL)
    assert await store.forget(time.time() - 1000, 10) == 0
    assert await store.forget(time.time() + 10, 10) == 1
    assert await store.get(task.id, ALL) is None
    for tags in ((("a", ""),), ((long, long),)):
        found = await listed(store, ListQuery(limit=9, tags=tags))
        assert [b.id for b in found] == ([kept.id] if tags[0][0] == "a" else [])
    # Its number is not given to another task.
    [brief] = await listed(store, ListQuery(limit=9))
    [newest] = await created(store)
    found = await listed(store, ListQuery(limit=9))
    assert [b.id for b in found] == [newest.id, kept.id]
    assert found[0].seq > brief.seq + 2


async def test_old_events_go_but_never_the_newest(store: SqlStore) -> None:
    for age in (5000, 4000, 3000, 10, 5):
        await created(store, created=time.time() - age)
    assert await store.prune_events(time.time() - 3500) == 2
    assert [e.number for e in await store.events_after(0, 10, ALL)] == [3, 4, 5]
    assert await store.prune_events(time.time() + 1000) == 2
    assert await store.last_event() == 5
    assert await store.prune_events(time.time() + 1000) == 0


@pytest.mark.parametrize("limit", [1, 3])
async def test_forget_keeps_to_its_limit(store: SqlStore, limit: int) -> None:
    for task in await created(store, 4):
        await store.request_cancel(task.id, ALL)
    assert await store.forget(time.time() + 10, limit) == limit
