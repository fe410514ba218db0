"""How long systems are waited for, and how often a try that failed is repeated."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from tesazure.errors import StorageUnavailable
from tesazure.storage.base import Progress

T = TypeVar("T")

_TICK_S = 0.2
_QUIET_S = 10
"""Between two sentences: thousands of files may wait for one server."""


def _silent(_about: str, _text: str) -> None:
    """For whoever has nobody to tell."""


class Sparingly:
    """Says each thing once at most, and nothing within ten seconds of the last one."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` is called from any thread."""
        self._say = say
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._silent_until = 0.0

    def __call__(self, about: str, text: str) -> None:
        """Say `text`, unless something was said of `about` before."""
        now = time.monotonic()
        with self._lock:
            if now < self._silent_until or about in self._said:
                return
            self._said.add(about)
            self._silent_until = now + _QUIET_S
        self._say(f"{about}: {text}")


class Patience(msgspec.Struct, frozen=True):
    """How long to wait and how often to try. All times in seconds.

    The pause before the n-th retry is random, between half of and all of `pause_s` * 2^(n-1), at
    most `longest_pause_s`. A server's Retry-After counts up to `retry_after_s`, and up to a quarter
    more, so that not all who were told it come back at once. A transfer that came `progress_bytes`
    further, in however many tries, has its `attempts` anew. `say` hears before a pause what is
    waited for: what is asked, and why and how long.
    """

    attempts: int = 7
    connect_s: float = 15
    read_s: float = 60
    """Without a single byte: the connection has stalled."""
    pause_s: float = 0.5
    longest_pause_s: float = 30
    retry_after_s: float = 120
    progress_bytes: int = 2**20
    say: Callable[[str, str], None] = _silent


class Again(Exception):
    """One try failed in a way that another may not. `is_refusal`: because the server is asked for
    too much at once."""

    def __init__(self, reason: str, retry_after_s: float = 0, *, is_refusal: bool = False) -> None:
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.is_refusal = is_refusal
        super().__init__(reason)


def persist(
    patience: Patience,
    what: str,
    once: Callable[[], T],
    progress: Progress | None = None,
    furthest: Callable[[], int] = lambda: 0,
) -> T:
    """The result of `once`, called again after a pause while it raises Again.

    `furthest` tells how many bytes have come so far. Raises StorageUnavailable, which begins with
    `what`, when patience is spent.
    """
    failures, reached = 0, furthest()
    while True:
        try:
            return once()
        except Again as again:
            if furthest() - reached >= patience.progress_bytes:
                failures, reached = 0, furthest()
            failures += 1
            if failures >= patience.attempts:
                raise StorageUnavailable(f"{what}: {again.reason} ({failures} attempts)") from again
            pause = pause_after(patience, failures, again.retry_after_s)
            reason = again.reason
        if progress:
            progress(0)  # nothing is said of what is not wanted any more
        patience.say(what, f"{reason}; tried again in {pause:.1f} s")
        _sleep(pause, progress)


def pause_after(patience: Patience, failures: int, retry_after_s: float) -> float:
    """Seconds to wait after so many failures, when the server has asked for `retry_after_s`."""
    # An outage of hours is thousands of failures, and no float holds 2 to the power of 1024.
    pause = min(patience.pause_s * 2.0 ** min(failures - 1, 64), patience.longest_pause_s)
    told = min(retry_after_s, patience.retry_after_s)
    # They spread retries, and protect nothing.
    return max(pause * random.uniform(0.5, 1), told * random.uniform(1, 1.25))  # noqa: S311


def _sleep(seconds: float, progress: Progress | None) -> None:
    """Sleep, giving `progress` the chance to stop the transfer."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if progress:
            progress(0)
        time.sleep(min(left, _TICK_S))
