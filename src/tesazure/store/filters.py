"""The filters of lists as SQL. A filter here is its shape alone; its values are bound at execution,
so that each shape of query is compiled once (building a statement takes longer than running it).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Double,
    FromClause,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from tesazure.store.engine import Prepared
from tesazure.store.records import ListQuery
from tesazure.store.tables import NAME_INDEXED, NAME_KEY, attempts, stored_tag, tags, tasks

SEPARATOR = "\t"
"""Between the fields of tasks in one row; in no id and no state."""

_BEFORE = bindparam("before", type_=BigInteger())
_FLOOR = bindparam("floor", type_=BigInteger())
_MOST = bindparam("most", type_=Integer())
_WANTED = bindparam("wanted", type_=Integer())

Conditions = list[ColumnElement[bool]]


class joined(FunctionElement[str]):  # noqa: N801 - the name of an SQL function
    """Texts of several rows as one, with a separator, in no promised order. (SQLAlchemy's
    `aggregate_strings` cannot be compiled ahead of its execution.)"""

    type = Text()
    inherit_cache = True


@compiles(joined, "sqlite")
def _sqlite(element: joined, compiler: Any, **options: Any) -> str:
    return f"group_concat({compiler.process(element.clauses, **options)})"


@compiles(joined, "postgresql")
def _postgresql(element: joined, compiler: Any, **options: Any) -> str:
    return f"string_agg({compiler.process(element.clauses, **options)})"


@dataclass(frozen=True)
class Filter:
    """A filter; this one lets all tasks pass."""

    def holds(self) -> Conditions:
        """Conditions on a row of `tasks`, ANDed, in a form that no index serves: where a filter
        only tests rows, the planner shall not think of another way."""
        return []


@dataclass(frozen=True)
class Stream(Filter):
    """A filter that also has its tasks in order of their number; this one has all tasks."""

    @property
    def in_order(self) -> bool:
        """Whether an index has exactly these tasks in order."""
        return True

    def own(self) -> Conditions:
        """Conditions that the stream's index serves."""
        return []

    def seqs(self) -> Select[Any]:
        """Numbers of its `most` newest tasks below `before`, newest first."""
        return _newest(tasks.c.seq, *self.own())

    def between(self, others: Conditions) -> Select[Any]:
        """Number, id and state of its `wanted` newest tasks from `floor` to below `before` that
        hold against the others."""
        return (
            select(tasks.c.seq, tasks.c.id, tasks.c.state)
            .where(*self.own(), tasks.c.seq < _BEFORE, tasks.c.seq >= _FLOOR, *others)
            .order_by(tasks.c.seq.desc())
            .limit(_WANTED)
        )


@dataclass(frozen=True)
class Owner(Stream):
    """Tasks of one owner."""

    def holds(self) -> Conditions:
        return [tasks.c.owner + "" == bindparam("owner", type_=Text())]

    def own(self) -> Conditions:
        return [tasks.c.owner == bindparam("owner", type_=Text())]


@dataclass(frozen=True)
class Tenant(Stream):
    """Tasks of all owners of one tenant."""

    def holds(self) -> Conditions:
        return [tasks.c.tenant + "" == bindparam("tenant", type_=Text())]

    def own(self) -> Conditions:
        return [tasks.c.tenant == bindparam("tenant", type_=Text())]


@dataclass(frozen=True)
class States(Stream):
    """Tasks in one of some states. Several are merged for `seqs`, sorted in `between`."""

    number: int

    @property
    def in_order(self) -> bool:
        return self.number == 1

    def holds(self) -> Conditions:
        return [or_(*(tasks.c.state + "" == name for name in self._names()))]

    def own(self) -> Conditions:
        return [or_(*(tasks.c.state == name for name in self._names()))]

    def seqs(self) -> Select[Any]:
        each = [_newest(tasks.c.seq, tasks.c.state == name) for name in self._names()]
        if len(each) == 1:
            return each[0]
        merged = union_all(*(select(one.subquery().c.seq) for one in each)).subquery()
        return select(merged.c.seq).order_by(merged.c.seq.desc()).limit(_MOST)

    def _names(self) -> list[BindParameter[str]]:
        return [bindparam(f"state{i}", type_=Text()) for i in range(self.number)]


@dataclass(frozen=True)
class Tag(Stream):
    """Tasks with a tag."""

    index: int
    any_value: bool

    def holds(self) -> Conditions:
        other = tags.alias(f"tag{self.index}")
        return [exists().where(other.c.seq == tasks.c.seq, *self._on(other))]

    def own(self) -> Conditions:
        return self._on(tags)

    def _on(self, table: FromClause) -> Conditions:
        found: Conditions = [table.c.key == bindparam(f"key{self.index}", type_=Text())]
        if not self.any_value:
            found.append(table.c.value == bindparam(f"value{self.index}", type_=Text()))
        return found

    def seqs(self) -> Select[Any]:
        return _newest(tags.c.seq, *self.own())

    def between(self, others: Conditions) -> Select[Any]:
        return (
            select(tags.c.seq, tasks.c.id, tasks.c.state)
            # An expression, so that the tags lead and the tasks follow.
            .join_from(tags, tasks, tasks.c.seq == tags.c.seq + 0)
            .where(*self.own(), tags.c.seq < _BEFORE, tags.c.seq >= _FLOOR, *others)
            .order_by(tags.c.seq.desc())
            .limit(_WANTED)
        )


