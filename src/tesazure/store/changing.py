"""Writes on one task: compare-and-set changes, cancellation, rejection."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, bindparam, delete, func, insert, select, update

from tesazure import lifecycle
from tesazure.callers import Visibility
from tesazure.errors import StaleVersion
from tesazure.model import TERMINAL, State, TaskLog
from tesazure.report import system_line
from tesazure.store.costs import cost_of
from tesazure.store.engine import Prepared
from tesazure.store.reading import STATES, stored_notes
from tesazure.store.records import Change, tags_of
from tesazure.store.tables import attempts, docs, sealed, sealing_key, tasks
from tesazure.store.transaction import Owner, Transaction

_HEAD = Prepared(
    select(
        tasks.c.seq,
        tasks.c.id,
        tasks.c.state,
        tasks.c.version,
        tasks.c.owner,
        tasks.c.tenant,
        tasks.c.server,
        tasks.c.attempt,
        tasks.c.ended,
        attempts.c.released,
        tasks.c.notes,
        tasks.c.workflow,
        attempts.c.cost,
        select(sealed.c.seq).where(sealed.c.seq == tasks.c.seq).exists(),
    )
    .select_from(
        tasks.outerjoin(
            attempts,
            and_(attempts.c.seq == tasks.c.seq, attempts.c.number == tasks.c.attempt),
        )
    )
    .where(tasks.c.id == bindparam("task_id"))
)
_UPDATE_TASK = Prepared(
    update(tasks)
    .where(tasks.c.seq == bindparam("of"), tasks.c.version == bindparam("read"))
    .values(
        state=bindparam("to"),
        version=tasks.c.version + 1,
        server=bindparam("by"),
        retry_at=bindparam("again"),
        ended=bindparam("end"),
    )
)


def _kept(name: str) -> ColumnElement[Any]:
    """A parameter for which None leaves the column as it is."""
    column = attempts.c[name]
    return func.coalesce(bindparam(f"new_{name}", type_=column.type), column)


_UPDATE_ATTEMPT = Prepared(
    update(attempts)
    .where(attempts.c.seq == bindparam("of"), attempts.c.number == bindparam("at"))
    .values(
        log=_kept("log"),
        seen_events=_kept("seen_events"),
        handle=_kept("handle"),
        released=_kept("released"),
        cost=_kept("cost"),
    )
)
_END_ATTEMPTS = Prepared(
    update(attempts).where(attempts.c.seq == bindparam("of")).values(ended=bindparam("end"))
)
_DOC = Prepared(select(docs.c.document).where(docs.c.seq == bindparam("of")))
_UPDATE_DOC = Prepared(
    update(docs).where(docs.c.seq == bindparam("of")).values(document=bindparam("new"))
)
_COUNT_ATTEMPT = Prepared(
    update(tasks).where(tasks.c.seq == bindparam("of")).values(attempt=bindparam("at"))
)
_DELETE_SEALED = Prepared(delete(sealed).where(sealed.c.seq == bindparam("of")))
INSERT_ATTEMPT = Prepared(insert(attempts))
_SEALING_KEY = Prepared(select(sealing_key.c.name))
_FORGET_SEALING_KEY = Prepared(delete(sealing_key))
_NOTE_SEALING_KEY = Prepared(insert(sealing_key))

_encode = msgspec.json.Encoder().encode


class Head(msgspec.Struct):
    """What a write must know of its task."""

    seq: int
    id: str
    state: State
    version: int
    owner: Owner
    server: str | None
    attempt: int
    ended: float | None
    released: bool
    """Of the newest attempt; true if there is none."""
    notes: str | None
    workflow: int | None
    cost: int | None
    """Of the newest attempt, as known."""
    has_sealed: bool


def head(transaction: Transaction, task_id: str) -> Head | None:
    """The task as it is now; nobody changes it before the commit."""
    row = transaction.link.row(_HEAD, task_id=task_id)
    if row is None:
        return None
    released = True if row[9] is None else bool(row[9])
    seq, found_id, state, version, owner, tenant, server, attempt, ended = row[:9]
    return Head(
        *(seq, found_id, STATES[state], version, (owner, tenant), server, attempt, ended),
        *(released, *row[10:13], bool(row[13])),
    )


def apply(transaction: Transaction, change: Change) -> int:
    """See Store.apply."""
    task = _fresh(transaction, change.task_id, change.version)
    _allowed(task, change)
    link = transaction.link
    if _touches_attempt(change):
        cost = None if change.log is None else cost_of(change.log)
        if cost is not None:
            _spend(transaction, task, cost - (task.cost or 0))
        link.run(
            _UPDATE_ATTEMPT,
            of=task.seq,
            at=task.attempt,
            new_log=change.log,
            new_seen_events=change.seen_events,
            new_handle=None if change.handle is None else _encode(change.handle),
            new_released=change.released,
            new_cost=cost,
        )
        task.released = task.released if change.released is None else change.released
    if change.document is not None:
        link.run(_UPDATE_DOC, of=task.seq, new=change.document)
    now = transaction.now()
    if change.via is not None:
        transaction.add_event(
            *(task.seq, task.id, task.state, change.via, now, task.owner, task.workflow)
        )
        task.state = change.via
    return _advance(transaction, task, change.state, now, change.retry_at)


def _spend(transaction: Transaction, task: Head, more: int) -> None:
    """Count what an attempt costs beyond what was known."""
    if not more:
        return
    if task.workflow is not None:
        transaction.workflows.spend(task.workflow, more)
    row = transaction.link.row(_DOC, of=task.seq)
    tags = tags_of(row[0]) if row else {}
    transaction.spending.spend(task.owner[0], tags, more, transaction.now())


def request_cancel(transaction: Transaction, task_id: str, visibility: Visibility) -> bool | None:
    """See Store.request_cancel."""
    task = head(transaction, task_id)
    if task is None or not visibility.sees(*task.owner):
        return None
    if task.state in TERMINAL or task.state is State.CANCELING:
        return False
    now = transaction.now()
    # Without a live attempt nothing of it runs, and nobody would come by to end it.
    idle = task.state is State.QUEUED and task.released
    _advance(transaction, task, State.CANCELING, now)
    if idle:
        _advance(transaction, task, State.CANCELED, now)
    return True


def reject(transaction: Transaction, task_id: str, version: int, reason: str, now: float) -> None:
    """See Store.reject."""
    task = _fresh(transaction, task_id, version)
    if task.state is not State.QUEUED or not task.released:
        raise ValueError(f"task {task_id} is {task.state} with an attempt: it cannot be rejected")
    log = first_log(task.notes, now)
    log.system_logs.append(system_line(_rfc3339(now), "error", reason))
    number = task.attempt + 1
    row = (
        *(task.seq, number, f"{task_id}.{number}.rejected", None, True, True, now, now),
        *(0.0, 0, 0, 0, None, _encode(log), None),
    )
    transaction.link.run_many(INSERT_ATTEMPT, [row])
    transaction.link.run(_COUNT_ATTEMPT, of=task.seq, at=number)
    _advance(transaction, task, State.SYSTEM_ERROR, now)


def note_sealing_key(transaction: Transaction, names: Sequence[str]) -> str:
    """See Store.sealing_key."""
    row = transaction.link.row(_SEALING_KEY)
    if row is not None and (row[0] == names[0] or row[0] not in names):
        return str(row[0])
    transaction.link.run(_FORGET_SEALING_KEY)
    transaction.link.run(_NOTE_SEALING_KEY, name=names[0])
    return names[0]


def first_log(notes: str | None, now: float) -> TaskLog:
    """The log of an attempt of which nothing is known yet but the task's warnings: a runner says
    them again in its report, which takes this log's place."""
    at = _rfc3339(now)
    return TaskLog(system_logs=[system_line(at, "warning", n) for n in stored_notes(notes)])


