"""The runner as a program of its own: what its start costs, and what its input cache saves."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.block_sink import BlockSink
from benchmarks.capped_proxy import CAP, LATENCY_S, capped
from tesazure.model import FileType
from tesazure.plan import Download, Limits, Plan
from tesazure.runner.config import AttemptDir, NodeConfig

_PLAN = Plan("bench", [], [], [], [], ["/in", "/tes-wd"], Limits(None, None, 1, 1, 1), 600)
"""Nothing to transfer, nothing to run."""


def start(times: int) -> dict[str, Any]:
    """A runner with nothing to do, beside an interpreter with nothing to do."""
    bare, ours = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for number in range(times):
            directory = _prepared(Path(name) / f"{number}", _PLAN)
            bare.append(_seconds(lambda: _python("-c", "pass")))
            began = time.perf_counter()
            _run(directory)
            ours.append(time.perf_counter() - began)
    alone, whole = statistics.median(bare), statistics.median(ours)
    return {
        "python_alone_ms": round(alone * 1000, 1),
        "runner_ms": round(whole * 1000, 1),
        "of_its_own_ms": round((whole - alone) * 1000, 1),
        "wanted": "<= 120",
    }


def input_cache(web: BlockSink, root: Path, rounds: int) -> dict[str, Any]:
    """Seconds of staging the object in, by three attempts on one node: without the cache, with an
    empty one, and with one that has it; from a near server and from one far away."""
    found: dict[str, Any] = {}
    with capped(web.port, CAP, LATENCY_S) as port:
        for where, base in (("near", web.base), ("far", f"http://127.0.0.1:{port}")):
            taken: dict[str, list[float]] = {"off": [], "filling": [], "hit": []}
            for _ in range(rounds):
                with tempfile.TemporaryDirectory(dir=root) as name:
                    for case, seconds in taken.items():
                        seconds.append(_staging(Path(name), case, f"{base}/files/object"))
            off, filling, hit = (statistics.median(seconds) for seconds in taken.values())
            found[where] = {
                "off_s": round(off, 3),
                "filling_s": round(filling, 3),
                "hit_s": round(hit, 3),
                "off_vs_hit": round(off / hit, 1),
            }
    return found


def _staging(folder: Path, case: str, url: str) -> float:
    download = Download(index=0, path="/in/object", url=url, type=FileType.FILE)
    plan = msgspec.structs.replace(_PLAN, downloads=[download])
    more: dict[str, Any] = {}
    if case != "off":
        more = {"cache_dir": str(folder / "cache"), "cache_bytes": 2**40}
    directory = _prepared(folder / case, plan, **more)
    _run(directory)
    events = map(json.loads, directory.report.read_text().splitlines())
    return next(
        float(event["metadata"]["stage_in_s"])
        for event in events
        if "stage_in_s" in event.get("metadata", {})
    )


def _prepared(path: Path, plan: Plan, **more: Any) -> AttemptDir:
    directory = AttemptDir(path)
    path.mkdir()
    directory.plan.write_bytes(msgspec.json.encode(plan))
    node = NodeConfig(key=path.name, engine="sandbox", **more)
    directory.node.write_bytes(msgspec.json.encode(node))
    return directory


def _run(directory: AttemptDir) -> None:
    _python("-m", "tesazure.runner", str(directory.path))
    report = directory.report.read_text()
    if "COMPLETE" not in report:
        raise RuntimeError(f"the runner said {report}")


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True)


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
