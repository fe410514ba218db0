"""Load on a server of ours on loopback, by `wrk`; and the machine's own figures."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PREFIX = "/ga4gh/tes/v1/tasks"
_REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {"requests":%d,"us":%d,"p50_us":%d,"p99_us":%d,"bad":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""
_NUMBER = b"@N@"
_NUMBERED = """
local parts, number = {}, 0
for part in (wrk.body .. "@N@"):gmatch("(.-)@N@") do parts[#parts + 1] = part end
request = function()
  number = number + 1
  return wrk.format(nil, nil, nil, table.concat(parts, tostring(number)))
end
"""


def body(folder: Path, size: int = 2048, *, fresh_outputs: bool = False) -> bytes:
    """A task of about `size` bytes, with the fields that real engines send; its inputs are made in
    `folder`. With `fresh_outputs` each submission by `wrk` names outputs of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = "@N@/" if fresh_outputs else ""
    inputs = [folder / f"reads_{i}.fastq" for i in range(4)]
    for path in inputs:
        path.touch()
    task: dict[str, Any] = {
        "name": "bench.align",
        "description": "x" * 64,
        "inputs": [
            {"url": path.as_uri(), "path": f"/in/{path.name}", "type": "FILE"} for path in inputs
        ],
        "outputs": [
            {
                "url": f"{folder.as_uri()}/{mark}out_{i}.bam",
                "path": f"/out/out_{i}.bam",
                "type": "FILE",
            }
            for i in range(4)
        ],
        "resources": {"cpu_cores": 1, "ram_gb": 2.0, "disk_gb": 10.0, "preemptible": False},
        "executors": [
            {
                "image": "debian:stable-slim",
                "command": ["/bin/sh", "-c", "true"],
                "env": {"LC_ALL": "C"},
                "stdout": "/out/stdout",
            }
        ],
        "tags": {"workflow": "w-1", "project": "bench"},
    }
    task["description"] += "x" * max(0, size - len(json.dumps(task)))
    return json.dumps(task).encode()


def wrk(
    url: str, *, connections: int, seconds: float, post: bytes | None = None, token: str = ""
) -> dict[str, Any]:
    """Requests per second, p50 and p99 in ms, and the number of failed requests.

    Each `@N@` in `post` becomes the number of the request. `token` is sent as a bearer token.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "load.lua"
        lines = [_REPORT]
        if post is not None:
            (Path(folder) / "body.json").write_bytes(post)
            lines = [
                'wrk.method = "POST"',
                'wrk.headers["Content-Type"] = "application/json"',
                f'local file = io.open("{folder}/body.json", "rb")',
                'wrk.body = file:read("*a")',
                "file:close()",
                *([_NUMBERED] if _NUMBER in post else []),
                _REPORT,
            ]
        script.write_text("\n".join(lines))
        # wrk takes whole seconds only.
        duration = f"-d{math.ceil(seconds)}s"
        command = ["wrk", "-t1", f"-c{connections}", duration, "-s", str(script)]
        command += ["-H", f"Authorization: Bearer {token}"] if token else []
        command.append(url)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 60, check=True
        )
    found = re.search(r"RESULT (\{.*\})", done.stdout)
    if found is None:
        raise RuntimeError(f"wrk said: {done.stdout}{done.stderr}")
    result = json.loads(found.group(1))
    return {
        "per_s": round(result["requests"] / (result["us"] / 1e6), 1),
        "p50_ms": result["p50_us"] / 1000,
        "p99_ms": result["p99_us"] / 1000,
        "failed": result["bad"],
    }


def fdatasync_per_s(folder: Path, seconds: float = 1.0) -> float:
    """Durable 4 KiB appends per second of the disk below `folder`."""
    path = folder / "fdatasync"
    handle = os.open(path, os.O_CREAT | os.O_WRONLY)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        os.write(handle, b"x" * 4096)
        os.fdatasync(handle)
        count += 1
    elapsed = time.perf_counter() - start
    os.close(handle)
    path.unlink()
    return round(count / elapsed, 1)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure over the rounds."""
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


@contextlib.contextmanager
def process(command: list[str], url: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers at `url`; ended on leaving."""
    child = subprocess.Popen(
        command,
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(url, child)
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for(url: str, child: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Returns once something answers at `url`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"the server ended with {child.returncode} before it answered {url}")
        with contextlib.suppress(OSError):
            try:
                urllib.request.urlopen(url, timeout=5).close()
            except urllib.error.HTTPError as error:
                error.close()
            return
        time.sleep(0.005)
    raise RuntimeError(f"nothing answers {url}")


@contextlib.contextmanager
def tesazure(data_dir: Path, **settings: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Our server on a free port: its base URL and process. Settings as APP_ names."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tesazure.cli.main", "serve", "--port", str(port)]
    command += ["--data-dir", str(data_dir)]
    environ = {"APP_LOG_LEVEL": "warning", **settings}
    with process(command, f"{base}/healthz", **environ) as child:
        yield base, child


def uvicorn(app: str, **environ: str) -> contextlib.AbstractContextManager[tuple[str, Any]]:
    """A baseline app on a free port, run by uvicorn with the same options as our server."""
    return _uvicorn(app, environ)


@contextlib.contextmanager
def _uvicorn(app: str, environ: dict[str, str]) -> Iterator[tuple[str, Any]]:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--loop", "uvloop"]
    command += ["--http", "httptools", "--no-access-log", "--log-level", "warning"]
    with process(command, base, **environ) as child:
        yield base, child


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its children, MB, shared pages counted once (PSS)."""
    total = 0
    for one in (pid, *children(pid)):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE).group(1))  # type: ignore[union-attr]
    return round(total / 1024, 1)


def cpu_seconds(pid: int) -> float:
    """CPU seconds used so far by a process and its children."""
    ticks = 0
    for one in (pid, *children(pid)):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    with contextlib.suppress(OSError):
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def post(base: str, document: bytes) -> str:
    """Submit a task, its id."""
    request = urllib.request.Request(
        base + PREFIX, data=document, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        identifier: str = json.load(reply)["id"]
        return identifier
