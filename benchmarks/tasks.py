"""What a task costs beyond its container, how many run a second, and what waiting costs."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import PREFIX, cpu_seconds, post, tesazure

TRUE = ["/bin/true"]


def document(command: list[str], image: str = "unused") -> bytes:
    """A task of one command, on one core."""
    task = {
        "name": "bench",
        "executors": [{"image": image, "command": command}],
        "resources": {"cpu_cores": 1},
    }
    return json.dumps(task).encode()


def events(base: str) -> Iterator[tuple[str, str]]:
    """(task id, state) of every change from now on, from the server's event stream."""
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=120)
    with closing(connection):
        connection.request("GET", "/api/v1/events")
        reply = connection.getresponse()
        yield "", "connected"
        for line in reply:
            if line.startswith(b"data:"):
                data = json.loads(line[5:])
                yield data["id"], data["state"]


def sandbox_true() -> None:
    """The sandbox engine's own command around `true`, nothing else."""
    command = ["bwrap", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"]
    command += ["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--unshare-pid"]
    command += ["--die-with-parent", "--new-session", "/bin/true"]
    subprocess.run(command, check=True)


def docker_true(host: str, image: str) -> Callable[[], None]:
    """Docker's own API calls around `true`: create, attach, start, wait, remove."""
    import docker

    def once() -> None:
        api = docker.APIClient(base_url=host, version="auto")
        made = api.create_container(image, command=[], entrypoint=TRUE)
        output = api.attach(made["Id"], stream=True, demux=True)
        api.start(made["Id"])
        for _chunk in output:
            pass
        api.wait(made["Id"])
        api.remove_container(made["Id"], v=True, force=True)
        api.close()

    return once


def timed(action: Callable[[], None], times: int) -> float:
    """Median seconds of an action."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def overhead(base: str, image: str, times: int) -> float:
    """Median seconds from submitting `true` to seeing COMPLETE, one task at a time."""
    stream = events(base)
    next(stream)
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        identifier = post(base, document(TRUE, image))
        for task, state in stream:
            if task == identifier and state == "COMPLETE":
                break
            if task == identifier and state.endswith("ERROR"):
                raise RuntimeError(f"{identifier} ended in {state}")
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def throughput(base: str, image: str, count: int) -> float:
    """Tasks per second from the first submission to the last COMPLETE."""
    stream = events(base)
    next(stream)
    start = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        left = set(pool.map(lambda _: post(base, document(TRUE, image)), range(count)))
        ended: set[str] = set()
        for task, state in stream:
            if state == "COMPLETE":
                ended.add(task)
            if left <= ended:
                break
    return count / (time.perf_counter() - start)


def loop_rate(action: Callable[[], None], count: int, parallel: int) -> float:
    """Times per second of the bare action with the same parallelism."""
    start = time.perf_counter()
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(lambda _: action(), range(count)))
    return count / (time.perf_counter() - start)


def engine(name: str, host: str, image: str, times: int, count: int) -> dict[str, Any]:
    """Overhead and rate of one engine, beside the engine alone."""
    bare = sandbox_true if name == "sandbox" else docker_true(host, image)
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        settings = {"APP_LOCAL_ENGINE": name}
        if host:
            settings["APP_DOCKER_HOST"] = host
        with tesazure(Path(folder) / "data", **settings) as (base, _child):
            overhead(base, image, 3)
            alone = timed(bare, times)
            whole = overhead(base, image, times)
            bare_rate = loop_rate(bare, count, cores)
            rate = throughput(base, image, count)
    limit = 150 if name == "sandbox" else 300
    return {
        "engine_alone_ms": round(alone * 1000, 1),
        "submit_to_complete_ms": round(whole * 1000, 1),
        "overhead_ms": round((whole - alone) * 1000, 1),
        "overhead_wanted": f"<= {limit}",
        "bare_loop_per_s": round(bare_rate, 1),
        "tasks_per_s": round(rate, 1),
        "rate_vs_bare_loop": round(rate / bare_rate, 3),
        "rate_wanted": ">= 0.8",
        "tasks": count,
    }


def idle(queued: int, seconds: float) -> dict[str, Any]:
    """CPU share of a server with many queued tasks and nothing to do, and how late news come."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        settings = {"APP_LOCAL_ENGINE": "sandbox", "APP_LOCAL_CPU_CORES": "1"}
        with tesazure(Path(folder) / "data", **settings) as (base, child):
            post(base, document(["/bin/sleep", "600"]))
            with ThreadPoolExecutor(8) as pool:
                identifiers = list(pool.map(lambda _: post(base, document(TRUE)), range(queued)))
            time.sleep(2)
            before = cpu_seconds(child.pid)
            time.sleep(seconds)
            share = (cpu_seconds(child.pid) - before) / seconds
            late = [_cancel_seen(base, identifier) for identifier in identifiers[-20:]]
    return {
        "queued": queued,
        "cpu_share": round(share, 4),
        "cpu_share_wanted": "< 0.03",
        "news_median_ms": round(statistics.median(late) * 1000, 1),
        "news_max_ms": round(max(late) * 1000, 1),
        "news_wanted_ms": "<= 250",
    }


def _cancel_seen(base: str, identifier: str) -> float:
    stream = events(base)
    next(stream)
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=30)
    with closing(connection):
        connection.request("POST", f"{PREFIX}/{identifier}:cancel")
        connection.getresponse().read()
    start = time.perf_counter()
    for task, state in stream:
        if task == identifier and state == "CANCELED":
            break
    return time.perf_counter() - start
