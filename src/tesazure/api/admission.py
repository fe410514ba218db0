"""Who sent a request and whose tasks they see: asked of the gate once, before the handler."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Scope

from tesazure.api.replies import Route
from tesazure.callers import Caller, Visibility
from tesazure.signin.gate import Gate


async def admit(gate: Gate, route: Route, method: str, scope: Scope) -> None:
    """Note the caller of a request and what it sees. Nothing is asked of the callers of a route
    that is open to all, and nobody is noted there. Raises as Gate.admit."""
    needs = route.needs(method)
    if needs is None or route.path in gate.sign_in.open_paths:
        return
    caller = scope["caller"] = await gate.identify(scope["headers"])
    gate.demand(caller, needs)
    scope["visibility"] = gate.visibility(caller)


def caller_of(request: Request) -> Caller:
    """Who sent it."""
    caller: Caller = request.scope["caller"]
    return caller


def visibility_of(request: Request) -> Visibility:
    """Whose tasks its sender sees."""
    visibility: Visibility = request.scope["visibility"]
    return visibility
