"""Jobs of the Batch stand-in.

Source: "Batch service REST API reference": Job.
"""

from __future__ import annotations

from typing import Any

from tests.services.batch_columns import JOB_COLUMNS
from tests.services.batch_fleet import Quotas
from tests.services.batch_odata import compile_filter, page, select, selected
from tests.services.batch_state import Job
from tests.services.batch_tasks import ID, Tasks, check_duration, next_page
from tests.services.batch_wire import Refused, Reply, Request, format_http_time, invalid_value
from tests.services.batch_world import World

_PROPERTIES = (
    "id displayName usesTaskDependencies url eTag lastModified creationTime state"
    " stateTransitionTime previousState previousStateTransitionTime priority allowTaskPreemption"
    " maxParallelTasks constraints jobManagerTask jobPreparationTask jobReleaseTask"
    " commonEnvironmentSettings poolInfo onAllTasksComplete onTaskFailure networkConfiguration"
    " metadata executionInfo stats"
)
_CHANGEABLE = {
    "priority",
    "maxParallelTasks",
    "allowTaskPreemption",
    "onAllTasksComplete",
    "constraints",
    "poolInfo",
    "metadata",
    "networkConfiguration",
}
_OUTSIDE = ("jobManagerTask", "jobPreparationTask", "jobReleaseTask")


class Jobs:
    """The operations on jobs."""

    def __init__(self, world: World, tasks: Tasks, quotas: Quotas) -> None:
        self._world, self._tasks, self._quotas = world, tasks, quotas

    def add(self, given: dict[str, Any]) -> Reply:
        """Job_Add. A pool that is not there is no reason to refuse it."""
        id_ = given["id"]
        if not ID.fullmatch(id_):
            raise invalid_value("id", id_, "letters, digits, - and _, at most 64")
        if self._world.jobs.get(id_) is not None:
            raise Refused(409, "JobExists", "The specified job already exists.")
        if not given["poolInfo"].get("poolId"):
            raise invalid_value("poolInfo", given["poolInfo"], "the stand-in wants a poolId")
        for name in _OUTSIDE:
            if name in given:
                raise invalid_value(name, "", "the stand-in does not know it")
        active = sum(job.state not in ("completed", "deleting") for job in self._world.jobs)
        if active >= self._quotas.jobs:
            said = "Active job and schedule quota for the account has been reached."
            raise Refused(409, "ActiveJobAndScheduleQuotaReached", said)
        limits = given.get("constraints", {})
        if "maxWallClockTime" in limits:
            check_duration("constraints/maxWallClockTime", limits["maxWallClockTime"])
        job = Job(given, self._world.clock)
        self._world.jobs.add(job)
        where = f"{self._world.url}/jobs/{job.id}"
        return Reply(201, headers={"DataServiceId": where, "Location": where} | _version(job))

    def get(self, id_: str, request: Request) -> Reply:
        """Job_Get"""
        job = self.find(id_)
        names = selected(request.query, _PROPERTIES)
        return Reply(200, select(job.document(self._world.url), names), _version(job))

    def list(self, request: Request) -> Reply:
        """Job_List"""
        names = selected(request.query, _PROPERTIES)
        text = request.query.get("$filter")
        passes = compile_filter(text, JOB_COLUMNS) if text else None
        jobs, url = self._world.jobs, self._world.url
        found, following = page(
            jobs.ids,
            request.query,
            lambda id_: passes is None or passes(jobs.get(id_)),
            self._tasks.page_size,
        )
        value = [select(self.find(id_).document(url), names) for id_ in found]
        return next_page({"value": value}, request, following, url)

    def change(self, id_: str, given: dict[str, Any]) -> Reply:
        """Job_Patch, Job_Update"""
        job = self._find_alive(id_)
        job.given = job.given | {name: given[name] for name in given if name in _CHANGEABLE}
        job.touch()
        return Reply(200, headers=_version(job))

    def delete(self, id_: str) -> Reply:
        """Job_Delete: its tasks go first, then the job."""
        job = self._find_alive(id_)
        job.to("deleting")
        self._world.after(self._world.timing.deletion_s, lambda: self._remove(job))
        return Reply(202)

    def terminate(self, id_: str, given: dict[str, Any] | None) -> Reply:
        """Job_Terminate"""
        job = self._find_alive(id_)
        if job.state == "completed":
            raise Refused(409, "JobCompleted", "The specified job is already in a completed state.")
        job.to("terminating")
        job.reason = (given or {}).get("terminateReason", "UserTerminate")
        for task in job.tasks:
            if task.state != "completed":
                self._tasks.end(task, "Task Was Ended because its job was terminated")
        self._world.after(self._world.timing.deletion_s, lambda: self._complete(job))
        return Reply(202, headers=_version(job))

    def disable(self, id_: str, given: dict[str, Any]) -> Reply:
        """Job_Disable: what waits goes on waiting; what runs is requeued, ended, or left to end."""
        job = self._find_alive(id_)
        what = given["disableTasks"].lower()
        job.to("disabled")
        for task in job.tasks:
            if task.state != "running" or task.execution is None:
                continue
            if what == "terminate":
                self._tasks.end(task, "Task Was Ended because its job was disabled")
            elif what == "requeue":
                self._tasks.requeue([task.execution], counts=True)
        return Reply(202, headers=_version(job))

    def enable(self, id_: str) -> Reply:
        """Job_Enable"""
        job = self._find_alive(id_)
        job.to("active")
        pool = self._world.pools.get(job.pool_id)
        if pool is not None:
            self._tasks.schedule(pool)
        return Reply(202, headers=_version(job))

    def counts(self, id_: str) -> Reply:
        """Job_GetTaskCounts"""
        tasks = list(self.find(id_).tasks)
        counts = [dict.fromkeys(("active", "running", "completed"), 0) for _ in range(2)]
        results = [dict.fromkeys(("succeeded", "failed"), 0) for _ in range(2)]
        for task in tasks:
            for number, weight in enumerate((1, task.slots)):
                counts[number][task.state] += weight
                if task.result is not None:
                    name = "succeeded" if task.result == "success" else "failed"
                    results[number][name] += weight
        (plain, slots), (ended, ended_slots) = counts, results
        document = {"taskCounts": plain | ended, "taskSlotCounts": slots | ended_slots}
        return Reply(200, document)

    def find(self, id_: str) -> Job:
        """Raises Refused."""
        job = self._world.jobs.get(id_)
        if job is None:
            raise Refused(404, "JobNotFound", "The specified job does not exist.")
        return job

    def _find_alive(self, id_: str) -> Job:
        job = self.find(id_)
        if job.state == "deleting":
            said = "The specified job has been marked for deletion and is being garbage collected."
            raise Refused(409, "JobBeingDeleted", said)
        return job

    def _remove(self, job: Job) -> None:
        for task in job.tasks:
            self._tasks.drop(task)
        self._world.jobs.remove(job.id)

    def _complete(self, job: Job) -> None:
        if job.state == "terminating":
            job.ended = self._world.clock.now()
            job.to("completed")


def _version(job: Job) -> dict[str, str]:
    return {"ETag": job.etag, "Last-Modified": format_http_time(job.modified)}
