"""Workflows: counted as their tasks change, on each database, and held against the tasks."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import msgspec
import pytest

from tesazure.callers import Visibility
from tesazure.model import State, TaskLog
from tesazure.store.engine import Database
from tesazure.store.records import Change, ListQuery, NewTask, Workflow, WorkflowName
from tesazure.store.sql_store import SqlStore
from tests.contract.store_tasks import (
    ALL,
    SCOPE,
    Place,
    advanced,
    created,
    everything,
    listed,
    make_older,
    new_task,
    only,
)

ID = "ms-submitter-workflow-id"
ANN = Visibility(everyone=False, owner="ann")
LAB = Visibility(everyone=False, tenant="lab")


def member(workflow: str, **given: Any) -> NewTask:
    """A new task of a workflow."""
    named = WorkflowName(workflow, "wf", "cromwell")
    return new_task(workflow=named, **{"tags": {ID: workflow}, **given})


async def every(store: SqlStore, visibility: Visibility = ALL, limit: int = 2) -> list[Workflow]:
    """All pages of the list."""
    found: list[Workflow] = []
    before = None
    while True:
        page = await store.list_workflows(limit, before, visibility)
        found += page.items
        before = page.next_before
        if before is None:
            return found


async def counted(store: SqlStore, workflow: str, visibility: Visibility) -> dict[State, int]:
    """What the list of tasks says of it."""
    query = ListQuery(limit=50, tags=((ID, workflow),), visibility=visibility)
    return dict(Counter(task.state for task in await listed(store, query)))


async def test_a_workflow_follows_its_tasks(store: SqlStore) -> None:
    first = member("w", created=1000.0, owner="ann", tenant="lab")
    await store.create(first)
    await created(store, 2)
    expected = Workflow("w", "wf", "cromwell", {State.QUEUED: 1}, 1000.0, 1000.0, None)
    assert await store.get_workflow("w", ALL) == expected
    second = member("w", created=2000.0, owner="ann", tenant="lab")
    await store.create(second)
    await store.request_cancel(second.id, ALL)
    [record] = await store.place("server-1", SCOPE, only(first.id), 10, time.time())
    await advanced(store, record, State.INITIALIZING, State.RUNNING)
    found = await store.get_workflow("w", ALL)
    assert found is not None
    assert found.states == {State.RUNNING: 1, State.CANCELED: 1}
    assert found.first_activity == 1000.0
    assert time.time() - found.last_activity < 60
    assert [found] == await every(store)


async def test_counts_are_those_of_the_tasks(store: SqlStore) -> None:
    """A few hundred random steps, each caller's view compared after them."""
    choice = random.Random(6)
    owners = [(None, None), ("ann", "lab"), ("bob", "lab"), ("eve", "x")]
    ids = ["w1", "w2", "a/b:c ü", "w4"]
    for _ in range(150):
        owner, tenant = choice.choice(owners)
        own = {"owner": owner, "tenant": tenant}
        task = member(choice.choice(ids), **own) if choice.random() < 0.8 else new_task(**own)
        await store.create(task)
        if choice.random() < 0.2:
            await store.request_cancel(task.id, ALL)
    for record in await store.place("server-1", SCOPE, everything, 80, time.time()):
        states = [State.INITIALIZING, State.RUNNING, State.COMPLETE][: choice.randint(1, 3)]
        await advanced(store, record, *states, released=True)
    assert await store.forget(time.time() + 60, 20) == 20
    for visibility in (ALL, ANN, LAB, Visibility(everyone=False, owner="bob", tenant="lab")):
        found = await every(store, visibility)
        assert [w.id for w in found] == list(dict.fromkeys(w.id for w in found))
        assert {w.id for w in found} == set(ids)
        for workflow in found:
            assert workflow.states == await counted(store, workflow.id, visibility)
            assert workflow == await store.get_workflow(workflow.id, visibility)
    for visibility in (Visibility(everyone=False), Visibility(everyone=False, owner="nobody")):
        assert await every(store, visibility) == []
        assert await store.get_workflow("w1", visibility) is None


async def test_nobody_adds_to_anothers_workflow(store: SqlStore) -> None:
    for owner, tenant in (("ann", "lab"), ("bob", "lab"), ("eve", "x"), (None, None)):
        await store.create(member("shared", owner=owner, tenant=tenant))
    await store.create(member("eves", owner="eve", tenant="x"))
    for visibility, seen, tasks in ((ANN, 1, 1), (LAB, 1, 2), (ALL, 2, 4)):
        found = await every(store, visibility, limit=1)
        assert len(found) == seen
        assert {w.id: w.states for w in found}["shared"] == {State.QUEUED: tasks}
    assert await store.get_workflow("eves", ANN) is None


async def test_the_last_begun_come_first_on_every_page(store: SqlStore) -> None:
    ids = [f"w{number}" for number in range(7)]
    for number in (*range(7), 3, 0):
        await store.create(member(ids[number]))
    for limit in (1, 2, 7, 100):
        assert [w.id for w in await every(store, limit=limit)] == ids[::-1]


@pytest.mark.parametrize("odd", ["", "x" * 513, "ü" * 257])
async def test_what_is_no_id_makes_no_workflow(store: SqlStore, odd: str) -> None:
    await store.create(member(odd, tags={}))
    assert await every(store) == []
    assert await store.get_workflow("\0", ALL) is None


