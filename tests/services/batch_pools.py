"""Pools of the Batch stand-in, their autoscaling, and what is told of their nodes.

Formulas are evaluated by `batch_formula`, or a function that the test gives decides. Sources:
"Batch service REST API reference": Pool, Compute Node, Account; "Create a formula to automatically
scale compute nodes in a Batch pool".
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.services.batch_columns import NODE_COLUMNS, POOL_COLUMNS
from tests.services.batch_fleet import Fleet
from tests.services.batch_formula import FormulaError, Samples, Value, evaluate
from tests.services.batch_odata import compile_filter, page, select, selected
from tests.services.batch_state import Node, Pool
from tests.services.batch_tasks import ID, Tasks, next_page
from tests.services.batch_wire import (
    TICKS_PER_SECOND,
    Refused,
    Reply,
    Request,
    format_http_time,
    format_time,
    invalid_value,
    parse_duration,
)
from tests.services.batch_world import World

_PROPERTIES = (
    "id displayName url eTag lastModified creationTime state stateTransitionTime allocationState"
    " allocationStateTransitionTime vmSize virtualMachineConfiguration resizeTimeout resizeErrors"
    " currentDedicatedNodes currentLowPriorityNodes targetDedicatedNodes targetLowPriorityNodes"
    " enableAutoScale autoScaleFormula autoScaleEvaluationInterval autoScaleRun"
    " enableInterNodeCommunication networkConfiguration startTask applicationPackageReferences"
    " taskSlotsPerNode taskSchedulingPolicy userAccounts metadata stats mountConfiguration identity"
    " upgradePolicy"
)
_NODE_PROPERTIES = (
    "id url state schedulingState stateTransitionTime lastBootTime allocationTime ipAddress"
    " affinityId vmSize totalTasksRun runningTasksCount runningTaskSlotsCount totalTasksSucceeded"
    " recentTasks startTask startTaskInfo errors isDedicated endpointConfiguration nodeAgentInfo"
    " virtualMachineInfo"
)
_STATES = {
    "creating": "creating",
    "idle": "idle",
    "offline": "offline",
    "preempted": "preempted",
    "rebooting": "rebooting",
    "reimaging": "reimaging",
    "running": "running",
    "starting": "starting",
    "startTaskFailed": "starttaskfailed",
    "leavingPool": "leavingpool",
    "unknown": "unknown",
    "unusable": "unusable",
    "waitingForStartTask": "waitingforstarttask",
    "upgradingOS": "upgradingos",
    "deallocated": "deallocated",
    "deallocating": "deallocating",
}
_MOST_SLOTS = 256
_SHORTEST_INTERVAL_S = 300.0
_LONGEST_INTERVAL_S = 168 * 3600.0


@dataclass(frozen=True)
class Demand:
    """What an evaluation may look at: a pool's formula, its tasks and nodes, and the time."""

    pool: str
    formula: str
    now_s: float
    slots_per_node: int
    active_tasks: int
    running_tasks: int
    active_slots: int
    running_slots: int
    dedicated_nodes: int
    spot_nodes: int
    usable_nodes: int
    preempted_nodes: int
    sample_percent: float = 100.0


Evaluation = Callable[[Demand], tuple[int, int]]
"""Targets: dedicated nodes and Spot nodes. May raise FormulaError."""


def usual_evaluation(demand: Demand) -> tuple[int, int]:
    """What the formula says. Raises FormulaError."""
    sampled = {
        "$ActiveTasks": demand.active_tasks,
        "$RunningTasks": demand.running_tasks,
        "$PendingTasks": demand.active_tasks + demand.running_tasks,
        "$CurrentDedicatedNodes": demand.dedicated_nodes,
        "$CurrentLowPriorityNodes": demand.spot_nodes,
        "$UsableNodeCount": demand.usable_nodes,
        "$PreemptedNodeCount": demand.preempted_nodes,
    }
    variables: dict[str, Value] = {
        name: Samples((float(number),), demand.sample_percent) for name, number in sampled.items()
    }
    variables["$TaskSlotsPerNode"] = float(demand.slots_per_node)
    found = evaluate(demand.formula, variables, demand.now_s)
    targets = [
        found.get(f"$Target{kind}Nodes", found.get(f"$Target{kind}", 0.0))
        for kind in ("Dedicated", "LowPriority")
    ]
    dedicated, spot = (max(0, int(each)) if isinstance(each, float) else -1 for each in targets)
    if dedicated < 0 or spot < 0:
        raise FormulaError("a target is no double")
    return dedicated, spot


