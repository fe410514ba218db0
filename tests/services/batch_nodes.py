"""How the Batch stand-in's nodes run tasks: as containers, as processes, or simulated.

Sources: "Files and directories in Azure Batch", "Azure Batch runtime environment variables", "Use
Azure Batch to run container workloads".
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.services.batch_files import Failed, Transfers, remove
from tests.services.batch_state import Node, Task
from tests.services.batch_world import World


@dataclass
class Outcome:
    """How an execution ended; `failure` as in executionInfo."""

    exit_code: int | None
    failure: dict[str, Any] | None = None
    container: dict[str, Any] | None = None


@dataclass
class SimulatedTask:
    """What a simulated node hands to the function that plays the command line. `killed` is set
    when the task is terminated or its node is gone: the function should return then."""

    job: str
    id: str
    node: str
    given: Mapping[str, Any]
    environment: Mapping[str, str]
    killed: threading.Event
    fetch: Callable[[Mapping[str, Any]], bytes]
    """Downloads one of `given["resourceFiles"]`."""


Simulation = Callable[[SimulatedTask], int]
"""Plays a command line: returns its exit code."""


class Command(ABC):
    """Something that runs for a task, with everything that it started."""

    container: dict[str, Any] | None = None

    @abstractmethod
    def wait(self) -> int:
        """Its exit code, when it has ended."""

    @abstractmethod
    def terminate(self) -> None:
        """Ask it to end."""

    @abstractmethod
    def kill(self) -> None:
        """End it now."""


class Machine(ABC):
    """Makes nodes' directories and starts what tasks ask for."""

    def __init__(self, transfers: Transfers) -> None:
        self.transfers = transfers

    @abstractmethod
    def prepare(self, node: Node) -> None:
        """A node has started. Raises Failed, which makes it unusable."""

    @abstractmethod
    def begin(self, execution: Execution, environment: dict[str, str]) -> Command:
        """Start a task's command line. Raises Failed."""

    def discard(self, root: Path) -> None:
        """A node is gone, with all that its root directory held."""
        remove(root)


