"""What becomes of finished tasks: their work files, their records, their events."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    ColumnElement,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)

from tesazure.model import TERMINAL, State
from tesazure.store.engine import Link, Prepared
from tesazure.store.reading import STATES, records
from tesazure.store.records import TaskRecord, tags_of
from tesazure.store.tables import (
    UNDISCARDED,
    UNRELEASED,
    attempts,
    docs,
    events,
    sealed,
    stored_tag,
    tags,
    tasks,
)
from tesazure.store.transaction import Transaction, last_event

_DISCARD = Prepared(
    update(attempts).where(attempts.c.key == bindparam("of")).values(discarded=True)
)
_END = Prepared(
    select(attempts.c.ended, attempts.c.released).where(attempts.c.key == bindparam("of"))
)
_DISCARDABLE = Prepared(
    select(attempts.c.seq, func.min(attempts.c.ended))
    .where(
        attempts.c.scope == bindparam("where"),
        attempts.c.ended < bindparam("before"),
        attempts.c.released,
        UNDISCARDED,
    )
    .group_by(attempts.c.seq)
    .order_by(func.min(attempts.c.ended))
    .limit(bindparam("most"))
)
_kept = select(attempts.c.seq).where(attempts.c.seq == tasks.c.seq, or_(UNRELEASED, UNDISCARDED))
_FORGETTABLE = Prepared(
    select(tasks.c.seq, tasks.c.state, tasks.c.workflow, docs.c.document)
    .join_from(tasks, docs, docs.c.seq == tasks.c.seq)
    .where(tasks.c.ended < bindparam("before"), ~_kept.exists())
    .order_by(tasks.c.ended)
    .limit(bindparam("most"))
)
# Two, as each has an index of its own.
_HELD = tuple(
    Prepared(select(attempts.c.seq).where(attempts.c.scope == bindparam("where"), *which).limit(1))
    for which in ((UNRELEASED,), (UNDISCARDED, attempts.c.ended.is_not(None)))
)
_COUNT_LIVE = Prepared(
    select(func.count()).where(attempts.c.scope == bindparam("where"), UNRELEASED)
)
_NEXT_LIVE = Prepared(
    select(func.min(attempts.c.scope)).where(attempts.c.scope > bindparam("after"), UNRELEASED)
)
_LIVE: list[ColumnElement[str]] = [
    literal_column(f"'{state.value}'") for state in State if state not in TERMINAL
]
_live = select(tasks.c.seq).where(tasks.c.state.in_(_LIVE))
# Those of tasks that have ended have an index of their own.
_ABANDON = tuple(
    Prepared(
        update(attempts)
        .where(attempts.c.scope == bindparam("where"), UNDISCARDED, which)
        .values(discarded=True)
    )
    for which in (attempts.c.ended.is_not(None), attempts.c.seq.in_(_live))
)
_DELETES = tuple(
    Prepared(delete(table).where(table.c.seq == bindparam("of")))
    for table in (tasks, docs, attempts, sealed)
)
_DELETE_TAG = Prepared(
    delete(tags).where(
        tags.c.key == bindparam("of_key"),
        tags.c.value == bindparam("of_value"),
        tags.c.seq == bindparam("of"),
    )
)
_PRUNE = Prepared(
    delete(events).where(events.c.number <= bindparam("last"), events.c.time < bindparam("before"))
)
_EVENT_FROM = Prepared(
    select(events.c.number, events.c.time)
    .where(events.c.number >= bindparam("number"))
    .order_by(events.c.number)
    .limit(1)
)
_FIRST_EVENT = Prepared(select(func.min(events.c.number)))


def discardable(link: Link, scope: str, ended_before: float, limit: int) -> list[TaskRecord]:
    """See Store.discardable."""
    rows = link.rows(_DISCARDABLE, where=scope, before=ended_before, most=limit)
    return records(link, [row[0] for row in rows], scope)


def holds(link: Link, scope: str, live: bool) -> bool:
    """See Store.holds."""
    return any(link.row(held, where=scope) for held in (_HELD[:1] if live else _HELD))


def live_attempts(link: Link) -> dict[str, int]:
    """See Store.live_attempts."""
    found: dict[str, int] = {}
    scope = ""
    while (row := link.row(_NEXT_LIVE, after=scope)) and row[0]:
        scope = row[0]
        [(found[scope],)] = link.rows(_COUNT_LIVE, where=scope)
    return found


def abandon(transaction: Transaction, scope: str) -> int:
    """See Store.abandon."""
    [(live,)] = transaction.link.rows(_COUNT_LIVE, where=scope)
    if not live:
        for abandon_some in _ABANDON:
            transaction.link.run(abandon_some, where=scope)
    return int(live)


def mark_discarded(transaction: Transaction, keys: Sequence[str]) -> None:
    """See Store.mark_discarded."""
    for key in keys:
        transaction.link.run(_DISCARD, of=key)


def ends(link: Link, keys: Sequence[str]) -> dict[str, float | None]:
    """See Store.ends."""
    found: dict[str, float | None] = {}
    for key in keys:
        row = link.row(_END, of=key)
        if row is not None:
            found[key] = row[0] if row[1] else None
    return found


def forget(transaction: Transaction, ended_before: float, limit: int) -> int:
    """See Store.forget."""
    link = transaction.link
    rows = link.rows(_FORGETTABLE, before=ended_before, most=limit)
    for seq, state, workflow, document in rows:
        for key, value in tags_of(document).items():
            link.run(_DELETE_TAG, of_key=stored_tag(key), of_value=stored_tag(value or ""), of=seq)
        for statement in _DELETES:
            link.run(statement, of=seq)
        transaction.uncount(STATES[state], workflow)
    return len(rows)


def prune_events(transaction: Transaction, before: float, limit: int) -> int:
    """See Store.prune_events; looks at `limit` events at most. Events are searched by number, as
    there is no index of their times: those grow with the numbers, up to the clocks' differences."""
    link = transaction.link
    row = link.row(_FIRST_EVENT)
    if row is None or row[0] is None:
        return 0
    low, high = row[0], min(last_event(link), row[0] + limit)
    while low < high:
        middle = (low + high) // 2
        found = link.row(_EVENT_FROM, number=middle)
        if found is not None and found[1] < before:
            low = min(max(middle + 1, found[0]), high)
        else:
            high = middle
    return link.run(_PRUNE, last=low - 1, before=before)
