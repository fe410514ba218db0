"""Plays the runner on simulated nodes of the Batch stand-in: what a real one sends to storage, and
nothing else. For many tasks at once; real runners are in `RealMachine`'s nodes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from tesazure.errors import StorageError
from tesazure.model import State
from tesazure.report import AnyEvent, Ended, ExecutorEnded, ExecutorStarted, Said, Started, encode
from tesazure.runner.append_blob import AppendBlob, Undeliverable, claim
from tesazure.runner.journal import now
from tesazure.runner.node import ExitCode, NodeAttempt
from tesazure.storage.transport import Patience, Transport
from tests.services.batch_nodes import SimulatedTask

AT_ONCE = 16
"""Requests to storage: thousands of nodes overwhelm Azurite, which is one process."""
_decoder = msgspec.json.Decoder(NodeAttempt | None)


class PlayedRunner:
    """A `Simulation`. `endpoint`: the storage that nodes report to; `seconds`: how long the
    executor of an attempt (by its key) runs; `steps`: into how many lines of its report this is
    divided. Keeps account of what began and ended, by the ids of tasks."""

    def __init__(self, endpoint: str, seconds: Callable[[str], float], steps: int = 2) -> None:
        self.begun: Counter[str] = Counter()
        """How many attempts of a task began."""
        self.ended: Counter[str] = Counter()
        """How many of them came to their own end."""
        self.together: list[str] = []
        """Tasks that began while another attempt of theirs ran: must be empty."""
        self.late = 0
        """Starts that turned back, as they were told to."""
        self._seconds, self._steps = seconds, steps
        self._lock = threading.Lock()
        self._places = threading.Semaphore(AT_ONCE)
        self._live: dict[str, threading.Event] = {}
        self._transport = Transport(trusted=[urlsplit(endpoint).netloc], patience=Patience())

    def __call__(self, task: SimulatedTask) -> int:
        """The runner's exit code."""
        with self._places:
            data = task.fetch(task.given["resourceFiles"][0])
        attempt = _decoder.decode(data) if data else None
        if attempt is None:
            return self._turn_back()
        report = AppendBlob(self._transport, attempt.channel.report, "the report")
        if task.killed.is_set():
            return ExitCode.DIED
        with self._places:
            claimed = claim(report, self._transport)
        if not claimed:
            return self._turn_back()
        if task.killed.is_set():  # a process would not have come so far
            return ExitCode.DIED
        with self._lock:
            live = self._live.get(attempt.plan.task_id)
            if live is not None and not live.is_set():
                self.together.append(attempt.plan.task_id)
            self._live[attempt.plan.task_id] = task.killed
            self.begun[attempt.plan.task_id] += 1
        try:
            code = self._play(task, report, self._seconds(attempt.key) / self._steps)
        finally:
            with self._lock:
                if self._live[attempt.plan.task_id] is task.killed:
                    del self._live[attempt.plan.task_id]
        if code == ExitCode.ENDED:
            with self._lock:
                self.ended[attempt.plan.task_id] += 1
        return code

    def close(self) -> None:
        """Let go of connections."""
        self._transport.close()

    def _turn_back(self) -> int:
        with self._lock:
            self.late += 1
        return ExitCode.ALREADY_BEGUN

    def _play(self, task: SimulatedTask, report: AppendBlob, step_s: float) -> int:
        try:
            self._append(report, Started(time=now(), host=task.node))
            self._append(report, ExecutorStarted(time=now(), index=0))
            for step in range(self._steps):
                if step:
                    self._append(report, Said(time=now(), message=f"step {step}"))
                if task.killed.wait(step_s):
                    return ExitCode.DIED
            last = ExecutorEnded(time=now(), index=0, exit_code=0, last=True)
            self._append(report, last, Ended(time=now(), state=State.COMPLETE))
        except (StorageError, Undeliverable):
            # Its report is deleted once the server has given it up, which it does with a node.
            return ExitCode.DIED if task.killed.is_set() else ExitCode.UNDELIVERED
        return ExitCode.ENDED

    def _append(self, report: AppendBlob, *events: AnyEvent) -> None:
        block = b"".join(map(encode, events))
        with self._places:
            self._transport.persist(report.what, lambda: report.append(block))
