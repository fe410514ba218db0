"""Since when an attempt on Batch can be heard: before, its end may only not have come."""

from __future__ import annotations

import math
import time

from tesazure.backends.azure_batch.known import MUTE_S, Known

STUCK_S = 30.0


def since_of(known: Known) -> float:
    """Since when it can be heard."""
    return known.hearing(STUCK_S)[0]


def heard() -> Known:
    """One whose report was read just now."""
    known = Known("job")
    assert since_of(known) == math.inf
    known.reading = time.time()
    known.hear(known.reading, STUCK_S)
    return known


def test_however_rarely_it_is_read_it_can_be() -> None:
    """Or an attempt that hangs had no limit where looks take long."""
    known = heard()
    known.audible -= 7200
    since = known.audible
    for _ in range(3):
        known.reading = time.time() - STUCK_S + 1
        assert since_of(known) == since
        known.hear(known.reading, STUCK_S)
        assert since_of(known) == since


def test_it_cannot_be_after_a_failure_until_it_is_read_again() -> None:
    known = heard()
    known.audible -= 7200
    known.miss()
    assert since_of(known) == math.inf
    before = known.reading = time.time()
    known.hear(known.reading, STUCK_S)
    assert since_of(known) >= before


def test_it_cannot_be_while_reading_is_stuck() -> None:
    known = heard()
    known.audible -= 7200
    known.reading = time.time() - STUCK_S - 1
    assert since_of(known) == math.inf
    before = time.time()
    known.hear(known.reading, STUCK_S)
    assert since_of(known) >= before


def test_one_that_can_never_be_read_has_its_limit_all_the_same() -> None:
    known = heard()
    known.miss()
    known.mute -= MUTE_S + 1
    assert known.hearing(STUCK_S) == (-math.inf, math.inf)


def test_it_was_heard_when_its_reading_began() -> None:
    """What was written since is not known yet, however long ago that is by now."""
    known = heard()
    known.reading = began = time.time() - 20
    known.hear(began + 10, STUCK_S)
    assert known.hearing(STUCK_S)[1] == began
    known.reading = began + 15
    assert known.hearing(STUCK_S)[1] == began
    known.miss()
    assert known.hearing(STUCK_S) == (math.inf, began)
