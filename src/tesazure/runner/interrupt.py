"""How an attempt is stopped from outside: SIGTERM cancels it, the clock ends it when it is late."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

Cause = Literal["canceled", "timed out"]

TICK_S = 1.0
GRACE_S = 5.0
"""What an interrupted attempt has for its orderly end, before it is ended from the handler."""


class Interrupted(BaseException):
    """The attempt is to end now. Not an Exception: nobody on the way may swallow it."""


class Interruption:
    """Turns the first SIGTERM, or the end of the time limit, into one `Interrupted`, raised in the
    main thread wherever it is; only while a container runs does it kill that instead, and
    `Engine.run` returns.

    Later signals change nothing, except that `GRACE_S` after the first one `overdue` is called: it
    is to write the end of the report and to leave the process.

    An alarm every `TICK_S` keeps the clock. It is needed for SIGTERM too: one that arrives just
    before the main thread blocks in a system call does not end that call, the next alarm does.
    """

    def __init__(self, overdue: Callable[[], None]) -> None:
        """Takes over SIGTERM and SIGALRM. Only in the main thread."""
        self.cause: Cause | None = None
        self._overdue = overdue
        self._armed = True
        self._kill: Callable[[], None] | None = None
        self._due = math.inf
        """When, on the monotonic clock, the limit is reached; after the cause, the grace."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGALRM, self._handle)
        self._tick(TICK_S)

    def limit(self, seconds: float) -> None:
        """Interrupt after that many seconds; 0: never."""
        if seconds and self.cause is None:
            self._due = time.monotonic() + seconds
            self._tick(seconds)

    def lift(self) -> None:
        """Take back the limit, unless an interruption is under way."""
        if self.cause is None:
            self._due = math.inf

    @contextmanager
    def killing(self, kill: Callable[[], None]) -> Iterator[None]:
        """While the body runs an interruption calls `kill` and raises nothing; `check` does so."""
        self._kill = kill
        try:
            yield
        finally:
            self._kill = None

    def check(self) -> None:
        """Raises Interrupted if there was an interruption that has not been raised."""
        if self.cause is not None and self._armed:
            self._armed = False
            raise Interrupted

    def disarm(self) -> None:
        """From now on nothing is raised. `overdue` still comes if an interruption is under way."""
        self._armed = False
        self.lift()

    def finish(self) -> None:
        """All is written: nothing comes any more."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _tick(self, first: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, min(first, TICK_S), TICK_S)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_due = time.monotonic() >= self._due
        if self.cause is not None:
            if is_due:
                self._overdue()
            return
        if not self._armed or not (is_due or number == signal.SIGTERM):
            return
        self.cause = "canceled" if number == signal.SIGTERM else "timed out"
        self._due = time.monotonic() + GRACE_S
        if self._kill is not None:
            self._kill()
        else:
            self._armed = False
            raise Interrupted
