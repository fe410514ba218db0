"""Lists: pages of tasks, newest first, whatever the filters.

Each filter but the name's has an index in which its tasks stand in order of their number: a
*stream*. A page walks one stream downwards and holds its tasks against the other filters. Which
one: the filter that is the most selective just below the place where the page begins, found by a
probe of bounded cost. Names have no such order; a prefix with few tasks is read whole and sorted,
one with many is met soon on any walk. What no index can find quickly (two frequent filters that
never occur together) ends after a bounded time with a short page, from which the next one goes on.
"""

from __future__ import annotations

import time
from operator import attrgetter

import msgspec

from tesazure.errors import FieldError, InvalidInput
from tesazure.store.engine import Link
from tesazure.store.filters import (
    SEPARATOR,
    Filter,
    Name,
    Stream,
    costs,
    count,
    filters,
    probe,
    sift,
    walk,
)
from tesazure.store.reading import STATES, records, sizes
from tesazure.store.records import Costs, ListQuery, Page, TaskBrief, TaskRecord

PAGE_BYTES = 32 * 2**20
"""Documents and logs in one page, about: what is more goes to the next page."""

MOST_TAGS = 50
"""Different tag filters in one query."""

_ABOVE_ALL = 2**62
_EVERYTHING = Stream()


class Effort(msgspec.Struct, frozen=True):
    """How much is done for a page before it ends short."""

    seconds: float = 0.015
    probed: int = 1000
    """How deep a probe looks into a stream; as far goes the first step."""
    step: int = 6000
    """Tasks that each further step goes at most: some 8 ms."""
    few_names: int = 20_000
    """A prefix with fewer tasks is read whole where walking finds too little."""


_USUAL = Effort()


def brief_page(link: Link, query: ListQuery, effort: Effort = _USUAL) -> Page[TaskBrief]:
    """See Store.list_briefs. Raises InvalidInput for more tag filters than MOST_TAGS."""
    if not _possible(query):
        return Page([], None)
    return _Search(link, query, effort).run()


def record_page(link: Link, query: ListQuery) -> Page[TaskRecord]:
    """See Store.list_records. Raises as `brief_page`."""
    page = brief_page(link, query)
    seqs = [brief.seq for brief in page.items]
    size = sizes(link, seqs)
    total = kept = 0
    for seq in seqs:
        total += size[seq]
        if kept and total > PAGE_BYTES:
            break
        kept += 1
    next_before = page.next_before if kept == len(seqs) else seqs[kept - 1]
    return Page(records(link, seqs[:kept]), next_before)


def cost_page(link: Link, query: ListQuery, since: float) -> Costs:
    """See Store.costs. Raises as `brief_page`."""
    if not _possible(query):
        return Costs(0, None, None)
    return _Search(link, query, _USUAL).costs(since)


