"""Which tasks the scheduler looks at in a tick: what one task does costs the others nothing.

A task is looked at after something was done about it and when its time has come. All of them are
when the backend has news, which does not say of what, and every now and then; a round of all that
takes long is rare, so that thousands of tasks do not keep the processor busy.
"""

from __future__ import annotations

import heapq
import math

ROUNDS_SHARE = 0.1
"""Part of the time that rounds may take, unless the rest between them is the longest: those of more
than 0.22 s have a larger part."""
LONGEST_REST_S = 2.0
"""Seconds from the end of a round to the next that is wanted, at most, however long it took."""


class Agenda:
    """All times in seconds on the monotonic clock."""

    def __init__(self) -> None:
        self._soon: set[str] = set()
        self._later: list[tuple[float, str]] = []
        """A heap, without duplicates."""
        self._timed: set[tuple[float, str]] = set()
        """What is in it."""
        self._round_wanted = True
        self._round_due = 0.0

    def look_at(self, task_id: str) -> None:
        """Look at a task in the next tick."""
        self._soon.add(task_id)

    def look_later(self, task_id: str, when: float) -> None:
        """Look at it then, too."""
        entry = (when, task_id)
        if entry not in self._timed:
            self._timed.add(entry)
            heapq.heappush(self._later, entry)

    def look_at_all(self) -> None:
        """Look at all tasks as soon as it is time for a round."""
        self._round_wanted = True

    def due(self, now: float) -> float:
        """When the next tick has something to look at; infinite if never."""
        if self._soon:
            return now
        due = self._later[0][0] if self._later else math.inf
        return min(due, self._round_due) if self._round_wanted else due

    def take(self, now: float) -> set[str] | None:
        """What is to be looked at now, which is then no longer on the agenda; None: all tasks."""
        while self._later and self._later[0][0] <= now:
            entry = heapq.heappop(self._later)
            self._timed.remove(entry)
            self._soon.add(entry[1])
        taken, self._soon = self._soon, set()
        if self._round_wanted and now >= self._round_due:
            self._round_wanted = False
            return None
        return taken

    def rest(self, took: float, now: float) -> None:
        """A round has taken that long."""
        self._round_due = now + min(took * (1 / ROUNDS_SHARE - 1), LONGEST_REST_S)
