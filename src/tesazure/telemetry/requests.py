"""An ASGI application whose requests are traced."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tesazure.telemetry.spans import Span, Value
from tesazure.trace import Context, of_task, parse, submission

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_GONE = 499


class TracedRequests:
    """Does as another one. Tells `record` a span for a request: of its caller's trace if that came
    with a `traceparent`; else of the task's that it makes, or of one of its own, of which the share
    `ratio` is wanted. One that only reads and does not fail has none unless its caller's has:
    workflow engines ask how tasks stand thousands of times a minute, and /metrics counts that."""

    def __init__(self, served: ASGIApp, record: Callable[[Span], None], ratio: float) -> None:
        self._served = served
        self._record = record
        self._ratio = ratio

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._served(scope, receive, send)
            return
        start, status = time.time(), _GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        caller = scope["trace"] = _sent(scope["headers"])
        try:
            await self._served(scope, receive, noting)
        finally:
            if caller is not None or scope["method"] not in _READING or status >= 500:
                self._tell(scope, caller, status, start)

    def _tell(self, scope: Scope, caller: Context | None, status: int, start: float) -> None:
        task_id: str | None = scope.get("task_id")
        context = caller
        if context is None:
            context = of_task(task_id, self._ratio) if task_id else _own(self._ratio)
        if not context.sampled:
            return
        span_id = submission(task_id) if task_id else os.urandom(8).hex()
        method, route = scope["method"], scope.get("route", "(none)")
        attributes: dict[str, Value] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "url.scheme": scope["scheme"],
            "url.path": scope["path"][:1000],
        }
        if task_id := task_id or scope.get("path_params", {}).get("id"):
            attributes["tesazure.task_id"] = task_id
        if name := scope.get("request_id"):
            attributes["tesazure.request_id"] = name.decode("ascii")
        self._record(
            Span(
                name=f"{method} {route}",
                context=context.at(span_id),
                parent=caller.span_id if caller else "",
                start=start,
                end=max(start, time.time()),
                kind="server",
                attributes=attributes,
                error=f"HTTP {status}" if status >= 500 else "",
            )
        )


def _sent(headers: list[tuple[bytes, bytes]]) -> Context | None:
    """The context that a request came with. More than one is none (W3C Trace Context, 3.2)."""
    given = [value for name, value in headers if name == b"traceparent"]
    return parse(given[0].decode("latin-1").strip()) if len(given) == 1 else None


def _own(ratio: float) -> Context:
    """A trace of one request."""
    drawn = os.urandom(16).hex()
    return Context(drawn, "", int(drawn[:14], 16) / 16**14 < ratio)
