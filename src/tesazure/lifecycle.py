"""The life of a task: the legal transitions, and `decide`, which says what to do next. Pure.

Every state change of a task is an `Advance` or a `Retry` returned from here. Source of the states:
GA4GH TES 1.1.0, tesState.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec

from tesazure.model import TERMINAL, State
from tesazure.money import estimate
from tesazure.report import Ended, Report

Handle = dict[str, Any]
"""Opaque JSON object that names an attempt on its backend; enough to adopt it after a restart."""


class Phase(StrEnum):
    """How an attempt stands, as far as its backend can tell."""

    PENDING = "pending"
    """Accepted; the runner has not begun."""
    RUNNING = "running"
    """The runner is alive."""
    EXITED = "exited"
    """The runner is gone. Without an `Ended` in the report it died."""
    PREEMPTED = "preempted"
    """The backend took the node away."""
    MISSING = "missing"
    """The backend knows no such attempt."""


class Bill(msgspec.Struct, frozen=True):
    """What an attempt costs, as its backend tells, for one whose runner cannot say so any more.
    Times in seconds since the epoch."""

    usd_per_hour: float | None
    """None: not known."""
    since: float
    until: float | None = None
    """None: it still has its machine."""
    facts: dict[str, str] = {}
    """Of the machine, for the metadata, where the report has none."""

    def metadata(self, placed: float, now: float) -> dict[str, str]:
        """Entries for the metadata of the attempt, which is over. What other clocks say counts as
        far as it fits the own one, by which the attempt was `placed` and it is `now`."""
        if self.usd_per_hour is None:
            return self.facts
        since = min(max(self.since, placed - CLOCKS_S), now + CLOCKS_S)
        until = max(since, min(now if self.until is None else self.until, now + CLOCKS_S))
        text = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            **self.facts,
            "estimated_cost_usd": estimate(until - since, self.usd_per_hour),
            "estimated_cost_until": text,
        }


CLOCKS_S = 900.0
"""How far the clocks of a backend and its nodes may be from the own one, in seconds: an attempt is
billed for no time outside of this."""


class Observation(msgspec.Struct, frozen=True):
    """What a backend saw of one attempt. `reason` is its own words, if it has any: why the attempt
    is lost, or what a live one waits for. `bill`: None where nothing has been used, or is paid.
    `since`: since when the report can be read, in seconds since the epoch (infinite: it cannot),
    and `heard`: when it was (infinite: just now)."""

    phase: Phase
    report: Report
    reason: str = ""
    bill: Bill | None = None
    since: float = -math.inf
    heard: float = math.inf


TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.INITIALIZING, State.SYSTEM_ERROR, State.CANCELING}),
    State.INITIALIZING: frozenset(
        {
            State.RUNNING,
            State.QUEUED,  # the attempt was lost and another one follows
            State.EXECUTOR_ERROR,
            State.SYSTEM_ERROR,
            State.PREEMPTED,
            State.CANCELING,
        }
    ),
    State.RUNNING: frozenset(
        {
            State.COMPLETE,
            State.EXECUTOR_ERROR,
            State.SYSTEM_ERROR,
            State.PREEMPTED,
            State.QUEUED,  # the attempt was lost and another one follows
            State.CANCELING,
        }
    ),
    State.CANCELING: frozenset({State.CANCELED}),
    **{state: frozenset() for state in TERMINAL},
}


class Policy(msgspec.Struct, frozen=True):
    """How attempts are retried: number of further attempts, and seconds before each."""

    max_retries: int = 2
    retry_delay_s: float = 1.0
    grace_s: float = 60.0
    """How long past its time limit the server waits for the runner to end the attempt itself; a
    node's clock may be off by less."""
    cancel_grace_s: float = 30.0
    """How long the runner may take to stop after it was asked to, before it is made to."""
    credential_s: float = 0.0
    """How long credentials are good that an attempt waits for its machine with; 0: it does not."""


MOST_TOLD = 50
"""Lines on what it waits for in an attempt's log: what changes more often tells nobody more."""
TRANSFERS_S = 3 * 3600.0
"""How long an attempt's credentials must be good at its beginning beside its time limit: its files
are brought and taken, and an identity's signatures end up to 75 minutes sooner than others."""


class Attempt(msgspec.Struct, frozen=True):
    """The newest attempt of a task. `started` in seconds since the epoch, of its placement."""

    number: int
    key: str
    started: float
    handle: Handle | None = None
    released: bool = False


class Facts(msgspec.Struct, frozen=True):
    """What is known of a task."""

    task_id: str
    state: State
    max_runtime_s: float
    """Limit of an attempt's stage-in and executors together, pulling images included, in seconds;
    0: none. The runner counts it; here it only backs up a runner that does not."""
    attempt: Attempt | None = None
    seen_events: int = 0
    """Events of the report that the committed TaskLog holds."""
    ungranted: str = ""
    """Why the attempt, not submitted yet, was given no access to its files by the last of the tries
    that there are."""
    cancel_asked: float | None = None
    """When this server first asked the backend to stop the attempt, in seconds since the epoch."""
    told: Collection[str] = ()
    """The backend's words on the live attempt that are in its log."""


