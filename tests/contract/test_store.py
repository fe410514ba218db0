"""What every Store promises, on each database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from tesazure.callers import Visibility
from tesazure.errors import StaleVersion, StoreUnavailable
from tesazure.model import State, TaskLog
from tesazure.store.records import Change, ListQuery, Queued, Reservation
from tesazure.store.schema import HEAD
from tesazure.store.sql_store import SqlStore
from tests.contract.store_tasks import (
    ALL,
    SCOPE,
    Place,
    advanced,
    created,
    everything,
    finished,
    new_task,
    only,
    placed,
)


async def test_a_task_comes_back_as_it_was_given(store: SqlStore) -> None:
    task = new_task(
        owner="ann", notes=["unknown field x was ignored", "é"], document=b'{"a":"\xc3\xa9"}'
    )
    await store.create(task)
    found = await store.get(task.id, ALL)
    assert found is not None
    assert (found.id, found.state, found.version) == (task.id, State.QUEUED, 1)
    assert (found.document, found.notes, found.owner) == (task.document, task.notes, "ann")
    assert (found.created, found.attempts) == (task.created, [])
    brief = await store.get_brief(task.id, ALL)
    assert brief is not None
    assert (brief.seq, brief.id, brief.state) == (found.seq, task.id, State.QUEUED)


async def test_a_database_has_an_identity_of_its_own(place: Place, tmp_path: Path) -> None:
    first, second = await place.open(), await place.open()
    assert await first.identity() == await second.identity()
    other = Place("", tmp_path / "other.db")
    assert await (await other.open()).identity() != await first.identity()
    await other.close()


async def test_a_placed_tasks_log_begins_with_its_warnings(store: SqlStore) -> None:
    [task] = await created(store, notes=["unknown field x was ignored"], max_runtime_s=7.5)
    [record] = await store.place("server-1", SCOPE, only(task.id), 10, time.time())
    assert record.max_runtime_s == 7.5
    log = msgspec.json.decode(record.attempts[0].log, type=TaskLog)
    [line] = log.system_logs
    assert line.endswith("Z WARNING unknown field x was ignored")


async def test_tasks_of_others_and_unknown_ones_are_not_there(store: SqlStore) -> None:
    ann, nobody = new_task(owner="ann", tenant="lab"), new_task()
    colleague, stranger = new_task(owner="bob", tenant="lab"), new_task(owner="eve", tenant="x")
    tasks = [ann, nobody, colleague, stranger]
    for task in tasks:
        await store.create(task)
    for visibility, seen in (
        (Visibility(everyone=False, owner="ann"), [ann]),
        (Visibility(everyone=False, tenant="lab"), [ann, colleague]),
        (Visibility(everyone=False, owner="bob", tenant="lab"), [colleague]),
        (Visibility(everyone=False, owner="bob", tenant="x"), []),
        (Visibility(everyone=False), []),
        (ALL, tasks),
    ):
        for task in seen:
            record = await store.get(task.id, visibility)
            assert record is not None
            assert (record.owner, record.tenant) == (task.owner, task.tenant)
            assert await store.get_brief(task.id, visibility) is not None
        others = [task.id for task in tasks if task not in seen]
        for missing in (*others, "no-such-task"):
            assert await store.get(missing, visibility) is None
            assert await store.get_brief(missing, visibility) is None
            assert await store.request_cancel(missing, visibility) is None
        asked = [*(task.id for task in tasks), "no-such-task"]
        briefs = await store.get_briefs(asked, visibility)
        assert briefs == {task.id: await store.get_brief(task.id, visibility) for task in seen}
        assert await store.get_briefs([], visibility) == {}
        page = await store.list_records(ListQuery(limit=9, visibility=visibility))
        assert {record.id for record in page.items} == {task.id for task in seen}


async def test_tasks_created_together_get_different_numbers(store: SqlStore) -> None:
    tasks = [new_task() for _ in range(300)]
    await asyncio.gather(*(store.create(task) for task in tasks))
    briefs = [await store.get_brief(task.id, ALL) for task in tasks]
    assert len({brief.seq for brief in briefs if brief}) == 300
    assert (await store.count_by_state())[State.QUEUED] == 300


async def test_an_id_can_be_used_once_and_its_neighbours_do_not_suffer(store: SqlStore) -> None:
    first, *others = [new_task() for _ in range(20)]
    await store.create(first)
    results = await asyncio.gather(
        *(store.create(task) for task in (*others, new_task(id=first.id))), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None)] * 19 + [ValueError]
    for task in others:
        assert await store.get(task.id, ALL) is not None
    assert (await store.count_by_state())[State.QUEUED] == 20


async def test_sizes_beyond_any_machine_are_kept_as_very_large(store: SqlStore) -> None:
    await created(store, reservation=Reservation(1e9, 10**30, 10**30))
    seen: list[Queued] = []

    def look(queue: Sequence[Queued], _: Reservation) -> Mapping[str, str]:
        seen.extend(queue)
        return {}

    await store.place("server-1", SCOPE, look, 10, time.time())
    assert seen[0].reservation == Reservation(1e9, 2**63 - 1, 2**63 - 1)


async def test_a_closed_store_refuses_and_may_be_closed_again(store: SqlStore) -> None:
    [task] = await created(store)
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.create(new_task())
    with pytest.raises(StoreUnavailable):
        await store.get(task.id, ALL)


async def test_close_finishes_what_was_begun(place: Place) -> None:
    store = await place.open()
    tasks = [new_task() for _ in range(50)]
    writes = [asyncio.ensure_future(store.create(task)) for task in tasks]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    again = await place.open()
    assert (await again.count_by_state())[State.QUEUED] == 50


async def test_ping(store: SqlStore) -> None:
    await store.ping()
    await store.ping()


async def test_a_change_is_made_once(store: SqlStore) -> None:
    task = await placed(store)
    log = msgspec.json.encode(TaskLog(system_logs=["placed"]))
    change = Change(
        task_id=task.id,
        version=task.version,
        state=State.INITIALIZING,
        log=log,
        seen_events=3,
        handle={"pid": 7, "host": "é"},
        document=b'{"executors":[]}',
    )
    results = await asyncio.gather(*(store.apply(change) for _ in range(5)), return_exceptions=True)
    kinds = [type(result) for result in results]
    assert (kinds.count(int), kinds.count(StaleVersion)) == (1, 4)
    found = await store.get(task.id, ALL)
    assert found is not None
    assert (found.state, found.version) == (State.INITIALIZING, task.version + 1)
    assert found.document == b'{"executors":[]}'
    [attempt] = found.attempts
    assert (attempt.log, attempt.seen_events) == (log, 3)
    assert (attempt.handle, attempt.released) == ({"pid": 7, "host": "é"}, False)


async def test_what_a_change_leaves_out_stays(store: SqlStore) -> None:
    task = await placed(store)
    version = await advanced(store, task, State.INITIALIZING, handle={"a": 1}, seen_events=2)
    await store.apply(Change(task_id=task.id, version=version, log=b"{}"))
    found = await store.get(task.id, ALL)
    assert found is not None
    assert found.state is State.INITIALIZING
    assert (found.attempts[0].handle, found.attempts[0].seen_events) == ({"a": 1}, 2)


async def test_illegal_changes_change_nothing(store: SqlStore) -> None:
    [waiting] = await created(store)
    task = await placed(store)
    refused = [
        Change(task_id=task.id, version=task.version, state=State.COMPLETE),
        Change(task_id=task.id, version=task.version, state=State.QUEUED),
        Change(task_id=task.id, version=task.version, retry_at=5.0),
        Change(task_id=waiting.id, version=1, log=b"{}"),
    ]
    results = await asyncio.gather(*map(store.apply, refused), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 4
    with pytest.raises(StaleVersion):
        await store.apply(Change(task_id="no-such-task", version=1))
    assert await store.get(task.id, ALL) == task
    # A live attempt cannot be left behind.
    version = await advanced(store, task, State.INITIALIZING)
    with pytest.raises(ValueError, match="released"):
        await store.apply(Change(task_id=task.id, version=version, state=State.QUEUED))


async def test_a_retry_waits_for_its_time(store: SqlStore) -> None:
    task = await placed(store)
    version = await advanced(store, task, State.INITIALIZING, released=True)
    later = time.time() + 1000
    await store.apply(Change(task_id=task.id, version=version, state=State.QUEUED, retry_at=later))
    assert await store.next_retry(later - 1) == later
    assert await store.next_retry(later) is None  # it is due, and found in the queue
    assert await store.watched("server-1") == []
    assert await store.place("server-1", SCOPE, everything, 10, later - 1) == []
    [again] = await store.place("server-1", SCOPE, everything, 10, later + 1)
    assert [attempt.number for attempt in again.attempts] == [1, 2]
    assert [attempt.released for attempt in again.attempts] == [True, False]
    assert await store.next_retry(0.0) is None


async def test_two_states_in_one_write(store: SqlStore) -> None:
    task = await placed(store)
    version = await advanced(store, task, State.INITIALIZING)
    with pytest.raises(ValueError, match="illegal"):
        await store.apply(
            Change(task_id=task.id, version=version, via=State.COMPLETE, state=State.RUNNING)
        )
    with pytest.raises(ValueError, match="nowhere"):
        await store.apply(Change(task_id=task.id, version=version, via=State.RUNNING))
    change = Change(task_id=task.id, version=version, via=State.RUNNING, state=State.COMPLETE)
    assert await store.apply(change) == version + 1
    events = await store.events_after(0, 100, ALL, [task.id])
    states = [State.QUEUED, State.INITIALIZING, State.RUNNING, State.COMPLETE]
    assert [event.state for event in events] == states
    counts = await store.count_by_state()
    assert {state for state, number in counts.items() if number} == {State.COMPLETE}


async def test_reject_ends_with_the_reason(store: SqlStore) -> None:
    [task] = await created(store, notes=["x was ignored"])
    with pytest.raises(StaleVersion):
        await store.reject(task.id, 2, "stale", time.time())
    await store.reject(task.id, 1, "it needs 9 cores, the machine has 2", 1_700_000_000.5)
    found = await store.get(task.id, ALL)
    assert found is not None
    assert found.state is State.SYSTEM_ERROR
    [attempt] = found.attempts
    log = msgspec.json.decode(attempt.log, type=TaskLog)
    assert log.system_logs == [
        "2023-11-14T22:13:20.500000Z WARNING x was ignored",
        "2023-11-14T22:13:20.500000Z ERROR it needs 9 cores, the machine has 2",
    ]
    assert (attempt.handle, attempt.released, attempt.discarded) == (None, True, True)
    running = await placed(store)
    with pytest.raises(ValueError, match="attempt"):
        await store.reject(running.id, running.version, "too late", time.time())


async def test_a_waiting_task_is_canceled_at_once(store: SqlStore) -> None:
    [task] = await created(store)
    assert await store.request_cancel(task.id, ALL) is True
    assert await store.request_cancel(task.id, ALL) is False
    events = await store.events_after(0, 10, ALL, [task.id])
    assert [event.state for event in events] == [State.QUEUED, State.CANCELING, State.CANCELED]


async def test_a_placed_task_is_canceled_by_whoever_looks_after_it(store: SqlStore) -> None:
    task = await placed(store)
    assert await store.request_cancel(task.id, ALL) is True
    assert await store.request_cancel(task.id, ALL) is False
    [watched] = await store.watched("server-1")
    assert (watched.state, watched.version) == (State.CANCELING, task.version + 1)
    with pytest.raises(StaleVersion):
        await advanced(store, task, State.INITIALIZING)
    change = Change(task_id=task.id, version=watched.version, state=State.CANCELED, released=True)
    await store.apply(change)
    assert await store.watched("server-1") == []


async def test_a_task_that_waits_for_a_retry_is_canceled_at_once(store: SqlStore) -> None:
    task = await placed(store)
    version = await advanced(store, task, State.INITIALIZING, released=True)
    again = time.time() + 1000
    await store.apply(Change(task_id=task.id, version=version, state=State.QUEUED, retry_at=again))
    assert await store.request_cancel(task.id, ALL) is True
    assert await store.next_retry(0.0) is None
    [event] = (await store.events_after(0, 100, ALL, [task.id]))[-1:]
    assert event.state is State.CANCELED


async def test_a_finished_task_stays_what_it_is(store: SqlStore) -> None:
    task = await finished(store)
    assert await store.request_cancel(task.id, ALL) is False
    assert await store.get(task.id, ALL) == task


async def test_the_queue_is_oldest_first_and_knows_what_is_reserved(store: SqlStore) -> None:
    tasks = await created(store, 5, reservation=Reservation(1.5, 10, 20))
    seen: list[tuple[list[str], Reservation]] = []

    def two(queue: Sequence[Queued], reserved: Reservation) -> Mapping[str, str]:
        seen.append(([task.id for task in queue], reserved))
        return {task.id: f"{task.id}.1" for task in queue[:2]}

    first = await store.place("server-1", SCOPE, two, 4, 1000.0)
    assert [task.id for task in first] == [task.id for task in tasks[:2]]
    await store.place("server-1", SCOPE, two, 4, 1000.0)
    await store.place("server-2", "node-2", two, 4, 1000.0)
    ids = [task.id for task in tasks]
    assert seen == [
        (ids[:4], Reservation(0.0, 0, 0)),
        (ids[2:], Reservation(3.0, 20, 40)),
        (ids[4:], Reservation(0.0, 0, 0)),
    ]
    [attempt] = first[0].attempts
    assert (attempt.number, attempt.key, attempt.started) == (1, f"{ids[0]}.1", 1000.0)
    assert msgspec.json.decode(attempt.log, type=TaskLog) == TaskLog()
    assert first[0] == await store.get(ids[0], ALL)


async def test_what_is_released_is_free_again(store: SqlStore) -> None:
    task = await placed(store)
    seen: list[Reservation] = []

    def look(_: Sequence[Queued], reserved: Reservation) -> Mapping[str, str]:
        seen.append(reserved)
        return {}

    await created(store)
    await store.place("server-1", SCOPE, look, 10, time.time())
    await store.apply(Change(task_id=task.id, version=task.version, released=True))
    await store.place("server-1", SCOPE, look, 10, time.time())
    assert seen == [Reservation(1.0, 10**9, 10**9), Reservation(0.0, 0, 0)]


async def test_servers_that_place_at_once_never_place_twice_nor_too_much(place: Place) -> None:
    stores = [await place.open(), await place.open()]
    await created(stores[0], 40)

    def up_to_three(queue: Sequence[Queued], reserved: Reservation) -> Mapping[str, str]:
        free = 3 - int(reserved.cpu_cores)
        return {task.id: f"{task.id}.{task.version}" for task in queue[:free]}

    async def work(store: SqlStore, server: str) -> list[str]:
        done = []
        while (await store.count_by_state())[State.QUEUED]:
            for task in await store.place(server, SCOPE, up_to_three, 50, time.time()):
                states = (State.INITIALIZING, State.RUNNING)
                version = await advanced(store, task, *states)
                counts = await store.count_by_state()
                assert counts[State.INITIALIZING] + counts[State.RUNNING] <= 3
                change = Change(
                    task_id=task.id, version=version, state=State.COMPLETE, released=True
                )
                await store.apply(change)
                done.append(task.id)
        return done

    async with asyncio.timeout(60):
        done = await asyncio.gather(work(stores[0], "server-1"), work(stores[1], "server-2"))
    assert sorted(done[0] + done[1]) == sorted(set(done[0] + done[1]))
    assert (await stores[0].count_by_state())[State.COMPLETE] == 40


async def test_a_choice_that_fails_fails_alone(store: SqlStore) -> None:
    [task] = await created(store)

    def broken(_: Sequence[Queued], __: Reservation) -> Mapping[str, str]:
        raise KeyError("broken")

    results = await asyncio.gather(
        store.create(new_task()),
        store.place("server-1", SCOPE, broken, 10, time.time()),
        store.place("server-1", SCOPE, lambda queue, _: {"other": "key"}, 10, time.time()),
        store.request_cancel(task.id, ALL),
        store.create(new_task()),
        return_exceptions=True,
    )
    assert [type(r) for r in results] == [
        type(None),
        KeyError,
        ValueError,
        bool,
        type(None),
    ]
    assert (await store.count_by_state())[State.QUEUED] == 2


async def test_watched_is_what_a_server_has_to_do(store: SqlStore) -> None:
    await created(store, 3)
    mine = await placed(store)
    other = await placed(store, "server-2")
    done = await placed(store)
    states = (State.INITIALIZING, State.RUNNING, State.COMPLETE)
    version = await advanced(store, done, *states, handle={"x": 1})
    watched = await store.watched("server-1")
    assert [(task.id, task.state) for task in watched] == [
        (mine.id, State.QUEUED),
        (done.id, State.COMPLETE),
    ]
    assert watched[0].attempt == mine.attempts[0]
    assert await store.watched("server-1", [done.id, other.id, "none"]) == watched[1:]
    assert await store.watched("server-1", []) == []
    await store.apply(Change(task_id=done.id, version=version, released=True))
    assert [task.id for task in await store.watched("server-1")] == [mine.id]
    assert [task.id for task in await store.watched("server-2")] == [other.id]


async def test_the_oldest_queued(store: SqlStore) -> None:
    assert await store.oldest_queued() is None
    first, _second = await created(store, 2)
    assert await store.oldest_queued() == first.created
    await store.place("server-1", SCOPE, only(first.id), 10, time.time())
    assert await store.oldest_queued() == first.created


async def test_nobody_is_robbed_while_the_lease_holds(place: Place) -> None:
    one, two = await place.open(), await place.open()
    task = await placed(one)
    await one.heartbeat("server-1", SCOPE, 30)
    await two.heartbeat("server-2", SCOPE, 30)
    assert await two.take_over("server-2", SCOPE) == 0
    assert [t.version for t in await one.watched("server-1")] == [task.version]


async def test_a_silent_server_is_succeeded_and_loses(place: Place) -> None:
    one, two = await place.open(), await place.open()
    task, foreign = await placed(one), await placed(one, scope="node-2")
    done = await finished(one)
    unreleased = await placed(one)
    await advanced(one, unreleased, State.INITIALIZING, State.RUNNING, State.COMPLETE)
    await one.heartbeat("server-1", SCOPE, 0)
    assert await two.take_over("server-2", SCOPE) == 2
    assert {t.id for t in await two.watched("server-2")} == {task.id, unreleased.id}
    assert [t.id for t in await one.watched("server-1")] == [foreign.id]
    with pytest.raises(StaleVersion):
        await advanced(one, task, State.INITIALIZING)
    assert await two.get(done.id, ALL) == done
    assert await two.take_over("server-2", SCOPE) == 0


async def test_a_restarted_server_keeps_its_own(place: Place) -> None:
    task = await placed(await place.open())
    again = await place.open()
    await again.heartbeat("server-1", SCOPE, 30)
    assert await again.take_over("server-1", SCOPE) == 0
    assert [t.version for t in await again.watched("server-1")] == [task.version]


async def test_signing_off_frees_at_once(store: SqlStore) -> None:
    task = await placed(store)
    await store.heartbeat("server-1", SCOPE, 1000)
    await store.sign_off("server-1")
    assert await store.take_over("server-2", SCOPE) == 1
    assert [t.id for t in await store.watched("server-2")] == [task.id]


async def test_only_the_version_whose_schema_it_is_writes(place: Place, store: SqlStore) -> None:
    """As of an older server while a newer one takes over, which has changed the schema."""
    (kept,) = await created(store)
    place.execute("UPDATE alembic_version SET version_num = '9999'")
    for write in (store.ping(), store.create(new_task()), store.create(new_task())):
        with pytest.raises(StoreUnavailable, match=r"another version .* \(schema 9999; this"):
            await write
    assert await store.get(kept.id, ALL) is not None, "it still reads"
    place.execute(f"UPDATE alembic_version SET version_num = '{HEAD}'")
    await created(store)
    assert (await store.count_by_state())[State.QUEUED] == 2
