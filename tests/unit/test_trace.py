"""Whose trace a task is part of, and which spans an attempt's report makes."""

from __future__ import annotations

import pytest

from tesazure.lifecycle import Observation, Phase
from tesazure.model import State, Task
from tesazure.plan import Defaults, make_plan
from tesazure.report import (
    AnyEvent,
    Ended,
    ExecutorEnded,
    ExecutorStarted,
    Noted,
    Passed,
    Started,
    decode,
    encode,
    fold,
)
from tesazure.telemetry.spans import MOST, Span, spans_of
from tesazure.trace import Context, executor_span, of_task, parse, span_of, submission

TRACE, PLACE = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TASK = "01a2054fc38157667a8d197fe6d1"
KEY = f"{TASK}-643f109f"
HERE = Context(TRACE, PLACE, sampled=True)


@pytest.mark.parametrize(
    ("text", "context"),
    [
        (f"00-{TRACE}-{PLACE}-01", HERE),
        (f"00-{TRACE}-{PLACE}-00", Context(TRACE, PLACE, sampled=False)),
        (f"00-{TRACE}-{PLACE}-03", HERE),  # a flag of level 2
        (f"01-{TRACE}-{PLACE}-01-and-more", HERE),  # of versions to come what is known is taken
        (f"00-{TRACE}-{PLACE}-01-and-more", None),
        (f"ff-{TRACE}-{PLACE}-01", None),
        (f"00-{TRACE.upper()}-{PLACE}-01", None),
        (f"00-{'0' * 32}-{PLACE}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-{PLACE}-1", None),
        (f" 00-{TRACE}-{PLACE}-01", None),
        (f"00-{TRACE}-{PLACE}-01\n", None),
        ("", None),
    ],
)
def test_a_context_is_read_as_w3c_has_it(text: str, context: Context | None) -> None:
    assert parse(text) == context


def test_a_context_is_written_as_it_is_read() -> None:
    for context in (HERE, Context(TRACE, PLACE, sampled=False)):
        assert parse(str(context)) == context


def test_a_task_finds_its_trace_by_its_id() -> None:
    context = of_task(TASK, 1)
    assert context == Context(f"7e5a{TASK}", TASK[-16:], sampled=True)
    assert parse(str(context)) == context
    assert submission(TASK) == context.span_id


@pytest.mark.parametrize("task_id", ["", "task", "é", "A" * 28, "0" * 27])
def test_what_is_no_id_of_ours_has_a_trace_all_the_same(task_id: str) -> None:
    context = of_task(task_id, 1)
    assert parse(str(context)) == context
    assert context.span_id == submission(task_id)


def test_the_ratio_decides_by_the_id_alone() -> None:
    ids = [f"01a2054fc381{number * 2**54 + 1:016x}" for number in range(1000)]
    for ratio in (0.0, 0.25, 1.0):
        share = sum(of_task(task_id, ratio).sampled for task_id in ids) / len(ids)
        assert share == pytest.approx(ratio, abs=0.01)


def test_a_plan_has_the_trace_that_the_tags_name() -> None:
    for tags, trace in (
        (None, ""),
        ({"traceparent": None}, ""),
        ({"traceparent": "nonsense"}, ""),
        ({"traceparent": str(HERE)}, str(HERE)),
    ):
        task = Task(executors=[], tags=tags)
        assert make_plan(TASK, task, Defaults(1, 1, 1, 0), []).trace == trace


def at(second: float) -> str:
    return f"2026-11-22T22:00:{second:09.6f}Z"


ZERO = 1795384800.0
"""That minute, in seconds since the epoch."""
BEGUN: list[AnyEvent] = [
    Started(time=at(1), pid=7, host="node-1"),
    Noted(time=at(1), metadata={"traceparent": str(HERE)}),
    Passed(time=at(3), stage="stage_in", began=at(2), size=5),
    Passed(time=at(4), stage="pull", began=at(3)),
    ExecutorStarted(time=at(4), index=0),
]
WHOLE: list[AnyEvent] = [
    *BEGUN,
    ExecutorEnded(time=at(6), index=0, exit_code=3, last=True),
    Passed(time=at(8), stage="stage_out", began=at(7), size=9),
    Ended(time=at(9), state=State.EXECUTOR_ERROR, reason="it failed", cause="executor"),
]


def spans(events: list[AnyEvent], phase: Phase, begun: float | None = ZERO) -> list[Span]:
    seen = Observation(phase, fold(decode(b"".join(map(encode, events)))), "the node says so")
    return spans_of(KEY, HERE, begun, seen, ZERO + 10)


def told(found: list[Span]) -> list[tuple[str, float, float, str]]:
    return [(span.name, span.start - ZERO, span.end - ZERO, span.error) for span in found]