class Submit(msgspec.Struct, frozen=True):
    """Place the attempt whose key is committed (again), commit its handle and INITIALIZING."""

    key: str


class Reclaim(msgspec.Struct, frozen=True):
    """Find what an interrupted submit left under this key, and commit its handle or its absence."""

    key: str


class Cancel(msgspec.Struct, frozen=True):
    """Ask the backend to stop the attempt."""

    handle: Handle


class Release(msgspec.Struct, frozen=True):
    """Have the backend end and delete all of the attempt. What follows in the same list happens
    only once this has succeeded, and is committed together with it."""

    handle: Handle


class Advance(msgspec.Struct, frozen=True):
    """Commit a state (None: unchanged) and the attempt's log, in one write."""

    state: State | None
    report: Report | None = None
    """None: the committed log stays as it is."""
    said: tuple[str, ...] = ()
    """Lines (level-less text) to add to system_logs, as errors."""
    waits: str = ""
    """What the backend says that the live attempt waits for, to add to system_logs."""
    bill: dict[str, str] = {}
    """Entries for the metadata of an attempt that is over and could not say what it cost."""


class Retry(msgspec.Struct, frozen=True):
    """Commit the attempt's log with its end, and QUEUED, for a new attempt after `delay_s`. One
    that was never submitted counts as INITIALIZING until then."""

    reason: str
    delay_s: float
    report: Report
    bill: dict[str, str] = {}
    """As Advance's."""


Action = Submit | Reclaim | Cancel | Release | Advance | Retry


def check(old: State, new: State) -> None:
    """Raises ValueError unless the table allows old -> new."""
    if new not in TRANSITIONS.get(old, frozenset()):
        raise ValueError(f"illegal transition {old} -> {new}")


def decide(facts: Facts, seen: Observation | None, now: float, policy: Policy) -> list[Action]:
    """What to do about a task that has been placed, is to be canceled or is to be released.

    `seen` is the observation of its newest attempt, None if there is none: nothing is then done
    that needs one. `now` in seconds since the epoch. A QUEUED task without a live attempt waits
    for placement, which is not decided here.
    """
    attempt = facts.attempt
    if facts.state in TERMINAL:
        return _tidy(attempt)
    if facts.state is State.CANCELING:
        return _cancel(facts, attempt, seen, now, policy)
    if facts.state is State.QUEUED:
        return _submit(facts, attempt, policy) if attempt and not attempt.released else []
    if attempt is None:
        raise ValueError(f"task {facts.task_id} is {facts.state} without an attempt")
    if attempt.handle is None:
        return _submit(facts, attempt, policy)
    if seen is None:
        return []
    return _follow(facts, attempt, attempt.handle, seen, now, policy)


def _submit(facts: Facts, attempt: Attempt, policy: Policy) -> list[Action]:
    reason = facts.ungranted
    if not reason:
        return [Submit(attempt.key)]
    if attempt.number <= policy.max_retries:
        return [Retry(reason, policy.retry_delay_s, Report())]
    return [
        Advance(State.SYSTEM_ERROR, said=(f"{reason}; given up after attempt {attempt.number}",))
    ]


def _tidy(attempt: Attempt | None) -> list[Action]:
    if attempt is None or attempt.released:
        return []
    return [Release(attempt.handle)] if attempt.handle else [Reclaim(attempt.key)]


def _cancel(
    facts: Facts, attempt: Attempt | None, seen: Observation | None, now: float, policy: Policy
) -> list[Action]:
    if attempt is None or attempt.released:
        return [Advance(State.CANCELED)]
    if attempt.handle is None:
        return [Reclaim(attempt.key)]
    if seen is None:
        return []
    if seen.phase in (Phase.PENDING, Phase.RUNNING):
        if facts.cancel_asked is None:
            return [Cancel(attempt.handle)]
        if now < facts.cancel_asked + policy.cancel_grace_s:
            return _news(facts, seen.report)
    bill = _bill(attempt, seen, now)
    return [Release(attempt.handle), Advance(State.CANCELED, seen.report, bill=bill)]


def _news(facts: Facts, report: Report, waits: str = "") -> list[Action]:
    """What keeps the committed log up with the report, and with the backend's words."""
    # Each is said once: they may change to and fro.
    waits = waits if waits not in facts.told and len(facts.told) < MOST_TOLD else ""
    is_news = bool(waits) or report.events > facts.seen_events
    return [Advance(None, report, waits=waits)] if is_news else []


