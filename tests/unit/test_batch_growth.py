"""When a pool is told to grow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from tesazure.backends.azure_batch.growth import FLOOR, SHORT, STALLED, Told, begin, grow, is_short
from tesazure.backends.azure_batch.pool_words import Look

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ERROR = (("AllocationFailed", "no"),)


def told(look: Look, waiting: int, before: Told | None = None, **more: object) -> Told | None:
    usual = {"slots": 4, "fallback": True, "fails": False, "now": NOW} | more
    return grow(before or Told(), look, waiting=waiting, **usual)  # type: ignore[arg-type]


def test_a_queue_in_an_empty_pool_asks_for_all_its_nodes() -> None:
    assert told(Look(maximum=20), 9) == Told(floor=3, floor_until=NOW + FLOOR)


def test_not_more_than_the_maximum() -> None:
    found = told(Look(maximum=5), 1000)
    assert found is not None
    assert found.floor == 5


def test_nodes_that_come_are_counted_as_free() -> None:
    assert told(Look(maximum=20, starting=2, target=2), 8) is None
    found = told(Look(maximum=20, starting=2, target=2), 9)
    assert found is not None
    assert found.floor == 3


def test_nodes_that_run_something_stay_beside_those_that_wait() -> None:
    found = told(Look(maximum=20, running=5, target=5), 4)
    assert found is not None
    assert found.floor == 6


def test_what_batch_wants_already_is_not_said_again() -> None:
    assert told(Look(maximum=20, target=3), 9) is None


def test_what_was_said_is_not_said_again_until_it_nears_its_end() -> None:
    said = Told(floor=3, floor_until=NOW + FLOOR)
    assert told(Look(maximum=20), 9, said) is None
    assert told(Look(maximum=20), 13, said) == Told(floor=4, floor_until=NOW + FLOOR)
    near = Told(floor=3, floor_until=NOW + timedelta(minutes=1))
    assert told(Look(maximum=20), 9, near) == Told(floor=3, floor_until=NOW + FLOOR)


def test_a_pool_begins_with_one_node() -> None:
    assert begin(NOW).floor == 1


def test_a_spot_pool_without_spot_nodes_gets_dedicated_ones_for_a_while() -> None:
    look = Look(maximum=20, spot=True, target=3, errors=ERROR)
    assert is_short(look)
    found = told(look, 9)
    assert found is not None
    assert found.dedicated_until == NOW + SHORT
    assert found.floor == 3
    assert told(look, 9, found) is None
    again = told(look, 9, found, now=NOW + SHORT)
    assert again is not None
    assert again.dedicated_until == NOW + 2 * SHORT


def test_without_fallback_it_waits() -> None:
    look = Look(maximum=20, spot=True, target=3, errors=ERROR)
    assert told(look, 9, fallback=False) is None


def test_some_spot_nodes_are_no_shortage() -> None:
    short = Look(spot=True, target=2, errors=ERROR)
    assert is_short(short)
    for change in (
        {"running": 1},
        {"spot": False},
        {"errors": ()},
        {"errors": (("AutoScalingFormulaEvaluationError", "x"),)},
        {"target": 0},  # an old error: none is wanted any more
    ):
        assert not is_short(msgspec.structs.replace(short, **change))


def test_a_pool_of_which_every_node_fails_has_one_until_one_works() -> None:
    broken = Look(maximum=20, target=20)
    assert told(broken, 99, fails=False) is None
    found = told(broken, 99, fails=True)
    assert found == Told(floor=1, floor_until=NOW + FLOOR, tries_one=True)
    trying = msgspec.structs.replace(broken, target=1, tries_one=True)
    assert told(trying, 99, found) is None
    assert told(msgspec.structs.replace(trying, starting=1), 99, found) is None
    works = told(msgspec.structs.replace(trying, idle=1), 99, found)
    assert works == Told(floor=20, floor_until=NOW + FLOOR)
    one_of_two = msgspec.structs.replace(broken, target=2, running=1)
    assert told(one_of_two, 0, fails=True) is None


def test_a_pool_without_a_formula_gets_one() -> None:
    halted = Look(maximum=20, target=3, running=3, scales=False)
    assert told(halted, 0) == Told(floor=0, floor_until=NOW + FLOOR)
    assert told(halted, 4) == Told(floor=4, floor_until=NOW + FLOOR)


def test_a_formula_that_batch_has_forgotten_is_given_again() -> None:
    look = Look(maximum=20, target=3, evaluated=NOW - STALLED - timedelta(seconds=1))
    assert told(look, 9) is not None
    assert told(look, 0) is None
    fresh = Look(maximum=20, target=3, evaluated=NOW - timedelta(minutes=5))
    assert told(fresh, 9) is None
