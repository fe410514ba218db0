"""Budgets: how much may be spent, by whom or under which tag, in which time. Pure.

What an attempt costs is counted under several purses: of everybody, of its task's owner, and of
each of its task's tags; each of them since ever, in this month and on this day, in UTC. A budget is
a limit on one purse, or on each of several: `owner=50/month` on that of every owner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple, cast

from tesazure.money import billionths, dollars

Tags = Mapping[str, str | None]
Kind = Literal["all", "owner", "tag"]
Period = Literal["", "month", "day"]

_ENTRY = re.compile(r"(all|owner|owner:.+|tag:[^:=]+|tag:[^:=]+:.+)=([0-9.]+)(?:/(month|day))?")
_FORM = (
    "must be all=AMOUNT, owner=AMOUNT, owner:ID=AMOUNT, tag:KEY=AMOUNT or tag:KEY:VALUE=AMOUNT,"
    " with an amount in US dollars above 0, such as 50 or 50/month or 50/day"
)
_LENGTHS: dict[Period, int] = {"": 0, "month": len("2026-11"), "day": len("2026-11-22")}
_NOW = {"": "", "month": " this month", "day": " today"}
_NEXT = {"": "", "month": "the next month or ", "day": "the next day or "}


class Purse(NamedTuple):
    """What costs are counted under."""

    kind: Kind
    key: str
    """Of the tag; empty if it is none."""
    value: str
    """The tag's, or who the owner is; empty for that of everybody."""
    period: str
    """The time that it is of: empty since ever, `2026-11`, `2026-11-22`."""


EVERYBODYS = Purse("all", "", "", "")
"""All that was ever spent."""


class Budget(NamedTuple):
    """One limit, in billionths of a US dollar."""

    kind: Kind
    key: str
    """Of the tag; empty if it is none."""
    value: str | None
    """Which tag's value, or owner. None: each of them has as much."""
    limit: int
    period: Period

    def purse(self, owner: str | None, tags: Tags, now: float) -> Purse | None:
        """The one that a task's costs are counted under; None if the budget is not for the task.
        `now` in seconds since the epoch."""
        value: str | None = ""
        if self.kind == "owner":
            value = owner
        elif self.kind == "tag":
            value = (tags[self.key] or "") if self.key in tags else None
        if value is None or self.value not in (None, value):
            return None
        return Purse(self.kind, self.key, value, period(self.period, now))

    @property
    def name(self) -> str:
        """As it is written in the settings, without the amount."""
        named = (
            self.value or ""
            if self.kind == "owner"
            else ":".join(filter(None, (self.key, self.value)))
        )
        return ":".join(filter(None, (self.kind, named))) + (
            f"/{self.period}" if self.period else ""
        )

    def spent(self, purse: Purse, cost: int) -> str:
        """That it is spent, in words."""
        whose = f"tag:{purse.key}=" if self.kind == "tag" else f"{self.kind}="
        name = self.kind if self.kind == "all" else whose + purse.value
        sums = f"{dollars(cost)} of {dollars(self.limit)} USD"
        return f"budget {name} is spent: {sums}{_NOW[self.period]}"

    def waits(self, purse: Purse, cost: int) -> str:
        """The same, and what a task then waits for."""
        return f"{self.spent(purse, cost)}; waits for {_NEXT[self.period]}a higher budget"


class Budgets:
    """Those in effect. Whoever holds this sees what `use` changes."""

    def __init__(self, entries: Iterable[str] = (), action: str = "queue") -> None:
        self.use(entries, action)

    def use(self, entries: Iterable[str], action: str) -> None:
        """From now on. Raises ValueError as `parse`."""
        self.all = tuple(map(parse, entries))
        self.refuse = action == "refuse"
        """Whether submissions beyond them are refused."""


def parse(entry: str) -> Budget:
    """A budget as it is written in the settings. Raises ValueError, in words without the entry."""
    found = _ENTRY.fullmatch(entry.strip())
    limit = billionths(found[2]) if found else None
    if not found or not limit:
        raise ValueError(_FORM)
    kind, _, named = found[1].partition(":")
    key, colon, value = named.partition(":") if kind == "tag" else ("", named, named)
    every = value if colon else None
    return Budget(cast(Kind, kind), key, every, limit, cast(Period, found[3] or ""))


def period(kind: Period, now: float) -> str:
    """The present month or day, in UTC, as in a Purse. `now` in seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()[: _LENGTHS[kind]]


def purses(owner: str | None, tags: Tags, now: float) -> Iterator[Purse]:
    """All that a task's costs are counted under."""
    subjects: list[tuple[Kind, str, str]] = [("all", "", "")]
    if owner is not None:
        subjects.append(("owner", "", owner))
    subjects += [("tag", key, value or "") for key, value in tags.items()]
    kinds: tuple[Period, ...] = ("", "month", "day")
    for time in [period(kind, now) for kind in kinds]:
        for subject in subjects:
            yield Purse(*subject, time)