class Execution:
    """A task on a node, from being placed there until it has ended there."""

    def __init__(self, task: Task, node: Node, machine: Machine, world: World) -> None:
        self.task, self.node, self.root = task, node, node.root
        self.over = False
        self.ending: str | None = None
        """Why it is being ended: said in the task's failureInfo."""
        self.deleted = False
        self.fault: Failed | int | None = None
        """A scripted end, in place of running anything."""
        self._machine, self._world = machine, world
        self._command: Command | None = None
        self._killed = threading.Event()

    @property
    def directory(self) -> Path | None:
        """AZ_BATCH_TASK_DIR; None on a simulated node."""
        if self.root is None:
            return None
        return self.root / "workitems" / self.task.job.id / "job-1" / self.task.id

    @property
    def working(self) -> Path | None:
        """AZ_BATCH_TASK_WORKING_DIR"""
        return None if self.directory is None else self.directory / "wd"

    def node_info(self, url: str) -> dict[str, Any]:
        """The ComputeNodeInformation."""
        node, task = self.node, self.task
        where = f"{url}/pools/{node.pool.id}/nodes/{node.id}"
        root = f"workitems/{task.job.id}/job-1/{task.id}"
        return {
            "affinityId": f"TVM:{node.id}",
            "nodeUrl": where,
            "poolId": node.pool.id,
            "nodeId": node.id,
            "taskRootDirectory": root,
            "taskRootDirectoryUrl": f"{where}/files/{root}",
        }

    def start(self, done: Callable[[Execution, Outcome], None]) -> None:
        """Begin in a thread of its own; `done` is called at the end, from there."""
        name = f"batch-task-{self.task.id}"
        threading.Thread(target=self._run, args=(done,), name=name, daemon=True).start()

    def end(self, why: str) -> None:
        """SIGTERM, and SIGKILL after the grace. With the world's lock held."""
        self.ending = self.ending or why
        if self._command is not None:
            self._command.terminate()
        else:
            self._killed.set()
        self._world.after(self._world.timing.grace_s, self.kill)

    def kill(self) -> None:
        """SIGKILL, to everything. With the world's lock held."""
        self._killed.set()
        if self._command is not None and not self.over:
            self._command.kill()

    def simulated(self, environment: dict[str, str]) -> SimulatedTask:
        """What a simulation is told."""
        task = self.task

        def fetch(resource: Mapping[str, Any]) -> bytes:
            return self._machine.transfers.fetch(dict(resource))

        return SimulatedTask(
            task.job.id, task.id, self.node.id, task.given, environment, self._killed, fetch
        )

    def _run(self, done: Callable[[Execution, Outcome], None]) -> None:
        try:
            outcome = self._outcome()
        except Failed as failed:
            outcome = Outcome(None, failed.document())
        except Exception as error:
            # A simulation that is broken, or a node that was removed meanwhile.
            broken = Failed("Unknown", f"The stand-in: {error!r}", "servererror")
            outcome = Outcome(None, broken.document())
        done(self, outcome)

    def _outcome(self) -> Outcome:
        if isinstance(self.fault, Failed):
            raise self.fault
        if isinstance(self.fault, int):
            return Outcome(self.fault, _exit_failure(self.fault))
        given = self.task.given
        self._require_containers()
        if self.working is not None:
            self.working.mkdir(parents=True, exist_ok=True)
            self._machine.transfers.bring(given, self.working)
        environment = self._environment()
        with self._world.lock:
            if self._killed.is_set():
                return Outcome(None)
        command = self._machine.begin(self, environment)
        with self._world.lock:
            self._command = command
            self.task.container = command.container
            if self._killed.is_set():
                command.kill()
            elif self.ending:
                command.terminate()
        code = command.wait()
        failure = _exit_failure(code)
        if self.working is not None:
            try:
                self._machine.transfers.take(given, self.working, code == 0)
            except Failed as failed:
                failure = failure or failed.document()
        container = command.container and command.container | {"state": "exited"}
        return Outcome(code, failure, container)

    def _require_containers(self) -> None:
        machine = self.node.pool.given.get("virtualMachineConfiguration", {})
        if "containerSettings" in self.task.given and "containerConfiguration" not in machine:
            said = "The compute node does not support container feature"
            raise Failed("ContainerPoolNotSupported", said)

    def _environment(self) -> dict[str, str]:
        node, task, root = self.node, self.task, self.root
        found = {
            "AZ_BATCH_ACCOUNT_URL": f"{self._world.url}/",
            "AZ_BATCH_JOB_ID": task.job.id,
            "AZ_BATCH_TASK_ID": task.id,
            "AZ_BATCH_POOL_ID": node.pool.id,
            "AZ_BATCH_NODE_ID": node.id,
            "AZ_BATCH_NODE_IS_DEDICATED": str(not node.spot).lower(),
        }
        if root is not None:
            places = {
                "NODE_ROOT_DIR": root,
                "NODE_SHARED_DIR": root / "shared",
                "NODE_STARTUP_DIR": root / "startup",
                "NODE_STARTUP_WORKING_DIR": root / "startup" / "wd",
                "NODE_MOUNTS_DIR": root / "fsmounts",
                "TASK_DIR": self.directory,
                "TASK_WORKING_DIR": self.working,
            }
            found |= {f"AZ_BATCH_{name}": str(path) for name, path in places.items()}
        for source in (
            task.job.given.get("commonEnvironmentSettings", []),
            task.given.get("environmentSettings", []),
        ):
            found |= {each["name"]: each.get("value", "") for each in source}
        return found


class SimulatedMachine(Machine):
    """Nodes without directories, whose tasks are played by a function."""

    def __init__(self, simulation: Simulation, transfers: Transfers) -> None:
        super().__init__(transfers)
        self._simulation = simulation

    def prepare(self, node: Node) -> None:
        """As Machine."""

    def begin(self, execution: Execution, environment: dict[str, str]) -> Command:
        """As Machine."""
        return _Played(self._simulation, execution.simulated(environment))


class _Played(Command):
    def __init__(self, simulation: Simulation, task: SimulatedTask) -> None:
        self._simulation, self._task = simulation, task

    def wait(self) -> int:
        return self._simulation(self._task)

    def terminate(self) -> None:
        self._task.killed.set()

    kill = terminate


def _exit_failure(code: int) -> dict[str, Any] | None:
    if code == 0:
        return None
    details = {
        "Message": "The task process exited with an unexpected exit code",
        "AdditionalErrorCode": "FailureExitCode",
    }
    said = "The task exited with an exit code representing a failure"
    return Failed("FailureExitCode", said, details=details).document()
