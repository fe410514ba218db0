"""Log lines say what they are about."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from tesazure.json_log import _JsonLines, about

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
