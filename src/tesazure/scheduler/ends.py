"""How tasks end, counted for metrics."""

from __future__ import annotations

from tesazure.model import State
from tesazure.report import CAUSES, Report

UNPLACEABLE = "unplaceable"
"""It can never run here: too large, or without access to its files."""
_NO_ACCESS = "no_access"
"""To its files, though it was asked for again and again."""
_LOST = "lost"
"""The runner died, disappeared, or did not keep the time limit."""
_PREEMPTED = "preempted"
_COMMANDS = frozenset({"executor", "out_of_memory"})
"""Of the causes that a runner tells, those that are the command's own."""
_REASONS = {
    State.COMPLETE: {""},
    State.CANCELED: {""},
    State.EXECUTOR_ERROR: _COMMANDS,
    State.SYSTEM_ERROR: {*(CAUSES - _COMMANDS), UNPLACEABLE, _NO_ACCESS, _LOST},
    State.PREEMPTED: {_PREEMPTED},
}


class Ends:
    """How many tasks this server has ended, by state and reason. All that there can be are known
    from the beginning: to Prometheus, a series that begins with 1 has not grown."""

    def __init__(self) -> None:
        self.counts = {(state, why): 0 for state, all_ in _REASONS.items() for why in sorted(all_)}

    def count(self, state: State, reason: str) -> None:
        """Count one."""
        self.counts[state, reason] = self.counts.get((state, reason), 0) + 1


def reason_of(state: State, report: Report | None, *, was_submitted: bool) -> str:
    """Why a task ended in `state`, which `lifecycle.decide` gave it."""
    reasons = _REASONS[state]
    if len(reasons) == 1:
        return next(iter(reasons))
    if not was_submitted:
        return _NO_ACCESS
    ended = report.ended if report is not None else None
    if ended is None or ended.state is not state:
        return _LOST
    if ended.cause in reasons:
        return ended.cause
    return "executor" if state is State.EXECUTOR_ERROR else "node"
