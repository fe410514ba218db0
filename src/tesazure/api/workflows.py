"""Tasks by the workflow that they are part of: counts, and an end to all of them."""

from __future__ import annotations

import asyncio
import time
from itertools import compress

import msgspec
from starlette.requests import Request

from tesazure.api import pages
from tesazure.api.admission import visibility_of
from tesazure.api.parts import Parts
from tesazure.api.replies import Reply, Route, tasks_json
from tesazure.api.tasks import page_size, parameters
from tesazure.api.views import timestamp
from tesazure.errors import NotFound
from tesazure.model import TERMINAL, State
from tesazure.store.records import ListQuery, Workflow
from tesazure.submitters import WORKFLOW_ID

MOST = 10_000
"""Tasks that one request cancels."""
_TOGETHER = 100
"""Tasks cancelled in one go: others write in between."""
_PATIENCE_S = 20.0
"""For the same: a client waits no longer than this, and asks again."""
_LIVE = tuple(state for state in State if state not in TERMINAL and state is not State.CANCELING)

_encode = msgspec.json.Encoder().encode


class Workflows:
    """The handlers."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._pulse = parts.pulse
        self._identity = parts.identity
        self._audit = parts.audit

    def routes(self) -> list[Route]:
        """All workflows, one, and the end of one."""
        one = "/api/v1/workflows/{workflow}"
        return [
            Route("/api/v1/workflows", {"GET": self.list_workflows}),
            Route(f"{one}:cancel", {"POST": self.cancel_workflow}),
            Route(one, {"GET": self.get_workflow}),
        ]

    async def list_workflows(self, request: Request) -> Reply:
        """A page, the last begun first."""
        asked = dict(parameters(request.scope["query_string"]))
        limit = page_size(asked)
        visibility = visibility_of(request)
        audience = ("workflows", visibility.audience)
        place = pages.Place(0, audience, pages.Filters())
        if asked.get("page_token"):
            place = pages.decode(asked["page_token"], self._identity, audience, place.filters)
        page = await self._store.list_workflows(limit, place.before or None, visibility)
        shown = {"workflows": [_shown(workflow) for workflow in page.items]}
        if page.next_before is None:
            return tasks_json(_encode(shown))
        place = pages.Place(page.next_before, audience, place.filters)
        token = pages.encode(place, self._identity)
        return tasks_json(_encode({**shown, "next_page_token": token}))

    async def get_workflow(self, request: Request) -> Reply:
        """One."""
        return tasks_json(_encode(_shown(await self._known(request))))

    async def cancel_workflow(self, request: Request) -> Reply:
        """Cancel its tasks that have not ended, the newest first, up to MOST; `more` tells whether
        some are left. Tasks that are submitted meanwhile are for the next request."""
        workflow = await self._known(request)
        changed, more = await self._cancel(request, workflow.id)
        if changed:
            self._audit.note_workflow(workflow.id, changed, request)
        left = await self._store.get_workflow(workflow.id, visibility_of(request))
        states = left.states if left else {}
        told = {"id": workflow.id, "changed": changed, "more": more, "states": states}
        return tasks_json(_encode(told))

    async def _known(self, request: Request) -> Workflow:
        """The workflow in the path. Raises NotFound: there is none, or none for the caller."""
        workflow_id: str = request.scope["path_params"]["workflow"]
        found = await self._store.get_workflow(workflow_id, visibility_of(request))
        if found is None:
            raise NotFound(f"there is no workflow {workflow_id[:100]}")
        return found

    async def _cancel(self, request: Request, workflow_id: str) -> tuple[int, bool]:
        """How many tasks were canceled, and whether there may be more to cancel."""
        visibility = visibility_of(request)
        deadline = time.monotonic() + _PATIENCE_S
        changed, before = 0, None
        while changed < MOST and time.monotonic() < deadline:
            page = await self._store.list_briefs(
                ListQuery(
                    limit=_TOGETHER,
                    before=before,
                    states=_LIVE,
                    tags=((WORKFLOW_ID, workflow_id),),
                    visibility=visibility,
                )
            )
            ids = [task.id for task in page.items]
            did = await asyncio.gather(*(self._store.request_cancel(i, visibility) for i in ids))
            ended = list(compress(ids, did))
            for task_id in ended:
                self._audit.note("task.cancel", task_id, request)
            if ended and self._pulse:
                self._pulse.wake()
            changed += len(ended)
            before = page.next_before
            if before is None:
                return changed, False
        return changed, True


def _shown(workflow: Workflow) -> dict[str, object]:
    return {
        "id": workflow.id,
        "name": workflow.name,
        "submitter": workflow.submitter,
        "states": workflow.states,
        "first_activity": timestamp(workflow.first_activity),
        "last_activity": timestamp(workflow.last_activity),
        "estimated_cost_usd": workflow.cost_usd,
    }
