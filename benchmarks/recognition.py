"""Which engine sent a task: found how often a second, beside decoding the same bodies."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.load import body
from tesazure.model import Task
from tesazure.submitters import recognise, tags_of
from tests.submitted import by_engine

WANTED = 20_000
"""Recognitions per second and core that the project promises, of the slowest kind of task."""


def run(seconds: float) -> dict[str, Any]:
    """Tasks of every engine and of none: each for `seconds` of CPU time, and as long decoded."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        bodies = [body(Path(name)), *map(msgspec.json.encode, by_engine())]
    decode = msgspec.json.Decoder(Task).decode
    figures = {}
    for each in bodies:
        task = decode(each)
        found = recognise(task).name or "unknown"
        recognised = _per_s(_tags, task, seconds)
        decoded = _per_s(decode, each, seconds)
        figures[found] = {
            "bytes": len(each),
            "recognised_per_s": round(recognised),
            "decoded_per_s": round(decoded),
            "vs_decoding": round(recognised / decoded, 2),
        }
    return {
        "figures": figures,
        "slowest_per_s": min(each["recognised_per_s"] for each in figures.values()),
        "wanted": f">= {WANTED}",
    }


def _tags(task: Task) -> dict[str, str]:
    return tags_of(recognise(task))


def _per_s(action: Callable[[Any], object], argument: object, seconds: float) -> float:
    """Calls per second of CPU time."""
    done, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        for _ in range(1000):
            action(argument)
        done += 1000
    return done / spent