def _follow(
    facts: Facts, attempt: Attempt, handle: Handle, seen: Observation, now: float, policy: Policy
) -> list[Action]:
    report, ended = seen.report, seen.report.ended
    limit = facts.max_runtime_s
    # As of when the report was read: an end may have come since.
    overdue = _is_overdue(attempt, report, limit, min(now, seen.heard) - policy.grace_s)
    alive = seen.phase in (Phase.PENDING, Phase.RUNNING)
    # An end that nobody could bring or read until just now has the grace to come.
    late = alive and ended is None and now > seen.since + policy.grace_s
    # A runner that ends as CANCELED was told to stop: here, by the release of an overdue attempt
    # which a crash of the server cut short; otherwise by somebody else, such as a shutdown.
    stopped = ended is not None and ended.state is State.CANCELED
    if overdue and (stopped or late):
        said = f"timed out: the attempt did not end within its limit of {limit:g} s"
        bill = _bill(attempt, seen, now)
        return [Release(handle), *_end(facts, report, State.SYSTEM_ERROR, (said,), bill)]
    if ended is not None and not stopped:
        return _finish(facts, attempt, handle, ended, report, policy)
    if ended is not None:
        what = f"the runner was told to stop, not by this server: {ended.reason}".rstrip(": ")
        return _lost(facts, attempt, handle, (what, State.SYSTEM_ERROR), seen, now, policy)
    if seen.phase is Phase.PENDING and _is_stale(facts, attempt, now, policy):
        what = "it waited for a machine until its credentials were about to end"
        return _again(facts, handle, what, report, policy, _bill(attempt, seen, now))
    if alive:
        return _live_on(facts, report, seen.reason)
    return _lost(facts, attempt, handle, _LOSSES[seen.phase], seen, now, policy)


def _live_on(facts: Facts, report: Report, waits: str) -> list[Action]:
    if report.executor_started and facts.state is State.INITIALIZING:
        return [Advance(State.RUNNING, report)]
    return _news(facts, report, waits)


def _is_overdue(attempt: Attempt, report: Report, limit: float, now: float) -> bool:
    """Whether a runner that began, and has executors left to run, is past the limit."""
    if not limit or not report.started or report.executors_over:
        return False
    began = attempt.started
    if isinstance(report.log.start_time, str):
        with contextlib.suppress(ValueError, OverflowError):  # a report is not trusted
            began = max(began, datetime.fromisoformat(report.log.start_time).timestamp())
    return now > began + limit


def _is_stale(facts: Facts, attempt: Attempt, now: float, policy: Policy) -> bool:
    """Whether an attempt that has not begun would begin with credentials that may end before it
    does. Another one has new ones: however often that happens the task does not end, though it
    counts as an attempt. What its log knows to have begun is never stale, whatever is seen."""
    if not policy.credential_s or facts.state is not State.INITIALIZING or facts.seen_events:
        return False
    needed = min(facts.max_runtime_s + TRANSFERS_S, policy.credential_s / 2)
    return now > attempt.started + policy.credential_s - needed


_LOSSES = {
    Phase.EXITED: ("the runner died before it finished", State.SYSTEM_ERROR),
    Phase.MISSING: ("the backend no longer knows the attempt", State.SYSTEM_ERROR),
    Phase.PREEMPTED: ("preempted", State.PREEMPTED),
}


def _finish(
    facts: Facts, attempt: Attempt, handle: Handle, ended: Ended, report: Report, policy: Policy
) -> list[Action]:
    if (
        ended.state is State.SYSTEM_ERROR
        and ended.retryable
        and attempt.number <= policy.max_retries
    ):
        return _again(facts, handle, ended.reason, report, policy)
    if ended.state in (State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR):
        return [*_end(facts, report, ended.state), Release(handle)]
    said = f"the runner reported an end that is none: {ended.state}"
    return [*_end(facts, report, State.SYSTEM_ERROR, (said,)), Release(handle)]


def _lost(
    facts: Facts,
    attempt: Attempt,
    handle: Handle,
    loss: tuple[str, State],
    seen: Observation,
    now: float,
    policy: Policy,
) -> list[Action]:
    what, final = loss
    report, bill = seen.report, _bill(attempt, seen, now)
    reason = f"{what}: {seen.reason}" if seen.reason else what
    if attempt.number <= policy.max_retries:
        return _again(facts, handle, reason, report, policy, bill)
    said = f"{reason}; given up after attempt {attempt.number}"
    return [Release(handle), *_end(facts, report, final, (said,), bill)]


def _bill(attempt: Attempt, seen: Observation, now: float) -> dict[str, str]:
    """For the metadata of an attempt that is over: a report with an end has said it."""
    if seen.bill is None or seen.report.ended is not None:
        return {}
    return seen.bill.metadata(attempt.started, now)


def _again(
    facts: Facts,
    handle: Handle,
    reason: str,
    report: Report,
    policy: Policy,
    bill: dict[str, str] | None = None,
) -> list[Action]:
    """Another attempt. What is known of this one is committed first: to release it may take as
    long as its engine is away."""
    again = Retry(reason, policy.retry_delay_s, report, bill or {})
    return [*_news(facts, report), Release(handle), again]


def _end(
    facts: Facts,
    report: Report,
    state: State,
    said: tuple[str, ...] = (),
    bill: dict[str, str] | None = None,
) -> list[Action]:
    """The writes that lead to a terminal state, by way of RUNNING if an executor did run."""
    passed = report.executor_started or state is State.COMPLETE
    first = [Advance(State.RUNNING)] if facts.state is State.INITIALIZING and passed else []
    return [*first, Advance(state, report, said, bill=bill or {})]
