"""Whole logs, live tails, and events, of tasks that really run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.listener import Listener
from tests.service.server import (
    OLD,
    TES,
    RunningServer,
    create,
    ended,
    get,
    start_server,
    task,
    until,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with with_gates(tmp_path_factory.mktemp("server")) as running:
        yield running


def with_gates(directory: Path) -> contextlib.AbstractContextManager[RunningServer]:
    """A server with room for all tests' tasks at once, however small the machine."""
    shared = directory / "shared"
    shared.mkdir(exist_ok=True)
    return start_server(directory, shared_global_dir=shared, default_cpu_cores=0.01)


def gated(before: str, after: str) -> dict[str, Any]:
    """A task that prints `before`, runs until it is told to go on, then prints `after`."""
    wait = "while [ ! -e /tes-wd/shared-global/$0 ]; do sleep 0.02; done"
    gate = f"gate-{time.time_ns()}"
    return task("sh", "-c", f"printf '{before}'; {wait}; printf '{after}'", gate) | {"name": gate}


def open_gate(server: RunningServer, document: dict[str, Any]) -> None:
    (server.data.parent / "shared" / document["name"]).touch()


def logs(task_id: str, stream: str = "stdout", executor: int = 0) -> str:
    return f"/api/v1/tasks/{task_id}/logs/{executor}/{stream}"


def running(client: httpx.Client, task_id: str) -> None:
    until(lambda: get(client, task_id, "MINIMAL")["state"] == "RUNNING")


def test_whole_streams_and_ranges(client: httpx.Client) -> None:
    task_id = create(client, task("sh", "-c", "printf 0123456789; printf wrong >&2; exit 3"))
    assert ended(client, task_id)["state"] == "EXECUTOR_ERROR"
    whole = client.get(logs(task_id))
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["content-length"] == "10"
    assert client.get(logs(task_id, "stderr")).text == "wrong"
    for wanted, span, part in [
        ("bytes=0-3", "0-3", b"0123"),
        ("bytes=4-", "4-9", b"456789"),
        ("bytes=-2", "8-9", b"89"),
        ("bytes=-99", "0-9", b"0123456789"),
        ("bytes=8-99999999999", "8-9", b"89"),
    ]:
        reply = client.get(logs(task_id), headers={"Range": wanted})
        assert (reply.status_code, reply.content) == (206, part)
        assert reply.headers["content-range"] == f"bytes {span}/10"
    for wanted in ("bytes=10-", "bytes=99-100", "bytes=-0"):
        reply = client.get(logs(task_id), headers={"Range": wanted})
        assert (reply.status_code, reply.headers["content-range"]) == (416, "bytes */10")
        assert reply.json()["error"]["code"] == "range_not_satisfiable"
    for wanted in ("bytes=0-1,3-4", "lines=0-1", "bytes=5-2", "bytes=a-", "bytes=-"):
        assert client.get(logs(task_id), headers={"Range": wanted}).status_code == 200
    head = client.head(logs(task_id))
    assert (head.headers["content-length"], head.content) == ("10", b"")


def test_streams_larger_than_a_chunk_come_whole(client: httpx.Client) -> None:
    task_id = create(client, task("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"))
    shown = ended(client, task_id)
    assert len(shown["logs"][0]["logs"][0]["stdout"]) == 65536
    assert client.get(logs(task_id)).content == b"x" * 3_000_000
    assert client.get(logs(task_id), params={"follow": "1"}).content == b"x" * 3_000_000


def test_streams_that_are_not_there(client: httpx.Client) -> None:
    task_id = create(client)
    ended(client, task_id)
    for path in (
        logs("0" * 26),
        logs(task_id, executor=1),
        f"/api/v1/tasks/{task_id}/logs/x/stdout",
        f"/api/v1/tasks/{task_id}/logs/-1/stdout",
        f"/api/v1/tasks/{task_id}/logs/99999999999/stdout",
        f"/api/v1/tasks/{task_id}/logs/0/stdin",
        logs(task_id) + "?attempt=2",
        logs(task_id, executor=1) + "?follow=1",
    ):
        reply = client.get(path)
        assert (reply.status_code, path) == (404, path)
        assert reply.json()["message"]
    for attempt in ("0", "-1", "x"):
        reply = client.get(logs(task_id), params={"attempt": attempt})
        assert reply.json()["error"]["fields"][0]["field"] == "attempt"
    assert client.get(logs(task_id), params={"attempt": 1}).status_code == 200


