"""Room for large bodies: whatever becomes of one, the next finds room again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from tesazure.api.bodies import MAX_HELD_BYTES, SMALL_BYTES, BodyReader
from tesazure.errors import TooLarge

PART = b"x" * (SMALL_BYTES + 1)
HALF = b"x" * (MAX_HELD_BYTES // 2 + 1)
GONE = {"type": "http.disconnect"}


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def request(*messages: dict[str, Any]) -> Request:
    """One without a content-length: it takes all the room there is."""
    coming = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(coming)

    return Request({"type": "http", "headers": []}, receive)


async def read(bodies: BodyReader, *messages: dict[str, Any]) -> int:
    """Bytes of a body that found room at once."""
    async with asyncio.timeout(5):
        with await bodies.read(request(*messages)) as body:
            return len(body)


async def test_room_is_given_back_whatever_becomes_of_a_body() -> None:
    bodies = BodyReader(MAX_HELD_BYTES)
    whole = (part(PART), part(b"yz", more=False))
    assert await read(bodies, *whole) == len(PART) + 2
    with pytest.raises(ClientDisconnect):
        await read(bodies, part(PART), GONE)
    with pytest.raises(TooLarge):
        await read(bodies, part(PART), part(HALF), part(HALF))
    with pytest.raises(ZeroDivisionError), await bodies.read(request(*whole)):
        _ = 1 / 0
    assert await read(bodies, *whole) == len(PART) + 2


async def test_a_large_body_waits_for_room_and_a_small_one_does_not() -> None:
    bodies = BodyReader(MAX_HELD_BYTES)
    whole = (part(PART), part(b"", more=False))
    with await bodies.read(request(*whole)):
        waiting = asyncio.ensure_future(read(bodies, *whole))
        await asyncio.sleep(0)
        assert await read(bodies, part(b"small", more=False)) == 5
        assert not waiting.done()
    assert await waiting == len(PART)
