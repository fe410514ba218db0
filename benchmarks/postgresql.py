"""Submissions and reads with PostgreSQL in the place of SQLite, also by two servers together."""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.load import PREFIX, body, medians, post, tesazure, wrk
from tests.services.base import Unavailable
from tests.services.postgresql import PostgreSQL


def run(seconds: float, rounds: int) -> dict[str, Any]:
    """POST and GET FULL at 64 connections, in turns with SQLite. The database is on this machine
    and writes to its disk. Two servers have 32 connections each, and half of the processor."""
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        Path(name).chmod(0o755)  # PostgreSQL runs as a user of its own
        postgresql = PostgreSQL(Path(name) / "postgresql")
        try:
            postgresql.start()
        except Unavailable as reason:
            return {"left_out": str(reason)}
        try:
            for _ in range(rounds):
                for kind, results in _round(postgresql, seconds).items():
                    found.setdefault(kind, []).append(results)
        finally:
            postgresql.stop()
    figures = {kind: medians(each) for kind, each in found.items()}
    rate = {kind: each["per_s"] for kind, each in figures.items()}
    return {
        "figures": figures,
        "ratios": {
            "post_vs_sqlite": round(rate["post"] / rate["post_sqlite"], 3),
            "get_full_vs_sqlite": round(rate["get_full"] / rate["get_full_sqlite"], 3),
            "post_two_servers_vs_one": round(rate["post_two_servers"] / rate["post"], 3),
        },
    }


def _round(postgresql: PostgreSQL, seconds: float) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        document = body(folder / "files")
        plain = {"APP_SCHEDULER": "false", "APP_ALLOW_DIR": name}
        with tesazure(folder / "sqlite", **plain) as (base, _):
            sqlite = _measured(base, document, seconds)
        plain["APP_DATABASE_URL"] = url = postgresql.create_database()
        plain["APP_SECRETS_KEY"] = base64.b64encode(os.urandom(32)).decode("ascii")
        try:
            with contextlib.ExitStack() as stack:
                base, _ = stack.enter_context(tesazure(folder / "one", **plain))
                one = _measured(base, document, seconds)
                other, _ = stack.enter_context(tesazure(folder / "other", **plain))
                two = _together([base, other], document, seconds)
        finally:
            postgresql.drop_database(url)
    return {
        "post_sqlite": sqlite[0],
        "get_full_sqlite": sqlite[1],
        "post": one[0],
        "get_full": one[1],
        "post_two_servers": two,
    }


def _measured(base: str, document: bytes, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    url = base + PREFIX
    full = f"{url}/{post(base, document)}?view=FULL"
    posts = wrk(url, connections=64, seconds=seconds, post=document)
    return posts, wrk(full, connections=64, seconds=seconds)


def _together(bases: list[str], document: bytes, seconds: float) -> dict[str, Any]:
    def load(base: str) -> dict[str, Any]:
        return wrk(base + PREFIX, connections=32, seconds=seconds, post=document)

    with ThreadPoolExecutor(len(bases)) as threads:
        results = list(threads.map(load, bases))
    return {
        "per_s": sum(each["per_s"] for each in results),
        "p50_ms": max(each["p50_ms"] for each in results),
        "p99_ms": max(each["p99_ms"] for each in results),
        "failed": sum(each["failed"] for each in results),
    }
