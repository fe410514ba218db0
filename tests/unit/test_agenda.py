"""What the scheduler looks at, and when."""

from __future__ import annotations

import math

from tesazure.scheduler.agenda import LONGEST_REST_S, ROUNDS_SHARE, Agenda


def after_a_round() -> Agenda:
    agenda = Agenda()
    assert agenda.take(0) is None
    return agenda


def test_all_is_looked_at_first_and_nothing_then() -> None:
    agenda = Agenda()
    assert agenda.due(5) <= 5
    assert agenda.take(5) is None
    assert agenda.take(5) == set()
    assert agenda.due(5) == math.inf


def test_what_was_acted_on_is_looked_at_alone() -> None:
    agenda = after_a_round()
    agenda.look_at("a")
    agenda.look_at("a")
    assert agenda.due(7) == 7
    assert agenda.take(7) == {"a"}
    assert agenda.take(7) == set()


def test_what_has_time_comes_when_it_is_due() -> None:
    agenda = after_a_round()
    agenda.look_later("b", 20)
    agenda.look_later("a", 10)
    assert agenda.due(0) == 10
    assert agenda.take(9.9) == set()
    assert agenda.take(10) == {"a"}
    assert agenda.due(10) == 20
    assert agenda.take(30) == {"b"}


def test_what_is_put_off_again_and_again_is_looked_at_once() -> None:
    agenda = after_a_round()
    for _ in range(3):
        agenda.look_later("a", 10)
    agenda.look_later("a", 11)
    assert agenda.take(10) == {"a"}
    assert agenda.due(10) == 11
    assert agenda.take(11) == {"a"}
    assert agenda.due(11) == math.inf
    agenda.look_later("a", 10)
    assert agenda.due(0) == 10


def test_a_round_takes_all_others_along() -> None:
    agenda = after_a_round()
    agenda.look_at("a")
    agenda.look_at_all()
    assert agenda.take(1) is None
    assert agenda.take(1) == set()


def test_rounds_take_their_share_of_the_time_and_hold_up_nothing_else() -> None:
    agenda = after_a_round()
    agenda.rest(0.1, 10)
    agenda.look_at_all()
    next_round = 10 + 0.1 / ROUNDS_SHARE - 0.1
    assert math.isclose(agenda.due(10), next_round)
    agenda.look_at("a")
    assert agenda.take(10.1) == {"a"}
    assert agenda.take(next_round - 0.01) == set()
    assert agenda.take(next_round) is None


def test_a_round_that_hung_is_not_waited_for_ten_times_as_long() -> None:
    agenda = after_a_round()
    agenda.rest(60, 100)
    agenda.look_at_all()
    assert agenda.due(100) == 100 + LONGEST_REST_S
