"""One look at a pool: the pool, how many nodes are in which state, and those that run nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from tesazure.backends.azure_batch import autoscale, pool_words
from tesazure.backends.azure_batch.account import Account
from tesazure.backends.azure_batch.pool_words import Look

if TYPE_CHECKING:
    from azure.batch import BatchClient, models

_POOL = [
    "id",
    "state",
    "allocationState",
    "resizeErrors",
    "vmSize",
    "targetDedicatedNodes",
    "targetLowPriorityNodes",
    "enableAutoScale",
    "autoScaleFormula",
    "autoScaleRun",
    "metadata",
]
_NODE = ["id", "state", "stateTransitionTime", "errors", "startTaskInfo"]
_READ_NODES = 100
"""Nodes that run nothing, of which is read why."""
_BROKEN = ("unusable", "starttaskfailed")


class Seen(msgspec.Struct, frozen=True):
    """What a look showed."""

    pool: models.BatchPool
    look: Look
    bad: dict[str, str]
    """Node -> words."""
    since: dict[str, datetime]
    """Node that is broken -> when it became so."""

    def long_bad(self, patience: timedelta) -> list[str]:
        """Nodes that have been broken for so long, longest first."""
        late = datetime.now(UTC) - patience
        return sorted((n for n, at in self.since.items() if at < late), key=self.since.__getitem__)


async def look_at(account: Account, pool_id: str) -> Seen:
    """Two calls, and a third when nodes run nothing. Raises Gone, BackendUnavailable."""
    pool = await account.call("get a pool", lambda client: client.get_pool(pool_id, select=_POOL))
    counted = await account.call(
        "count nodes",
        lambda client: list(client.list_pool_node_counts(filter=f"poolId eq '{pool_id}'")),
    )
    counts = _counts(counted)
    nodes: list[models.BatchNode] = []
    if any(counts.get(state) for state in pool_words.BAD):
        nodes = await account.call("list nodes", lambda client: _bad_nodes(client, pool_id))
    bad = {node.id: pool_words.bad_node(text_of(node.state), _errors(node)) for node in nodes}
    look = Look(
        vm_size=pool.vm_size or "",
        state=text_of(pool.state),
        resizing=text_of(pool.allocation_state) != "steady",
        target=(pool.target_dedicated_nodes or 0) + (pool.target_low_priority_nodes or 0),
        idle=counts.get("idle", 0),
        running=counts.get("running", 0),
        starting=sum(
            counts.get(state, 0)
            for state in ("creating", "starting", "waitingforstarttask", "rebooting", "reimaging")
        ),
        preempted=counts.get("preempted", 0),
        errors=_pool_errors(pool),
        scales=bool(pool.enable_auto_scale),
        tries_one=autoscale.tries_one(pool.auto_scale_formula or ""),
        bad=tuple(sorted({f"a node {words}" for words in bad.values()})),
    )
    run = pool.auto_scale_run
    if run is not None and run.timestamp is not None:
        look = msgspec.structs.replace(look, evaluated=run.timestamp)
    since = {n.id: n.state_transition_time for n in nodes if text_of(n.state) in _BROKEN}
    return Seen(pool, look, {node: f"node {node} {words}" for node, words in bad.items()}, since)


def text_of(state: Any) -> str:
    """The value of what the SDK makes an enumeration, when it knows it."""
    return str(getattr(state, "value", state) or "").lower()


def _counts(counted: list[models.BatchPoolNodeCounts]) -> dict[str, int]:
    """State in lower case -> nodes, dedicated and Spot."""
    found: dict[str, int] = {}
    for pool in counted:
        for kind in (pool.dedicated, pool.low_priority):
            for name, count in (kind or {}).items():
                if name != "total":
                    found[name.lower()] = found.get(name.lower(), 0) + int(count)
    return found


def _bad_nodes(client: BatchClient, pool_id: str) -> list[models.BatchNode]:
    text = " or ".join(f"state eq '{state}'" for state in pool_words.BAD)
    found: list[models.BatchNode] = []
    for node in client.list_nodes(pool_id, filter=text, select=_NODE):
        found.append(node)
        if len(found) == _READ_NODES:
            break
    return found


def _errors(node: models.BatchNode) -> list[tuple[str, str]]:
    """Codes and messages, with the details of the first."""
    found = []
    for error in node.errors or ():
        details = [f"{each.name}: {each.value}" for each in error.error_details or ()]
        said = "; ".join(filter(None, [_line(error.message), *details]))
        found.append((error.code or "", said[:500]))
    start = node.start_task_info
    failed = start.failure_info if start is not None else None
    if failed is not None:
        found.append((failed.code or "", _line(failed.message)))
    elif start is not None and start.exit_code:
        found.append(("StartTaskFailed", f"its start task ended with exit code {start.exit_code}"))
    return found


def _pool_errors(pool: models.BatchPool) -> tuple[tuple[str, str], ...]:
    found = [(error.code or "", _line(error.message)) for error in pool.resize_errors or ()]
    failed = pool.auto_scale_run.error if pool.auto_scale_run is not None else None
    if failed is not None:
        found.append((failed.code or "", _line(failed.message)))
    return tuple(found)


def _line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[0][:300] if lines else ""
