"""What a Batch account holds, as the stand-in keeps it: pools, nodes, jobs, tasks, and their JSON.

Source: "Batch service REST API reference" (2024-07-01.20.0): Pool, Job, Task, Compute Node. Ids
keep their case and are found in any.
"""

from __future__ import annotations

import math
import secrets
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tests.services.batch_wire import Clock, format_time

if TYPE_CHECKING:
    from tests.services.batch_nodes import Execution

FOREVER = "P10675199DT2H48M5.4775807S"
"""What Batch answers for a limit of time that was not set."""


class Named:
    """Anything with an id, a state, an ETag and times."""

    def __init__(self, id_: str, state: str, clock: Clock) -> None:
        self.id, self._clock = id_, clock
        self.state = state
        self.previous: str | None = None
        self.created = self.modified = self.changed = clock.now()
        self.changed_before: int | None = None
        self.tag = secrets.token_hex(7)

    def to(self, state: str) -> None:
        """Another state, now."""
        if state == self.state:
            return
        self.previous, self.changed_before = self.state, self.changed
        self.state, self.changed = state, self._clock.now()

    def touch(self) -> None:
        """It was changed by a request."""
        self.modified, self.tag = self._clock.now(), secrets.token_hex(7)

    @property
    def etag(self) -> str:
        """Of this version."""
        return f"0x8D{self.tag.upper()}"

    def head(self, url: str) -> dict[str, Any]:
        """The properties that all have."""
        return {
            "id": self.id,
            "url": url,
            "eTag": self.etag,
            "lastModified": format_time(self.modified),
            "creationTime": format_time(self.created),
            "state": self.state,
            "stateTransitionTime": format_time(self.changed),
        }

    def before(self) -> dict[str, Any]:
        """The state before, of those that show it."""
        if self.previous is None or self.changed_before is None:
            return {}
        return {
            "previousState": self.previous,
            "previousStateTransitionTime": format_time(self.changed_before),
        }


Item = TypeVar("Item", bound=Named)


class Collection(Generic[Item]):
    """Named things, found by id in any case and listed in the order of their ids."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self.ids: list[str] = []
        """In lower case, sorted."""

    def add(self, item: Item) -> None:
        """Under its id, which is free."""
        self._items[item.id.lower()] = item
        insort(self.ids, item.id.lower())

    def get(self, id_: str) -> Item | None:
        """None when there is none."""
        return self._items.get(id_.lower())

    def remove(self, id_: str) -> None:
        """Succeeds when there is none."""
        if self._items.pop(id_.lower(), None) is not None:
            del self.ids[bisect_left(self.ids, id_.lower())]

    def __iter__(self) -> Iterator[Item]:
        return iter(list(self._items.values()))

    def __len__(self) -> int:
        return len(self._items)


class Task(Named):
    """A task. `given` is what was posted."""

    def __init__(self, given: dict[str, Any], job: Job, clock: Clock) -> None:
        super().__init__(given["id"], "active", clock)
        self.given, self.job = given, job
        self.execution: Execution | None = None
        """On the node that it was last placed on."""
        self.started: int | None = None
        self.ended: int | None = None
        self.exit_code: int | None = None
        self.failure: dict[str, Any] | None = None
        self.container: dict[str, Any] | None = None
        self.requeues = self.retries = 0
        self.requeued: int | None = None
        self.retried: int | None = None

    @property
    def slots(self) -> int:
        """requiredSlots"""
        return int(self.given.get("requiredSlots", 1))

    @property
    def constraints(self) -> dict[str, Any]:
        """With what was not given."""
        usual: dict[str, Any] = {"maxTaskRetryCount": 0}
        usual |= {"maxWallClockTime": FOREVER, "retentionTime": "P7D"}
        usual |= self.given.get("constraints", {})
        return usual

    @property
    def result(self) -> str | None:
        """success, failure, or None before its end."""
        if self.state != "completed":
            return None
        return "failure" if self.failure else "success"

    def document(self, url: str) -> dict[str, Any]:
        """The CloudTask; `url` is the account's."""
        own = f"{url}/jobs/{self.job.id}/tasks/{self.id}"
        found: dict[str, Any] = self.given | self.head(own) | self.before()
        found |= {
            "constraints": self.constraints,
            "requiredSlots": self.slots,
            "executionInfo": self._execution_info(),
        }
        found.setdefault(
            "userIdentity", {"autoUser": {"scope": "pool", "elevationLevel": "nonadmin"}}
        )
        if self.execution is not None:
            found["nodeInfo"] = self.execution.node_info(url)
        return found

    def _execution_info(self) -> dict[str, Any]:
        times = {
            "startTime": self.started,
            "endTime": self.ended,
            "lastRetryTime": self.retried,
            "lastRequeueTime": self.requeued,
        }
        found: dict[str, Any] = {
            name: format_time(ticks) for name, ticks in times.items() if ticks is not None
        }
        others = {
            "exitCode": self.exit_code,
            "containerInfo": self.container,
            "failureInfo": self.failure,
            "result": self.result,
        }
        found |= {name: value for name, value in others.items() if value is not None}
        return found | {"retryCount": self.retries, "requeueCount": self.requeues}


