"""How tasks end, as it is counted."""

from __future__ import annotations

import pytest

from tesazure.model import TERMINAL, State
from tesazure.report import CAUSES, Ended, Report
from tesazure.scheduler.ends import Ends, reason_of


def report(state: State, cause: str = "") -> Report:
    return Report(ended=Ended(time="", state=state, cause=cause))


@pytest.mark.parametrize(
    ("state", "told", "was_submitted", "reason"),
    [
        (State.COMPLETE, report(State.COMPLETE), True, ""),
        (State.CANCELED, None, False, ""),
        (State.CANCELED, report(State.CANCELED), True, ""),
        (State.PREEMPTED, Report(), True, "preempted"),
        (State.EXECUTOR_ERROR, report(State.EXECUTOR_ERROR, "executor"), True, "executor"),
        (
            State.EXECUTOR_ERROR,
            report(State.EXECUTOR_ERROR, "out_of_memory"),
            True,
            "out_of_memory",
        ),
        (State.SYSTEM_ERROR, report(State.SYSTEM_ERROR, "stage_in"), True, "stage_in"),
        (State.SYSTEM_ERROR, Report(), True, "lost"),
        # It was told to stop by somebody else, and is given up.
        (State.SYSTEM_ERROR, report(State.CANCELED), True, "lost"),
        (State.SYSTEM_ERROR, None, False, "no_access"),
        # An older runner tells none, one that is not ours anything.
        (State.SYSTEM_ERROR, report(State.SYSTEM_ERROR), True, "node"),
        (State.SYSTEM_ERROR, report(State.SYSTEM_ERROR, "x" * 10**6), True, "node"),
        (State.SYSTEM_ERROR, report(State.SYSTEM_ERROR, "executor"), True, "node"),
        (State.EXECUTOR_ERROR, report(State.EXECUTOR_ERROR, "stage_in"), True, "executor"),
    ],
)
def test_the_reason(state: State, told: Report | None, was_submitted: bool, reason: str) -> None:
    assert reason_of(state, told, was_submitted=was_submitted) == reason


def test_all_that_can_be_counted_is_there_from_the_beginning() -> None:
    ends = Ends()
    known = set(ends.counts)
    assert {state for state, _ in known} == TERMINAL
    assert {reason for _, reason in known} > CAUSES
    for state in TERMINAL:
        for cause in ("", *CAUSES):
            for told in (None, Report(), report(state, cause)):
                for was_submitted in (True, False):
                    ends.count(state, reason_of(state, told, was_submitted=was_submitted))
    assert set(ends.counts) - known <= {(State.EXECUTOR_ERROR, r) for r in ("lost", "no_access")}
