"""What answers while the server starts, and what stands before its application ever after."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from tesazure.api.app import Application
from tesazure.api.errors import RETRY_AFTER_S, HttpError, reply_to
from tesazure.api.ids import request_id
from tesazure.api.replies import Reply
from tesazure.backends.base import Check

HOLD_S = 10.0
"""How long a request waits for the server to be there, in seconds: most starts are over sooner, and
a client need not know of them."""
BEGINS = Check("start", False, "the server is starting", "wait; the server's log says for what")
_NO_STORE = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class Threshold:
    """An ASGI application: another one's door, with somebody at it until that one is there.

    Nobody can sign in as yet, so what is said is for everybody's ears.
    """

    def __init__(self) -> None:
        self._serve: ASGIApp = self._before
        self._application: Application | None = None
        self._over = asyncio.Event()
        """The application is there, or never will be."""
        self.missing = BEGINS
        """What the start waits for."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        return self._serve(scope, receive, send)

    def open(self, application: Application) -> None:
        """The application serves from now on, also the requests that wait for it."""
        self._application = application
        self._serve = application.asgi
        self._over.set()

    def close(self) -> None:
        """Let nothing wait or stream any longer; new requests are still answered."""
        self._over.set()
        if self._application is not None:
            self._application.close()

    def refused(
        self,
        method: str,
        path: str,
        status: int,
        seconds: float,
        name: bytes,
        client: tuple[str, int] | None,
    ) -> None:
        """Note a request that the protocol refused (see `limits`)."""
        if self._application is not None:
            self._application.refused(method, path, status, seconds, name, client)

    async def _before(self, scope: Scope, receive: Receive, send: Send) -> None:
        """/healthz is not 200 either: by it, load balancers send requests, and deployments end the
        server that this one is to replace."""
        path, name = scope["path"], request_id(scope["headers"])
        if path == "/healthz":
            reply = Reply(503, b'{"status":"starting"}', list(_NO_STORE))
        elif path == "/readyz":
            body = msgspec.json.encode({"ready": False, "checks": [self.missing]})
            reply = Reply(503, body, list(_NO_STORE))
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HOLD_S):
                    await self._over.wait()
            if self._application is not None:
                await self._serve(scope, receive, send)
                return
            retry = [(b"retry-after", b"%d" % RETRY_AFTER_S)]
            reply = reply_to(HttpError(503, "starting", self.missing.detail, retry), name)
        length = (b"content-length", b"%d" % len(reply.body))
        headers = [*reply.headers, length, (b"x-request-id", name)]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})