class _Search:
    """One page being put together."""

    def __init__(self, link: Link, query: ListQuery, effort: Effort) -> None:
        self._link = link
        self._effort = effort
        self._limit = query.limit
        self._before = _ABOVE_ALL if query.before is None else min(query.before, _ABOVE_ALL)
        self._filters, self._values = filters(query)
        self._name = next((f for f in self._filters if isinstance(f, Name)), None)
        self._streams: list[Stream] = [
            f for f in self._filters if isinstance(f, Stream) and f is not self._name
        ]
        self._few_names = False
        self._sifted = 0

    def run(self) -> Page[TaskBrief]:
        alone = (self._filters or [_EVERYTHING])[0]
        if len(self._filters) <= 1 and isinstance(alone, Stream) and alone.in_order:
            return self._simple(alone)
        deadline = time.monotonic() + self._effort.seconds
        wanted = self._limit + 1
        found: list[TaskBrief] = []
        rows = self._effort.probed
        for step in range(_ABOVE_ALL):
            began = time.monotonic()
            if self._name is not None and self._few(self._name, step):
                ended = self._sift(self._name, rows, wanted, found)
            else:
                ended = self._walk(rows, wanted, found)
            if len(found) == wanted:
                return Page(found[:-1], found[-2].seq)
            if ended:
                break
            now = time.monotonic()
            if now > deadline:
                return Page(found, self._before)
            # As far as time allows, going by this step: a cold disk is a hundred times slower.
            rows = int(rows * (deadline - now) / (now - began + 1e-6))
            rows = max(1, min(rows, self._effort.step))
        return Page(found, None)

    def costs(self, since: float) -> Costs:
        """What the tasks cost that hold, among the next ones of one stream."""
        chosen = self._choose(self._limit)
        if chosen is None:
            return Costs(0, None, None)
        stream, floor = chosen
        values = {**self._values, "before": self._before, "floor": floor, "since": since}
        values["wanted"] = self._limit
        number, cost = self._link.rows(costs(stream, self._others(stream)), **values)[0]
        return Costs(number, None if cost is None else int(cost), floor or None)

    def _simple(self, stream: Stream) -> Page[TaskBrief]:
        """A page of a stream that is in order by itself."""
        values = {**self._values, "before": self._before, "floor": 0, "wanted": self._limit + 1}
        row = self._link.rows(walk(stream, ()), **values)[0]
        found = _briefs(row[0])
        more = len(found) > self._limit
        return Page(found[: self._limit], found[self._limit - 1].seq if more else None)

    def _walk(self, rows: int, wanted: int, found: list[TaskBrief]) -> bool:
        """Go down one stream by so many rows, adding what holds; whether its end was reached."""
        chosen = self._choose(rows)
        if chosen is None:
            return True
        stream, floor = chosen
        values = {**self._values, "before": self._before, "floor": floor}
        values["wanted"] = wanted - len(found)
        found += _briefs(self._link.rows(walk(stream, self._others(stream)), **values)[0][0])
        self._before = floor
        return floor == 0

    def _choose(self, most: int) -> tuple[Stream, int] | None:
        """The stream to walk, the one that reaches furthest down with its next `most` tasks, and
        how far; None when some stream has no more. Moves `before` down to the newest task that all
        of them may have in common."""
        best, deepest, fewest, top = _EVERYTHING, _ABOVE_ALL, most + 1, self._before
        for stream in self._streams or [_EVERYTHING]:
            values = {**self._values, "before": self._before, "most": most}
            newest, oldest, number = self._link.rows(probe(stream), **values)[0]
            if not number:
                return None
            floor = oldest if number == most else 0
            if (floor, number) < (deepest, fewest):
                best, deepest, fewest = stream, floor, number
            top = min(top, newest + 1)
        self._before = top
        return best, deepest

    def _few(self, name: Name, step: int) -> bool:
        """Whether to read the names: at once if there are very few, and also if there are some
        and the first step has found too little."""
        if step < 2 and not self._few_names:
            most = self._effort.probed if step == 0 else self._effort.few_names
            values = {**self._values, "most": most}
            self._few_names = self._link.rows(count(name), **values)[0][0] < most
        return self._few_names

    def _sift(self, name: Name, rows: int, wanted: int, found: list[TaskBrief]) -> bool:
        """Go down the names by so many rows, adding what holds; whether their end was reached."""
        others = self._others(name)
        most = min(rows, 2 * wanted * 4**self._sifted if others else wanted)
        self._sifted += 1
        values = {**self._values, "before": self._before, "most": most}
        values["wanted"] = wanted - len(found)
        seen, lowest, joined = self._link.rows(sift(name, others), **values)[0]
        found += _briefs(joined)
        self._before = lowest or 0
        return bool(seen < most)

    def _others(self, stream: Stream) -> tuple[Filter, ...]:
        return tuple(f for f in self._filters if f is not stream)


def _briefs(joined: str | None) -> list[TaskBrief]:
    """Tasks from their joined fields. Aggregates promise no order, so they are sorted."""
    if not joined:
        return []
    fields = iter(joined.split(SEPARATOR))
    found = [
        TaskBrief(int(s), i, STATES[t]) for s, i, t in zip(fields, fields, fields, strict=True)
    ]
    found.sort(key=attrgetter("seq"), reverse=True)
    return found


def _possible(query: ListQuery) -> bool:
    """Whether anything can match: no stored text holds NUL or a lone surrogate. Raises InvalidInput
    for more tag filters than MOST_TAGS."""
    if len(set(query.tags)) > MOST_TAGS:
        problem = f"at most {MOST_TAGS} different tags can be asked for at once"
        raise InvalidInput([FieldError("tag_key", problem)])
    whose = query.visibility
    if whose.nothing:
        return False
    texts = [query.name_prefix, whose.owner or "", whose.tenant or ""]
    texts += (text for tag in query.tags for text in tag)
    try:
        return not any(b"\0" in text.encode() for text in texts)
    except UnicodeEncodeError:
        return False
