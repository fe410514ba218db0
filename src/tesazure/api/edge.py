"""The ASGI application: a request finds its handler, and whatever happens becomes one reply.

Hand-made around Starlette's Request because this path bounds the request rate: a Starlette
application with a middleware each for errors, ids, metrics and logs costs twice the handler itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from tesazure.api.access_log import AccessLog
from tesazure.api.admission import admit
from tesazure.api.errors import HttpError, reply_to
from tesazure.api.ids import request_id
from tesazure.api.limits import LINGER_S
from tesazure.api.metrics import Latencies
from tesazure.api.replies import Headers, Reply, Route, Stream
from tesazure.api.routing import Routes
from tesazure.json_log import about
from tesazure.signin.gate import Gate

_log = logging.getLogger(__name__)
_GONE = 499
"""Logged for a client that left before its reply (nginx's code; never sent)."""
_NO_ROUTE = Route("(none)", open=True)


class Edge:
    """Request ids, routing, sign-in, errors, latencies, the access log."""

    def __init__(self, routes: Routes, gate: Gate, latencies: Latencies, log: AccessLog) -> None:
        self._routes = routes
        self._gate = gate
        self._latencies = latencies
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here")
        began = time.perf_counter()
        request = Request(scope, receive)
        name = scope["request_id"] = request_id(scope["headers"])
        ids = about(request_id=name)
        method = scope["method"]
        route = _NO_ROUTE
        status = _GONE
        try:
            try:
                route = self._route(scope)
                reply = await self._handle(route, method, request)
            except ClientDisconnect:
                return
            except Exception as error:  # whatever it is, the client gets an answer
                reply = reply_to(error, name)
            status = reply.status
            headers = [*reply.headers, (b"x-request-id", name)]
            if isinstance(reply, Reply):
                await _send(reply, headers, receive, send)
            else:
                await _stream(reply, headers, method, receive, send)
        finally:
            seconds = time.perf_counter() - began
            self._latencies.observe(route.path, method, status, seconds)
            client, caller = scope.get("client"), scope.get("caller")
            self._log.write(method, scope["path"], status, seconds, name, client, caller)
            ids.clear()  # what it began, such as a scheduler, may go on

    def refused(
        self,
        method: str,
        path: str,
        status: int,
        seconds: float,
        name: bytes,
        client: tuple[str, int] | None,
    ) -> None:
        """Note a request that was refused before it got here (see `limits`)."""
        self._latencies.observe(_NO_ROUTE.path, method, status, seconds)
        self._log.write(method, path, status, seconds, name, client)

    def _route(self, scope: Scope) -> Route:
        found = self._routes.find(scope["path"], scope["method"])
        if found is None:
            raise HttpError(404, "not_found", "there is nothing at this path; see /docs")
        route, scope["path_params"] = found
        scope["route"] = route.path  # for who traces requests
        return route

    async def _handle(self, route: Route, method: str, request: Request) -> Reply | Stream:
        handler = route.handlers.get(method)
        if handler is None and method == "HEAD":
            handler = route.handlers.get("GET")
        if handler is None:
            return _without_handler(route, method)
        await admit(self._gate, route, method, request.scope)
        return await handler(request)


def _without_handler(route: Route, method: str) -> Reply:
    allowed = list(route.handlers)
    if "GET" in allowed:
        allowed.append("HEAD")
    allow = (b"allow", ", ".join([*allowed, "OPTIONS"]).encode("ascii"))
    if method == "OPTIONS":
        return Reply(204, b"", [allow])
    raise HttpError(405, "method_not_allowed", f"{method} is not possible here", [allow])


async def _send(reply: Reply, headers: Headers, receive: Receive, send: Send) -> None:
    if reply.status != 204:
        headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if reply.lingers:
        await send({"type": "http.response.body", "body": reply.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.body", "body": reply.body})


async def _stream(
    reply: Stream, headers: Headers, method: str, receive: Receive, send: Send
) -> None:
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if method == "HEAD":
        await send({"type": "http.response.body", "body": b""})
        return
    writing = asyncio.ensure_future(_write(reply, send))
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (writing, leaving):
            task.cancel()
        await asyncio.gather(writing, leaving, return_exceptions=True)
    if not writing.cancelled() and writing.exception() is not None:
        # The status is out; only a connection that ends early can still say that something failed.
        _log.error("a stream broke off", exc_info=writing.exception())
        raise ConnectionAbortedError


async def _write(reply: Stream, send: Send) -> None:
    async with contextlib.aclosing(reply.chunks) as chunks:
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
