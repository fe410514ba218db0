"""Whether the caller of a stream may read on. A stream can last for days: meanwhile the token that
opened it expires or is revoked, or the settings of sign-in change."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from starlette.requests import Request

from tesazure.api.admission import visibility_of
from tesazure.callers import Role
from tesazure.errors import NotSignedIn, SignInUnavailable, StoreUnavailable
from tesazure.signin.gate import Gate

AGAIN_S = 15.0
"""Between two questions to the gate."""
_UNKNOWN_S = 1.0
"""What a gate that could not tell is left alone for."""


class Renewal:
    """The admission of one stream, renewed while it lasts. Keeps nothing of the request that the
    request itself does not keep as long."""

    def __init__(
        self,
        gate: Gate,
        closing: asyncio.Event,
        request: Request,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`request` was admitted now. `clock`: seconds, monotonic."""
        self._gate = gate
        self._closing = closing
        self._headers = request.scope["headers"]
        self.visibility = visibility_of(request)
        """What the caller sees for as long as there is no refusal."""
        self._clock = clock
        self._due = clock() + AGAIN_S

    async def refusal(self) -> str | None:
        """Why nothing more may be sent; empty as long as it may. None, after _UNKNOWN_S or once the
        server stops, if the gate cannot tell now: nothing may be sent then that tells of tasks. To
        be asked before each send: that costs nothing but every AGAIN_S."""
        if self._clock() < self._due:
            return ""
        try:
            caller = await self._gate.admit(Role.READ, self._headers)
        except NotSignedIn as error:
            return str(error)
        except (SignInUnavailable, StoreUnavailable):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_UNKNOWN_S):
                    await self._closing.wait()
            return None
        if self._gate.visibility(caller) != self.visibility:
            return "its caller sees other tasks now than when it began"
        self._due = self._clock() + AGAIN_S
        return ""