class Pools:
    """The operations on pools and nodes."""

    def __init__(self, world: World, fleet: Fleet, tasks: Tasks) -> None:
        self.evaluation: Evaluation = usual_evaluation
        self._world, self._fleet, self._tasks = world, fleet, tasks

    # ------------------------------------------------------------------ pools

    def add(self, given: dict[str, Any]) -> Reply:
        """Pool_Add"""
        id_ = given["id"]
        if not ID.fullmatch(id_):
            raise invalid_value("id", id_, "letters, digits, - and _, at most 64")
        if self._world.pools.get(id_) is not None:
            raise Refused(409, "PoolExists", "The specified pool already exists.")
        if len(self._world.pools) >= self._fleet.quotas.pools:
            said = "Pool quota for the account has been reached."
            raise Refused(409, "PoolQuotaReached", said)
        self._check(given)
        pool = Pool(given, self._world.clock)
        self._world.pools.add(pool)
        self._tasks.adopt(pool)
        if pool.autoscales:
            self._evaluate_for_ever(pool)
        else:
            spot = given.get("targetLowPriorityNodes", 0)
            self._fleet.resize(pool, given.get("targetDedicatedNodes", 0), spot)
        where = f"{self._world.url}/pools/{pool.id}"
        return Reply(201, headers={"DataServiceId": where, "Location": where} | _version(pool))

    def get(self, id_: str, request: Request) -> Reply:
        """Pool_Get"""
        pool = self.find(id_)
        names = selected(request.query, _PROPERTIES)
        return Reply(200, select(pool.document(self._world.url), names), _version(pool))

    def exists(self, id_: str) -> Reply:
        """Pool_Exists"""
        pool = self._world.pools.get(id_)
        return Reply(404) if pool is None else Reply(200, headers=_version(pool))

    def list(self, request: Request) -> Reply:
        """Pool_List"""
        names = selected(request.query, _PROPERTIES)
        text = request.query.get("$filter")
        passes = compile_filter(text, POOL_COLUMNS) if text else None
        pools, url = self._world.pools, self._world.url
        found, following = page(
            pools.ids,
            request.query,
            lambda id_: passes is None or passes(pools.get(id_)),
            self._tasks.page_size,
        )
        value = [select(self.find(id_).document(url), names) for id_ in found]
        return next_page({"value": value}, request, following, url)

    def change(self, id_: str, given: dict[str, Any]) -> Reply:
        """Pool_Patch"""
        pool = self._find_alive(id_)
        pool.given = pool.given | given
        pool.touch()
        return Reply(200, headers=_version(pool))

    def replace(self, id_: str, given: dict[str, Any]) -> Reply:
        """Pool_UpdateProperties"""
        self.change(id_, given)
        return Reply(204, headers=_version(self.find(id_)))

    def delete(self, id_: str) -> Reply:
        """Pool_Delete: the nodes go, then the pool."""
        pool = self._find_alive(id_)
        pool.to("deleting")
        self._fleet.resize(pool, 0, 0)
        self._world.after(self._world.timing.deletion_s, lambda: self._remove(pool))
        return Reply(202)

    def resize(self, id_: str, given: dict[str, Any]) -> Reply:
        """Pool_Resize"""
        pool = self._find_alive(id_)
        if pool.autoscales:
            said = "The specified operation is not valid on the pool: it scales automatically."
            raise Refused(409, "OperationNotValidOnPool", said)
        _require_steady(pool)
        dedicated = given.get("targetDedicatedNodes", pool.targets[False])
        self._fleet.resize(pool, dedicated, given.get("targetLowPriorityNodes", pool.targets[True]))
        return Reply(202, headers=_version(pool))

    def stop_resize(self, id_: str) -> Reply:
        """Pool_StopResize"""
        pool = self._find_alive(id_)
        if pool.allocation == "resizing":
            pool.targets = {spot: pool.count(spot) for spot in (False, True)}
            pool.resize_errors = [{"code": "ResizeStopped", "message": "The resize was stopped"}]
            pool.allocate("steady")
        return Reply(202, headers=_version(pool))

    def enable_autoscale(self, id_: str, given: dict[str, Any]) -> Reply:
        """Pool_EnableAutoScale"""
        pool = self._find_alive(id_)
        now = time.monotonic()
        if now - pool.enabled_at < self._world.timing.between_enables_s:
            said = "Too many Enable Pool AutoScale requests are issued on the pool."
            raise Refused(503, "TooManyEnableAutoScaleRequests", said)
        if not pool.autoscales:
            _require_steady(pool)
        changed = pool.given | given | {"enableAutoScale": True}
        for name in ("targetDedicatedNodes", "targetLowPriorityNodes", "resizeTimeout"):
            changed.pop(name, None)
        self._check_autoscaling(changed)
        first = not pool.autoscales
        pool.given, pool.enabled_at = changed, now
        pool.touch()
        if first:
            self._evaluate_for_ever(pool)
        else:
            self._evaluate(pool)
        return Reply(200, headers=_version(pool))

    def disable_autoscale(self, id_: str) -> Reply:
        """Pool_DisableAutoScale"""
        pool = self._find_alive(id_)
        pool.given = {
            name: value for name, value in pool.given.items() if not name.startswith("autoScale")
        } | {"enableAutoScale": False}
        pool.run = None
        return Reply(200, headers=_version(pool))

    def evaluate_autoscale(self, id_: str, given: dict[str, Any]) -> Reply:
        """Pool_EvaluateAutoScale: tells what a formula would do."""
        pool = self._find_alive(id_)
        if not pool.autoscales:
            said = "The specified operation is not valid on the pool: autoscaling is not enabled."
            raise Refused(409, "OperationNotValidOnPool", said)
        wanted = self._wanted(self._demand(pool, given["autoScaleFormula"]))
        document = self._run(*wanted)
        return Reply(200, document, _version(pool))

    def find(self, id_: str) -> Pool:
        """Raises Refused."""
        pool = self._world.pools.get(id_)
        if pool is None:
            raise Refused(404, "PoolNotFound", "The specified pool does not exist.")
        return pool

    def _find_alive(self, id_: str) -> Pool:
        pool = self.find(id_)
        if pool.state == "deleting":
            said = "The specified pool has been marked for deletion and is being reclaimed."
            raise Refused(409, "PoolBeingDeleted", said)
        return pool

    def _check(self, given: dict[str, Any]) -> None:
        slots = given.get("taskSlotsPerNode", 1)
        if not 1 <= slots <= _MOST_SLOTS:
            raise invalid_value("taskSlotsPerNode", slots, f"between 1 and {_MOST_SLOTS}")
        if "virtualMachineConfiguration" not in given:
            said = "A required property was not specified in the request body."
            values = {"PropertyName": "virtualMachineConfiguration"}
            raise Refused(400, "MissingRequiredProperty", said, values)
        if given.get("enableAutoScale"):
            for name in ("targetDedicatedNodes", "targetLowPriorityNodes", "resizeTimeout"):
                if name in given:
                    raise invalid_value(name, given[name], "not with enableAutoScale")
            self._check_autoscaling(given)
        elif "autoScaleFormula" in given:
            raise invalid_value("autoScaleFormula", "…", "not without enableAutoScale")

    def _check_autoscaling(self, given: dict[str, Any]) -> None:
        self._wanted(self._demand(Pool(given, self._world.clock), given["autoScaleFormula"]))
        text = given.get("autoScaleEvaluationInterval", "PT15M")
        try:
            seconds = parse_duration(text)
        except ValueError:
            seconds = 0
        if not _SHORTEST_INTERVAL_S <= seconds <= _LONGEST_INTERVAL_S:
            reason = "between 5 minutes and 168 hours"
            raise invalid_value("autoScaleEvaluationInterval", text, reason)

    def _wanted(self, demand: Demand) -> tuple[int, int]:
        try:
            return self.evaluation(demand)
        except FormulaError as error:
            said = "The specified auto-scaling formula has a syntax error."
            raise Refused(
                400, "AutoScalingFormulaSyntaxError", said, {"Reason": str(error)}
            ) from error

    def _evaluate_for_ever(self, pool: Pool) -> None:
        if self._world.pools.get(pool.id) is not pool or pool.state != "active":
            return
        if pool.autoscales:
            self._evaluate(pool)
            interval = self._world.timing.autoscale_s
            self._world.after(interval, lambda: self._evaluate_for_ever(pool))

    def _evaluate(self, pool: Pool) -> None:
        demand = self._demand(pool, pool.given["autoScaleFormula"])
        try:
            dedicated, spot = self.evaluation(demand)
        except FormulaError as error:
            when = format_time(self._world.clock.now())
            said = {"code": "AutoScalingFormulaEvaluationError", "message": str(error)}
            pool.run = {"timestamp": when, "error": said}
            return
        pool.run = self._run(dedicated, spot)
        now = time.monotonic()
        if demand.active_slots or demand.running_slots:
            pool.busy_at = now
        if now - pool.busy_at < self._world.timing.shrink_s:
            dedicated, spot = max(dedicated, pool.targets[False]), max(spot, pool.targets[True])
        missing = pool.count(False) < dedicated or pool.count(True) < spot
        if missing or {False: dedicated, True: spot} != pool.targets:
            self._fleet.resize(pool, dedicated, spot)

    def _demand(self, pool: Pool, formula: str) -> Demand:
        active = [
            task
            for task in pool.waiting
            if task.state == "active" and task.job.tasks.get(task.id) is task
        ]
        running = [each.task for node in pool.nodes for each in node.running]
        return Demand(
            pool=pool.id,
            formula=formula,
            now_s=self._world.clock.now() / TICKS_PER_SECOND,
            slots_per_node=pool.slots,
            active_tasks=len(active),
            running_tasks=len(running),
            active_slots=sum(task.slots for task in active),
            running_slots=sum(task.slots for task in running),
            dedicated_nodes=pool.count(False),
            spot_nodes=pool.count(True),
            usable_nodes=sum(node.state in ("idle", "running") for node in pool.nodes),
            preempted_nodes=pool.count(True, "preempted"),
        )

    def _run(self, dedicated: int, spot: int) -> dict[str, Any]:
        """The AutoScaleRun."""
        results = (
            f"$TargetDedicatedNodes={dedicated};$TargetLowPriorityNodes={spot};"
            "$NodeDeallocationOption=requeue"
        )
        return {"timestamp": format_time(self._world.clock.now()), "results": results}

    def _remove(self, pool: Pool) -> None:
        for node in pool.nodes:
            self._fleet.remove(node)
        self._world.pools.remove(pool.id)

    # ------------------------------------------------------------------ nodes

    def nodes(self, id_: str, request: Request) -> Reply:
        """ComputeNode_List"""
        pool = self.find(id_)
        names = selected(request.query, _NODE_PROPERTIES)
        text = request.query.get("$filter")
        passes = compile_filter(text, NODE_COLUMNS) if text else None
        found, following = page(
            pool.nodes.ids,
            request.query,
            lambda each: passes is None or passes(pool.nodes.get(each)),
            self._tasks.page_size,
        )
        documents = [self.find_node(pool, each).document(self._world.url) for each in found]
        value = [select(document, names) for document in documents]
        return next_page({"value": value}, request, following, self._world.url)

    def node(self, id_: str, node_id: str, request: Request) -> Reply:
        """ComputeNode_Get"""
        pool = self.find(id_)
        names = selected(request.query, _NODE_PROPERTIES)
        document = self.find_node(pool, node_id).document(self._world.url)
        return Reply(200, select(document, names), _version(pool))

    def remove_nodes(self, id_: str, given: dict[str, Any]) -> Reply:
        """Pool_RemoveNodes"""
        pool = self._find_alive(id_)
        if pool.autoscales:
            # The reference does not say so; users saw it (BatchExplorer, issue 2082).
            said = "The specified operation is not valid on the pool: it scales automatically."
            raise Refused(409, "OperationNotValidOnPool", said)
        _require_steady(pool)
        for node_id in given["nodeList"]:
            node = self.find_node(pool, node_id)
            pool.targets[node.spot] = max(0, pool.targets[node.spot] - 1)
            self._fleet.remove(node)
        return Reply(202, headers=_version(pool))

    def reboot(self, id_: str, node_id: str) -> Reply:
        """ComputeNode_Reboot"""
        pool = self.find(id_)
        node = self.find_node(pool, node_id)
        self._fleet.fail(node, "rebooting", [])
        self._fleet.restore(node)
        return Reply(202, headers=_version(pool))

    def counts(self, request: Request) -> Reply:
        """Account_ListPoolNodeCounts"""
        wanted = request.query.get("$filter")
        only = re.fullmatch(r"poolId eq '([^']*)'", wanted) if wanted else None
        value = [
            {
                "poolId": pool.id,
                "dedicated": _counted(pool, False),
                "lowPriority": _counted(pool, True),
            }
            for pool in self._world.pools
            if only is None or only[1].lower() == pool.id.lower()
        ]
        return Reply(200, {"value": value})

    def find_node(self, pool: Pool, id_: str) -> Node:
        """Raises Refused."""
        node = pool.nodes.get(id_)
        if node is None:
            raise Refused(404, "NodeNotFound", "The specified node does not exist.")
        return node


def _counted(pool: Pool, spot: bool) -> dict[str, int]:
    counts = {name: pool.count(spot, state) for name, state in _STATES.items()}
    return counts | {"total": pool.count(spot)}


def _require_steady(pool: Pool) -> None:
    if pool.allocation != "steady":
        raise Refused(409, "PoolBeingResized", "The specified pool is being resized")


def _version(pool: Pool) -> dict[str, str]:
    return {"ETag": pool.etag, "Last-Modified": format_http_time(pool.modified)}
