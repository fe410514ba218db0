"""What tasks are estimated to cost together."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from starlette.requests import Request

from tesazure.api.admission import visibility_of
from tesazure.api.parts import Parts
from tesazure.api.replies import Reply, Route, tasks_json
from tesazure.api.tasks import parameters, tags_asked
from tesazure.errors import FieldError, InvalidInput
from tesazure.money import dollars
from tesazure.store.records import ListQuery

_TOGETHER = 10_000
"""Tasks added up in one go, in some ten milliseconds: other requests are read for in between."""

_encode = msgspec.json.Encoder().encode


class CostsOfTasks:
    """The handler."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store

    def routes(self) -> list[Route]:
        """One."""
        return [Route("/api/v1/costs", {"GET": self.costs})]

    async def costs(self, request: Request) -> Reply:
        """Number and cost of the tasks that the caller sees and asks for. Those that change
        meanwhile count as they are when it is their turn."""
        asked = parameters(request.scope["query_string"])
        single = dict(asked)
        visibility = visibility_of(request)
        if single.get("owner"):
            visibility = visibility.of(single["owner"])
        query = ListQuery(limit=_TOGETHER, tags=tags_asked(asked), visibility=visibility)
        since = _moment(single["since"]) if single.get("since") else 0.0
        tasks, known = 0, None
        while True:
            part = await self._store.costs(query, since)
            tasks += part.tasks
            if part.cost is not None:
                known = (known or 0) + part.cost
            if part.next_before is None:
                break
            query = msgspec.structs.replace(query, before=part.next_before)
        cost = None if known is None else dollars(known)
        return tasks_json(_encode({"tasks": tasks, "estimated_cost_usd": cost}))


def _moment(text: str) -> float:
    """Seconds since the epoch of a date or a time; one without a zone is in UTC. Raises
    InvalidInput."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        problem = "must be a date such as 2026-11-01, or a time such as 2026-11-01T12:00:00Z"
        raise InvalidInput([FieldError("since", problem)]) from None
