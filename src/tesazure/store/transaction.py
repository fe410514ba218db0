"""A write transaction: numbers of events, counts by state, the time."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from sqlalchemy import Double, bindparam, cast, func, insert, select, update

from tesazure.model import State
from tesazure.store.engine import Database, Link, Prepared
from tesazure.store.spending import Spending
from tesazure.store.tables import events, state_counts
from tesazure.store.workflows import Tallies

_LAST_EVENT = Prepared(select(func.max(events.c.number)))
_NOW = Prepared(select(cast(func.extract("epoch", func.clock_timestamp()), Double)))
_INSERT_EVENT = Prepared(insert(events))
_ADD_COUNT = Prepared(
    update(state_counts)
    .where(state_counts.c.state == bindparam("of"))
    .values(tasks=state_counts.c.tasks + bindparam("more"))
)

EventRow = tuple[int, int, str, str, float, str | None, str | None]
Owner = tuple[str | None, str | None]
"""Of a task, and the owner's tenant."""


class Transaction:
    """What the writes that share a commit share. There is one at a time on a database, so events
    become visible in the order of their numbers, and nothing read in it is changed by others."""

    def __init__(self, database: Database, link: Link) -> None:
        self.database = database
        self.link = link
        self.workflows = Tallies(link)
        self.spending = Spending(link)
        self.last_event = 0
        """Number of the newest event, once one was added."""
        self._now: float | None = None
        self._events: list[EventRow] = []
        self._counts: Counter[str] = Counter()

    def now(self) -> float:
        """The database's clock, in seconds since the epoch (SQLite's is the machine's)."""
        if self._now is None:
            row = None if self.database.is_sqlite else self.link.row(_NOW)
            self._now = row[0] if row else time.time()
        return self._now

    def next_number(self) -> int:
        """The number that the next event will have."""
        if not self.last_event:
            row = self.link.row(_LAST_EVENT)
            self.last_event = (row and row[0]) or 0
        return self.last_event + 1

    def add_event(
        self,
        seq: int,
        task_id: str,
        old: State | None,
        new: State,
        at: float,
        owner: Owner,
        workflow: int | None,
    ) -> None:
        """Note that a task changed its state (`old` None: it is new)."""
        number = self.last_event = self.next_number()
        state = new.value
        self._events.append((number, seq, task_id, state, at, *owner))
        self._counts[state] += 1
        if old is not None:
            self._counts[old.value] -= 1
        if workflow is not None:
            self.workflows.move(workflow, old, new, at)

    def uncount(self, state: State, workflow: int | None) -> None:
        """Note that a task in this state was deleted."""
        self._counts[state.value] -= 1
        if workflow is not None:
            self.workflows.remove(workflow, state)

    def flush(self) -> None:
        """Write what was noted. The last thing before the commit."""
        self.link.run_many(_INSERT_EVENT, self._events)
        for state, more in self._counts.items():
            if more:
                self.link.run(_ADD_COUNT, of=state, more=more)
        self._events = []
        self._counts.clear()
        self.workflows.flush()
        self.spending.flush()


def last_event(link: Link) -> int:
    """Number of the newest event, 0 if there is none."""
    row: tuple[Any, ...] | None = link.row(_LAST_EVENT)
    return (row and row[0]) or 0
