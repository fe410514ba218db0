"""Whole tasks, attempts and events, read by key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Select, and_, bindparam, func, select

from tesazure.callers import Visibility
from tesazure.lifecycle import Handle
from tesazure.model import State
from tesazure.store.engine import Link, Prepared
from tesazure.store.records import (
    AttemptRecord,
    StateEvent,
    TaskBrief,
    TaskRecord,
    Watched,
)
from tesazure.store.tables import (
    attempts,
    docs,
    events,
    identity,
    sealed,
    state_counts,
    tasks,
)

STATES = {state.value: state for state in State}

ATTEMPT_COLUMNS = (
    attempts.c.number,
    attempts.c.key,
    attempts.c.handle,
    attempts.c.released,
    attempts.c.discarded,
    attempts.c.log,
    attempts.c.seen_events,
    attempts.c.started,
    attempts.c.scope,
)
_TASK_COLUMNS = (
    tasks.c.seq,
    tasks.c.id,
    tasks.c.state,
    tasks.c.version,
    tasks.c.owner,
    tasks.c.tenant,
    tasks.c.created,
    tasks.c.max_runtime_s,
    docs.c.document,
    tasks.c.notes,
)

_TASK = Prepared(
    select(*_TASK_COLUMNS, *ATTEMPT_COLUMNS)
    .select_from(
        tasks.join(docs, docs.c.seq == tasks.c.seq).outerjoin(
            attempts, attempts.c.seq == tasks.c.seq
        )
    )
    .where(tasks.c.id == bindparam("task_id"))
    .order_by(attempts.c.number)
)
_BRIEF = Prepared(
    select(tasks.c.seq, tasks.c.state, tasks.c.owner, tasks.c.tenant).where(
        tasks.c.id == bindparam("task_id")
    )
)
_WATCHED = (
    select(
        tasks.c.seq,
        tasks.c.id,
        tasks.c.state,
        tasks.c.version,
        tasks.c.max_runtime_s,
        *ATTEMPT_COLUMNS,
    )
    .select_from(
        tasks.outerjoin(
            attempts,
            and_(attempts.c.seq == tasks.c.seq, attempts.c.number == tasks.c.attempt),
        )
    )
    .where(tasks.c.server == bindparam("server"))
)
_WATCHED_ALL = Prepared(_WATCHED.order_by(tasks.c.seq))
_WATCHED_ONE = Prepared(_WATCHED.where(tasks.c.id == bindparam("task_id")))
_SEALED = Prepared(
    select(sealed.c.secrets)
    .join_from(tasks, sealed, sealed.c.seq == tasks.c.seq)
    .where(tasks.c.id == bindparam("task_id"))
)
_IDENTITY = Prepared(select(identity.c.id))
_EVENT_COLUMNS = (
    events.c.number,
    events.c.task_id,
    events.c.state,
    events.c.time,
    events.c.owner,
    events.c.tenant,
)
_after = (
    select(*_EVENT_COLUMNS)
    .where(events.c.number > bindparam("after"))
    .order_by(events.c.number)
    .limit(bindparam("most"))
)
_EVENTS = Prepared(_after)
_EVENTS_OF: dict[tuple[str, ...], Prepared] = {
    names: Prepared(_after.where(*(events.c[name] == bindparam(name) for name in names)))
    for names in (("owner",), ("tenant",), ("owner", "tenant"))
}
_COUNTS = Prepared(select(state_counts.c.state, state_counts.c.tasks))
_OLDEST_QUEUED = Prepared(
    select(tasks.c.created)
    .where(tasks.c.state == State.QUEUED.value)
    .order_by(tasks.c.seq)
    .limit(1)
)
_NEXT_RETRY = Prepared(
    select(func.min(tasks.c.retry_at)).where(tasks.c.retry_at > bindparam("now"))
)

_decode_handle = msgspec.json.Decoder(dict[str, Any]).decode
_decode_notes = msgspec.json.Decoder(list[str]).decode


def task(link: Link, task_id: str) -> TaskRecord | None:
    """A task with its attempts."""
    rows = link.rows(_TASK, task_id=task_id)
    if not rows:
        return None
    found = rows[0]
    return _record(found, [] if found[10] is None else [attempt(row[10:]) for row in rows])


def brief(link: Link, task_id: str) -> tuple[TaskBrief, str | None, str | None] | None:
    """A task's state, its owner, and the owner's tenant."""
    row = link.row(_BRIEF, task_id=task_id)
    return None if row is None else (TaskBrief(row[0], task_id, STATES[row[1]]), *row[2:])


def briefs(link: Link, task_ids: Sequence[str], visibility: Visibility) -> dict[str, TaskBrief]:
    """See Store.get_briefs."""
    columns = tasks.c.id, tasks.c.seq, tasks.c.state, tasks.c.owner, tasks.c.tenant
    found = link.core.execute(select(*columns).where(tasks.c.id.in_(task_ids)))
    return {
        row[0]: TaskBrief(row[1], row[0], STATES[row[2]])
        for row in found
        if visibility.sees(*row[3:])
    }


def sealed_of(link: Link, task_id: str) -> bytes | None:
    """See Store.sealed."""
    row = link.row(_SEALED, task_id=task_id)
    return row[0] if row else None


def records(link: Link, seqs: Sequence[int], scope: str | None = None) -> list[TaskRecord]:
    """Whole tasks, in the order given; those that are gone are left out. With `scope` only the
    attempts of that scope."""
    chosen: Select[Any] = select(attempts.c.seq, *ATTEMPT_COLUMNS).where(attempts.c.seq.in_(seqs))
    if scope is not None:
        chosen = chosen.where(attempts.c.scope == scope)
    tried: dict[int, list[AttemptRecord]] = defaultdict(list)
    for row in link.core.execute(chosen.order_by(attempts.c.number)):
        tried[row[0]].append(attempt(row[1:]))
    whole = select(*_TASK_COLUMNS).join_from(tasks, docs, docs.c.seq == tasks.c.seq)
    found = {
        row[0]: _record(row, tried[row[0]])
        for row in link.core.execute(whole.where(tasks.c.seq.in_(seqs)))
    }
    return [found[seq] for seq in seqs if seq in found]


def sizes(link: Link, seqs: Sequence[int]) -> dict[int, int]:
    """Bytes of the documents and logs of tasks, without reading them."""
    found: dict[int, int] = defaultdict(int)
    for column, blob in ((docs.c.seq, docs.c.document), (attempts.c.seq, attempts.c.log)):
        for seq, size in link.core.execute(
            select(column, func.length(blob)).where(column.in_(seqs))
        ):
            found[seq] += size
    return found


def watched(link: Link, server: str, task_ids: Sequence[str] | None = None) -> list[Watched]:
    """What a server looks after, of these tasks or all, with the newest attempt of each."""
    if task_ids is None:
        rows = link.rows(_WATCHED_ALL, server=server)
    else:
        one = (link.row(_WATCHED_ONE, server=server, task_id=task_id) for task_id in task_ids)
        rows = [row for row in one if row is not None]
    return [
        Watched(
            seq=row[0],
            id=row[1],
            state=STATES[row[2]],
            version=row[3],
            max_runtime_s=row[4],
            attempt=None if row[5] is None else attempt(row[5:]),
        )
        for row in rows
    ]


def events_after(
    link: Link, number: int, limit: int, visibility: Visibility, task_ids: Sequence[str]
) -> list[StateEvent]:
    """State changes in order."""
    rows: Iterable[Sequence[Any]]
    if visibility.nothing:
        return []
    if task_ids:
        # Two ways to the same task, so that its events are found by its short number.
        seqs = select(tasks.c.seq).where(tasks.c.id.in_(task_ids))
        query = select(*_EVENT_COLUMNS).where(
            events.c.number > number,
            events.c.seq.in_(seqs),
            *(events.c[name] == value for name, value in whose(visibility).items()),
        )
        rows = link.core.execute(query.order_by(events.c.number).limit(limit))
    elif visibility.everyone:
        rows = link.rows(_EVENTS, after=number, most=limit)
    else:
        seen = whose(visibility)
        rows = link.rows(_EVENTS_OF[tuple(seen)], after=number, most=limit, **seen)
    return [StateEvent(row[0], row[1], STATES[row[2]], *row[3:]) for row in rows]


def whose(visibility: Visibility) -> dict[str, str]:
    """The columns that tell whether a caller sees an event or a workflow, and what they must be."""
    wanted = {"owner": visibility.owner, "tenant": visibility.tenant}
    return {name: value for name, value in wanted.items() if value is not None}


def store_identity(link: Link) -> str:
    """See Store.identity."""
    row = link.row(_IDENTITY)
    assert row is not None  # noqa: S101 - the migration that makes the table fills it
    return str(row[0])


def count_by_state(link: Link) -> dict[State, int]:
    """Every state with its number of tasks."""
    return dict.fromkeys(State, 0) | {STATES[s]: n for s, n in link.rows(_COUNTS)}


def oldest_queued(link: Link) -> float | None:
    """When the oldest QUEUED task was created."""
    row = link.row(_OLDEST_QUEUED)
    return row[0] if row else None


def next_retry(link: Link, now: float) -> float | None:
    """See Store.next_retry."""
    row = link.row(_NEXT_RETRY, now=now)
    return row[0] if row else None


def attempt(row: Sequence[Any]) -> AttemptRecord:
    """An attempt from ATTEMPT_COLUMNS."""
    number, key, handle, released, discarded, log, seen_events, started, scope = row
    return AttemptRecord(
        number=number,
        key=key,
        handle=None if handle is None else decode_handle(handle),
        released=bool(released),
        discarded=bool(discarded),
        log=log,
        seen_events=seen_events,
        started=started,
        scope=scope,
    )


def decode_handle(raw: bytes) -> Handle:
    """A handle as it was given."""
    return _decode_handle(raw)


def stored_notes(raw: str | None) -> list[str]:
    """What tasks.notes holds."""
    return _decode_notes(raw) if raw else []


def _record(row: Sequence[Any], tried: list[AttemptRecord]) -> TaskRecord:
    return TaskRecord(
        seq=row[0],
        id=row[1],
        state=STATES[row[2]],
        version=row[3],
        owner=row[4],
        tenant=row[5],
        created=row[6],
        max_runtime_s=row[7],
        document=row[8],
        notes=stored_notes(row[9]),
        attempts=tried,
    )
