"""Log lines say what they are about."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import httpx
from starlette.requests import Request

from tesazure.api.access_log import AccessLog
from tesazure.api.edge import Edge
from tesazure.api.lines import Lines
from tesazure.api.metrics import Latencies
from tesazure.api.replies import Reply, Route
from tesazure.api.routing import Routes
from tesazure.json_log import _JsonLines, about
from tesazure.signin.gate import Gate, SignIn
from tesazure.signin.tokens import TokenSource
from tesazure.store.sql_store import open_store

KNOWN = {"time", "level", "event", "logger"}


def line(message: str, *args: object, **more: Any) -> dict[str, Any]:
    """A line, as it is written."""
    record = logging.getLogger("some.where").makeRecord(
        "some.where", logging.WARNING, "f", 1, message, args, None, extra=more or None
    )
    found: dict[str, Any] = json.loads(_JsonLines().format(record))
    return found


def test_a_line_about_nothing() -> None:
    found = line("%d things", 2)
    assert set(found) == KNOWN
    assert (found["event"], found["level"], found["logger"]) == (
        "2 things",
        "warning",
        "some.where",
    )


def test_ids_are_fields() -> None:
    found = line("x", task="t-1", attempt=None)
    assert {name: found[name] for name in set(found) - KNOWN} == {"task": "t-1"}


async def test_what_is_written_meanwhile_is_about_it_and_nothing_else_is() -> None:
    inside: list[dict[str, Any]] = []

    async def look_after(**ids: Any) -> None:
        about(**ids)
        await asyncio.sleep(0)
        inside.append(line("by a library"))
        inside.append(await asyncio.to_thread(line, "in a thread"))
        inside.append(line("of another", task="t-9"))

    await asyncio.gather(
        asyncio.create_task(look_after(task="t-1", attempt="a-1")),
        asyncio.create_task(look_after(request_id=b"r-1")),
    )
    told = {
        (found["event"], found.get("task"), found.get("attempt"), found.get("request_id"))
        for found in inside
        if found["event"] != "of another"
    }
    assert told == {
        ("by a library", "t-1", "a-1", None),
        ("by a library", None, None, "r-1"),
        ("in a thread", "t-1", "a-1", None),
        ("in a thread", None, None, "r-1"),
    }
    assert {found["task"] for found in inside if found["event"] == "of another"} == {"t-9"}
    assert set(line("afterwards")) == KNOWN


async def test_what_a_request_began_and_outlives_it_is_no_longer_about_it(tmp_path: Path) -> None:
    over, begun, said = asyncio.Event(), list[asyncio.Task[None]](), list[dict[str, Any]]()

    async def go_on() -> None:
        said.append(line("meanwhile"))
        await over.wait()
        said.append(line("afterwards"))

    async def begin(request: Request) -> Reply:
        begun.append(asyncio.create_task(go_on()))
        await asyncio.sleep(0)
        return Reply(204, b"", [])

    store = await open_store("", tmp_path / "tesazure.db")
    try:
        gate = Gate(SignIn(), TokenSource(store))
        routes = Routes([Route("/", {"GET": begin}, open=True)])
        edge = Edge(routes, gate, Latencies(), AccessLog(Lines(sys.stderr.fileno()), False))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(edge)) as client:
            reply = await client.get("http://server/", headers={"X-Request-Id": "r-1"})
            assert reply.status_code == 204
            # The client called it in this very asyncio task.
            assert "request_id" not in line("here")
        over.set()
        await asyncio.gather(*begun)
    finally:
        await store.close()
    assert [found.get("request_id") for found in said] == ["r-1", None]
