"""storage.patience: how often is tried, and when."""

from __future__ import annotations

import re

import pytest

from tesazure.errors import StorageUnavailable
from tesazure.storage.patience import Again, Patience, Sparingly, pause_after, persist

HASTY = Patience(attempts=4, pause_s=0, progress_bytes=1000)


@pytest.mark.parametrize(("step", "tries"), [(0, 4), (100, 4), (300, 7), (400, 25), (5000, 25)])
def test_progress_is_summed_over_tries(step: int, tries: int) -> None:
    """Three tries that come 400 bytes further each are worth a thousand bytes."""
    done = 0

    def once() -> None:
        nonlocal done
        done += 1
        if done < 25:
            raise Again("broke")

    if tries == 25:
        persist(HASTY, "what", once, furthest=lambda: done * step)
    else:
        with pytest.raises(StorageUnavailable, match=r"what: broke \(4 attempts\)"):
            persist(HASTY, "what", once, furthest=lambda: done * step)
    assert done == tries


def test_pauses_are_spread() -> None:
    """Those of many who were told the same moment, too; never before it."""
    patience = Patience(pause_s=1, longest_pause_s=8, retry_after_s=100)
    for failures, told, least, most in (
        (1, 0, 0.5, 1),
        (9, 0, 4, 8),
        (5000, 0, 4, 8),
        (1, 60, 60, 75),
        (1, 1e9, 100, 125),
    ):
        pauses = [pause_after(patience, failures, told) for _ in range(200)]
        assert least <= min(pauses) < max(pauses) <= most
        assert max(pauses) - min(pauses) > (most - least) / 2


def test_what_is_waited_for_is_said_once() -> None:
    """And of many things that wait together, of the first one: others have to wait themselves."""
    said: list[str] = []
    patience = Patience(attempts=3, pause_s=0.001, say=Sparingly(said.append))
    for what in ("GET one", "GET two"):
        with pytest.raises(StorageUnavailable, match=what):
            persist(patience, what, _broken)
    [sentence] = said
    assert re.fullmatch(r"GET one: HTTP 503; tried again in 0\.0 s", sentence)


def test_nothing_is_said_of_what_is_not_wanted_any_more() -> None:
    said: list[tuple[str, str]] = []

    def stop(_: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        persist(Patience(say=lambda *words: said.append(words)), "GET one", _broken, stop)
    assert said == []


def _broken() -> None:
    raise Again("HTTP 503")
