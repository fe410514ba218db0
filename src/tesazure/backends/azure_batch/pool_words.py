"""What a pool waits for, in words that a scientist understands, with Batch's own code. Pure.

Numbers that change from look to look are left out: each new sentence is a line in the log of every
task that waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

_RESIZE_ERRORS = {
    "AccountCoreQuotaReached": (
        "the Batch account's quota of dedicated cores is used up; ask for more in the portal, under"
        " Quotas of the account"
    ),
    "AccountLowPriorityCoreQuotaReached": (
        "the Batch account's quota of Spot cores is used up; ask for more in the portal, under"
        " Quotas of the account"
    ),
    "AccountVMSeriesCoreQuotaReached": (
        "the Batch account's quota of cores for this family of VMs is used up; ask for more in the"
        " portal, under Quotas of the account"
    ),
    "AllocationFailed": "Azure could not allocate such nodes",
    "AllocationTimedOut": "Azure did not allocate such nodes in time",
    "InsufficientSubnetSize": "the subnet has too few free addresses; see BATCH_SUBNET_ID",
    "NoVmSizeAvailable": "Azure has no such VMs free in this region now",
    "PublicIPCountQuotaReached": (
        "the subscription's quota of public addresses is used up; ask for more, or see"
        " BATCH_PUBLIC_ADDRESSES"
    ),
    "RemoveNodesFailed": "Batch could not remove nodes",
    "ResizeStopped": "somebody stopped the pool's growth",
    "UnallocatableNodes": "Azure could not allocate such nodes",
}
_RESIZE_ERRORS["AccountSpotCoreQuotaReached"] = _RESIZE_ERRORS["AccountLowPriorityCoreQuotaReached"]
"""Batch's code -> what it means. Source: "Azure Batch pool and node errors", "Batch service quotas
and limits"."""

_NODE_STATES = {
    "unusable": "cannot be used",
    "starttaskfailed": "could not be made ready",
    "unknown": "does not answer",
    "preempted": "was taken away by Azure, as Spot nodes may be",
    "offline": "was taken out of use by somebody",
}
BAD = tuple(_NODE_STATES)
"""States of nodes that run nothing."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a pool. Numbers are of nodes."""

    vm_size: str = ""
    spot: bool = False
    state: str = "active"
    """active, deleting, or gone."""
    resizing: bool = False
    target: int = 0
    idle: int = 0
    running: int = 0
    starting: int = 0
    """On their way to idle."""
    preempted: int = 0
    maximum: int = 0
    """0: not ours to say."""
    errors: tuple[tuple[str, str], ...] = ()
    """Batch's code and message of each error of the last change of size, formula included."""
    evaluated: datetime = datetime(1, 1, 1, tzinfo=UTC)
    """When Batch last evaluated the formula; year 1: it has not."""
    scales: bool = True
    """Whether it has a formula that Batch evaluates."""
    tries_one: bool = False
    """Whether the formula is that of a pool of which every node has failed."""
    bad: tuple[str, ...] = ()
    """What is wrong with nodes that run nothing, in words that name none, each said once."""
    job: str = "active"
    """State of the job that attempts wait in."""

    @property
    def good(self) -> int:
        """Nodes that run or will run tasks."""
        return self.idle + self.running + self.starting

    @property
    def obstacles(self) -> tuple[tuple[str, str], ...]:
        """The errors that still hinder: those of a change of size are old when nodes are there."""
        return tuple(
            error for error in self.errors if is_of_formula(error[0]) or self.target > self.good
        )


def after(last: Look | None, look: Look) -> Look:
    """A look after another: while Batch tries anew it tells no errors, but those of the last try
    are all that is known."""
    if last is None or look.errors or not look.resizing:
        return look
    return msgspec.structs.replace(look, errors=last.errors)


def is_of_formula(code: str) -> bool:
    """Whether an error is of the pool's formula, not of nodes that Azure does not give."""
    return code.startswith("AutoScal")


def waiting(pool: str, look: Look | None) -> str:
    """What an attempt waits for whose task no node has taken yet."""
    if look is None:
        return f"waiting for a node of pool {pool}"
    if look.state == "gone":
        return f"pool {pool} is gone: somebody deleted it"
    if look.state == "deleting":
        return f"pool {pool} is being deleted"
    if look.job in ("disabling", "disabled"):
        return f"somebody has disabled its job on pool {pool}; it waits until the job is enabled"
    kind = f"{look.vm_size}, {'Spot' if look.spot else 'dedicated'}" if look.vm_size else ""
    begin = f"waiting for a node of pool {pool}" + (f" ({kind})" if kind else "")
    return f"{begin}: {_missing(look)}"


def _missing(look: Look) -> str:
    errors = "; ".join(dict.fromkeys(resize_error(*error) for error in look.obstacles))
    if look.good == 0:
        preempted = "Azure took its Spot nodes away, and others are asked for (preempted)"
        lost = preempted if look.preempted else ""
        bad = look.bad[0] if look.bad else ""
        if look.tries_one and bad:
            bad = f"no node of it works, so that one at a time is tried: {bad}"
        return errors or lost or bad or "nodes are asked for"
    if look.starting:
        return "nodes are starting"
    if errors and not look.idle:
        return f"all nodes that there are have work, and no more come: {errors}"
    if look.running >= look.maximum > 0:
        return "all nodes that it may have are busy (BATCH_MAX_NODES and quotas)"
    return "its turn comes when a node is free"


def resize_error(code: str, message: str) -> str:
    """In words, with the code."""
    meaning = _RESIZE_ERRORS.get(code)
    if meaning is None:
        return f"{message or 'the pool cannot grow'} ({code})"
    return f"{meaning} ({code})"


def bad_node(state: str, errors: Sequence[tuple[str, str]]) -> str:
    """What is wrong with a node that runs nothing, to follow what it is called. `errors`: Batch's
    codes and messages."""
    said = "; ".join(f"{message} ({code})" if message else code for code, message in errors)
    what = _NODE_STATES.get(state, f"is in state {state}")
    return f"{what}: {said}" if said else f"{what} ({state})"
