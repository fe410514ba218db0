"""Workflows: the tasks that carry one workflow's id, counted as they change.

The rows are kept up in the transaction that changes a task: so a page of them takes as long with a
million tasks as with ten. A row is of one owner, for nobody may add to another's workflow by naming
it; who sees several owners' tasks sees those with one id as one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, and_, bindparam, delete, func, insert, select, update

from tesazure.callers import Visibility
from tesazure.model import State
from tesazure.money import dollars
from tesazure.store.engine import Link, Prepared
from tesazure.store.reading import whose
from tesazure.store.records import NewTask, Page, Workflow
from tesazure.store.tables import workflows

_COUNTS = {state: workflows.c[state.value.lower()] for state in State}
_MAX_ID_BYTES = 512
"""A longer text is no id: PostgreSQL refuses index entries above 2.7 kB."""
_ABOVE_ALL = 2**62

_FIND = Prepared(
    select(workflows.c.seq).where(
        workflows.c.id == bindparam("of"),
        workflows.c.owner.is_not_distinct_from(bindparam("by", type_=workflows.c.owner.type)),
        workflows.c.tenant.is_not_distinct_from(bindparam("at", type_=workflows.c.tenant.type)),
    )
)
_INSERT = Prepared(insert(workflows))
_COUNT = Prepared(
    update(workflows)
    .where(workflows.c.seq == bindparam("of"))
    .values(
        {column: column + bindparam(f"more_{column.name}") for column in _COUNTS.values()}
        | {workflows.c.last_activity: func.coalesce(bindparam("at"), workflows.c.last_activity)}
    )
)
_SPEND = Prepared(
    update(workflows)
    .where(workflows.c.seq == bindparam("of"))
    .values(cost=func.coalesce(workflows.c.cost, 0) + bindparam("more"))
)
_DELETE_EMPTY = Prepared(
    delete(workflows).where(
        workflows.c.seq == bindparam("of"), and_(*(count == 0 for count in _COUNTS.values()))
    )
)


class Tallies:
    """What the writes of one transaction change about workflows."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._found: dict[tuple[str, str | None, str | None], int] = {}
        self._counts: dict[int, Counter[State]] = defaultdict(Counter)
        self._times: dict[int, float] = {}
        self._costs: Counter[int] = Counter()
        self._shrunk: set[int] = set()

    def of(self, seq: int, task: NewTask) -> int | None:
        """The row of a new task's workflow, made if this is its first; None if it has none."""
        named = task.workflow
        if named is None or not named.id or len(named.id.encode()) > _MAX_ID_BYTES:
            return None
        key = named.id, task.owner, task.tenant
        found = self._found.get(key)
        if found is None:
            row = self._link.row(_FIND, of=named.id, by=task.owner, at=task.tenant)
            found = row[0] if row else self._begin(seq, task)
            self._found[key] = found
        return found

    def _begin(self, seq: int, task: NewTask) -> int:
        assert task.workflow is not None  # noqa: S101 - `of` has looked
        row = (
            *(seq, task.workflow.id, task.workflow.name, task.workflow.submitter),
            *(task.owner, task.tenant, task.created, task.created, None, *(0 for _ in _COUNTS)),
        )
        self._link.run_many(_INSERT, [row])
        return seq

    def move(self, workflow: int, old: State | None, new: State, at: float) -> None:
        """Note that a task of it changed its state (`old` None: it is new)."""
        counts = self._counts[workflow]
        counts[new] += 1
        if old is not None:
            counts[old] -= 1
        self._times[workflow] = at

    def remove(self, workflow: int, state: State) -> None:
        """Note that a task of it was deleted; with the last one it is gone."""
        self._counts[workflow][state] -= 1
        self._shrunk.add(workflow)

    def spend(self, workflow: int, more: int) -> None:
        """Note that it costs so much more than was known, in billionths of a US dollar."""
        self._costs[workflow] += more

    def flush(self) -> None:
        """Write what was noted."""
        for workflow, counts in self._counts.items():
            more = {f"more_{column.name}": counts[state] for state, column in _COUNTS.items()}
            self._link.run(_COUNT, of=workflow, at=self._times.get(workflow), **more)
        for workflow, cost in self._costs.items():
            self._link.run(_SPEND, of=workflow, more=cost)
        for workflow in self._shrunk:
            self._link.run(_DELETE_EMPTY, of=workflow)


def _newest(names: Iterable[str]) -> Select[Any]:
    """A page's ids, each once, by the newest row that has it. That row is looked up for each, in a
    form that is no join, with an expression, here and below, where an id finds the row: so that no
    planner reads all rows of an owner instead."""
    other = workflows.alias("other")
    newest = select(func.max(other.c.seq)).where(
        other.c.id == workflows.c.id, *(other.c[name] + "" == bindparam(name) for name in names)
    )
    return (
        select(workflows.c.seq, workflows.c.id)
        .where(
            workflows.c.seq < bindparam("before"),
            *(workflows.c[name] == bindparam(name) for name in names),
            workflows.c.seq == newest.scalar_subquery(),
        )
        .order_by(workflows.c.seq.desc())
        .limit(bindparam("most"))
    )


_BY: tuple[tuple[str, ...], ...] = ((), ("owner",), ("tenant",), ("owner", "tenant"))
_PAGE = {names: Prepared(_newest(names)) for names in _BY}


def page(link: Link, limit: int, before: int | None, visibility: Visibility) -> Page[Workflow]:
    """See Store.list_workflows."""
    if visibility.nothing:
        return Page([], None)
    seen = whose(visibility)
    top = _ABOVE_ALL if before is None else min(before, _ABOVE_ALL)
    rows = link.rows(_PAGE[tuple(seen)], before=top, most=limit + 1, **seen)
    found = _together(link, [row[1] for row in rows[:limit]], seen)
    return Page(found, rows[limit - 1][0] if len(rows) > limit else None)


def one(link: Link, workflow_id: str, visibility: Visibility) -> Workflow | None:
    """See Store.get_workflow."""
    if visibility.nothing or "\0" in workflow_id:
        return None
    found = _together(link, [workflow_id], whose(visibility))
    return found[0] if found else None


def _together(link: Link, ids: Sequence[str], seen: Mapping[str, str]) -> list[Workflow]:
    """The workflows with these ids, in their order."""
    query = select(workflows).where(
        workflows.c.id.in_(ids), *(workflows.c[name] + "" == value for name, value in seen.items())
    )
    rows: dict[str, list[Any]] = defaultdict(list)
    for row in link.core.execute(query.order_by(workflows.c.seq)).mappings():
        rows[row["id"]].append(row)
    return [_workflow(rows[workflow_id]) for workflow_id in ids if workflow_id in rows]


def _workflow(rows: Sequence[Any]) -> Workflow:
    """The rows with one id, the oldest first, as one."""
    counts = {state: sum(row[column] for row in rows) for state, column in _COUNTS.items()}
    costs = [row["cost"] for row in rows if row["cost"] is not None]
    return Workflow(
        id=rows[0]["id"],
        name=rows[0]["name"],
        submitter=rows[0]["submitter"],
        states={state: count for state, count in counts.items() if count},
        first_activity=min(row["first_activity"] for row in rows),
        last_activity=max(row["last_activity"] for row in rows),
        cost_usd=dollars(sum(costs)) if costs else None,
    )
