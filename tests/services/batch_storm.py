"""Bad weather for the Batch stand-in: Spot nodes are taken away, requests are refused or cut."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from typing import Any, Self

from tests.services.batch_server import BatchServer

TROUBLES: tuple[dict[str, Any], ...] = (
    {"status": 429, "retry_after_s": 0.3},
    {"status": 500},
    {"status": 503},
    {"cut": "before"},
    {"cut": "after"},
    {"slow_s": 0.3},
)
"""One after the other, for whichever request comes next. See `batch_server.Trouble`."""
_LOOK_S = 0.05


class Storm:
    """As a context manager: until its end, `share` of the Spot nodes that get a task are preempted
    within so many seconds, and one request of `every` fails or is slow."""

    def __init__(self, batch: BatchServer, share: float, within_s: float, every: int) -> None:
        self.preempted = 0
        self.nodes = 0
        """Nodes so far: those taken away, and all that got a task."""
        self.troubles = 0
        self._batch = batch
        self._share, self._within_s, self._every = share, within_s, every
        self._random = random.Random(20)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._rage, name="storm")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _rage(self) -> None:
        ends: dict[str, float] = {}
        troubles = itertools.cycle(TROUBLES)
        while not self._over.wait(_LOOK_S):
            if sum(self._batch.calls.values()) >= (self.troubles + 1) * self._every:
                self._batch.trouble("*", **next(troubles))
                self.troubles += 1
            now = time.monotonic()
            for node in self._busy_nodes():
                if node not in ends:
                    self.nodes += 1
                    goes = self._random.random() < self._share
                    ends[node] = now + self._random.uniform(0, self._within_s) if goes else math.inf
                elif ends[node] <= now:
                    ends[node] = math.inf
                    self._batch.preempt(node)
                    self.preempted += 1

    def _busy_nodes(self) -> list[str]:
        world = self._batch.world
        with world.lock:
            nodes = [node for pool in world.pools for node in pool.nodes]
            return [node.id for node in nodes if node.spot and node.state == "running"]
