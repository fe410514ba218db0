"""/healthz says that the process answers, /readyz that it can do its work."""

from __future__ import annotations

import asyncio
import time

import msgspec
from starlette.requests import Request

from tesazure.api.parts import Parts
from tesazure.api.replies import Reply, Route
from tesazure.backends.base import Check
from tesazure.callers import Role
from tesazure.errors import StoreError, TesazureError
from tesazure.signin.keys import REMEDY

_PATIENCE_S = 5.0
_FRESH_S = 1.0
"""For so long what was found is told to all who ask: the work does not grow with their number."""
_SILENCE_S = 30.0
"""A scheduler that completes no tick for so long, or for a lease, does not do its work: ticks come
at least once a second, and what delays one (a database away) is over sooner or is worth a word."""
_NO_STORE = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class Health:
    """The handlers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._looking = asyncio.Lock()
        self._found: list[Check] = []
        self._fresh_until = 0.0
        """On the monotonic clock."""

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route("/healthz", {"GET": self.healthz}, open=True),
            Route("/readyz", {"GET": self.readyz}, open=True),
        ]

    async def healthz(self, request: Request) -> Reply:
        """The process answers."""
        return Reply(200, b'{"status":"ok"}', list(_NO_STORE))

    async def readyz(self, request: Request) -> Reply:
        """The store can be written, the scheduler comes round and the backend can run tasks; 503
        if not. What is wrong is told to those who may read."""
        store, *backend = await self._looked()
        checks = [store, *self._scheduler(), *self._sign_in(), *backend]
        ready = all(check.ok for check in checks) and not self._parts.closing.is_set()
        told: list[Check] | list[dict[str, object]] = checks
        if not await self._may_read(request):
            told = [{"name": check.name, "ok": check.ok} for check in checks]
        body = msgspec.json.encode({"ready": ready, "checks": told})
        return Reply(200 if ready else 503, body, list(_NO_STORE))

    async def _looked(self) -> list[Check]:
        """The store's verdict and the backend's, found a moment ago at most: whoever asks meanwhile
        waits for the same."""
        async with self._looking:
            if time.monotonic() >= self._fresh_until:
                store, backend = await asyncio.gather(self._store(), self._backend())
                self._found = [store, *backend]
                self._fresh_until = time.monotonic() + _FRESH_S
            return self._found

    async def _may_read(self, request: Request) -> bool:
        """Whether the sender may know more than names. Probes sign in nowhere: whoever cannot is
        not refused."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                caller = await self._parts.gate.identify(request.scope["headers"])
        except (TesazureError, TimeoutError):
            return False
        return Role.READ in caller.roles

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

    def _scheduler(self) -> list[Check]:
        pulse = self._parts.pulse
        if pulse is None:
            return []
        silent = time.monotonic() - pulse.last_tick
        if silent <= max(self._parts.settings.lease_s, _SILENCE_S):
            return [Check("scheduler", True, "places and watches tasks")]
        detail = f"has not come round for {silent:.0f} s"
        if pulse.last_error:
            detail += f": {pulse.last_error}"
        remedy = "see the server's log; restarting the server is safe, running tasks go on"
        return [Check("scheduler", False, detail, remedy)]

    def _sign_in(self) -> list[Check]:
        """Not well only if nobody could sign in: an issuer that fails alone keeps others from
        nothing."""
        state = self._parts.gate.state()
        some = any(known for _, known, _ in state)
        return [
            Check("sign-in", some, f"{host}: {said}", "" if known else REMEDY)
            for host, known, said in state
        ]

    async def _backend(self) -> list[Check]:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return list(await self._parts.stations.current.backend.check())
        except TimeoutError:
            detail = f"no answer within {_PATIENCE_S:g} s"
            return [Check("backend", False, detail, "see the server's log")]
