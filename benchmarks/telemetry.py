"""What telemetry costs: requests without it and with it, and how long a server takes to start."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.load import PREFIX, body, cpu_seconds, medians, post, tesazure, wrk
from tests.services.telemetry_receivers import Collector


def run(seconds: float, rounds: int) -> dict[str, Any]:
    """POST and GET FULL at 64 connections, without and with an OTLP receiver on loopback, in turns;
    also in processor time, which other work on the machine disturbs less."""
    found: dict[str, list[dict[str, Any]]] = {}
    starts: dict[str, list[float]] = {}
    with Collector() as collector:
        for number in range(rounds):
            for name, more in (("off", {}), ("on", {"APP_OTLP_ENDPOINT": collector.origin})):
                with tempfile.TemporaryDirectory(prefix="bench-") as directory:
                    folder = Path(directory)
                    document = body(folder / "files")
                    begun = time.perf_counter()
                    settings = {"APP_SCHEDULER": "false", "APP_ALLOW_DIR": directory, **more}
                    with tesazure(folder / "data", **settings) as (base, child):
                        starts.setdefault(name, []).append(time.perf_counter() - begun)
                        url = base + PREFIX
                        full = f"{url}/{post(base, document)}?view=FULL"
                        posts = _measured(child.pid, url, seconds, document)
                        gets = _measured(child.pid, full, seconds, None)
                if number:  # the first round warms up
                    found.setdefault(f"post_{name}", []).append(posts)
                    found.setdefault(f"get_full_{name}", []).append(gets)
                collector.spans.clear()
    figures = {name: medians(each) for name, each in found.items()}
    return {
        "figures": figures,
        "start_s": {name: round(statistics.median(each), 3) for name, each in starts.items()},
        "cpu_on_vs_off": {
            kind: round(figures[f"{kind}_on"]["cpu_us"] / figures[f"{kind}_off"]["cpu_us"], 3)
            for kind in ("post", "get_full")
        },
    }


def _measured(pid: int, url: str, seconds: float, document: bytes | None) -> dict[str, Any]:
    before = cpu_seconds(pid)
    result = wrk(url, connections=64, seconds=seconds, post=document)
    cpu = cpu_seconds(pid) - before
    return {**result, "cpu_us": round(cpu * 1e6 / (result["per_s"] * seconds), 1)}