def test_a_whole_report_makes_all_spans() -> None:
    found = spans(WHOLE, Phase.EXITED)
    assert told(found) == [
        ("attempt", 0, 10, "it failed"),
        ("runner", 1, 9, "it failed"),
        ("stage in", 2, 3, ""),
        ("pull image", 3, 4, ""),
        ("stage out", 7, 8, ""),
        ("executor", 4, 6, "exit code 3"),
    ]
    attempt, runner, *others = found
    assert (attempt.parent, attempt.context.span_id) == (PLACE, span_of(KEY, "attempt"))
    assert runner.parent == attempt.context.span_id
    assert {span.parent for span in others} == {runner.context.span_id}
    assert others[-1].context.span_id == executor_span(KEY, 0)
    assert [span.attributes.get("tesazure.bytes") for span in others] == [5, 0, 9, None]
    assert {span.context.trace_id for span in found} == {TRACE}
    assert len({span.context.span_id for span in found}) == len(found)
    assert {span.attributes["tesazure.attempt"] for span in found} == {KEY}
    assert [span.node for span in found] == ["", *["node-1"] * 5]


@pytest.mark.parametrize(
    ("cause", "marked"),
    [("image", ["pull image"]), ("stage_in", []), ("node", [])],
)
def test_the_stage_that_failed_is_marked(cause: str, marked: list[str]) -> None:
    ended = Ended(time=at(5), state=State.SYSTEM_ERROR, reason="it failed", cause=cause)
    found = spans([*BEGUN[:-1], ended], Phase.EXITED)
    assert [span.name for span in found[2:] if span.error] == marked


def test_the_same_report_makes_the_same_spans() -> None:
    assert spans(WHOLE, Phase.EXITED) == spans(WHOLE, Phase.RUNNING)


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        (Phase.EXITED, State.SYSTEM_ERROR),
        (Phase.MISSING, State.SYSTEM_ERROR),
        (Phase.PREEMPTED, State.PREEMPTED),
    ],
)
def test_a_torn_report_makes_the_spans_that_it_can(phase: Phase, state: State) -> None:
    found = spans(BEGUN, phase)
    assert told(found) == [
        ("attempt", 0, 10, "the node says so"),
        ("runner", 1, 10, "the node says so"),
        ("stage in", 2, 3, ""),
        ("pull image", 3, 4, ""),
        ("executor", 4, 10, "it did not end"),
    ]
    assert found[0].attributes["tesazure.state"] == state


def test_an_attempt_that_never_began_has_one() -> None:
    assert [span.name for span in spans([], Phase.PREEMPTED)] == ["attempt"]
    assert spans([], Phase.PREEMPTED, None) == []


def test_where_the_submission_is_not_known_the_report_begins_it() -> None:
    assert told(spans(WHOLE, Phase.EXITED, None))[0] == ("attempt", 1, 10, "it failed")


def test_times_that_make_no_sense_harm_nothing() -> None:
    events: list[AnyEvent] = [
        Started(time=at(5)),
        Passed(time=at(1), stage="stage_in", began=at(2)),
        Passed(time="?", stage="stage_out", began="?"),
        Passed(time=at(2), stage="unheard of", began=at(1)),
        ExecutorStarted(time=at(9)),
        ExecutorEnded(time=at(8)),
        Ended(time=at(3), state=State.COMPLETE),
    ]
    found = spans(events, Phase.EXITED)
    assert [span.name for span in found] == ["attempt", "runner", "stage in", "executor"]
    assert all(span.start <= span.end for span in found)
    assert found[1].node == "unknown"


@pytest.mark.parametrize(
    "time",
    [
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00",
        "1969-12-31T23:59:59Z",
        "2262-04-11T23:47:17Z",
        "9999-12-31T23:59:59-23:59",
    ],
)
def test_times_that_cannot_be_sent_are_none(time: str) -> None:
    stage = Passed(time=time, stage="pull", began=at(1))
    events: list[AnyEvent] = [Started(time=time), stage, Ended(time=time, state=State.COMPLETE)]
    assert told(spans(events, Phase.EXITED)) == [("attempt", 0, 10, "")]
    events[0] = Started(time=at(1))
    assert told(spans(events, Phase.EXITED)) == [("attempt", 0, 10, ""), ("runner", 1, 10, "")]


def test_a_task_cannot_make_spans_without_end() -> None:
    stage = Passed(time=at(1), stage="pull", began=at(1))
    executors = [ExecutorStarted(time=at(1), index=index) for index in range(MOST + 9)]
    found = spans([Started(time=at(1)), *[stage] * (MOST + 9), *executors], Phase.EXITED)
    assert len(found) == 2 + 2 * MOST


def test_errors_are_short() -> None:
    ended = Ended(time=at(2), state=State.SYSTEM_ERROR, reason="x" * 10**6)
    assert all(len(s.error) == 1000 for s in spans([Started(time=at(1)), ended], Phase.EXITED))
