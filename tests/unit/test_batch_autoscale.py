"""The formula of pools, as data: evaluated as the Batch stand-in does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from tesazure.backends.azure_batch.autoscale import INTERVAL, Scale, formula, tries_one
from tests.services.batch_formula import Samples, Value, evaluate

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=15)


def run(scale: Scale, *pending: float | None, now: datetime = NOW) -> dict[str, Value]:
    """With the last samples of the queue in ten minutes, half a minute apart; None: it is
    missing."""
    last: Sequence[float | None] = pending[-20:]
    known = tuple(float(each) for each in last if each is not None)
    samples = Samples(known, percent=100 * len(known) / 20)
    return evaluate(formula(scale), {"$PendingTasks": samples}, now.timestamp())


def nodes(scale: Scale, *pending: float | None, now: datetime = NOW) -> tuple[int, int]:
    """Dedicated, Spot; Batch cuts fractions off."""
    found = run(scale, *pending, now=now)
    dedicated, spot = (found[f"$Target{kind}Nodes"] for kind in ("Dedicated", "LowPriority"))
    assert isinstance(dedicated, float)
    assert isinstance(spot, float)
    return int(dedicated), int(spot)


def scale(**more: object) -> Scale:
    return Scale(**({"minimum": 0, "maximum": 20, "slots": 4} | more))  # type: ignore[arg-type]


def test_a_new_pool_has_what_the_server_asks_for_before_there_is_any_sample() -> None:
    asked = scale(floor=3, floor_until=LATER)
    assert nodes(asked) == (3, 0)
    assert run(asked)["$NodeDeallocationOption"] == "taskcompletion"


def test_without_tasks_and_word_of_the_server_there_are_no_nodes() -> None:
    assert nodes(scale()) == (0, 0)
    assert nodes(scale(), *[0] * 20) == (0, 0)


@pytest.mark.parametrize(("tasks", "found"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (79, 20)])
def test_as_many_nodes_as_tasks_fill(tasks: float, found: int) -> None:
    assert nodes(scale(), *[tasks] * 20) == (found, 0)


def test_never_more_than_the_maximum_whatever_is_asked() -> None:
    assert nodes(scale(), *[10_000] * 20) == (20, 0)
    assert nodes(scale(floor=50, floor_until=LATER)) == (20, 0)


def test_the_minimum_stays_without_tasks() -> None:
    assert nodes(scale(minimum=2), *[0] * 20) == (2, 0)


def test_a_pool_that_tries_one_node_has_one_and_says_so() -> None:
    asked = scale(minimum=2, floor=7, floor_until=LATER, tries_one=True)
    assert nodes(asked, *[10_000] * 20) == (1, 0)
    assert tries_one(formula(asked))
    assert not tries_one(formula(scale(maximum=1)))


def test_the_word_of_the_server_ends_by_itself() -> None:
    asked = scale(floor=7, floor_until=LATER)
    assert nodes(asked, now=LATER - timedelta(seconds=1)) == (7, 0)
    assert nodes(asked, now=LATER) == (0, 0)


def test_a_burst_counts_at_once_and_fades_slowly() -> None:
    assert nodes(scale(), *[0] * 19, 40) == (10, 0)
    assert nodes(scale(), *[40] * 19, 0) == (10, 0)
    assert nodes(scale(), *[40] * 10, *[0] * 10) == (5, 0)
    assert nodes(scale(), 4, *[0] * 20) == (0, 0)


def test_with_few_samples_the_last_counts() -> None:
    assert nodes(scale(), 8) == (2, 0)
    assert nodes(scale(), *[None] * 15, 40, 40, None, 12, None) == (3, 0)


def test_a_spot_pool_has_spot_nodes() -> None:
    assert nodes(scale(spot=True), *[8] * 20) == (0, 2)


def test_a_spot_pool_has_dedicated_nodes_while_there_are_no_spot_ones() -> None:
    short = scale(spot=True, dedicated_until=LATER)
    assert nodes(short, *[8] * 20) == (2, 0)
    assert nodes(short, *[8] * 20, now=LATER) == (0, 2)


def test_the_formula_is_within_the_limits_and_says_what_it_does() -> None:
    asked = scale(spot=True, floor=3, floor_until=LATER, dedicated_until=LATER, tries_one=True)
    text = formula(asked)
    assert len(text) < 8192
    assert text.count(";") <= 100
    assert text.count("//") >= 5
    assert timedelta(minutes=5) <= INTERVAL <= timedelta(hours=168)


def test_times_are_in_utc() -> None:
    east = LATER.astimezone(datetime.strptime("+0200", "%z").tzinfo)
    assert '"2026-11-22T12:15:00Z"' in formula(scale(floor=1, floor_until=east))
