"""/healthz says that the process answers, /readyz that it can do its work."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request

from tesazure.api.parts import Parts
from tesazure.api.replies import Reply, Route
from tesazure.backends.base import Check
from tesazure.errors import StoreError

_PATIENCE_S = 5.0
_NO_STORE = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class Health:
    """The handlers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route("/healthz", {"GET": self.healthz}),
            Route("/readyz", {"GET": self.readyz}),
        ]

    async def healthz(self, request: Request) -> Reply:
        """The process answers."""
        return Reply(200, b'{"status":"ok"}', list(_NO_STORE))

    async def readyz(self, request: Request) -> Reply:
        """The store can be written and the backend can run tasks; 503 and what is wrong if not."""
        store, backend = await asyncio.gather(self._store(), self._backend())
        checks = [store, *backend]
        ready = all(check.ok for check in checks) and not self._parts.closing.is_set()
        body = msgspec.json.encode({"ready": ready, "checks": checks})
        return Reply(200 if ready else 503, body, list(_NO_STORE))

    async def _store(self) -> Check:
        remedy = "see the server's log; is the disk full, or the database down?"
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._parts.store.ping()
        except StoreError as error:
            return Check("store", False, str(error), remedy)
        except TimeoutError:
            return Check("store", False, f"no answer within {_PATIENCE_S:g} s", remedy)
        return Check("store", True, "reads and writes")

    async def _backend(self) -> list[Check]:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return list(await self._parts.backend.check())
        except TimeoutError:
            detail = f"no answer within {_PATIENCE_S:g} s"
            return [Check("backend", False, detail, "see the server's log")]