def test_following_shows_what_is_written_as_it_comes(
    server: RunningServer, client: httpx.Client
) -> None:
    document = gated("first ", "second")
    task_id = create(client, document)
    with client.stream("GET", logs(task_id), params={"follow": "1"}) as reply:
        assert reply.status_code == 200
        chunks = reply.iter_bytes()
        got = b""
        while got != b"first ":
            got += next(chunks)
        open_gate(server, document)
        assert b"".join(chunks) == b"second"
    assert ended(client, task_id)["state"] == "COMPLETE"
    resumed = client.get(logs(task_id), params={"follow": "1"}, headers={"Range": "bytes=6-"})
    assert (resumed.status_code, resumed.content) == (206, b"second")
    assert resumed.headers["content-range"] == "bytes 6-9007199254740991/*"
    beyond = client.get(logs(task_id), params={"follow": "1"}, headers={"Range": "bytes=99-"})
    assert beyond.status_code == 416


def test_following_ends_when_the_task_is_canceled(client: httpx.Client) -> None:
    task_id = create(client, gated("here", "never"))
    running(client, task_id)
    with client.stream("GET", logs(task_id), params={"follow": "1"}) as reply:
        chunks = reply.iter_bytes()
        assert next(chunks) == b"here"
        client.post(f"{TES}/tasks/{task_id}:cancel")
        assert list(chunks) == []


def test_full_views_show_the_tails_of_what_runs(
    server: RunningServer, client: httpx.Client
) -> None:
    document = gated("so far", "")
    task_id = create(client, document)

    def tail() -> Any:
        attempts = get(client, task_id)["logs"]
        entries = attempts[-1]["logs"] if attempts else []
        return entries and entries[0].get("stdout")

    assert until(tail) == "so far"
    shown = get(client, task_id)
    assert "exit_code" not in shown["logs"][0]["logs"][0]
    assert "stdout" not in get(client, task_id, "BASIC")["logs"][0]["logs"][0]
    page = client.get(f"{TES}/tasks", params={"view": "FULL", "name_prefix": document["name"]})
    assert page.json()["tasks"][0]["logs"][0]["logs"][0]["stdout"] == "so far"
    open_gate(server, document)
    assert ended(client, task_id)["state"] == "COMPLETE"


def test_a_task_that_can_never_fit_ends_at_once_with_the_reason(client: httpx.Client) -> None:
    task_id = create(client, task(resources={"cpu_cores": 4096}))
    shown = ended(client, task_id, 10)
    assert shown["state"] == "SYSTEM_ERROR"
    assert "4096 cores" in "\n".join(shown["logs"][0]["system_logs"])


# -- events ---------------------------------------------------------------------------------------


LIFE = ["QUEUED", "INITIALIZING", "RUNNING", "COMPLETE"]


def follows(states: list[str]) -> bool:
    """Whether these are the last states of a life, in order, none twice."""
    return bool(states) and states == LIFE[LIFE.index(states[0]) :]


def test_one_tasks_events_begin_with_its_state_and_end_with_it(
    server: RunningServer, client: httpx.Client
) -> None:
    document = gated("", "")
    task_id = create(client, document)
    listener = Listener(client, f"/api/v1/tasks/{task_id}/events")
    until(lambda: "RUNNING" in listener.states(task_id))
    open_gate(server, document)
    assert listener.ended.wait(60)
    assert follows(listener.states(task_id))
    numbers = [number for number, _, _ in listener.events]
    assert numbers == sorted(numbers)
    again = Listener(client, f"/api/v1/tasks/{task_id}/events")
    assert again.ended.wait(60)
    assert again.states(task_id) == ["COMPLETE"]
    last = str(numbers[-1])
    gone = client.get(f"/api/v1/tasks/{task_id}/events", headers={"Last-Event-ID": last})
    assert (gone.status_code, gone.content) == (204, b"")