async def test_a_workflow_costs_what_its_attempts_cost(store: SqlStore) -> None:
    def log(cost: str) -> bytes:
        return msgspec.json.encode(TaskLog(metadata={"estimated_cost_usd": cost}))

    async def cost() -> str | None:
        found = await store.get_workflow("w", ALL)
        assert found is not None
        return found.cost_usd

    tasks = [member("w", owner=owner) for owner in ("ann", "bob", None)]
    for task in tasks:
        await store.create(task)
    assert await cost() is None
    records = await store.place("server-1", SCOPE, everything, 10, time.time())
    versions = {}
    for record, said in zip(records, ("0.1", "0.2", "1.000000001"), strict=True):
        versions[record.id] = await advanced(store, record, State.INITIALIZING, log=log(said))
    assert await cost() == "1.300000001"
    # The estimate of an attempt grows; saying it again, or something without, changes nothing.
    version = versions[tasks[0].id]
    for said, total in (("0.5", "1.700000001"), ("0.5", "1.700000001"), ("?", "1.700000001")):
        version = await store.apply(Change(task_id=tasks[0].id, version=version, log=log(said)))
        assert await cost() == total
    # Another attempt costs as well.
    again = Change(task_id=tasks[0].id, version=version, state=State.QUEUED, released=True)
    await store.apply(again)
    [record] = await store.place("server-1", SCOPE, everything, 10, time.time())
    await advanced(store, record, State.INITIALIZING, log=log("2"))
    assert await cost() == "3.700000001"
    found = await store.get_workflow("w", Visibility(everyone=False, owner="ann"))
    assert found is not None
    assert found.cost_usd == "2.5"


async def test_a_workflow_goes_with_its_last_task(store: SqlStore) -> None:
    tasks = [member("w"), member("w"), member("other")]
    for task in tasks:
        await store.create(task)
    for task in tasks[:2]:
        await store.request_cancel(task.id, ALL)
    assert await store.forget(time.time() + 60, 1) == 1
    found = await store.get_workflow("w", ALL)
    assert found is not None
    assert found.states == {State.CANCELED: 1}
    assert await store.forget(time.time() + 60, 9) == 1
    assert await store.get_workflow("w", ALL) is None
    await store.create(member("w"))
    assert [w.id for w in await every(store)] == ["w", "other"]


async def test_a_refused_write_counts_nothing(store: SqlStore) -> None:
    task = member("w")
    await store.create(task)
    with pytest.raises(ValueError, match="refuses"):
        await store.create(msgspec.structs.replace(task, document=b"again"))
    with pytest.raises(ValueError, match="RUNNING"):
        await store.apply(Change(task_id=task.id, version=1, state=State.RUNNING))
    found = await store.get_workflow("w", ALL)
    assert found is not None
    assert found.states == {State.QUEUED: 1}


async def test_tasks_of_an_older_database_are_counted(place: Place) -> None:
    """Tasks that clients tagged themselves, before workflows were counted."""
    if not place.url:
        place.file.touch(0o600)
    make_older(place.url or str(place.file), "0005")
    database = Database(place.url or str(place.file))
    link = database.open_writer()
    database.begin(link, wait=True)
    old = [
        (1, "w", None, "QUEUED", 10.0, None),
        (2, "w", "ann", "COMPLETE", 20.0, 25.0),
        (3, "w", "ann", "RUNNING", 30.0, None),
        (4, "sha256:" + "0" * 64, None, "QUEUED", 40.0, None),
        (5, "", None, "QUEUED", 50.0, None),
    ]
    mark = "?" if database.is_sqlite else "%s"

    def insert(table: str, **values: object) -> None:
        names = ", ".join(values)
        places = ", ".join([mark] * len(values))
        link.driver.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", [*values.values()])

    for seq, workflow, owner, state, begun, ended in old:
        insert(
            "tasks",
            seq=seq,
            id=f"{seq:028x}",
            state=state,
            version=1,
            owner=owner,
            name="",
            created=begun,
            ended=ended,
            attempt=0,
            max_runtime_s=0.0,
            cpu_cores=1.0,
            ram_bytes=1,
            disk_bytes=1,
        )
        insert("docs", seq=seq, document=b"{}")
        insert("events", number=seq, seq=seq, task_id=f"{seq:028x}", state=state, time=begun)
        insert("tags", key=ID, value=workflow, seq=seq)
        name = {1: "sha256:" + "0" * 64, 2: "ann's"}.get(seq, "later")
        insert("tags", key="ms-submitter-workflow-name", value=name, seq=seq)
    link.driver.commit()
    link.close()
    store = await place.open()
    [found] = await every(store)
    states = {State.QUEUED: 1, State.COMPLETE: 1, State.RUNNING: 1}
    assert found == Workflow("w", "", "", states, 10.0, 30.0, None)
    await store.request_cancel(f"{3:028x}", ANN)
    anns = await store.get_workflow("w", ANN)
    assert anns is not None
    assert anns.states == {State.COMPLETE: 1, State.CANCELING: 1}
    assert anns.name == "ann's"
