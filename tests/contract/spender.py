"""Attempts that cost something, as a backend with prices would report them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from tesazure.model import Executor, State, Task, TaskLog
from tesazure.store.records import Change, NewTask, TaskRecord
from tesazure.store.sql_store import SqlStore
from tests.contract.store_tasks import SCOPE, new_task, only


def tagged(tags: Mapping[str, str | None], **given: Any) -> NewTask:
    """A task with tags, in its document as well."""
    task = Task(executors=[Executor(image="a", command=["true"])], tags=dict(tags))
    return new_task(document=msgspec.json.encode(task), tags=dict(tags), **given)


async def begun(store: SqlStore, task: NewTask, scope: str = SCOPE) -> TaskRecord:
    """The task, made and placed."""
    await store.create(task)
    [record] = await store.place("spender", scope, only(task.id), 10_000, time.time())
    return record


async def cost(store: SqlStore, task_id: str, version: int, dollars: str, **more: Any) -> int:
    """Have the newest attempt of a task say what it costs; the task's version then."""
    log = TaskLog(metadata={"estimated_cost_usd": dollars})
    change = Change(task_id=task_id, version=version, log=msgspec.json.encode(log), **more)
    return await store.apply(change)


async def paid(store: SqlStore, task: NewTask, dollars: str, scope: str = SCOPE) -> TaskRecord:
    """The task, made, placed and ended at that price."""
    record = await begun(store, task, scope)
    version = record.version
    for state in (State.INITIALIZING, State.RUNNING):
        version = await store.apply(Change(task_id=task.id, version=version, state=state))
    await cost(store, task.id, version, dollars, state=State.COMPLETE, released=True)
    await store.mark_discarded([attempt.key for attempt in record.attempts])
    return record
