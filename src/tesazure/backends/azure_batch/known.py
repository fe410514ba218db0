"""What is known of one attempt on Batch. No I/O."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import msgspec

from tesazure import report as reports
from tesazure.backends.azure_batch.words import Row
from tesazure.report import Report

MUTE_S = 86400.0
"""After so long, in seconds, a report that cannot be read never will be."""


@dataclass(slots=True)
class Known:
    """One attempt, as far as it is known."""

    job: str
    report: Report = field(default_factory=Report)
    read: int = 0
    """Bytes of the report that are folded into `report`."""
    torn: bytes = b""
    """The beginning of a line whose end has not been read."""
    begun: bool = False
    """There is a report: its runner has begun."""
    stripped: bool = False
    """Its secrets are no longer in storage."""
    row: Row | None = None
    node: str = ""
    """The node that it began on, or the last that it was to begin on: Batch need not tell any more
    when it has queued the task again."""
    looked_at: bool = False
    missing: bool = False
    lost: bool = False
    """It had begun when Batch queued it again."""
    started: float = math.inf
    """When Batch began it first, in seconds since the epoch."""
    alive: float = -math.inf
    """When it was last known to run, likewise."""
    reading: float = math.inf
    """Since when its report is being read, likewise; infinite: it is not."""
    heard: float = -math.inf
    """When the last reading began that came to its end, likewise."""
    mute: float = field(default_factory=time.time)
    """Since when its report cannot be read, likewise; infinite: it can."""
    audible: float = math.inf
    """Since when it can, likewise, if it can."""
    settled: bool = False
    """The report was read after the task had been seen completed: it tells nothing more."""
    since: float = field(default_factory=time.monotonic)
    asked: float = field(default_factory=time.monotonic)
    """When somebody last wanted to know of it, on the monotonic clock."""

    @property
    def over(self) -> bool:
        """Whether nothing more is to be learnt."""
        return self.report.ended is not None or self.settled or self.missing or self.lost

    @property
    def waits(self) -> bool:
        """Whether it waits for a node."""
        return not self.begun and (self.row is None or self.row.state == "active")

    @property
    def is_taken(self) -> bool:
        """Whether its node was taken from it."""
        return self.lost or (self.row is not None and self.row.is_taken(self.begun))

    @property
    def is_doubtful(self) -> bool:
        """Whether it has begun, and Batch said that it waits when that was not known yet: before it
        began, or once more. No list of changes need tell which."""
        return self.begun and self.row is not None and self.row.state == "active"

    def hear(self, begun: float, stuck_s: float) -> None:
        """Its report has been read, or there is nothing new in it. What has `begun` longer than
        `stuck_s` ago could not be done for a while."""
        now = time.time()
        if self.mute < math.inf or now - begun > stuck_s:
            self.audible = now
        self.heard = min(self.reading, begun)
        self.mute = self.reading = math.inf

    def miss(self) -> None:
        """Its report could not be read."""
        self.mute, self.reading = min(self.mute, time.time()), math.inf

    def hearing(self, stuck_s: float) -> tuple[float, float]:
        """Since when its report can be read, in seconds since the epoch (infinite: it cannot now),
        and when it was. One that never will be is as good as read."""
        now = time.time()
        if now - self.mute > MUTE_S:
            return -math.inf, math.inf
        if self.mute < math.inf or now - self.reading > stuck_s:
            return math.inf, self.heard
        return self.audible, self.heard

    def loses(self, row: Row) -> bool:
        """Whether Batch says now that its node was taken from it."""
        return (row.queued_again and self.begun) or row.is_taken(self.begun)

    def take(self, row: Row) -> bool:
        """Take note of what Batch says now; whether it is new."""
        before = self.row, self.lost
        self.row = row
        started = math.inf if row.started is None else row.started
        # Batch tells of the last time it did. Before its runner began, another node counts anew.
        self.started = min(self.started, started) if self.begun else started
        if not (self.begun and self.node):
            self.node = row.node or self.node
        # Only what was known to have begun before this look has begun before it was queued again.
        self.lost = self.lost or (row.queued_again and self.begun)
        return before != (self.row, self.lost)


def fold(known: Known, data: bytes) -> list[str]:
    """Carry a report on by what was read of it. What was wrong with lines that nobody understands,
    which are left out."""
    known.read += len(data)
    whole, newline, torn = (known.torn + data).rpartition(b"\n")
    known.torn = torn
    spoilt = []
    for line in (whole + newline).splitlines(keepends=True):
        try:
            reports.fold(reports.decode(line), known.report)
        except (msgspec.MsgspecError, IndexError, UnicodeDecodeError) as error:
            spoilt.append(str(error))
    return spoilt
