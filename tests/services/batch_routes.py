"""Which requests the Batch stand-in knows, by the names that Microsoft's definition gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.services.batch_images import supported_images
from tests.services.batch_jobs import Jobs
from tests.services.batch_pools import Pools
from tests.services.batch_tasks import Tasks
from tests.services.batch_wire import Reply, Request


@dataclass
class Call:
    """A request, the ids in its path, and its body as JSON."""

    request: Request
    ids: list[str]
    body: Any = None


@dataclass(frozen=True)
class Route:
    """An operation: its path, in which `*` stands for an id and a last `**` for a file's path."""

    method: str
    path: str
    operation: str
    act: Callable[[Call], Reply]

    def match(self, method: str, parts: Sequence[str]) -> list[str] | None:
        """The ids in a path; None when it is another operation's."""
        wanted = self.path.split("/")
        if method != self.method or len(parts) < len(wanted):
            return None
        if wanted[-1] == "**":
            parts = [*parts[: len(wanted) - 1], "/".join(parts[len(wanted) - 1 :])]
        if len(parts) != len(wanted):
            return None
        ids: list[str] = []
        for want, part in zip(wanted, parts, strict=True):
            if want in ("*", "**"):
                ids.append(part)
            elif want != part:
                return None
        return ids


def find_route(routes: Sequence[Route], request: Request) -> tuple[Route | None, list[str]]:
    """The operation that a request asks for, and the ids in its path."""
    parts = request.parts
    for route in routes:
        ids = route.match(request.method, parts)
        if ids is not None:
            return route, ids
    return None, []


def routes(pools: Pools, jobs: Jobs, tasks: Tasks) -> list[Route]:
    """All operations. They are called with the world's lock held."""
    return [*_of_pools(pools), *_of_jobs(jobs), *_of_tasks(jobs, tasks)]


def _of_pools(pools: Pools) -> list[Route]:
    def images(call: Call) -> Reply:
        return Reply(200, {"value": supported_images(call.request.query.get("$filter"))})

    return [
        Route("GET", "supportedimages", "Account_ListSupportedImages", images),
        Route("GET", "nodecounts", "Account_ListPoolNodeCounts", lambda c: pools.counts(c.request)),
        Route("POST", "pools", "Pool_Add", lambda c: pools.add(c.body)),
        Route("GET", "pools", "Pool_List", lambda c: pools.list(c.request)),
        Route("GET", "pools/*", "Pool_Get", lambda c: pools.get(c.ids[0], c.request)),
        Route("HEAD", "pools/*", "Pool_Exists", lambda c: pools.exists(c.ids[0])),
        Route("PATCH", "pools/*", "Pool_Patch", lambda c: pools.change(c.ids[0], c.body)),
        Route("DELETE", "pools/*", "Pool_Delete", lambda c: pools.delete(c.ids[0])),
        Route(
            "POST",
            "pools/*/updateproperties",
            "Pool_UpdateProperties",
            lambda c: pools.replace(c.ids[0], c.body),
        ),
        Route("POST", "pools/*/resize", "Pool_Resize", lambda c: pools.resize(c.ids[0], c.body)),
        Route(
            "POST", "pools/*/stopresize", "Pool_StopResize", lambda c: pools.stop_resize(c.ids[0])
        ),
        Route(
            "POST",
            "pools/*/enableautoscale",
            "Pool_EnableAutoScale",
            lambda c: pools.enable_autoscale(c.ids[0], c.body),
        ),
        Route(
            "POST",
            "pools/*/disableautoscale",
            "Pool_DisableAutoScale",
            lambda c: pools.disable_autoscale(c.ids[0]),
        ),
        Route(
            "POST",
            "pools/*/evaluateautoscale",
            "Pool_EvaluateAutoScale",
            lambda c: pools.evaluate_autoscale(c.ids[0], c.body),
        ),
        Route(
            "POST",
            "pools/*/removenodes",
            "Pool_RemoveNodes",
            lambda c: pools.remove_nodes(c.ids[0], c.body),
        ),
        Route(
            "GET", "pools/*/nodes", "ComputeNode_List", lambda c: pools.nodes(c.ids[0], c.request)
        ),
        Route(
            "GET",
            "pools/*/nodes/*",
            "ComputeNode_Get",
            lambda c: pools.node(c.ids[0], c.ids[1], c.request),
        ),
        Route(
            "POST",
            "pools/*/nodes/*/reboot",
            "ComputeNode_Reboot",
            lambda c: pools.reboot(c.ids[0], c.ids[1]),
        ),
    ]


def _of_jobs(jobs: Jobs) -> list[Route]:
    return [
        Route("POST", "jobs", "Job_Add", lambda c: jobs.add(c.body)),
        Route("GET", "jobs", "Job_List", lambda c: jobs.list(c.request)),
        Route("GET", "jobs/*", "Job_Get", lambda c: jobs.get(c.ids[0], c.request)),
        Route("PATCH", "jobs/*", "Job_Patch", lambda c: jobs.change(c.ids[0], c.body)),
        Route("PUT", "jobs/*", "Job_Update", lambda c: jobs.change(c.ids[0], c.body)),
        Route("DELETE", "jobs/*", "Job_Delete", lambda c: jobs.delete(c.ids[0])),
        Route(
            "POST", "jobs/*/terminate", "Job_Terminate", lambda c: jobs.terminate(c.ids[0], c.body)
        ),
        Route("POST", "jobs/*/disable", "Job_Disable", lambda c: jobs.disable(c.ids[0], c.body)),
        Route("POST", "jobs/*/enable", "Job_Enable", lambda c: jobs.enable(c.ids[0])),
        Route("GET", "jobs/*/taskcounts", "Job_GetTaskCounts", lambda c: jobs.counts(c.ids[0])),
    ]


def _of_tasks(jobs: Jobs, tasks: Tasks) -> list[Route]:
    def add_collection(call: Call) -> Reply:
        return tasks.add_collection(jobs.find(call.ids[0]), call.body, len(call.request.body))

    def get_file(call: Call) -> Reply:
        job, task, path = call.ids
        return tasks.file(jobs.find(job), task, path, call.request)

    return [
        Route("POST", "jobs/*/addtaskcollection", "Task_AddCollection", add_collection),
        Route("POST", "jobs/*/tasks", "Task_Add", lambda c: tasks.add(jobs.find(c.ids[0]), c.body)),
        Route(
            "GET", "jobs/*/tasks", "Task_List", lambda c: tasks.list(jobs.find(c.ids[0]), c.request)
        ),
        Route(
            "GET",
            "jobs/*/tasks/*",
            "Task_Get",
            lambda c: tasks.get(jobs.find(c.ids[0]), c.ids[1], c.request),
        ),
        Route(
            "DELETE",
            "jobs/*/tasks/*",
            "Task_Delete",
            lambda c: tasks.delete(jobs.find(c.ids[0]), c.ids[1]),
        ),
        Route(
            "POST",
            "jobs/*/tasks/*/terminate",
            "Task_Terminate",
            lambda c: tasks.terminate(jobs.find(c.ids[0]), c.ids[1]),
        ),
        Route(
            "GET",
            "jobs/*/tasks/*/files",
            "File_ListFromTask",
            lambda c: tasks.files(jobs.find(c.ids[0]), c.ids[1], c.request),
        ),
        Route("GET", "jobs/*/tasks/*/files/**", "File_GetFromTask", get_file),
        Route("HEAD", "jobs/*/tasks/*/files/**", "File_GetPropertiesFromTask", get_file),
    ]
