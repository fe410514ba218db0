"""The Batch stand-in's account as a whole: one lock, what it holds, and what it does later."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.services.batch_state import Collection, Job, Pool
from tests.services.batch_wire import Clock

_NOW_AND_THEN_S = 0.05


@dataclass
class Timing:
    """How long things take, in seconds; real ones take minutes."""

    node_start_s: float = 0.02
    """From creating to idle."""
    replacement_s: float = 0.3
    """How long Azure has no other node in place of a preempted one; `math.inf`: for ever."""
    deletion_s: float = 0.05
    """Of a pool or a job."""
    autoscale_s: float = 0.1
    """Between two evaluations; Batch's shortest interval is five minutes. `math.inf`: only when a
    request asks for one."""
    shrink_s: float = 2.0
    """How long an evaluation must find nothing to run before it may want fewer nodes."""
    between_enables_s: float = 0.0
    """The least time between two requests that enable autoscaling; Batch's is 30 seconds."""
    grace_s: float = 10.0
    """Between SIGTERM and SIGKILL for a task that is terminated."""


@dataclass
class World:
    """The account's pools and jobs, one lock for all, and things to do later."""

    clock: Clock = field(default_factory=Clock)
    timing: Timing = field(default_factory=Timing)
    lock: threading.RLock = field(default_factory=threading.RLock)
    pools: Collection[Pool] = field(default_factory=Collection)
    jobs: Collection[Job] = field(default_factory=Collection)
    url: str = ""

    def __post_init__(self) -> None:
        self.changed = threading.Condition(self.lock)
        """Told of every change of a state, for those who wait in `wait_for`."""
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="batch-clock")

    def start(self) -> None:
        """Begin to do things later."""
        self._thread.start()

    def stop(self) -> None:
        """What is not done yet is not done."""
        with self.lock:
            self._stopped = True
            self.changed.notify_all()
        self._thread.join(10)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` then, with the lock held; never for `math.inf`."""
        if seconds == math.inf:
            return
        with self.lock:
            due = time.monotonic() + seconds
            heapq.heappush(self._later, (due, next(self._order), act))
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until it holds; whether it does. It is called with the lock held, at every change
        and now and then: what is asked may be outside, such as a file."""
        deadline = time.monotonic() + timeout_s
        with self.lock:
            while not condition():
                if time.monotonic() > deadline:
                    return False
                self.changed.wait(_NOW_AND_THEN_S)
            return True

    def _run(self) -> None:
        with self.lock:
            while not self._stopped:
                now = time.monotonic()
                if self._later and self._later[0][0] <= now:
                    heapq.heappop(self._later)[2]()
                    self.changed.notify_all()
                    continue
                self.changed.wait(self._later[0][0] - now if self._later else None)
