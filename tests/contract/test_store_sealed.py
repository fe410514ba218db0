"""What a Store promises about the sealed secrets of tasks, on each database."""

from __future__ import annotations

import time

import pytest

from tesazure.model import State
from tesazure.store.engine import Database
from tesazure.store.records import Change
from tesazure.store.schema import HEAD
from tesazure.store.sql_store import SqlStore
from tests.contract.store_tasks import (
    ALL,
    SCOPE,
    Place,
    advanced,
    created,
    make_older,
    new_task,
    only,
)

SEALED = b"\x00sealed\xff"


def rows(place: Place) -> int:
    """How many tasks have sealed secrets."""
    database = Database(place.url or str(place.file))
    with database.reader() as link:
        found = link.driver.execute("SELECT count(*) FROM sealed").fetchone()[0]
    database.forget_connections()
    return int(found)


async def test_secrets_are_there_until_the_task_has_ended(place: Place, store: SqlStore) -> None:
    one, two = await created(store, 2, sealed=SEALED)
    [none] = await created(store)
    assert await store.sealed(one.id) == await store.sealed(two.id) == SEALED
    assert await store.sealed(none.id) is None
    assert await store.sealed("no-such-task") is None
    assert rows(place) == 2
    [record] = await store.place("s", SCOPE, only(one.id), 1000, time.time())
    version = await advanced(store, record, State.INITIALIZING, State.RUNNING)
    assert await store.sealed(one.id) == SEALED
    change = Change(task_id=one.id, version=version, state=State.COMPLETE, released=True)
    await store.apply(change)
    assert await store.sealed(one.id) is None
    assert await store.sealed(two.id) == SEALED
    assert rows(place) == 1


async def test_a_task_that_is_queued_again_keeps_its_secrets(store: SqlStore) -> None:
    [task] = await created(store, sealed=SEALED)
    [record] = await store.place("s", SCOPE, only(task.id), 1000, time.time())
    await advanced(store, record, State.INITIALIZING, State.QUEUED, released=True)
    assert await store.sealed(task.id) == SEALED


async def test_every_end_deletes_them(place: Place, store: SqlStore) -> None:
    canceled, rejected, placed = await created(store, 3, sealed=SEALED)
    await store.request_cancel(canceled.id, ALL)
    await store.reject(rejected.id, 1, "too large", time.time())
    [record] = await store.place("s", SCOPE, only(placed.id), 1000, time.time())
    await store.request_cancel(placed.id, ALL)
    assert await store.sealed(placed.id) == SEALED
    change = Change(placed.id, record.version + 1, state=State.CANCELED, released=True)
    await store.apply(change)
    assert rows(place) == 0


async def test_a_task_that_is_refused_leaves_no_secrets(place: Place, store: SqlStore) -> None:
    [task] = await created(store, sealed=SEALED)
    with pytest.raises(ValueError, match="refuses"):
        await store.create(new_task(id=task.id, sealed=b"other"))
    assert await store.sealed(task.id) == SEALED
    assert rows(place) == 1


async def test_servers_agree_on_a_key(place: Place, store: SqlStore) -> None:
    assert await store.sealing_key(["old"]) == "old"
    other = await place.open()
    assert await other.sealing_key(["another"]) == "old"
    assert await other.sealing_key(["new", "old"]) == "new"
    assert await store.sealing_key(["new", "old"]) == "new"
    assert await store.sealing_key(["old"]) == "new"


async def test_a_database_of_the_version_before_is_taken_along(place: Place) -> None:
    make_older(place.url or str(place.file), "0001")
    old = Database(place.url or str(place.file))
    with old.reader() as link:
        link.driver.execute(
            "INSERT INTO tasks (seq, id, state, version, name, created, attempt, max_runtime_s,"
            " cpu_cores, ram_bytes, disk_bytes)"
            " VALUES (1, 'old', 'QUEUED', 1, '', 0, 0, 0, 1, 1, 1)"
        )
        link.driver.execute("INSERT INTO docs (seq, document) VALUES (1, '{}')")
    old.forget_connections()
    store = await place.open()
    found = await store.get("old", ALL)
    assert found is not None
    assert found.state is State.QUEUED
    assert await store.sealed("old") is None
    [record] = await store.place("s", SCOPE, only("old"), 1000, time.time())
    await advanced(store, record, State.INITIALIZING, State.RUNNING, State.COMPLETE, released=True)
    with old.reader() as link:
        revision = link.driver.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    old.forget_connections()
    assert revision == HEAD
