"""The Batch stand-in's nodes: they come when a pool wants them, start, fail, are preempted, and go.

Sources: "Nodes and pools in Azure Batch", "Use Spot VMs with Batch workloads", "Azure Batch best
practices", and the REST reference of Compute Node and Pool (resizeErrors).
"""

from __future__ import annotations

import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.services.batch_files import Failed
from tests.services.batch_nodes import Execution, Machine
from tests.services.batch_state import Node, Pool
from tests.services.batch_wire import format_time
from tests.services.batch_world import World

_CORES = re.compile(r"Standard_[A-Z]+?(\d+)", re.IGNORECASE)
_IDLE_OPTION = re.compile(r"\$NodeDeallocationOption\s*=\s*(\w+)")


@dataclass
class Quotas:
    """What the account may have, as a new one's might be; cores by kind, of all sizes together."""

    pools: float = 100
    jobs: float = 300
    dedicated_cores: float = math.inf
    spot_cores: float = math.inf


@dataclass
class Shortage:
    """Azure has no more than `most` nodes of a kind for a pool of these sizes; `spot` None: of
    either kind."""

    code: str = "AllocationFailed"
    said: str = "Desired number of nodes could not be allocated"
    spot: bool | None = None
    vm_size: str | None = None
    most: int = 0


@dataclass
class NodeScript:
    """What becomes of one new node: the state that it starts into, after how long, and why."""

    state: str = "idle"
    """idle, starttaskfailed, unusable, or starting (for ever)."""
    delay_s: float | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)


class Requeue(Protocol):
    """See `Tasks.requeue`."""

    def __call__(self, executions: Iterable[Execution], *, counts: bool) -> None: ...


def _nobody(executions: Iterable[Execution], *, counts: bool) -> None:
    """As long as there is nobody who has tasks."""


def cores(vm_size: str) -> int:
    """vCPUs of a size as its name tells: 2 of Standard_D2s_v5."""
    found = _CORES.match(vm_size)
    return int(found[1]) if found else 1


