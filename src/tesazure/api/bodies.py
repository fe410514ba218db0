"""Reading request bodies: up to a size each, and the large ones within one bound together."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.requests import ClientDisconnect, Request

from tesazure.api.errors import RETRY_AFTER_S, HttpError
from tesazure.errors import FieldError, TooLarge

SMALL_BYTES = 64 * 1024
"""Bodies up to this size are not counted: as much of each is taken in unasked."""
MAX_HELD_BYTES = 32 * 2**20
"""Large bodies held at once, all together. Each occupies some three times its size between its
arrival and its commit."""
ROOM_S = 10.0
"""How long a large body waits for room. Its client is not read from meanwhile."""


class BodyReader:
    """Reads bodies of at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._room = Room(max(MAX_HELD_BYTES, max_bytes))

    async def read(self, request: Request) -> HeldBody:
        """The whole body. A large one keeps its room until this is left: to be left only once what
        was made of it is on disk. Raises TooLarge as soon as that is known, ClientDisconnect, and
        HttpError 503 when no room was found."""
        declared = self._declared(request)
        body = bytearray()
        if not await self._receive(request, body, SMALL_BYTES):
            return HeldBody(bytes(body), self._room, 0)
        size = self._max_bytes if declared is None else declared
        await self._room.take(size)
        try:
            await self._receive(request, body, self._max_bytes)
            return HeldBody(bytes(body), self._room, size)
        except BaseException:
            self._room.give_back(size)
            raise

    async def _receive(self, request: Request, body: bytearray, until: int) -> bool:
        """Add to `body` what comes, until it is whole or larger than that; whether there is more.
        Raises TooLarge."""
        more = True
        while more and len(body) <= until:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > self._max_bytes:
            raise self._too_large()
        return more

    def _declared(self, request: Request) -> int | None:
        for name, value in request.scope["headers"]:
            if name == b"content-length":
                size = int(value)
                if size > self._max_bytes:
                    raise self._too_large()
                return size
        return None

    def _too_large(self) -> TooLarge:
        text = f"the body must be at most {self._max_bytes} bytes (setting MAX_BODY_BYTES)"
        return TooLarge([FieldError("", text)])


class HeldBody:
    """A body, and the room that it takes until this is left."""

    __slots__ = ("_body", "_room", "_size")

    def __init__(self, body: bytes, room: Room, size: int) -> None:
        self._body = body
        self._room = room
        self._size = size

    def __enter__(self) -> bytes:
        return self._body

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._size:
            self._room.give_back(self._size)


class Room:
    """So many bytes, shared by those who need some of them for a while."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._given_back = asyncio.Event()

    async def take(self, size: int) -> None:
        """Take `size` bytes. Raises HttpError 503 when they could not be had within ROOM_S."""
        try:
            async with asyncio.timeout(ROOM_S):
                while self._taken + size > self._most:
                    await self._given_back.wait()
        except TimeoutError:
            retry = ((b"retry-after", b"%d" % RETRY_AFTER_S),)
            raise HttpError(503, "busy", "too many large bodies at once", retry) from None
        self._taken += size

    def give_back(self, size: int) -> None:
        """Let others have what was taken."""
        self._taken -= size
        given_back, self._given_back = self._given_back, asyncio.Event()
        given_back.set()
