"""What the store's tests are made of: tasks, a place for stores, steps of a task's life."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config

from tesazure.callers import Visibility
from tesazure.model import State
from tesazure.store.base import Choose
from tesazure.store.engine import Database
from tesazure.store.records import (
    Change,
    ListQuery,
    NewTask,
    Queued,
    Reservation,
    TaskBrief,
    TaskRecord,
)
from tesazure.store.schema import MIGRATIONS
from tesazure.store.sql_store import SqlStore, open_store

ALL = Visibility()
SCOPE = "node-1"
DOCUMENT = b'{"executors":[{"image":"debian:12","command":["true"]}]}'
_numbers = itertools.count(1)


def new_task(**given: Any) -> NewTask:
    """A task with an id of its own."""
    number = next(_numbers)
    values: dict[str, Any] = {
        "id": f"{time.time_ns():x}-{number}",
        "document": DOCUMENT,
        "name": f"task-{number}",
        "owner": None,
        "tags": {},
        "reservation": Reservation(1.0, 10**9, 10**9),
        "max_runtime_s": 0.0,
        "notes": [],
        "created": time.time(),
    }
    return NewTask(**values | given)


def make_older(url: str, revision: str) -> None:
    """Make the database at a postgresql:// URL or in a SQLite file as an older version did."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    database = Database(url)
    link = database.open_writer()
    database.begin(link, wait=True)
    config.attributes["connection"] = link.core
    command.upgrade(config, revision)
    link.driver.commit()
    link.close()


class Place:
    """A database; every store opened on it is closed at the end."""

    def __init__(self, url: str, file: Path) -> None:
        self.url = url
        self.file = file
        self._opened: list[SqlStore] = []

    async def open(self) -> SqlStore:
        """Another store on the same database."""
        store = await open_store(self.url, self.file)
        self._opened.append(store)
        return store

    def execute(self, statement: str) -> None:
        """Have one statement done, past all stores."""
        database = Database(self.url or str(self.file))
        link = database.open_writer()
        database.begin(link, wait=True)
        link.driver.execute(statement)
        link.driver.commit()
        link.close()

    async def close(self) -> None:
        """Close all that were opened."""
        for store in self._opened:
            await store.close()


async def created(store: SqlStore, count: int = 1, **given: Any) -> list[NewTask]:
    """Tasks in the store, in the order of their creation."""
    tasks = [new_task(**given) for _ in range(count)]
    for task in tasks:
        await store.create(task)
    return tasks


def everything(queue: Sequence[Queued], _: Reservation) -> Mapping[str, str]:
    """Choose all that waits."""
    return {task.id: f"{task.id}.{task.version}" for task in queue}


def only(*task_ids: str) -> Choose:
    """Choose these."""
    return lambda queue, reserved: {
        task: key for task, key in everything(queue, reserved).items() if task in task_ids
    }


async def placed(store: SqlStore, server: str = "server-1", scope: str = SCOPE) -> TaskRecord:
    """A new task, placed by a server."""
    [task] = await created(store)
    [record] = await store.place(server, scope, only(task.id), 1000, time.time())
    return record


async def advanced(store: SqlStore, task: TaskRecord, *states: State, **more: Any) -> int:
    """Take a task through states, the last one with further changes; its version then."""
    version = task.version
    for state in states[:-1]:
        version = await store.apply(Change(task_id=task.id, version=version, state=state))
    change = Change(task_id=task.id, version=version, state=states[-1], **more)
    return await store.apply(change)


async def finished(store: SqlStore, server: str = "server-1", scope: str = SCOPE) -> TaskRecord:
    """A task that is COMPLETE and released."""
    record = await placed(store, server, scope)
    states = (State.INITIALIZING, State.RUNNING, State.COMPLETE)
    await advanced(store, record, *states, released=True)
    found = await store.get(record.id, ALL)
    assert found is not None
    return found


async def listed(store: SqlStore, query: ListQuery) -> list[TaskBrief]:
    """All pages of a list, one after the other."""
    items: list[TaskBrief] = []
    while True:
        page = await store.list_briefs(query)
        items += page.items
        if page.next_before is None:
            return items
        query = ListQuery(
            limit=query.limit,
            before=page.next_before,
            states=query.states,
            name_prefix=query.name_prefix,
            tags=query.tags,
            visibility=query.visibility,
        )
