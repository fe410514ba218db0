"""The life of a task: each case by name."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime

import msgspec
import pytest

from tesazure.lifecycle import (
    MOST_TOLD,
    TRANSITIONS,
    Advance,
    Bill,
    Cancel,
    Facts,
    Phase,
    Reclaim,
    Release,
    Retry,
    Submit,
    check,
    decide,
)
from tesazure.model import TERMINAL, State
from tesazure.report import Report, Started, fold
from tests.unit.lifecycle_cases import ALIVE, HANDLE, NOW, POLICY, facts, report, seen


def test_every_state_that_a_task_can_be_in_has_its_row() -> None:
    reachable = {State.QUEUED}
    while True:
        more = reachable.union(*(TRANSITIONS[state] for state in reachable))
        if more == reachable:
            break
        reachable = more
    assert reachable == set(TRANSITIONS)
    assert {state for state, after in TRANSITIONS.items() if not after} == TERMINAL


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_check_allows_what_the_table_has(old: State, new: State) -> None:
    if new in TRANSITIONS.get(old, ()):
        check(old, new)
    else:
        with pytest.raises(ValueError, match="illegal transition"):
            check(old, new)


def test_a_placed_attempt_is_submitted() -> None:
    assert decide(facts(State.QUEUED, handle=None), None, NOW, POLICY) == [Submit("k")]
    assert decide(facts(State.INITIALIZING, handle=None), None, NOW, POLICY) == [Submit("k")]


@pytest.mark.parametrize("state", [State.QUEUED, State.INITIALIZING])
def test_an_attempt_that_gets_no_access_ends(state: State) -> None:
    for number in range(1, POLICY.max_retries + 1):
        waiting = facts(state, number=number, handle=None, ungranted="why")
        [action] = decide(waiting, None, NOW, POLICY)
        assert action == Retry("why", POLICY.retry_delay_s, Report())
    last = facts(state, number=POLICY.max_retries + 1, handle=None, ungranted="why")
    said = (f"why; given up after attempt {POLICY.max_retries + 1}",)
    assert decide(last, None, NOW, POLICY) == [Advance(State.SYSTEM_ERROR, said=said)]
    begun = facts(State.CANCELING, handle=None, ungranted="why")
    assert decide(begun, None, NOW, POLICY) == [Reclaim("k")]


def test_a_queued_task_without_a_live_attempt_waits_for_placement() -> None:
    assert decide(facts(State.QUEUED, attempt=False), None, NOW, POLICY) == []
    assert decide(facts(State.QUEUED, released=True), None, NOW, POLICY) == []


@pytest.mark.parametrize("state", [State.INITIALIZING, State.RUNNING, State.CANCELING])
def test_nothing_is_done_about_what_was_not_seen(state: State) -> None:
    assert decide(facts(state), None, NOW, POLICY) == []


def test_a_live_task_without_an_attempt_is_a_fault() -> None:
    with pytest.raises(ValueError, match="without an attempt"):
        decide(facts(State.RUNNING, attempt=False), None, NOW, POLICY)


@pytest.mark.parametrize("phase", ALIVE)
def test_news_are_committed_once(phase: Phase) -> None:
    told = report(events=4)
    assert decide(facts(State.INITIALIZING), seen(phase, told), NOW, POLICY) == [
        Advance(None, told)
    ]
    known = facts(State.INITIALIZING, seen_events=4)
    assert decide(known, seen(phase, told), NOW, POLICY) == []


@pytest.mark.parametrize("phase", ALIVE)
def test_what_a_live_attempt_waits_for_is_committed_once(phase: Phase) -> None:
    nothing = report(events=0)
    waiting = seen(phase, nothing, "waiting for a node")
    assert decide(facts(State.INITIALIZING), waiting, NOW, POLICY) == [
        Advance(None, nothing, waits="waiting for a node")
    ]
    told = facts(State.INITIALIZING, told={"waiting for a node", "waiting for quota"})
    assert decide(told, waiting, NOW, POLICY) == []
    assert decide(told, seen(phase, nothing), NOW, POLICY) == []
    too_much = facts(State.INITIALIZING, told=set(map(str, range(MOST_TOLD))))
    assert decide(too_much, waiting, NOW, POLICY) == []


@pytest.mark.parametrize(
    ("limit_h", "credential_h", "waited_h", "is_placed_anew"),
    [
        (0, 168, 164.9, False),
        (0, 168, 165.1, True),
        (24, 168, 140.9, False),
        (24, 168, 141.1, True),
        (300, 168, 83.9, False),  # half of their life is waited for whatever the limit is
        (300, 168, 84.1, True),
        (0, 1, 0.4, False),
        (0, 1, 0.6, True),
        (0, 0, 10_000, False),
    ],
)
@pytest.mark.parametrize("number", [1, POLICY.max_retries + 1])
def test_an_attempt_that_waits_is_placed_anew_before_its_credentials_end(
    limit_h: float, credential_h: float, waited_h: float, is_placed_anew: bool, number: int
) -> None:
    policy = msgspec.structs.replace(POLICY, credential_s=credential_h * 3600)
    waiting = facts(
        State.INITIALIZING,
        number=number,
        max_runtime_s=limit_h * 3600,
        started=NOW - waited_h * 3600,
        told={"for a node"},
    )
    nothing = report(events=0)
    expected = [
        Release(HANDLE),
        Retry("it waited for a machine until its credentials were about to end", 1.5, nothing),
    ]
    decided = decide(waiting, seen(Phase.PENDING, nothing, "for a node"), NOW, policy)
    assert decided == (expected if is_placed_anew else [])
    assert decide(waiting, seen(Phase.RUNNING, nothing, "for a node"), NOW, policy) == []
    # What its log knows to have begun is not given up for what may be seen late.
    for state, events in ((State.INITIALIZING, 1), (State.RUNNING, 0), (State.RUNNING, 5)):
        begun = msgspec.structs.replace(waiting, state=state, seen_events=events)
        assert decide(begun, seen(Phase.PENDING, nothing, "for a node"), NOW, policy) == []


def test_running_begins_with_the_first_executor() -> None:
    told = report(executor=True)
    assert decide(facts(State.INITIALIZING), seen(Phase.RUNNING, told), NOW, POLICY) == [
        Advance(State.RUNNING, told)
    ]


@pytest.mark.parametrize("phase", [*ALIVE, Phase.EXITED, Phase.PREEMPTED, Phase.MISSING])
@pytest.mark.parametrize("end", [State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR])
def test_the_report_decides_the_end_whatever_the_backend_says(phase: Phase, end: State) -> None:
    told = report(end, executor=True)
    assert decide(facts(State.RUNNING), seen(phase, told), NOW, POLICY) == [
        Advance(end, told),
        Release(HANDLE),
    ]


@pytest.mark.parametrize("end", [State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR])
def test_a_task_that_ended_unseen_passes_running_if_an_executor_ran(end: State) -> None:
    told = report(end, executor=True)
    assert decide(facts(State.INITIALIZING), seen(Phase.EXITED, told), NOW, POLICY) == [
        Advance(State.RUNNING),
        Advance(end, told),
        Release(HANDLE),
    ]


def test_a_task_whose_inputs_failed_never_was_running() -> None:
    told = report(State.SYSTEM_ERROR)
    assert decide(facts(State.INITIALIZING), seen(Phase.EXITED, told), NOW, POLICY) == [
        Advance(State.SYSTEM_ERROR, told),
        Release(HANDLE),
    ]


def test_an_end_that_is_none_is_a_system_error() -> None:
    told = report(State.QUEUED)
    said = ("the runner reported an end that is none: QUEUED",)
    assert decide(facts(State.RUNNING), seen(Phase.EXITED, told), NOW, POLICY) == [
        Advance(State.SYSTEM_ERROR, told, said),
        Release(HANDLE),
    ]


LOSSES = [
    (Phase.EXITED, "the runner died before it finished", State.SYSTEM_ERROR),
    (Phase.MISSING, "the backend no longer knows the attempt", State.SYSTEM_ERROR),
    (Phase.PREEMPTED, "preempted", State.PREEMPTED),
]


@pytest.mark.parametrize(("phase", "what", "final"), LOSSES)
@pytest.mark.parametrize("state", [State.INITIALIZING, State.RUNNING])
def test_a_lost_attempt_is_repeated_and_in_the_end_given_up(
    phase: Phase, what: str, final: State, state: State
) -> None:
    lost = seen(phase, report(executor=state is State.RUNNING), "killed")
    for number in (1, 2):
        assert decide(facts(state, number=number), lost, NOW, POLICY) == [
            Advance(None, lost.report),
            Release(HANDLE),
            Retry(f"{what}: killed", 1.5, lost.report),
        ]
    said = (f"{what}: killed; given up after attempt 3",)
    assert decide(facts(state, number=3), lost, NOW, POLICY) == [
        Release(HANDLE),
        Advance(final, lost.report, said),
    ]


def test_without_a_reason_the_loss_stands_alone() -> None:
    assert decide(facts(State.RUNNING), seen(Phase.MISSING), NOW, POLICY)[1] == Retry(
        "the backend no longer knows the attempt", 1.5, report(events=0)
    )


def test_a_failure_of_the_node_is_repeated_one_of_the_task_is_not() -> None:
    node, task = report(State.SYSTEM_ERROR, retryable=True), report(State.SYSTEM_ERROR)
    exited = facts(State.INITIALIZING)
    assert decide(exited, seen(Phase.EXITED, node), NOW, POLICY) == [
        Advance(None, node),
        Release(HANDLE),
        Retry("why", 1.5, node),
    ]
    third = facts(State.INITIALIZING, number=3)
    assert decide(third, seen(Phase.EXITED, node), NOW, POLICY)[0] == Advance(
        State.SYSTEM_ERROR, node
    )
    assert decide(exited, seen(Phase.EXITED, task), NOW, POLICY)[0] == Advance(
        State.SYSTEM_ERROR, task
    )


@pytest.mark.parametrize("end", [State.COMPLETE, State.EXECUTOR_ERROR])
def test_the_tasks_own_end_is_never_repeated(end: State) -> None:
    told = report(end, executor=True, retryable=True)
    actions = decide(facts(State.RUNNING), seen(Phase.EXITED, told), NOW, POLICY)
    assert actions == [Advance(end, told), Release(HANDLE)]


def test_a_runner_that_somebody_else_stopped_is_repeated() -> None:
    told = report(State.CANCELED, executor=True)
    known = facts(State.RUNNING, seen_events=told.events)
    assert decide(known, seen(Phase.EXITED, told), NOW, POLICY) == [
        Release(HANDLE),
        Retry("the runner was told to stop, not by this server: why", 1.5, told),
    ]


@pytest.mark.parametrize("phase", ALIVE)
def test_an_attempt_far_past_its_limit_is_ended(phase: Phase) -> None:
    told = report()
    late = facts(State.INITIALIZING, max_runtime_s=20.0, started=NOW - 81)
    said = ("timed out: the attempt did not end within its limit of 20 s",)
    assert decide(late, seen(phase, told), NOW, POLICY) == [
        Release(HANDLE),
        Advance(State.SYSTEM_ERROR, told, said),
    ]
    within = facts(State.INITIALIZING, max_runtime_s=20.0, started=NOW - 79, seen_events=5)
    assert decide(within, seen(phase, told), NOW, POLICY) == []


@pytest.mark.parametrize(("since", "actions"), [(math.inf, 0), (NOW - 59, 0), (NOW - 61, 2)])
def test_an_end_that_could_not_be_told_has_the_grace_to_come(since: float, actions: int) -> None:
    """Of an attempt that may have ended in time while its report could not be written or read."""
    late = facts(State.RUNNING, max_runtime_s=20.0, started=NOW - 9000, seen_events=5)
    unheard = msgspec.structs.replace(seen(Phase.RUNNING, report()), since=since)
    assert len(decide(late, unheard, NOW, POLICY)) == actions


@pytest.mark.parametrize(("heard", "actions"), [(NOW - 8930, 0), (NOW - 8910, 2)])
def test_the_limit_is_judged_as_of_when_the_report_was_read(heard: float, actions: int) -> None:
    """An end may have come since."""
    late = facts(State.RUNNING, max_runtime_s=20.0, started=NOW - 9000, seen_events=5)
    read = msgspec.structs.replace(seen(Phase.RUNNING, report()), heard=heard)
    assert len(decide(late, read, NOW, POLICY)) == actions


def test_a_runner_that_has_ended_its_executors_may_upload_as_long_as_it_takes() -> None:
    late = facts(State.RUNNING, max_runtime_s=20.0, started=NOW - 9000, seen_events=5)
    uploading = report(executor=True)
    assert [type(a) for a in decide(late, seen(Phase.RUNNING, uploading), NOW, POLICY)] == [
        Release,
        Advance,
    ]
    uploading.executors_over = True
    assert decide(late, seen(Phase.RUNNING, uploading), NOW, POLICY) == []


def test_the_limit_counts_from_the_runners_start() -> None:
    late = facts(State.INITIALIZING, max_runtime_s=20.0, started=NOW - 9000)
    assert decide(late, seen(Phase.PENDING), NOW, POLICY) == []
    for age, actions in ((79, 0), (81, 2)):
        began = datetime.fromtimestamp(NOW - age, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        told = fold([Started(time=began)])
        seen_all = msgspec.structs.replace(late, seen_events=1)
        assert len(decide(seen_all, seen(Phase.RUNNING, told), NOW, POLICY)) == actions


@pytest.mark.parametrize("time", ["T", "0001-01-01T00:00:00+14:00", "2026-02-30T00:00:00Z", ""])
def test_a_start_that_makes_no_sense_counts_for_nothing(time: str) -> None:
    told = report()
    told.log.start_time = time
    late = facts(State.RUNNING, max_runtime_s=20.0, started=NOW - 81, seen_events=5)
    release, _ = decide(late, seen(Phase.RUNNING, told), NOW, POLICY)
    assert release == Release(HANDLE)
    within = facts(State.RUNNING, max_runtime_s=20.0, started=NOW - 79, seen_events=5)
    assert decide(within, seen(Phase.RUNNING, told), NOW, POLICY) == []


def test_a_release_for_lateness_that_was_cut_short_is_not_repeated_as_another_attempt() -> None:
    late = facts(State.RUNNING, max_runtime_s=20.0, started=NOW - 90)
    stopped = seen(Phase.EXITED, report(State.CANCELED, executor=True))
    actions = decide(late, stopped, NOW, POLICY)
    assert [type(action) for action in actions] == [Release, Advance]
    assert actions[1].state is State.SYSTEM_ERROR  # type: ignore[union-attr]


def test_lateness_does_not_undo_an_end() -> None:
    late = facts(State.RUNNING, max_runtime_s=20.0, started=NOW - 900)
    told = report(State.COMPLETE, executor=True)
    assert decide(late, seen(Phase.RUNNING, told), NOW, POLICY)[0] == Advance(State.COMPLETE, told)


def test_cancel_without_an_attempt_is_immediate() -> None:
    assert decide(facts(State.CANCELING, attempt=False), None, NOW, POLICY) == [
        Advance(State.CANCELED)
    ]
    assert decide(facts(State.CANCELING, released=True), None, NOW, POLICY) == [
        Advance(State.CANCELED)
    ]


def test_cancel_looks_for_what_an_interrupted_submit_left() -> None:
    assert decide(facts(State.CANCELING, handle=None), None, NOW, POLICY) == [Reclaim("k")]


@pytest.mark.parametrize("phase", ALIVE)
def test_cancel_asks_once_and_then_insists(phase: Phase) -> None:
    told = seen(phase, report(events=3))
    assert decide(facts(State.CANCELING), told, NOW, POLICY) == [Cancel(HANDLE)]
    asked = facts(State.CANCELING, cancel_asked=NOW - 29, seen_events=3)
    assert decide(asked, told, NOW, POLICY) == []
    behind = facts(State.CANCELING, cancel_asked=NOW - 29, seen_events=2)
    assert decide(behind, told, NOW, POLICY) == [Advance(None, told.report)]
    long_ago = facts(State.CANCELING, cancel_asked=NOW - 30)
    assert decide(long_ago, told, NOW, POLICY) == [
        Release(HANDLE),
        Advance(State.CANCELED, told.report),
    ]


@pytest.mark.parametrize("phase", [Phase.EXITED, Phase.PREEMPTED, Phase.MISSING])
def test_canceled_only_once_nothing_runs(phase: Phase) -> None:
    told = seen(phase, report(State.COMPLETE, executor=True))
    assert decide(facts(State.CANCELING), told, NOW, POLICY) == [
        Release(HANDLE),
        Advance(State.CANCELED, told.report),
    ]


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_an_ended_task_is_only_tidied(state: State) -> None:
    assert decide(facts(state), seen(Phase.RUNNING), NOW, POLICY) == [Release(HANDLE)]
    assert decide(facts(state, handle=None), None, NOW, POLICY) == [Reclaim("k")]
    assert decide(facts(state, released=True), None, NOW, POLICY) == []
    assert decide(facts(state, attempt=False), None, NOW, POLICY) == []


BILL = Bill(usd_per_hour=0.36, since=NOW - 100, facts={"vm_size": "a"})
COST = {
    "vm_size": "a",
    "estimated_cost_usd": "0.01",
    "estimated_cost_until": datetime.fromtimestamp(NOW, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
}


def bills(facts: Facts, phase: Phase, of: Report) -> list[dict[str, str]]:
    """What is decided about an observation with a bill: each of them that is to be written."""
    observed = msgspec.structs.replace(seen(phase, of), bill=BILL)
    found = decide(facts, observed, NOW, POLICY)
    return [each.bill for each in found if isinstance(each, Advance | Retry) and each.bill]


@pytest.mark.parametrize("phase", [Phase.EXITED, Phase.MISSING, Phase.PREEMPTED])
@pytest.mark.parametrize("number", [1, POLICY.max_retries + 1])
@pytest.mark.parametrize("events", [0, 5])
def test_a_lost_attempt_is_billed_once(phase: Phase, number: int, events: int) -> None:
    lost = facts(State.RUNNING, number=number)
    assert bills(lost, phase, report(events=events)) == [COST]


def test_an_attempt_that_has_to_be_ended_is_billed() -> None:
    late = facts(State.RUNNING, max_runtime_s=1.0, started=NOW - 1000)
    assert bills(late, Phase.RUNNING, report()) == [COST]
    stale = msgspec.structs.replace(POLICY, credential_s=5.0)
    waits = msgspec.structs.replace(seen(Phase.PENDING), bill=BILL)
    [_, again] = decide(facts(State.INITIALIZING), waits, NOW, stale)
    assert isinstance(again, Retry)
    assert again.bill == COST
    canceled = facts(State.CANCELING, cancel_asked=NOW - 100)
    assert bills(canceled, Phase.RUNNING, report()) == [COST]


def test_one_that_goes_on_is_not_billed_yet_and_one_that_ended_bills_itself() -> None:
    assert bills(facts(State.RUNNING), Phase.RUNNING, report()) == []
    assert bills(facts(State.CANCELING), Phase.RUNNING, report()) == []
    for end in (State.CANCELED, State.COMPLETE, State.SYSTEM_ERROR):
        assert bills(facts(State.RUNNING), Phase.EXITED, report(end)) == []
    assert bills(facts(State.CANCELING), Phase.EXITED, report(State.CANCELED)) == []


def test_a_loss_at_a_known_time_is_billed_until_then() -> None:
    bill = msgspec.structs.replace(BILL, until=NOW - 50)
    assert bill.metadata(NOW - 100, NOW)["estimated_cost_usd"] == "0.005"
    assert msgspec.structs.replace(BILL, usd_per_hour=None).metadata(NOW, NOW) == {"vm_size": "a"}
