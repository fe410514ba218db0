"""Reference: a bare Starlette + msgspec route that validates a task and stores nothing."""

from __future__ import annotations

import secrets

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tesazure.model import Task

_decoder = msgspec.json.Decoder(Task)


async def create(request: Request) -> Response:
    """Decode into the same Structs as the server does, reply with an id."""
    _decoder.decode(await request.body())
    body = msgspec.json.encode({"id": secrets.token_hex(13)})
    return Response(body, media_type="application/json")


app = Starlette(routes=[Route("/ga4gh/tes/v1/tasks", create, methods=["POST"])])