@dataclass(frozen=True)
class Name(Stream):
    """Tasks whose name begins with a prefix. No index has them in order: `seqs` reads them all."""

    ends: bool
    """Whether there is text after all that has the prefix."""
    long: bool
    """Whether the prefix is longer than what is indexed."""

    @property
    def in_order(self) -> bool:
        return False

    def holds(self) -> Conditions:
        start = func.substr(tasks.c.name, 1, bindparam("prefix_length", type_=Integer()))
        return [start == bindparam("prefix", type_=Text())]

    def own(self) -> Conditions:
        found: Conditions = [NAME_KEY.op(">=")(bindparam("name_from", type_=Text()))]
        if self.ends:
            found.append(NAME_KEY.op("<")(bindparam("name_to", type_=Text())))
        return found + (self.holds() if self.long else [])

    def seqs(self) -> Select[Any]:
        # An expression, so that no planner walks all tasks in order of their number instead.
        number = tasks.c.seq + 0
        return (
            select(tasks.c.seq)
            .where(*self.own(), number < _BEFORE)
            .order_by(number.desc())
            .limit(_MOST)
        )


def filters(query: ListQuery) -> tuple[list[Filter], dict[str, Any]]:
    """The shapes of a query's filters, and the values to bind. For a caller that sees something."""
    found: list[Filter] = []
    values: dict[str, Any] = {}
    if not query.visibility.everyone:
        # Of the owner first: a tenant's tasks are a part of all that is further from the few.
        if query.visibility.owner is not None:
            found.append(Owner())
            values["owner"] = query.visibility.owner
        if query.visibility.tenant is not None:
            found.append(Tenant())
            values["tenant"] = query.visibility.tenant
    if query.states:
        states = sorted({state.value for state in query.states})
        found.append(States(len(states)))
        values |= {f"state{i}": state for i, state in enumerate(states)}
    for i, (key, value) in enumerate(sorted(set(query.tags))):
        found.append(Tag(i, any_value=not value))
        values |= {f"key{i}": stored_tag(key), f"value{i}": stored_tag(value)}
    prefix = query.name_prefix
    if prefix:
        indexed = prefix[:NAME_INDEXED]
        values |= {"name_from": indexed, "name_to": following(indexed)}
        values |= {"prefix": prefix, "prefix_length": len(prefix)}
        found.append(Name(ends=bool(values["name_to"]), long=len(prefix) > NAME_INDEXED))
    return found, values


@lru_cache(512)
def walk(stream: Stream, others: tuple[Filter, ...]) -> Prepared:
    """The tasks that `Stream.between` finds, joined."""
    return Prepared(select(_joined(stream.between(_all_hold(others)).subquery())))


@lru_cache(512)
def sift(name: Name, others: tuple[Filter, ...]) -> Prepared:
    """About the `most` newest tasks below `before` with a name: how many there are, the lowest
    number among them, and the `wanted` newest that hold against the others, joined."""
    seen = name.seqs().cte("seen")
    some = (
        select(tasks.c.seq, tasks.c.id, tasks.c.state)
        .join_from(seen, tasks, tasks.c.seq == seen.c.seq)
        .where(*_all_hold(others))
        .order_by(seen.c.seq.desc())
        .limit(_WANTED)
        .subquery()
    )
    return Prepared(
        select(
            select(func.count()).select_from(seen).scalar_subquery(),
            select(func.min(seen.c.seq)).scalar_subquery(),
            select(_joined(some)).scalar_subquery(),
        )
    )


@lru_cache(64)
def probe(stream: Stream) -> Prepared:
    """Newest and oldest number, and count, of the `most` newest tasks of a stream."""
    top = stream.seqs().subquery()
    return Prepared(select(func.max(top.c.seq), func.min(top.c.seq), func.count()).select_from(top))


@lru_cache(64)
def costs(stream: Stream, others: tuple[Filter, ...]) -> Prepared:
    """Number and cost of the tasks that `Stream.between` finds, created at `since` or later. The
    cost of those with a known one: NULL, if there are none."""
    created = tasks.c.created >= bindparam("since", type_=Double())
    some = stream.between([*_all_hold(others), created]).subquery()
    cost = select(func.sum(attempts.c.cost)).where(
        attempts.c.seq == some.c.seq, attempts.c.cost.is_not(None)
    )
    return Prepared(select(func.count(), func.sum(cost.scalar_subquery())).select_from(some))


@lru_cache(8)
def count(name: Name) -> Prepared:
    """How many tasks have a name, counted up to `most`."""
    some = select(literal(1).label("one")).where(*name.own()).limit(_MOST).subquery()
    return Prepared(select(func.count()).select_from(some))


def following(prefix: str) -> str:
    """The first text after all those with this prefix, in byte order; empty if there is none."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return ""
    last = ord(kept[-1]) + 1
    # UTF-8 has no surrogates.
    return kept[:-1] + chr(0xE000 if last == 0xD800 else last)


def _all_hold(others: tuple[Filter, ...]) -> Conditions:
    return [condition for other in others for condition in other.holds()]


def _newest(column: ColumnElement[int], *conditions: ColumnElement[bool]) -> Select[Any]:
    return (
        select(column.label("seq"))
        .where(*conditions, column < _BEFORE)
        .order_by(column.desc())
        .limit(_MOST)
    )


def _joined(some: Any) -> ColumnElement[str]:
    """All tasks in one row, because Python hands over the interpreter's lock at each row."""
    fields = cast(some.c.seq, Text) + SEPARATOR + some.c.id + SEPARATOR + some.c.state
    return joined(fields, SEPARATOR)
