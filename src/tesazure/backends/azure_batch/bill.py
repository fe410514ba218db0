"""What an attempt costs that comes to no end of its own, and so says nothing of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from fractions import Fraction

from tesazure.backends.azure_batch.known import Known
from tesazure.backends.azure_batch.shapes import Placement
from tesazure.lifecycle import Bill
from tesazure.model import TaskLog
from tesazure.runner.node import ExitCode

SHARE, PRICE = "vm_share", "vm_price_per_hour_usd"


def facts_of(placement: Placement, job: str) -> dict[str, str]:
    """Where an attempt is placed, and at what price, for its metadata."""
    shape = placement.shape
    facts = {
        "batch_job": job,
        SHARE: f"{placement.slots}/{shape.slots}",
    }
    if not shape.pool:  # of others' pools nothing is known
        facts["vm_size"] = shape.vm_size
        facts["vm_kind"] = "spot" if shape.spot else "dedicated"
    if placement.price_per_hour_usd is not None:
        facts[PRICE] = f"{placement.price_per_hour_usd:.6g}"
    return facts


def bill_of(known: Known, find: Callable[[str, int], Placement | None]) -> Bill | None:
    """For the time from when Batch began it to when it was lost, if it was. None while it has had
    no node. `find`: its placement, by its job and slots, as far as it is known without a report;
    what that says comes first, as it knows the node."""
    since = min(known.started, _began(known.report.log))
    if not math.isfinite(since):
        return None
    told = known.report.log.metadata
    facts = {}
    if SHARE not in told:
        placement = find(known.job, known.row.slots if known.row is not None else 1)
        if placement is not None:
            facts = facts_of(placement, known.job)
    return Bill(_per_hour(facts or told), since, _until(known), facts)


def _per_hour(facts: Mapping[str, str]) -> float | None:
    """In US dollars; None: not known."""
    try:
        return float(facts[PRICE]) * min(1.0, float(Fraction(facts[SHARE])))
    except (KeyError, ValueError, ZeroDivisionError):
        return None


def _until(known: Known) -> float | None:
    """When it was lost, in seconds since the epoch; None: it has its node."""
    row = known.row
    if not known.over:
        return None
    if known.missing or row is None:
        return max(known.alive, _heard(known.report.log))
    # A runner that leaves the attempt alone was begun elsewhere: by then it was lost.
    again = known.begun and row.exit_code == ExitCode.ALREADY_BEGUN
    return row.started if again else row.changed


def _began(log: TaskLog) -> float:
    """When its runner did, in seconds since the epoch; infinite: not known."""
    began = _epoch(log.start_time) if isinstance(log.start_time, str) else None
    return math.inf if began is None else began


def _heard(log: TaskLog) -> float:
    """The last time of which its report tells."""
    times = [each for one in log.logs for each in (one.start_time, one.end_time) if each]
    if isinstance(log.start_time, str):
        times.append(log.start_time)
    return max((at for at in map(_epoch, times) if at is not None), default=-math.inf)


def _epoch(time: str) -> float | None:
    """None for what is no time: a report is not trusted, and the others are looked at, too."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return None
