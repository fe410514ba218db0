"""What handlers return: a whole body, or a stream of chunks; and how routes name handlers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from tesazure.callers import Role

Headers = list[tuple[bytes, bytes]]

_JSON: Headers = [(b"content-type", b"application/json")]
_TASKS: Headers = [*_JSON, (b"cache-control", b"no-store")]


@dataclass(slots=True)
class Reply:
    """A whole body. Content-Length and X-Request-ID are added on sending.

    `lingers`: the request's body has not been read, so the connection ends after this reply.
    """

    status: int
    body: bytes
    headers: Headers
    lingers: bool = False


@dataclass(slots=True)
class Stream:
    """A body in chunks, closed with the connection if the chunks end in an error."""

    status: int
    chunks: AsyncGenerator[bytes, None]
    headers: Headers


Handler = Callable[[Request], Awaitable[Reply | Stream]]


_USUAL = {"GET": Role.READ, "HEAD": Role.READ, "POST": Role.WRITE}


@dataclass(frozen=True, slots=True)
class Route:
    """A path template (`/tasks/{id}`) and the handler of each method.

    `open`: everybody may ask, without a sign-in. `roles`: what each method needs otherwise.
    """

    path: str
    handlers: dict[str, Handler] = field(default_factory=dict)
    open: bool = False
    roles: Mapping[str, Role] = field(default_factory=lambda: _USUAL)

    def needs(self, method: str) -> Role | None:
        """The role that a method needs; None: nobody is asked who they are."""
        return None if self.open else self.roles.get(method, Role.ADMIN)


def tasks_json(body: bytes) -> Reply:
    """A reply about tasks, never to be kept by caches."""
    return Reply(200, body, _TASKS)


def json_reply(body: bytes, status: int = 200) -> Reply:
    """A JSON reply that may be kept."""
    return Reply(status, body, _JSON)
