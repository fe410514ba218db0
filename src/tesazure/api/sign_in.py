"""/api/v1/sign-in: how to sign in, for whoever has not yet. Open to all, and holds no secret."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from starlette.requests import Request

from tesazure.api.replies import Reply, Route, json_reply
from tesazure.signin.gate import Gate, SignIn

PATH = "/api/v1/sign-in"
_GUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_KEPT = "openid profile offline_access"
"""Scopes that bring a name to show and a refresh token (OpenID Connect Core 1.0, section 11)."""


def routes(gate: Gate) -> list[Route]:
    """The one."""

    async def answer(request: Request) -> Reply:
        return json_reply(msgspec.json.encode(announcement(gate.sign_in)))

    return [Route(PATH, {"GET": answer}, open=True)]


def announcement(sign_in: SignIn) -> dict[str, Any]:
    """What is demanded now. `issuer`, `client_id` and `scope` are for the device code flow (RFC
    8628) and only there where an OpenID provider's tokens are taken; `client_id` and `scope` only
    where an application is named to sign in with."""
    said: dict[str, Any] = {"required": sign_in.needed, "api_tokens": sign_in.api_tokens}
    trusted = sign_in.trusted
    if trusted is None:
        return said
    if trusted.tenants:
        # Of several tenants, the user's own is known once the user is.
        where = trusted.tenants[0] if len(trusted.tenants) == 1 else "organizations"
        said["issuer"] = f"{trusted.authority}/{where}/v2.0"
        # Microsoft, "Scopes and permissions in the Microsoft identity platform": all that was
        # granted for the API, whose application may be the one that signs in, too.
        scopes = [f"{audience}/.default {_KEPT}" for audience in trusted.audiences[:1]]
    else:
        said["issuer"] = trusted.issuer
        scopes = [_KEPT]
    own = [audience.removeprefix("api://") for audience in trusted.audiences]
    clients = [sign_in.client_id, *filter(_GUID.fullmatch, own if trusted.tenants else [])]
    client = next(filter(None, clients), "")
    if client and scopes:
        said |= {"client_id": client, "scope": scopes[0]}
    return said