def _rfc3339(seconds: float) -> str:
    said = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    return said.replace("+00:00", "Z")


def _fresh(transaction: Transaction, task_id: str, version: int) -> Head:
    task = head(transaction, task_id)
    if task is None:
        raise StaleVersion(f"task {task_id} is no longer there")
    if task.version != version:
        raise StaleVersion(f"task {task_id} has version {task.version}, not {version}")
    return task


def _touches_attempt(change: Change) -> bool:
    fields = (change.log, change.handle, change.seen_events, change.released)
    return any(value is not None for value in fields)


def _allowed(task: Head, change: Change) -> None:
    """Raises ValueError for a change that makes no sense."""
    before = task.state
    if change.via is not None:
        if change.state is None:
            raise ValueError(f"task {task.id} is to pass {change.via} on its way to nowhere")
        lifecycle.check(before, change.via)
        before = change.via
    if change.state is not None:
        lifecycle.check(before, change.state)
    if task.attempt == 0 and _touches_attempt(change):
        raise ValueError(f"task {task.id} has no attempt to change")
    released = task.released if change.released is None else change.released
    if change.state is State.QUEUED and not released:
        raise ValueError(f"task {task.id} is queued again before its attempt is released")
    if change.retry_at is not None and change.state is not State.QUEUED:
        raise ValueError(f"task {task.id} is given a retry time without being queued")


def _advance(
    transaction: Transaction,
    task: Head,
    state: State | None,
    now: float,
    retry_at: float | None = None,
) -> int:
    """Write the task's row, and the event if its state changes. `task` follows."""
    new = state or task.state
    if state is not None:
        transaction.add_event(
            *(task.seq, task.id, task.state, state, now, task.owner, task.workflow)
        )
        if state in TERMINAL:
            task.ended = now
            if task.attempt:
                transaction.link.run(_END_ATTEMPTS, of=task.seq, end=now)
            if task.has_sealed:
                transaction.link.run(_DELETE_SEALED, of=task.seq)
    if state is State.QUEUED or (new in TERMINAL and task.released):
        task.server = None
    changed = transaction.link.run(
        _UPDATE_TASK,
        of=task.seq,
        read=task.version,
        to=new.value,
        by=task.server,
        again=retry_at,
        end=task.ended,
    )
    if changed != 1:
        raise AssertionError(f"task {task.id} changed while this process held the write lock")
    task.state = new
    task.version += 1
    return task.version
