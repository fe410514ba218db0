"""Lists, POSTs, memory and start-up with a million tasks in the store."""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from benchmarks.fill_store import fill
from benchmarks.load import PREFIX, body, resident_mb, tesazure, wrk
from tesazure.callers import Visibility
from tesazure.model import State
from tesazure.store.records import ListQuery
from tesazure.store.sql_store import open_store

FILTERS: dict[str, list[tuple[str, str]]] = {
    "state_common": [("state", "COMPLETE")],
    "state_rare": [("state", "EXECUTOR_ERROR")],
    "name_common": [("name_prefix", "align")],
    "name_rare": [("name_prefix", "rare")],
    "tag_common": [("tag_key", "project"), ("tag_value", "common")],
    "tag_rare": [("tag_key", "project"), ("tag_value", "rare")],
    "tag_key_only": [("tag_key", "project")],
}


def run(tasks: int, seconds: float) -> dict[str, Any]:
    """Fill a store, serve it, and measure each kind of page beside page 1."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        full, empty = Path(name) / "full", Path(name) / "empty"
        document = body(Path(name) / "files")
        fill(full, tasks)
        restricted = asyncio.run(_restricted(full / "tesazure.db"))
        with tesazure(empty, APP_SCHEDULER="false", APP_ALLOW_DIR=name) as (base, _child):
            empty_rate = wrk(base + PREFIX, connections=64, seconds=seconds, post=document)["per_s"]
        started = time.perf_counter()
        with tesazure(full, APP_ALLOW_DIR=name, APP_SCHEDULER="false") as (base, child):
            start_s = time.perf_counter() - started
            pages = _pages(base, tasks)
            memory = resident_mb(child.pid)
            rate = wrk(base + PREFIX, connections=64, seconds=seconds, post=document)["per_s"]
            memory_after = resident_mb(child.pid)
    first = pages["page_1"]
    return {
        "tasks": tasks,
        "page_ms": pages,
        "page_vs_page_1": {k: round(v / first, 2) for k, v in pages.items()},
        "page_wanted": "page_2000 <= 1.1, single filters <= 3 x page 1; combinations <= 60 ms",
        "worst_ms": max(pages.values()),
        "restricted_page_ms": restricted,
        "restricted_wanted": "tenant_* <= 1.2 x owner_*, alone <= 3 x everyone, *_workflows <= 10",
        "post_vs_empty": round(rate / empty_rate, 3),
        "post_wanted": ">= 0.6",
        "memory_mb": memory,
        "memory_after_posts_mb": memory_after,
        "memory_wanted": "<= 300",
        "start_s": round(start_s, 3),
        "start_wanted": "<= 2",
    }


VISIBLE = {
    "everyone": Visibility(),
    "owner_common": Visibility(everyone=False, owner="alice"),
    "owner_rare": Visibility(everyone=False, owner="bob"),
    "tenant_common": Visibility(everyone=False, tenant="lab"),
    "tenant_rare": Visibility(everyone=False, tenant="clinic"),
}


async def _restricted(file: Path) -> dict[str, float]:
    """Median ms of the first page, asked of the store itself, by whose tasks a caller sees."""
    found = {}
    store = await open_store("", file)
    for name, visibility in VISIBLE.items():
        query = ListQuery(limit=256, visibility=visibility)
        for more, asked in (
            ("", query),
            ("+state_rare", msgspec.structs.replace(query, states=(State.PREEMPTED,))),
            ("+tag_common", msgspec.structs.replace(query, tags=(("project", "common"),))),
            ("+name_common", msgspec.structs.replace(query, name_prefix="align")),
        ):
            found[name + more] = await _median_ms(partial(store.list_briefs, asked))
        workflows = partial(store.list_workflows, 256, None, visibility)
        found[f"{name}_workflows"] = await _median_ms(workflows)
    await store.close()
    return found


async def _median_ms(ask: Callable[[], Awaitable[object]]) -> float:
    taken = []
    for _ in range(15):
        start = time.perf_counter()
        await ask()
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken) * 1000, 3)


def _pages(base: str, tasks: int) -> dict[str, float]:
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=60)
    with closing(connection):
        found = {"page_1": _page(connection, [])}
        depth = min(2000, tasks // 256 - 1)
        token = None
        for _ in range(depth - 1):
            token = _get(connection, [("page_token", token)] if token else [])["next_page_token"]
        found[f"page_{depth}"] = _page(connection, [("page_token", str(token))])
        names = list(FILTERS)
        for i, one in enumerate(names):
            found[one] = _page(connection, FILTERS[one])
            for other in names[i + 1 :]:
                if one.split("_")[0] != other.split("_")[0]:
                    query = FILTERS[one] + FILTERS[other]
                    found[f"{one}+{other}"] = _page(connection, query)
        found["page_1"] = statistics.median([found["page_1"], _page(connection, [])])
    return found


def _page(connection: http.client.HTTPConnection, query: list[tuple[str, str]]) -> float:
    """Median ms of one page over several requests."""
    taken = []
    for _ in range(15):
        start = time.perf_counter()
        _get(connection, query)
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken) * 1000, 3)


def _get(connection: http.client.HTTPConnection, query: list[tuple[str, str]]) -> dict[str, Any]:
    connection.request("GET", f"{PREFIX}?{urlencode(query)}")
    reply = connection.getresponse()
    data = reply.read()
    if reply.status != http.client.OK:
        raise RuntimeError(f"{query}: {reply.status} {data[:300]!r}")
    page: dict[str, Any] = json.loads(data)
    return page