@pytest.mark.serial
def test_state_changes_reach_listeners_within_250_ms(client: httpx.Client) -> None:
    task_id = create(client, task("sleep", "0.2"))
    listener = Listener(client, f"/api/v1/tasks/{task_id}/events")
    assert listener.ended.wait(60)
    late = [seen - _seconds(data["time"]) for _, data, seen in listener.events[1:]]
    assert late
    assert max(late) < 0.25


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _has(listener: Listener, count: int) -> bool:
    return len(listener.events) >= count


def test_a_listener_that_comes_back_misses_nothing(client: httpx.Client) -> None:
    listener = Listener(client, "/api/v1/events")
    ids = [create(client) for _ in range(10)]
    for task_id in ids:
        ended(client, task_id)
    until(lambda: all(listener.states(i)[-1:] == ["COMPLETE"] for i in ids))
    seen = [(n, d) for n, d, _ in listener.events]
    assert all(listener.states(i) == LIFE for i in ids)
    numbers = [n for n, _ in seen]
    assert numbers == sorted(set(numbers))
    middle = len(seen) // 2
    for path, headers in [
        ("/api/v1/events", {"Last-Event-ID": str(numbers[middle])}),
        (f"/api/v1/events?last_event_id={numbers[middle]}", {}),
    ]:
        resumed = Listener(client, path, **headers)
        until(partial(_has, resumed, len(seen) - middle - 1))
        assert [(n, d) for n, d, _ in resumed.events][: len(seen) - middle - 1] == seen[
            middle + 1 :
        ]


@pytest.mark.parametrize("joined", [True, False])
def test_events_of_several_tasks_end_with_the_last(client: httpx.Client, joined: bool) -> None:
    ids = [create(client) for _ in range(3)]
    query = "task_id=" + ",".join(ids) if joined else "&".join(f"task_id={i}" for i in ids)
    listener = Listener(client, f"/api/v1/events?{query}")
    other = create(client)
    assert listener.ended.wait(60)
    assert all(follows(listener.states(i)) for i in ids)
    assert listener.states(other) == []


def test_events_that_are_not_there(client: httpx.Client) -> None:
    assert client.get(f"/api/v1/tasks/{'0' * 26}/events").status_code == 404
    assert client.get("/api/v1/events?task_id=x").status_code == 404
    for bad in ("x", "-1", "9" * 30):
        reply = client.get("/api/v1/events", headers={"Last-Event-ID": bad})
        assert reply.status_code == 400


def test_a_number_from_another_installation_begins_anew(client: httpx.Client) -> None:
    task_id = create(client)
    ended(client, task_id)
    listener = Listener(client, f"/api/v1/tasks/{task_id}/events?last_event_id=999999999")
    assert listener.ended.wait(60)
    assert listener.states(task_id) == ["COMPLETE"]


def test_many_listeners_each_get_everything(client: httpx.Client, server: RunningServer) -> None:
    with server.client(limits=httpx.Limits(max_connections=None)) as many:
        listeners = [Listener(many, "/api/v1/events") for _ in range(50)]
        task_id = create(client)
        ended(client, task_id)
        until(lambda: all(x.states(task_id) == LIFE for x in listeners))


def test_head_of_a_stream_ends(client: httpx.Client) -> None:
    assert client.head("/api/v1/events").headers["content-type"].startswith("text/event-stream")


def test_open_streams_do_not_keep_the_server_from_stopping(tmp_path: Path) -> None:
    with with_gates(tmp_path) as server, server.client() as client:
        document = gated("x", "")
        task_id = create(client, document)
        running(client, task_id)
        listeners = [
            Listener(client, "/api/v1/events"),
            Listener(client, f"/api/v1/tasks/{task_id}/events"),
            Listener(client, f"{logs(task_id)}?follow=1"),
        ]
        assert server.stop(60) == 0
        assert all(listener.ended.wait(60) for listener in listeners)
        # They were ended, and not cut off after some seconds.
        assert all(listener.whole for listener in listeners)
        # Before the first one is left, which ends what still runs on its data directory.
        with with_gates(tmp_path) as again, again.client() as anew:
            assert get(anew, task_id, "MINIMAL", OLD)["state"] == "RUNNING"
            open_gate(again, document)
            shown = ended(anew, task_id)
            assert (shown["state"], len(shown["logs"])) == ("COMPLETE", 1)
