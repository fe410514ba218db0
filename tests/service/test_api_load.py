"""What many clients at once cost the server: memory for bodies, time for followers who wait."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.service.server import TES, RunningServer, create, start_server, task, until
from tests.service.test_api_streams import gated, logs, open_gate, running, with_gates

pytestmark = [pytest.mark.serial, pytest.mark.slow]

POSTS = 80
BODY_BYTES = 15 * 2**20
MORE_RSS_BYTES = 300e6
FOLLOWERS = 50
WATCHED_S = 5.0


def rss_bytes(server: RunningServer, field: str) -> int:
    """VmRSS, or VmHWM: the most there ever was."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def cpu_s(server: RunningServer) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_many_large_bodies_at_once_take_bounded_memory(tmp_path: Path) -> None:
    content = "x" * (BODY_BYTES - 1000)
    body = json.dumps(task(inputs=[{"path": "/in", "content": content}])).encode()
    with start_server(tmp_path, scheduler="false", request_timeout_s=60) as server:
        with server.client() as client:
            create(client)
            before = rss_bytes(server, "VmRSS")

        def post(_: int) -> int:
            with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as own:
                reply = own.post(f"{TES}/tasks", content=body)
            if reply.status_code == 503:
                assert reply.headers["retry-after"]
                assert reply.json()["error"]["code"] == "busy"
            return reply.status_code

        with ThreadPoolExecutor(POSTS) as threads:
            statuses = Counter(threads.map(post, range(POSTS)))
        more = rss_bytes(server, "VmHWM") - before
        print(f"{statuses}, {more / 1e6:.0f} MB more")
        assert set(statuses) <= {200, 503}
        assert statuses[200] >= 3
        assert more < MORE_RSS_BYTES
        with server.client() as client:
            create(client)


def test_followers_who_wait_cost_little_and_are_told_soon(tmp_path: Path) -> None:
    document = gated("before", "after")
    with with_gates(tmp_path) as server, server.client() as client:
        task_id = create(client, document)
        running(client, task_id)
        got = [b""] * FOLLOWERS
        times = [0.0] * FOLLOWERS

        def follow(number: int) -> None:
            with (
                server.client() as own,
                own.stream("GET", logs(task_id), params={"follow": "1"}) as reply,
            ):
                for chunk in reply.iter_bytes():
                    got[number] += chunk
                    times[number] = time.monotonic()

        threads = [threading.Thread(target=follow, args=(n,)) for n in range(FOLLOWERS)]
        for thread in threads:
            thread.start()
        until(lambda: all(text == b"before" for text in got))
        time.sleep(2)  # the pauses grow to their full length
        began = cpu_s(server)
        time.sleep(WATCHED_S)
        share = (cpu_s(server) - began) / WATCHED_S
        opened = time.monotonic()
        open_gate(server, document)
        for thread in threads:
            thread.join(20)
        late = max(times) - opened
        print(f"{share:.1%} of a core; told after {late:.2f} s")
        assert all(text == b"beforeafter" for text in got)
        assert share < 0.05
        assert late < 1.5
