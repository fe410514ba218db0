"""Batch's own account of tasks, asked little: what changed in a job with one list, however many
tasks it has; all of a job now and then, as no list of changes tells of what was deleted."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tesazure.backends.azure_batch.account import Account, Gone
from tesazure.backends.azure_batch.words import Row

if TYPE_CHECKING:
    from azure.batch import BatchClient, models

OVERLAP = timedelta(seconds=30)
"""How far a list of changes reaches back behind the newest one seen: they need not become visible
in the order of their times, and the SDK's times are a little short."""
_SELECT = [
    "id",
    "state",
    "stateTransitionTime",
    "previousState",
    "requiredSlots",
    "executionInfo",
    "nodeInfo",
]


@dataclass(slots=True)
class _Job:
    newest: datetime | None = None
    """State transition that was seen there."""
    whole_due: float = 0.0
    """When all of it is to be listed, on the monotonic clock."""


class Listing:
    """Lists jobs; remembers how far."""

    def __init__(self, account: Account, whole_s: float) -> None:
        self._account = account
        self._whole_s = whole_s
        self._jobs: dict[str, _Job] = {}

    def keep(self, jobs: Collection[str]) -> None:
        """Forget all others."""
        for job in self._jobs.keys() - jobs:
            del self._jobs[job]

    def is_due(self, job: str) -> bool:
        """Whether the next look at a job lists all of it."""
        known = self._jobs.get(job)
        return known is None or time.monotonic() >= known.whole_due

    async def look(self, job: str, *, whole: bool) -> Mapping[str, Row]:
        """The tasks that changed since the last look, and some more; with `whole` all that there
        are. Raises Gone, BackendUnavailable."""
        known = self._jobs.get(job) or _Job()
        text = None
        if not whole and known.newest is not None:
            since = (known.newest - OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            text = f"stateTransitionTime ge DateTime'{since}'"
        began = time.monotonic()

        def ask(client: BatchClient) -> tuple[dict[str, Row], datetime | None]:
            rows, newest = {}, known.newest
            for task in client.list_tasks(job, filter=text, select=_SELECT):
                rows[task.id] = row_of(task)
                changed = task.state_transition_time
                if changed is not None:
                    newest = max(newest or changed, changed)
            return rows, newest

        rows, known.newest = await self._account.call("list tasks", ask)
        if text is None:
            known.whole_due = began + self._whole_s
        self._jobs[job] = known
        return rows

    async def one(self, job: str, key: str) -> Row | None:
        """A single task; None if there is none. Raises BackendUnavailable."""
        try:
            return await self._account.call(
                "get a task", lambda client: row_of(client.get_task(job, key, select=_SELECT))
            )
        except Gone as error:
            if not error.is_absent:
                raise
            return None


def row_of(task: models.BatchTask) -> Row:
    """What is of interest of a Batch task."""
    info, node = task.execution_info, task.node_info
    failed = info.failure_info if info is not None else None
    return Row(
        state=_state(task.state),
        previous=_state(task.previous_state),
        started=_epoch(info.start_time if info is not None else None),
        changed=_epoch(task.state_transition_time),
        slots=task.required_slots or 1,
        exit_code=info.exit_code if info is not None else None,
        code=(failed.code or "") if failed is not None else "",
        message=_sentence(failed.message) if failed is not None else "",
        requeues=(info.requeue_count or 0) if info is not None else 0,
        node=(node.node_id or "") if node is not None else "",
    )


def _state(state: models.BatchTaskState | str | None) -> str:
    return str(getattr(state, "value", state) or "").lower()


def _epoch(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _sentence(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[0][:300] if lines else ""
