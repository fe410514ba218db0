"""Facts and observations for the tests of the life of a task."""

from __future__ import annotations

from tesazure.lifecycle import (
    Attempt,
    Facts,
    Observation,
    Phase,
    Policy,
)
from tesazure.model import State
from tesazure.report import Ended, Report

NOW = 1_000_000.0
HANDLE = {"dir": "/somewhere"}
POLICY = Policy(max_retries=2, retry_delay_s=1.5, grace_s=60, cancel_grace_s=30)
ALIVE = (Phase.PENDING, Phase.RUNNING)


def facts(state: State, *, attempt: bool = True, **changes: object) -> Facts:
    """A task in `state`, by default with a first attempt that was submitted 10 s ago."""
    fields = {"number": 1, "key": "k", "started": NOW - 10, "handle": HANDLE, "released": False}
    own = {name: value for name, value in changes.items() if name not in fields}
    fields |= {name: value for name, value in changes.items() if name in fields}
    newest = Attempt(**fields) if attempt else None  # type: ignore[arg-type]
    base = {"task_id": "t", "state": state, "max_runtime_s": 0.0, "attempt": newest}
    return Facts(**(base | own))  # type: ignore[arg-type]


def report(
    ended: State | None = None, *, events: int = 5, executor: bool = False, retryable: bool = False
) -> Report:
    """A report of some events."""
    end = Ended(time="T", state=ended, reason="why", retryable=retryable) if ended else None
    return Report(events=events, started=events > 0, executor_started=executor, ended=end)


def seen(phase: Phase, of: Report | None = None, reason: str = "") -> Observation:
    """An observation."""
    return Observation(phase, report(events=0) if of is None else of, reason)
