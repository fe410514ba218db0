"""Tasks of the Batch stand-in: how they are added, placed on nodes, requeued, ended and looked at.

Source: "Batch service REST API reference": Task, and "Azure Batch job and task error checking".
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.services.batch_columns import TASK_COLUMNS
from tests.services.batch_files import Failed, list_files, properties, remove
from tests.services.batch_nodes import Execution, Machine, Outcome
from tests.services.batch_odata import compile_filter, page, select, selected
from tests.services.batch_state import Job, Node, Pool, Task
from tests.services.batch_wire import (
    Refused,
    Reply,
    Request,
    format_http_time,
    format_time,
    invalid_value,
    parse_duration,
    parse_time,
)
from tests.services.batch_world import World

MOST_PER_COLLECTION = 100
LARGEST_BODY = 1 << 20
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NEVER_S = 100 * 365 * 86400.0
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_PROPERTIES = (
    "id displayName url eTag lastModified creationTime exitConditions state stateTransitionTime"
    " previousState previousStateTransitionTime commandLine containerSettings resourceFiles"
    " outputFiles environmentSettings affinityInfo constraints requiredSlots userIdentity"
    " executionInfo nodeInfo multiInstanceSettings stats dependsOn applicationPackageReferences"
    " authenticationTokenSettings"
)


@dataclass
class Fault:
    """A scripted end of executions: Batch's code, or an exit code of the task's program."""

    ends: Failed | int
    matches: Callable[[Task], bool] = lambda _: True
    times: int = 1


class Tasks:
    """The operations on tasks, and the scheduler."""

    def __init__(self, world: World, machine: Machine) -> None:
        self.faults: list[Fault] = []
        self.page_size = 1000
        self.settle: Callable[[Node], None] = lambda _: None
        """Told of every node that has ended an execution."""
        self._world, self._machine = world, machine

    # ------------------------------------------------------------------ operations

    def add(self, job: Job, given: dict[str, Any]) -> Reply:
        """Task_Add"""
        task = self._add(job, given)
        where = f"{self._world.url}/jobs/{job.id}/tasks/{task.id}"
        headers = {"DataServiceId": where, "Location": where}
        return Reply(201, headers=headers | _version(task))

    def add_collection(self, job: Job, given: dict[str, Any], size: int) -> Reply:
        """Task_AddCollection"""
        if size > LARGEST_BODY:
            said = "The size of the request body exceeds the maximum size permitted."
            values = {"MaxLimit": str(LARGEST_BODY), "ActualSize": str(size)}
            raise Refused(413, "RequestBodyTooLarge", said, values)
        items = given["value"]
        if len(items) > MOST_PER_COLLECTION:
            raise invalid_value("value", len(items), f"at most {MOST_PER_COLLECTION} tasks")
        return Reply(200, {"value": [self._add_one(job, item) for item in items]})

    def get(self, job: Job, id_: str, request: Request) -> Reply:
        """Task_Get"""
        task = self.find(job, id_)
        names = selected(request.query, _PROPERTIES)
        return Reply(200, select(task.document(self._world.url), names), _version(task))

    def list(self, job: Job, request: Request) -> Reply:
        """Task_List"""
        names = selected(request.query, _PROPERTIES)
        text = request.query.get("$filter")
        passes = compile_filter(text, TASK_COLUMNS) if text else None
        tasks, url = job.tasks, self._world.url
        found, following = page(
            tasks.ids,
            request.query,
            lambda id_: passes is None or passes(tasks.get(id_)),
            self.page_size,
        )
        value = [select(self.find(job, id_).document(url), names) for id_ in found]
        return next_page({"value": value}, request, following, url)

    def terminate(self, job: Job, id_: str) -> Reply:
        """Task_Terminate"""
        task = self.find(job, id_)
        if task.state == "completed":
            said = "The specified task is already in a completed state."
            raise Refused(409, "TaskCompleted", said)
        self.end(task, "Task Was Ended by User Request")
        return Reply(204, headers=_version(task))

    def delete(self, job: Job, id_: str) -> Reply:
        """Task_Delete"""
        self.drop(self.find(job, id_))
        return Reply(200)

    def files(self, job: Job, id_: str, request: Request) -> Reply:
        """File_ListFromTask"""
        task = self.find(job, id_)
        directory = self._directory(task)
        where = f"{self._world.url}/jobs/{job.id}/tasks/{task.id}/files"
        recursive = request.query.get("recursive", "false").lower() == "true"
        items = list_files(directory, recursive, lambda name: f"{where}/{name}")
        by_name = {item["name"]: item for item in items}
        found, following = page(sorted(by_name), request.query, lambda _: True, self.page_size)
        value = [by_name[name] for name in found]
        return next_page({"value": value}, request, following, self._world.url)

    def file(self, job: Job, id_: str, path: str, request: Request) -> Reply:
        """File_GetFromTask, File_GetPropertiesFromTask"""
        directory = self._directory(self.find(job, id_))
        file = (directory / path).resolve()
        if not file.is_relative_to(directory.resolve()) or not file.exists():
            raise Refused(404, "FileNotFound", "The specified file does not exist.")
        content = b"" if file.is_dir() or request.method == "HEAD" else file.read_bytes()
        size = file.stat().st_size
        wanted = _RANGE.fullmatch(request.headers.get("ocp-range", ""))
        if wanted is not None and request.method == "GET":
            start, end = int(wanted[1]), int(wanted[2] or size)
            if start >= size:
                said = "The range specified is invalid for the current size of the resource."
                raise Refused(416, "InvalidRange", said)
            content = content[start : end + 1]
        told = properties(file)
        headers = {
            "ocp-creation-time": format_http_time(parse_time(told["creationTime"])),
            "ocp-batch-file-isdirectory": str(file.is_dir()),
            "ocp-batch-file-url": f"{self._world.url}{request.path}",
            "ocp-batch-file-mode": told["fileMode"],
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size if request.method == "HEAD" else len(content)),
            "ETag": f"0x{file.stat().st_mtime_ns:X}",
            "Last-Modified": format_http_time(parse_time(told["lastModified"])),
        }
        return Reply(200, headers=headers, content=content)

    def find(self, job: Job, id_: str) -> Task:
        """Raises Refused."""
        task = job.tasks.get(id_)
        if task is None:
            raise Refused(404, "TaskNotFound", "The specified task does not exist.")
        return task

    def _add_one(self, job: Job, given: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"taskId": given["id"]}
        try:
            task = self._add(job, given)
        except Refused as refusal:
            error = refusal.document(self._world.clock)
            return found | {"status": "clienterror", "error": error}
        where = f"{self._world.url}/jobs/{job.id}/tasks/{task.id}"
        modified = format_time(task.modified)
        return found | {
            "status": "success",
            "eTag": task.etag,
            "lastModified": modified,
            "location": where,
        }

    def _add(self, job: Job, given: dict[str, Any]) -> Task:
        require_active(job)
        if not ID.fullmatch(given["id"]):
            raise invalid_value("id", given["id"], "letters, digits, - and _, at most 64")
        if job.tasks.get(given["id"]) is not None:
            raise Refused(409, "TaskExists", "The specified task already exists.")
        task = Task(given, job, self._world.clock)
        limits = task.constraints
        for name in ("maxWallClockTime", "retentionTime"):
            check_duration(name, limits[name])
        pool = self._world.pools.get(job.pool_id)
        if pool is not None and not 1 <= task.slots <= pool.slots:
            reason = f"the pool has {pool.slots} slots on a node"
            raise invalid_value("requiredSlots", task.slots, reason)
        job.tasks.add(task)
        if pool is not None:
            pool.waiting.append(task)
            self.schedule(pool)
        return task

    def _directory(self, task: Task) -> Path:
        directory = None if task.execution is None else task.execution.directory
        if directory is None or not directory.is_dir():
            said = "The files of the specified task are unavailable."
            raise Refused(409, "TaskFilesUnavailable", said)
        return directory

    # ------------------------------------------------------------------ scheduling

    def schedule(self, pool: Pool) -> None:
        """Place what waits and fits."""
        if pool.state != "active" or not pool.waiting:
            return
        free = {node: node.free for node in pool.nodes if node.free > 0}
        if not free:
            return
        pack = pool.given.get("taskSchedulingPolicy", {}).get("nodeFillType", "spread") == "pack"
        kept: deque[Task] = deque()
        while pool.waiting and free:
            task = pool.waiting.popleft()
            if not self._waits(task):
                continue
            fitting = [node for node, slots in free.items() if slots >= task.slots]
            if task.job.state != "active" or not fitting:
                kept.append(task)
                continue
            node = (min if pack else max)(fitting, key=lambda each: free[each])
            free[node] -= task.slots
            if free[node] == 0:
                del free[node]
            self._place(task, node)
        pool.waiting = deque(itertools.chain(kept, pool.waiting))

    def adopt(self, pool: Pool) -> None:
        """A new pool: tasks of jobs that named it before it was there wait for it."""
        for job in self._world.jobs:
            if job.pool_id.lower() == pool.id.lower():
                pool.waiting.extend(task for task in job.tasks if task.state == "active")

    def requeue(self, executions: Iterable[Execution], *, counts: bool) -> None:
        """Their tasks begin again elsewhere, or later; whether requeueCount counts that."""
        for execution in list(executions):
            task = execution.task
            # One that is being ended ends: `_done` sees to it.
            if task.execution is execution and not execution.deleted and not execution.ending:
                if counts:
                    task.requeues += 1
                    task.requeued = self._world.clock.now()
                self._back(task)
            execution.kill()

    def end(self, task: Task, why: str) -> None:
        """Terminate it; it is completed when it has ended."""
        execution = task.execution
        if task.state == "running" and execution is not None:
            execution.end(why)
            return
        task.failure = _ended(why)
        self._complete(task)

    def drop(self, task: Task) -> None:
        """End and forget it, with its files."""
        task.job.tasks.remove(task.id)
        execution = task.execution
        if execution is None:
            return
        execution.deleted = True
        if execution.over:
            self._forget(execution)
        else:
            execution.end("deleted")

    def _waits(self, task: Task) -> bool:
        return task.state == "active" and task.job.tasks.get(task.id) is task

    def _back(self, task: Task) -> None:
        task.to("active")
        task.started = task.ended = task.exit_code = None
        task.container = task.failure = task.execution = None
        pool = self._world.pools.get(task.job.pool_id)
        if pool is not None:
            pool.waiting.append(task)
            self.schedule(pool)

    def _place(self, task: Task, node: Node) -> None:
        execution = Execution(task, node, self._machine, self._world)
        task.execution = execution
        task.started = self._world.clock.now()
        task.to("running")
        node.running.add(execution)
        node.to("running")
        for fault in self.faults:
            if fault.times > 0 and fault.matches(task):
                fault.times -= 1
                execution.fault = fault.ends
                break
        limit = parse_duration(task.constraints["maxWallClockTime"])
        if limit < _NEVER_S:
            why = "The task was ended because it exceeded its maximum wall clock time"
            self._world.after(limit, lambda: None if execution.over else execution.end(why))
        execution.start(self._done)

    def _done(self, execution: Execution, outcome: Outcome) -> None:
        task, node = execution.task, execution.node
        with self._world.lock:
            execution.over = True
            node.running.discard(execution)
            node.ran += 1
            if node.state == "running" and not node.running:
                node.to("idle")
            if execution.deleted:
                self._forget(execution)
            elif task.execution is execution:
                self._finish(task, execution, outcome)
            self.settle(node)
            self.schedule(node.pool)
            self._world.changed.notify_all()

    def _finish(self, task: Task, execution: Execution, outcome: Outcome) -> None:
        task.exit_code, task.failure = outcome.exit_code, outcome.failure
        task.container = outcome.container or task.container
        if execution.ending:
            task.failure = _ended(execution.ending)
        elif task.failure and task.retries < int(task.constraints["maxTaskRetryCount"]):
            task.retries += 1
            task.retried = self._world.clock.now()
            self._back(task)
            return
        if task.failure is None:
            execution.node.succeeded += 1
        self._complete(task)
        retention = parse_duration(task.constraints["retentionTime"])
        if retention < _NEVER_S:
            self._world.after(retention, lambda: self._forget(execution))

    def _complete(self, task: Task) -> None:
        task.ended = self._world.clock.now()
        task.to("completed")

    def _forget(self, execution: Execution) -> None:
        if execution.directory is not None:
            remove(execution.directory)


def require_active(job: Job) -> None:
    """Raises Refused unless tasks may be added."""
    refusals = {
        "deleting": ("JobBeingDeleted", "The specified job has been marked for deletion."),
        "terminating": ("JobBeingTerminated", "The specified job is being terminated."),
        "completed": ("JobCompleted", "The specified job is already in a completed state."),
    }
    if job.state in refusals:
        raise Refused(409, *refusals[job.state])


def check_duration(name: str, text: str) -> None:
    """Raises Refused."""
    try:
        parse_duration(text)
    except ValueError:
        raise invalid_value(name, text, "not an ISO 8601 duration") from None


def next_page(document: Any, request: Request, token: str | None, url: str) -> Reply:
    """A list, with the link to what follows."""
    if token is not None:
        kept = [
            part
            for part in request.target.partition("?")[2].split("&")
            if not part.startswith(("$skiptoken=", "%24skiptoken="))
        ]
        document["odata.nextLink"] = f"{url}{request.path}?{'&'.join(kept)}&$skiptoken={token}"
    return Reply(200, document)


def _version(task: Task) -> dict[str, str]:
    return {"ETag": task.etag, "Last-Modified": format_http_time(task.modified)}


def _ended(why: str) -> dict[str, Any]:
    return Failed("TaskEnded", why).document()
