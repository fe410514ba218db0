"""Which server looks after what: placement, leases, take-over."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    update,
)

from tesazure.budgets import Budget, period
from tesazure.model import State, TaskLog
from tesazure.store.base import Choose
from tesazure.store.changing import INSERT_ATTEMPT, first_log
from tesazure.store.engine import Link, Prepared
from tesazure.store.reading import task
from tesazure.store.records import Queued, Reservation, TaskRecord
from tesazure.store.tables import UNRELEASED, attempts, servers, spending, stored_tag, tags, tasks
from tesazure.store.transaction import Transaction


def _queued(*more: ColumnElement[bool]) -> Select[Any]:
    return (
        select(
            tasks.c.seq,
            tasks.c.id,
            tasks.c.version,
            tasks.c.created,
            tasks.c.cpu_cores,
            tasks.c.ram_bytes,
            tasks.c.disk_bytes,
            tasks.c.attempt,
            tasks.c.notes,
        )
        .where(
            tasks.c.state == State.QUEUED.value,
            tasks.c.server.is_(None),
            or_(tasks.c.retry_at.is_(None), tasks.c.retry_at <= bindparam("now")),
            *more,
        )
        .order_by(tasks.c.seq)
        .limit(bindparam("most"))
    )


_QUEUE = Prepared(_queued())


@lru_cache(64)
def _queue(kinds: tuple[tuple[str, bool], ...]) -> Prepared:
    """The queue without the tasks of which a budget is spent. Of each budget: its kind, and whether
    it is of one owner or one value of a tag."""
    return Prepared(_queued(*(~_is_spent(i, *kind) for i, kind in enumerate(kinds))))


def _is_spent(index: int, kind: str, one: bool) -> ColumnElement[bool]:
    purse = spending.alias(f"spending{index}")
    key: BindParameter[str] = bindparam(f"key{index}")
    value: ColumnElement[Any] = literal_column("''")
    if kind == "owner":
        value = tasks.c.owner
    elif kind == "tag":
        tag = tags.alias(f"tag{index}")
        its = select(tag.c.value).where(tag.c.key == key, tag.c.seq == tasks.c.seq)
        value = its.correlate(tasks).scalar_subquery()
    wanted = bindparam(f"value{index}") if one else value
    conditions = [
        purse.c.kind == literal_column(f"'{kind}'"),
        purse.c.key == key,
        purse.c.period == bindparam(f"period{index}"),
        purse.c.value == wanted,
        purse.c.cost >= bindparam(f"limit{index}"),
    ]
    if one:
        conditions.append(value == wanted)
    return exists().where(*conditions).correlate(tasks)


def _due(link: Link, limit: int, now: float, budgets: Sequence[Budget]) -> list[tuple[Any, ...]]:
    """Rows of the queue, oldest first."""
    if not budgets:
        return link.rows(_QUEUE, now=now, most=limit)
    values: dict[str, Any] = {"now": now, "most": limit}
    for i, budget in enumerate(budgets):
        values[f"key{i}"] = stored_tag(budget.key)
        values[f"period{i}"] = period(budget.period, now)
        values[f"limit{i}"] = budget.limit
        if budget.value is not None:
            tag = budget.kind == "tag"
            values[f"value{i}"] = stored_tag(budget.value) if tag else budget.value
    kinds = tuple((budget.kind, budget.value is not None) for budget in budgets)
    return link.rows(_queue(kinds), **values)


_RESERVED = Prepared(
    select(
        func.coalesce(func.sum(attempts.c.cpu_cores), 0.0),
        func.coalesce(func.sum(attempts.c.ram_bytes), 0),
        func.coalesce(func.sum(attempts.c.disk_bytes), 0),
    ).where(attempts.c.scope == bindparam("scope"), UNRELEASED)
)
_LOOK_AFTER = Prepared(
    update(tasks)
    .where(tasks.c.seq == bindparam("of"))
    .values(
        version=tasks.c.version + 1,
        server=bindparam("by"),
        scope=bindparam("where"),
        attempt=bindparam("at"),
        retry_at=null(),
    )
)
_encode = msgspec.json.Encoder().encode
_EMPTY_LOG = _encode(TaskLog())

_UPDATE_LEASE = Prepared(
    update(servers)
    .where(servers.c.id == bindparam("server"))
    .values(scope=bindparam("where"), lease_until=bindparam("until"))
)
_INSERT_LEASE = Prepared(insert(servers))
_DELETE_LEASE = Prepared(delete(servers).where(servers.c.id == bindparam("server")))
_DELETE_DEAD = Prepared(
    delete(servers).where(
        servers.c.lease_until <= bindparam("now"),
        ~exists().where(tasks.c.server == servers.c.id),
    )
)

_leased = exists().where(servers.c.id == tasks.c.server, servers.c.lease_until > bindparam("now"))
_TAKE_FROM_OTHERS = Prepared(
    update(tasks)
    .where(
        tasks.c.server.is_not(None),
        tasks.c.server != bindparam("by"),
        tasks.c.scope == bindparam("where"),
        ~_leased,
    )
    .values(version=tasks.c.version + 1, server=bindparam("by"))
)
_live = select(attempts.c.seq).where(attempts.c.scope == bindparam("where"), UNRELEASED)
_TAKE_FROM_NOBODY = Prepared(
    update(tasks)
    .where(
        tasks.c.server.is_(None),
        or_(
            and_(tasks.c.seq.in_(_live), tasks.c.ended.is_not(None)),
            and_(
                tasks.c.state == State.CANCELING.value,
                or_(tasks.c.scope == bindparam("where"), tasks.c.scope.is_(None)),
            ),
        ),
    )
    .values(version=tasks.c.version + 1, server=bindparam("by"), scope=bindparam("where"))
)


def place(
    transaction: Transaction,
    server: str,
    scope: str,
    choose: Choose,
    limit: int,
    now: float,
    budgets: Sequence[Budget],
) -> list[TaskRecord]:
    """See Store.place."""
    link = transaction.link
    rows = _due(link, limit, now, budgets)
    if not rows:
        return []
    queue = [
        Queued(row[0], row[1], row[2], row[3], Reservation(row[4], row[5], row[6])) for row in rows
    ]
    reserved = link.rows(_RESERVED, scope=scope)[0]
    chosen = choose(queue, Reservation(float(reserved[0]), int(reserved[1]), int(reserved[2])))
    unknown = chosen.keys() - {task.id for task in queue}
    if unknown:
        raise ValueError(f"not in the queue: {', '.join(sorted(unknown))}")
    placed = [row for row in rows if row[1] in chosen]
    link.run_many(
        INSERT_ATTEMPT,
        [
            (
                *(row[0], row[7] + 1, chosen[row[1]], scope, False, False, now, None),
                *(*row[4:7], 0, None, _encode(first_log(row[8], now)) if row[8] else _EMPTY_LOG),
                None,
            )
            for row in placed
        ],
    )
    for row in placed:
        link.run(_LOOK_AFTER, of=row[0], by=server, where=scope, at=row[7] + 1)
    found = [task(link, row[1]) for row in placed]
    return [record for record in found if record is not None]


def heartbeat(transaction: Transaction, server: str, scope: str, lease_s: float) -> None:
    """See Store.heartbeat."""
    until = transaction.now() + lease_s
    if not transaction.link.run(_UPDATE_LEASE, server=server, where=scope, until=until):
        transaction.link.run(_INSERT_LEASE, id=server, scope=scope, lease_until=until)


def take_over(transaction: Transaction, server: str, scope: str) -> int:
    """See Store.take_over. Forgets dead servers that look after nothing."""
    link, now = transaction.link, transaction.now()
    taken = link.run(_TAKE_FROM_OTHERS, by=server, where=scope, now=now)
    taken += link.run(_TAKE_FROM_NOBODY, by=server, where=scope)
    link.run(_DELETE_DEAD, now=now)
    return taken


def sign_off(transaction: Transaction, server: str) -> None:
    """See Store.sign_off."""
    transaction.link.run(_DELETE_LEASE, server=server)