class Fleet:
    """Brings pools to their targets. All methods are called with the world's lock held."""

    def __init__(self, world: World, machine: Machine, schedule: Callable[[Pool], None]) -> None:
        self.quotas = Quotas()
        self.shortages: list[Shortage] = []
        self.scripts: deque[NodeScript] = deque()
        """Of the nodes that come next; those without one just work."""
        self._world, self._machine, self._schedule = world, machine, schedule
        self._number = 0
        self.losses_count = False
        """Whether requeueCount counts nodes that were preempted or failed. Documented is that it
        counts what users ask for: nodes that they remove, jobs that they disable
        ("BatchTaskExecutionInfo.RequeueCount")."""
        self.requeue: Requeue = _nobody
        """Ends executions, and puts their tasks back in the queue."""

    def resize(self, pool: Pool, dedicated: int, spot: int) -> None:
        """New targets, which nodes follow."""
        targets = {False: dedicated, True: spot}
        if targets != pool.targets:
            pool.resize_errors = []
        pool.targets = targets
        pool.allocate("resizing")
        self._world.after(0, lambda: self._allocate(pool))

    def settle(self, node: Node) -> None:
        """A node that was to go when its tasks have ended goes."""
        if not node.scheduling and not node.running and node.pool.allocation == "resizing":
            self._allocate(node.pool)

    def fail(
        self, node: Node, state: str, errors: list[dict[str, Any]], *, keeps: bool = False
    ) -> None:
        """A node becomes unusable or unknown, or its start task failed; it runs nothing more.
        `keeps`: what it ran Batch takes for running, as users report ("Handle unusable batch nodes
        due to full disk", issue 41 of CromwellOnAzure), until the node is removed."""
        node.errors = errors
        node.to(state)
        if not keeps:
            self.requeue(node.running, counts=self.losses_count)

    def preempt(self, node: Node) -> None:
        """Azure takes a Spot node back: what ran on it runs somewhere else, from its beginning."""
        node.to("preempted")
        self.requeue(node.running, counts=self.losses_count)
        self._drop(node)
        self._world.after(self._world.timing.replacement_s, lambda: self._replace(node))

    def _replace(self, node: Node) -> None:
        if node.state != "preempted" or node.pool.nodes.get(node.id) is not node:
            return
        if self._shortage_for(node.pool, True) is None:
            self.restore(node)
        else:
            self._world.after(self._world.timing.replacement_s, lambda: self._replace(node))

    def restore(self, node: Node) -> None:
        """A preempted node comes back, empty; one that reboots, too."""
        self._start(node, NodeScript())

    def remove(self, node: Node) -> None:
        """The node is gone."""
        node.pool.nodes.remove(node.id)
        node.to("leavingpool")
        self.requeue(node.running, counts=True)
        self._drop(node)

    def _drop(self, node: Node) -> None:
        """What is on the node is lost, as soon as what ran there has been killed."""
        root, node.root = node.root, None
        if root is not None:
            self._discard(root, list(node.running))

    def _discard(self, root: Path, killed: list[Execution]) -> None:
        if not all(each.over for each in killed):
            self._world.after(0.01, lambda: self._discard(root, killed))
            return
        threading.Thread(target=self._machine.discard, args=(root,), daemon=True).start()

    def _allocate(self, pool: Pool) -> None:
        if self._world.pools.get(pool.id) is not pool or pool.allocation == "steady":
            return
        pool.resize_errors = []
        for spot in (False, True):
            missing = pool.targets[spot] - pool.count(spot)
            if missing > 0:
                self._grow(pool, spot, missing)
            elif missing < 0:
                self._shrink(pool, spot, -missing)
        if pool.state == "deleting":
            return
        excess = any(pool.count(spot) > pool.targets[spot] for spot in (False, True))
        if not excess:
            pool.allocate("steady")

    def _grow(self, pool: Pool, spot: bool, missing: int) -> None:
        refused = self._shortage_for(pool, spot)
        if refused is not None:
            room = max(0, refused.most - pool.count(spot))
            missing, refused = min(room, missing), refused if room < missing else None
        room = self._room(pool, spot)
        if room < missing:
            missing = room
            kind = "LowPriority" if spot else ""
            said = f"The specified account has reached {'Spot' if spot else 'core'} quota"
            refused = Shortage(f"Account{kind}CoreQuotaReached", said)
        if refused is not None:
            reason = [{"name": "Reason", "value": refused.said}]
            error = {"code": refused.code, "message": refused.said, "values": reason}
            pool.resize_errors.append(error)
        for _ in range(missing):
            self._number += 1
            node = Node(
                f"tvmps_{self._number:08x}_{'p' if spot else 'd'}", pool, spot, self._world.clock
            )
            pool.nodes.add(node)
            self._start(node, self.scripts.popleft() if self.scripts else NodeScript())

    def _shortage_for(self, pool: Pool, spot: bool) -> Shortage | None:
        for shortage in self.shortages:
            if shortage.spot in (None, spot) and shortage.vm_size in (None, pool.vm_size):
                return shortage
        return None

    def _room(self, pool: Pool, spot: bool) -> int:
        quota = self.quotas.spot_cores if spot else self.quotas.dedicated_cores
        if quota == math.inf:
            return 1 << 30
        used = sum(each.count(spot) * cores(each.vm_size) for each in self._world.pools)
        return int(max(0, quota - used) // cores(pool.vm_size))

    def _shrink(self, pool: Pool, spot: bool, excess: int) -> None:
        option = _IDLE_OPTION.search(pool.given.get("autoScaleFormula", ""))
        patient = option is not None and option[1].lower() in ("taskcompletion", "retaineddata")
        order = sorted(
            (node for node in pool.nodes if node.spot == spot),
            key=lambda node: (len(node.running), node.scheduling),
        )
        for node in order[:excess]:
            if node.running and patient:
                node.scheduling = False
            else:
                self.remove(node)

    def _start(self, node: Node, script: NodeScript) -> None:
        delay = self._world.timing.node_start_s if script.delay_s is None else script.delay_s
        node.to("creating" if node.state == "creating" else "starting")

        def is_there() -> bool:
            return node.pool.nodes.get(node.id) is node and node.state in ("creating", "starting")

        def starting() -> None:
            if is_there():
                node.to("starting")

        def started() -> None:
            if is_there():
                self._started(node, script)

        self._world.after(delay / 2, starting)
        if script.state != "starting":
            self._world.after(delay, started)

    def _started(self, node: Node, script: NodeScript) -> None:
        node.booted = self._world.clock.now()
        node.errors = script.errors
        try:
            self._machine.prepare(node)
        except Failed as refused:
            error = {"code": refused.code, "message": refused.said, "errorDetails": []}
            node.errors = [*node.errors, error]
            node.to("unusable")
            return
        if node.pool.given.get("startTask"):
            failed = script.state == "starttaskfailed"
            node.start_task = {
                "state": "completed",
                "startTime": format_time(node.booted),
                "endTime": format_time(node.booted),
                "exitCode": int(failed),
                "retryCount": 0,
                "result": "failure" if failed else "success",
            }
        node.to(script.state)
        self._schedule(node.pool)
