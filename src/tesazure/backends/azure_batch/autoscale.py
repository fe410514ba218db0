"""The formula by which Batch itself decides how many nodes a pool has. Pure text.

Batch evaluates it every few minutes, also while no server runs: pools grow with what waits and
shrink to their minimum when nothing does. Source: "Create a formula to automatically scale compute
nodes in a Batch pool".
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from tesazure.backends.azure_batch.growth import LONG_AGO

INTERVAL = timedelta(minutes=5)
"""Between evaluations: the shortest that Batch allows."""


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool's formula says. Numbers are of nodes, but for `slots`."""

    minimum: int
    maximum: int
    slots: int
    """Attempts that a node runs at once."""
    spot: bool = False
    floor: int = 0
    """Nodes wanted at least until `floor_until`: samples of the queue reach a formula minutes
    late, a server knows at once."""
    floor_until: datetime = LONG_AGO
    dedicated_until: datetime = LONG_AGO
    """Until then a Spot pool has dedicated nodes, as Azure has no Spot ones."""
    tries_one: bool = False
    """No more than one node, as none has worked."""


_ONE = "// Every node has failed: one is tried until one works."


def tries_one(formula: str) -> bool:
    """Whether a pool's formula was written for `tries_one`."""
    return _ONE in formula


def formula(scale: Scale) -> str:
    """The formula. Comments are part of it: it is read in the portal, too."""
    lines = [
        "// Written by tesazure, which rewrites it as tasks come.",
        f"minimum = {scale.minimum};",
        *([_ONE] if scale.tries_one else []),
        f"maximum = {1 if scale.tries_one else scale.maximum};",
        "// Tasks that a node runs at once.",
        f"slots = {scale.slots};",
        "// What the server asks for, for a while, before the samples below tell of it.",
        f"early = {_while_before(scale.floor_until, scale.floor)};",
        "// Tasks that wait or run: by the last sample, or the mean of ten minutes if it is more,",
        "// as nodes take minutes to come. Without enough samples: the last, if there is one.",
        "span = TimeInterval_Minute * 10;",
        "last = max(0, $PendingTasks.GetSample(1));",
        "sampled = $PendingTasks.GetSamplePercent(span);",
        "pending = sampled < 70 ? last : max(last, avg($PendingTasks.GetSample(span)));",
        "// Batch cuts fractions of nodes off.",
        "wanted = (pending + slots - 1) / slots;",
        "nodes = min(maximum, max(minimum, early, wanted));",
    ]
    if not scale.spot:
        lines += ["$TargetDedicatedNodes = nodes;", "$TargetLowPriorityNodes = 0;"]
    else:
        lines += [
            "// While Azure has no Spot nodes, dedicated ones.",
            f"dedicated = {_while_before(scale.dedicated_until, 1)};",
            "$TargetDedicatedNodes = dedicated ? nodes : 0;",
            "$TargetLowPriorityNodes = dedicated ? 0 : nodes;",
        ]
    lines += [
        "// A node that is not needed goes when its tasks have ended.",
        "$NodeDeallocationOption = taskcompletion;",
    ]
    return "\n".join(lines)


def _while_before(end: datetime, value: int) -> str:
    if value <= 0 or end <= LONG_AGO:
        return "0"
    return f'time() < time("{end.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}") ? {value} : 0'