class Job(Named):
    """A job and its tasks."""

    def __init__(self, given: dict[str, Any], clock: Clock) -> None:
        super().__init__(given["id"], "active", clock)
        self.given = given
        self.tasks: Collection[Task] = Collection()
        self.ended: int | None = None
        self.reason: str | None = None
        """terminateReason"""

    @property
    def pool_id(self) -> str:
        """Of the pool that its tasks run on."""
        return str(self.given["poolInfo"].get("poolId", ""))

    def document(self, url: str) -> dict[str, Any]:
        """The CloudJob."""
        info = {"startTime": format_time(self.created), "poolId": self.pool_id}
        if self.ended is not None:
            info |= {
                "endTime": format_time(self.ended),
                "terminateReason": self.reason or "UserTerminate",
            }
        usual: dict[str, Any] = {
            "usesTaskDependencies": False,
            "priority": 0,
            "maxParallelTasks": -1,
            "allowTaskPreemption": False,
            "onAllTasksComplete": "noaction",
            "onTaskFailure": "noaction",
        }
        limits = {"maxWallClockTime": FOREVER, "maxTaskRetryCount": 0}
        found = usual | self.given | self.head(f"{url}/jobs/{self.id}") | self.before()
        return found | {
            "constraints": limits | self.given.get("constraints", {}),
            "executionInfo": info,
        }


class Node(Named):
    """A compute node. `root` is its AZ_BATCH_NODE_ROOT_DIR, None for a simulated one."""

    def __init__(self, id_: str, pool: Pool, spot: bool, clock: Clock) -> None:
        super().__init__(id_, "creating", clock)
        self.pool, self.spot = pool, spot
        self.root: Path | None = None
        self.starts = 0
        self.running: set[Execution] = set()
        self.scheduling = True
        self.booted: int | None = None
        self.errors: list[dict[str, Any]] = []
        self.start_task: dict[str, Any] | None = None
        """startTaskInfo"""
        self.ran = self.succeeded = 0

    @property
    def free(self) -> int:
        """Slots."""
        if not self.scheduling or self.state not in ("idle", "running"):
            return 0
        return self.pool.slots - sum(each.task.slots for each in self.running)

    def document(self, url: str) -> dict[str, Any]:
        """The ComputeNode."""
        found = self.head(f"{url}/pools/{self.pool.id}/nodes/{self.id}")
        for name in ("eTag", "lastModified", "creationTime"):
            del found[name]
        running = list(self.running)
        found |= {
            "schedulingState": "enabled" if self.scheduling else "disabled",
            "allocationTime": format_time(self.created),
            "ipAddress": "10.0.0.4",
            "affinityId": f"TVM:{self.id}",
            "vmSize": self.pool.vm_size,
            "totalTasksRun": self.ran,
            "runningTasksCount": len(running),
            "runningTaskSlotsCount": sum(each.task.slots for each in running),
            "totalTasksSucceeded": self.succeeded,
            "isDedicated": not self.spot,
        }
        if self.booted is not None:
            found["lastBootTime"] = format_time(self.booted)
        if self.errors:
            found["errors"] = self.errors
        if self.pool.given.get("startTask"):
            found["startTask"] = self.pool.given["startTask"]
        if self.start_task:
            found["startTaskInfo"] = self.start_task
        return found


class Pool(Named):
    """A pool, its nodes, and the tasks that wait for one."""

    def __init__(self, given: dict[str, Any], clock: Clock) -> None:
        super().__init__(given["id"], "active", clock)
        self.given = given
        self.nodes: Collection[Node] = Collection()
        self.waiting: deque[Task] = deque()
        """Active tasks of its jobs, in order; some may have been deleted meanwhile."""
        self.targets = {False: 0, True: 0}
        """Spot or not -> nodes."""
        self.allocation = "steady"
        self.allocation_changed = clock.now()
        self.resize_errors: list[dict[str, Any]] = []
        self.run: dict[str, Any] | None = None
        """autoScaleRun"""
        self.enabled_at = -math.inf
        """When autoscaling was last enabled, monotonic."""
        self.busy_at = -math.inf
        """When an evaluation last found something to run, monotonic."""

    @property
    def vm_size(self) -> str:
        """vmSize"""
        return str(self.given["vmSize"])

    @property
    def slots(self) -> int:
        """taskSlotsPerNode"""
        return int(self.given.get("taskSlotsPerNode", 1))

    @property
    def autoscales(self) -> bool:
        """enableAutoScale"""
        return bool(self.given.get("enableAutoScale"))

    def count(self, spot: bool, *states: str) -> int:
        """How many nodes of a kind there are, in these states; in all without."""
        return sum(n.spot == spot and (not states or n.state in states) for n in self.nodes)

    def allocate(self, state: str) -> None:
        """resizing, stopping or steady."""
        self.allocation, self.allocation_changed = state, self._clock.now()

    def document(self, url: str) -> dict[str, Any]:
        """The CloudPool. Passwords of registries are not told."""
        usual = {
            "taskSlotsPerNode": 1,
            "enableInterNodeCommunication": False,
            "taskSchedulingPolicy": {"nodeFillType": "spread"},
            "enableAutoScale": False,
        }
        found = usual | self.given | self.head(f"{url}/pools/{self.id}")
        found |= {
            "allocationState": self.allocation,
            "allocationStateTransitionTime": format_time(self.allocation_changed),
            "currentDedicatedNodes": self.count(False),
            "currentLowPriorityNodes": self.count(True),
            "targetDedicatedNodes": self.targets[False],
            "targetLowPriorityNodes": self.targets[True],
        }
        if not self.autoscales:
            found.setdefault("resizeTimeout", "PT15M")
        if self.resize_errors:
            found["resizeErrors"] = self.resize_errors
        if self.run is not None:
            found["autoScaleRun"] = self.run
        return _without_passwords(found)


def _without_passwords(document: dict[str, Any]) -> dict[str, Any]:
    machine: dict[str, Any] = document.get("virtualMachineConfiguration", {})
    containers = machine.get("containerConfiguration")
    if not containers or not containers.get("containerRegistries"):
        return document
    registries = [
        {name: value for name, value in each.items() if name != "password"}
        for each in containers["containerRegistries"]
    ]
    hidden = machine | {"containerConfiguration": containers | {"containerRegistries": registries}}
    return document | {"virtualMachineConfiguration": hidden}
