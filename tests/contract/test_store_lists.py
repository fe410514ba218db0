"""Lists, on each database: filters against a plain model of them, pages while tasks arrive."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tesazure.callers import Visibility
from tesazure.errors import InvalidInput
from tesazure.model import State
from tesazure.store import lists
from tesazure.store.engine import Database, Link
from tesazure.store.lists import Effort
from tesazure.store.records import Change, ListQuery, NewTask, Page, TaskBrief
from tesazure.store.sql_store import SqlStore, open_store
from tests.contract.conftest import DATABASES
from tests.contract.store_tasks import (
    ALL,
    created,
    everything,
    listed,
    new_task,
)
from tests.services.postgresql import PostgreSQL

LONG = "n" * 127
NAMES = ["", "a", "ab", "aB", "a%", "a_", "a\\", "á", "퟿x", "x", "\U0010ffff"]
NAMES += ["\U0010ffffz", LONG, LONG + "ab", LONG + "ac", LONG + "á", "a" * 3000]
KEYS = ["k", "K", "key", "", "é", "t" * 4000]
VALUES = [None, "", "v", "V", "%", "w" * 4000]
OWNERS = [None, "ann", "bob", ""]
TENANTS = [None, None, "lab", "other"]
STATES = [State.QUEUED, State.CANCELED, State.INITIALIZING, State.SYSTEM_ERROR]

prefixes = st.sampled_from([name[:n] for name in NAMES for n in (1, 2, 127, 128, 129, 5000)])
queries: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    states=st.lists(st.sampled_from([*STATES, State.RUNNING]), max_size=3).map(tuple),
    name_prefix=st.one_of(st.just(""), prefixes, st.sampled_from(["\0", "\ud800", "zz"])),
    tags=st.lists(
        st.tuples(
            st.sampled_from([*KEYS, "no", "\0"]), st.sampled_from(["", "v", "V", "%", "\ud800"])
        ),
        max_size=3,
    ).map(tuple),
    visibility=st.one_of(
        st.just(ALL),
        st.builds(
            Visibility,
            everyone=st.just(False),
            owner=st.sampled_from(OWNERS),
            tenant=st.sampled_from(TENANTS),
        ),
    ),
)
efforts = st.sampled_from(
    [
        Effort(),
        Effort(seconds=0, probed=1, step=1, few_names=1),
        Effort(seconds=0, probed=3, step=7, few_names=20),
        Effort(probed=2, step=5, few_names=2),
        Effort(probed=1, step=3, few_names=1000),
    ]
)

Known = dict[str, tuple[NewTask, State]]


@pytest.fixture(scope="module", params=DATABASES)
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Link, Known]]:
    """A reading connection to a store with tasks of all kinds, and what they are."""
    file = tmp_path_factory.mktemp("lists") / "tesazure.db"
    server: PostgreSQL | None = None
    url = ""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgresql")
        assert server is not None
        url = server.create_database()
    known = asyncio.run(_fill(url, file))
    link = Database(url or str(file)).open_reader()
    yield link, known
    link.close()
    if server is not None:
        server.drop_database(url)


async def _fill(url: str, file: Path) -> Known:
    store = await open_store(url, file)
    chance = random.Random(7)
    known: Known = {}
    for _ in range(150):
        chosen = chance.sample(KEYS, chance.randrange(4))
        task = new_task(
            name=chance.choice(NAMES),
            owner=chance.choice(OWNERS),
            tenant=chance.choice(TENANTS),
            tags={key: chance.choice(VALUES) for key in chosen},
        )
        await store.create(task)
        known[task.id] = (task, await _state(store, task, chance.choice(STATES)))
    await store.close()
    return known


async def _state(store: SqlStore, task: NewTask, state: State) -> State:
    if state is State.CANCELED:
        await store.request_cancel(task.id, ALL)
    elif state is State.SYSTEM_ERROR:
        await store.reject(task.id, 1, "too large", time.time())
    elif state is State.INITIALIZING:
        await store.place("s", "n", lambda _, __: {task.id: task.id}, 200, time.time())
        await store.apply(Change(task_id=task.id, version=2, state=state))
    return state


def _matches(query: dict[str, Any], task: NewTask, state: State) -> bool:
    visibility = query["visibility"]
    return (
        visibility.sees(task.owner, task.tenant)
        and (not query["states"] or state in query["states"])
        and task.name.startswith(query["name_prefix"])
        and all(
            key in task.tags and (not value or task.tags[key] == value)
            for key, value in query["tags"]
        )
    )


@given(query=queries, limit=st.sampled_from([1, 2, 7, 40, 200]), effort=efforts)
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_list_is_what_a_plain_filter_finds(
    filled: tuple[Link, Known], query: dict[str, Any], limit: int, effort: Effort
) -> None:
    link, known = filled
    pages: list[Page[TaskBrief]] = []
    before = None
    while not pages or before is not None:
        page = lists.brief_page(link, ListQuery(limit=limit, before=before, **query), effort)
        assert len(page.items) <= limit
        assert page.next_before is None or before is None or page.next_before < before
        pages.append(page)
        before = page.next_before
    found = [brief for page in pages for brief in page.items]
    assert [brief.seq for brief in found] == sorted({brief.seq for brief in found}, reverse=True)
    assert [(brief.id, brief.state) for brief in found] == [
        (task.id, state) for task, state in reversed(known.values()) if _matches(query, task, state)
    ]


async def test_pages_are_stable_while_tasks_arrive(store: SqlStore) -> None:
    before = await created(store, 40, name="old")
    arriving = asyncio.ensure_future(created(store, 40, name="new"))
    found: list[str] = []
    position = None
    for _ in range(100):
        page = await store.list_briefs(ListQuery(limit=3, before=position))
        found += [brief.id for brief in page.items]
        position = page.next_before
        if position is None:
            break
    await arriving
    assert len(found) == len(set(found))
    assert [i for i in found if i in {t.id for t in before}] == [t.id for t in reversed(before)]


async def test_a_list_of_records_is_that_of_briefs_whole(store: SqlStore) -> None:
    await created(store, 5, tags={"a": "b"}, notes=["careful"])
    await store.place("server-1", "node-1", everything, 2, time.time())
    page = await store.list_records(ListQuery(limit=4, tags=(("a", "b"),)))
    briefs = await store.list_briefs(ListQuery(limit=4, tags=(("a", "b"),)))
    assert [record.seq for record in page.items] == [brief.seq for brief in briefs.items]
    assert page.next_before == briefs.next_before
    assert page.items == [await store.get(record.id, ALL) for record in page.items]


async def test_a_page_begins_anywhere(store: SqlStore) -> None:
    [task] = await created(store)
    for before, found in ((10**30, [task.id]), (2, [task.id]), (1, []), (0, []), (-(10**9), [])):
        page = await store.list_briefs(ListQuery(limit=5, before=before))
        assert [brief.id for brief in page.items] == found


async def test_large_documents_make_short_pages(store: SqlStore) -> None:
    megabytes = lists.PAGE_BYTES // 2**20
    tasks = await created(store, 3, document=b"x" * (megabytes * 2**20 // 2 + 1))
    found: list[str] = []
    position, pages = None, 0
    while pages == 0 or position is not None:
        page = await store.list_records(ListQuery(limit=100, before=position))
        found += [record.id for record in page.items]
        position = page.next_before
        pages += 1
    assert pages == 3
    assert found == [task.id for task in reversed(tasks)]


async def test_too_many_tag_filters_are_refused(store: SqlStore) -> None:
    tags = tuple((f"k{i}", "") for i in range(lists.MOST_TAGS + 1))
    assert (await store.list_briefs(ListQuery(limit=5, tags=tags[1:]))).items == []
    assert (await store.list_briefs(ListQuery(limit=5, tags=tags[1:2] * 500))).items == []
    with pytest.raises(InvalidInput, match="tag_key"):
        await store.list_briefs(ListQuery(limit=5, tags=tags))


async def test_many_lists_at_once_starve_nobody(store: SqlStore) -> None:
    await asyncio.gather(*(store.create(new_task(tags={"a": "b"})) for _ in range(500)))
    [task] = await created(store)
    running = True

    async def lister() -> None:
        while running:
            await listed(store, ListQuery(limit=50, tags=(("a", "b"),), name_prefix="task"))

    listers = [asyncio.ensure_future(lister()) for _ in range(64)]
    async with asyncio.timeout(60):
        for _ in itertools.repeat(None, 20):
            assert await store.get(task.id, ALL) is not None
            await created(store)
    running = False
    await asyncio.gather(*listers)
