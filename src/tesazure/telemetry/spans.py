"""What took time, and what an attempt's report says of that. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

import msgspec

from tesazure.lifecycle import Observation, Phase
from tesazure.model import State
from tesazure.trace import Context, executor_span, span_of

LONGEST_TEXT = 1000
"""Characters of an error's text."""
MOST = 200
"""Executors, and stages, of one attempt that get a span each; a task could have millions."""

_LONGEST_NAME = 253
"""Characters of a host's name (RFC 1035): the report is the node's."""
_LAST_S = 2**63 / 1e9
"""Nanoseconds since the epoch are a number of 64 bits (in the year 2262)."""
Kind = Literal["server", "producer", "consumer", "client", "internal"]
Value = str | int | float
_LOST = {
    Phase.EXITED: "the runner died before it finished",
    Phase.MISSING: "the backend no longer knows the attempt",
    Phase.PREEMPTED: "preempted",
}
_STAGES = {
    "stage_in": ("stage in", "stage_in"),
    "pull": ("pull image", "image"),
    "stage_out": ("stage out", "stage_out"),
}
"""Stage -> the name of its span, and which of `report.CAUSES` says that it failed."""
_WELL = frozenset({State.COMPLETE, State.CANCELED})


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Something that took time, `start` and `end` in seconds since the epoch."""

    name: str
    context: Context
    parent: str
    """Id of the span that it is part of; empty: of none."""
    start: float
    end: float
    kind: Kind = "internal"
    attributes: dict[str, Value] = {}
    error: str = ""
    """Why it failed; empty: it did not."""
    node: str = ""
    """Name of the host on which a runner did it; empty: a server did."""


def about(key: str) -> dict[str, Value]:
    """What every span of the attempt `key` says."""
    return {"tesazure.task_id": key.rpartition("-")[0], "tesazure.attempt": key}


def is_over(seen: Observation) -> bool:
    """Whether nothing of the attempt will be added to its report."""
    return seen.report.ended is not None or seen.phase in _LOST


def attempt_span(
    key: str, context: Context, begun: float, ended: float, state: str, error: str
) -> Span:
    """An attempt as its server sees it, from its submission to when its end was seen. `context` is
    that of its task."""
    return Span(
        name="attempt",
        context=context.at(span_of(key, "attempt")),
        parent=context.span_id,
        start=begun,
        end=max(begun, ended),
        attributes={**about(key), "tesazure.state": state},
        error=error[:LONGEST_TEXT],
    )


def spans_of(
    key: str, context: Context, begun: float | None, seen: Observation, now: float
) -> list[Span]:
    """The spans of an attempt that is over, the outermost first. `begun`: when it was submitted, if
    that is known; else it begins with its report."""
    log = seen.report.log
    started, ended = _seconds(log.start_time), seen.report.ended
    begun = begun if begun is not None else started
    if begun is None:
        return []
    state = ended.state if ended else State.SYSTEM_ERROR
    if seen.phase is Phase.PREEMPTED and not ended:
        state = State.PREEMPTED
    error = ""
    if state not in _WELL:
        error = (ended.reason if ended else seen.reason or _LOST.get(seen.phase, "")) or state
    spans = [attempt_span(key, context, begun, now, state, error)]
    if started is not None:
        end = _seconds(log.end_time)
        runner = Span(
            name="runner",
            context=context.at(span_of(key, "runner")),
            parent=spans[0].context.span_id,
            start=started,
            end=max(started, now if end is None else end),
            kind="consumer",
            attributes=spans[0].attributes,
            error=spans[0].error,
            node=log.metadata.get("host", "")[:_LONGEST_NAME] or "unknown",
        )
        spans += [runner, *_stages(key, runner, seen), *_executors(key, runner, seen)]
    return spans


def _stages(key: str, runner: Span, seen: Observation) -> Iterator[Span]:
    stages, ended = seen.report.stages, seen.report.ended
    for number, stage in enumerate(stages[:MOST]):
        start, end = _seconds(stage.began), _seconds(stage.time)
        if start is not None and end is not None and stage.stage in _STAGES:
            name, cause = _STAGES[stage.stage]
            failed = stage is stages[-1] and ended is not None and ended.cause == cause
            yield msgspec.structs.replace(
                runner,
                name=name,
                context=runner.context.at(span_of(key, f"stage {number}")),
                parent=runner.context.span_id,
                start=start,
                end=max(start, end),
                kind="client",
                attributes={**about(key), "tesazure.bytes": stage.size},
                error=runner.error if failed else "",
            )


def _executors(key: str, runner: Span, seen: Observation) -> Iterator[Span]:
    for index, entry in enumerate(seen.report.log.logs[:MOST]):
        start, end = _seconds(entry.start_time), _seconds(entry.end_time)
        if start is None:
            continue
        attributes = {**about(key), "tesazure.executor": index}
        error = "" if end is not None else "it did not end"
        if isinstance(entry.exit_code, int):
            attributes["process.exit.code"] = entry.exit_code
            error = f"exit code {entry.exit_code}" if entry.exit_code else ""
        yield msgspec.structs.replace(
            runner,
            name="executor",
            context=runner.context.at(executor_span(key, index)),
            parent=runner.context.span_id,
            start=start,
            end=max(start, runner.end if end is None else end),
            kind="internal",
            attributes=attributes,
            error=error,
        )


def _seconds(time: object) -> float | None:
    """A report's time, in seconds since the epoch; None where there is none that can be sent: one
    span out of range has all that are sent with it refused, and the report is the node's."""
    try:
        seconds = datetime.fromisoformat(time).timestamp() if isinstance(time, str) else -1.0
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < _LAST_S else None
