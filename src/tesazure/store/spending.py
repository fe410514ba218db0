"""What was spent, by purse: counted up in the transaction that writes a cost.

So a budget is compared with one row, however many tasks there are, and what a task has cost stays
spent when its record is deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from sqlalchemy import bindparam, delete, insert, select, tuple_, update

from tesazure.budgets import Purse, Tags, period, purses
from tesazure.store.engine import Link, Prepared
from tesazure.store.tables import spending, stored_tag

_IS = (
    spending.c.kind == bindparam("of_kind"),
    spending.c.key == bindparam("of_key"),
    spending.c.period == bindparam("of_period"),
    spending.c.value == bindparam("of_value"),
)
_SPENT = Prepared(select(spending.c.cost).where(*_IS))
_SPEND = Prepared(update(spending).where(*_IS).values(cost=spending.c.cost + bindparam("more")))
_BEGIN = Prepared(insert(spending))
_KEYS = spending.c.kind, spending.c.key, spending.c.period, spending.c.value
_past = (
    select(*_KEYS)
    .where(spending.c.period != "", spending.c.period < bindparam("before"))
    .limit(bindparam("most"))
)
_PRUNE = Prepared(delete(spending).where(tuple_(*_KEYS).in_(_past)))


class Spending:
    """What the writes of one transaction spend."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._more: Counter[Purse] = Counter()

    def spend(self, owner: str | None, tags: Tags, more: int, now: float) -> None:
        """Note that a task costs so much more than was known, in billionths of a US dollar."""
        for purse in purses(owner, tags, now):
            self._more[purse] += more

    def flush(self) -> None:
        """Write what was noted."""
        for purse, more in self._more.items():
            row = _stored(purse)
            if not self._link.run(_SPEND, more=more, **row):
                self._link.run_many(_BEGIN, [(*row.values(), more)])
        self._more.clear()


def spent(link: Link, wanted: Iterable[Purse]) -> dict[Purse, int]:
    """See Store.spent."""
    found = {}
    for purse in wanted:
        row = link.row(_SPENT, **_stored(purse))
        found[purse] = row[0] if row else 0
    return found


def prune(link: Link, now: float, limit: int) -> int:
    """See Store.prune_spending; `limit` rows at most."""
    return link.run(_PRUNE, before=period("month", now), most=limit)


def _stored(purse: Purse) -> dict[str, str]:
    """The key of a purse's row, in the order of its columns."""
    tag = purse.kind == "tag"
    return {
        "of_kind": purse.kind,
        "of_key": stored_tag(purse.key),
        "of_period": purse.period,
        "of_value": stored_tag(purse.value) if tag else purse.value,
    }
