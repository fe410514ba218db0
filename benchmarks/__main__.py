"""`python -m benchmarks [SUITE]…`, all of `SUITES` by default: JSON on stdout."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import api, batch, lists, postgresql, recognition, storage, tasks, telemetry
from tests.services.base import Unavailable
from tests.services.docker_engine import DockerEngine

SUITES = (
    *("api", "postgresql", "lists", "tasks", "idle", "recognition", "storage", "batch"),
    "telemetry",
)


def main() -> int:
    """Run the suites asked for, print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", choices=[[], *SUITES])
    parser.add_argument("--seconds", type=float, default=5, help="of each load (default 5)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of api, postgresql, storage, telemetry (3)"
    )
    parser.add_argument("--tasks", type=int, default=1_000_000, help="in the store for lists")
    parser.add_argument("--count", type=int, help="of tasks run (default 500; for batch 1000)")
    parser.add_argument("--queued", type=int, default=10_000, help="for the idle suite")
    parser.add_argument("--mib", type=int, default=1024, help="of an object, for storage")
    parser.add_argument("--files", type=int, default=10_000, help="of 4 KiB, for storage")
    parser.add_argument(
        "--full", action="store_true", help="storage: memory with 10 GiB instead of four objects"
    )
    given = parser.parse_args()
    suites: dict[str, Callable[[], Any]] = {
        "api": lambda: api.run(given.seconds, given.rounds),
        "postgresql": lambda: postgresql.run(given.seconds, given.rounds),
        "lists": lambda: lists.run(given.tasks, given.seconds),
        "tasks": lambda: _engines(given.count or 500),
        "idle": lambda: tasks.idle(given.queued, 20),
        "recognition": lambda: recognition.run(given.seconds / 5),
        "storage": lambda: storage.run(_storage_sizes(given)),
        "batch": lambda: batch.run(given.count or 1000),
        "telemetry": lambda: telemetry.run(given.seconds, given.rounds),
    }
    results = {}
    for name in given.suites or suites:
        sys.stderr.write(f"{name} …\n")
        results[name] = suites[name]()
    json.dump(results, sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 0


def _engines(count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if shutil.which("bwrap"):
        found["sandbox"] = tasks.engine("sandbox", "", "unused", 40, count)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        engine = DockerEngine(Path(name) / "docker")
        try:
            engine.start()
            image = engine.image("busybox")
            found["docker"] = tasks.engine("docker", engine.url, image, 20, count)
        except Unavailable as reason:
            sys.stderr.write(f"docker is left out: {reason}\n")
        finally:
            engine.stop()
    return found


def _storage_sizes(given: argparse.Namespace) -> storage.Sizes:
    size = given.mib * 2**20
    return storage.Sizes(
        object=size,
        large=10 * storage.GIB if given.full else 4 * size,
        files=given.files,
        files_by_sdk=max(1, given.files // 10),
        rounds=given.rounds,
    )


if __name__ == "__main__":
    sys.exit(main())
