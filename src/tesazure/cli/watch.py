"""Following tasks until they end: by server-sent events, or by asking where there are none."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import httpx
import msgspec

from tesazure.cli.client import TesClient
from tesazure.cli.exits import Code, Failure
from tesazure.model import TERMINAL, State

POLL_S = 1.0
"""Between questions to a server without events, and before a broken stream is opened again."""
PATIENCE_S = 60.0
"""How long a server may be away (a restart, a network that breaks) before waiting is given up."""
CHECK_S = 20.0
"""Silence of the event stream after which the states are asked for."""
TASKS_PER_STREAM = 500
"""Their ids go into the stream's URL."""

_RANK = {State.QUEUED: 0, State.INITIALIZING: 1, State.RUNNING: 2, State.CANCELING: 3}


class Changed(NamedTuple):
    """A task is in another state than before."""

    task_id: str
    state: State


class _Broken(NamedTuple):
    """An event stream ended early, and why if that is known."""

    failure: Failure | None


def changes(
    client: TesClient,
    task_ids: Iterable[str],
    timeout_s: float | None,
    poll_s: float = POLL_S,
) -> Iterator[Changed]:
    """State changes of the tasks, past ones included where the server still has them, until all
    have ended. `poll_s` is the pause before asking again where that is needed.

    Raises Failure: TIMED_OUT after `timeout_s`, NOT_FOUND for an id that the server does not know,
    UNREACHABLE when the server stays away for longer than PATIENCE_S.
    """
    return _Watch(client, list(dict.fromkeys(task_ids)), timeout_s, poll_s).run()


class _Watch:
    def __init__(
        self, client: TesClient, task_ids: list[str], timeout_s: float | None, poll_s: float
    ) -> None:
        self._client = client
        self._poll_s = poll_s
        self._states: dict[str, State | None] = dict.fromkeys(task_ids)
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._inbox: queue.SimpleQueue[Changed | _Broken] = queue.SimpleQueue()
        self._has_events = True
        self._contact: float | None = None
        """When the server was last heard."""

    def run(self) -> Iterator[Changed]:
        task_ids = list(self._states)
        for start in range(0, len(task_ids), TASKS_PER_STREAM):
            chunk = task_ids[start : start + TASKS_PER_STREAM]
            threading.Thread(target=self._listen, args=(chunk,), daemon=True).start()
        while self._waiting():
            try:
                message = self._inbox.get(timeout=self._pause())
            except queue.Empty:
                self._check_deadline()
                yield from self._ask()
                continue
            if isinstance(message, Changed):
                self._contact = time.monotonic()
                if self._is_news(message):
                    self._states[message.task_id] = message.state
                    yield message
            else:
                yield from self._after_break(message.failure)

    def _waiting(self) -> list[str]:
        return [key for key, state in self._states.items() if state not in TERMINAL]

    def _pause(self) -> float:
        longest = CHECK_S if self._has_events else self._poll_s
        if self._deadline is None:
            return longest
        return max(0.0, min(longest, self._deadline - time.monotonic()))

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            left = self._waiting()
            said = f"time is up; still going on: {', '.join(left[:5])}{' …' if left[5:] else ''}"
            raise Failure(Code.TIMED_OUT, said)

    def _is_news(self, change: Changed) -> bool:
        """False for an event older than the state known; back to QUEUED is a new attempt."""
        known = self._states[change.task_id]
        if known in TERMINAL or known == change.state:
            return False
        if known is None or change.state is State.QUEUED:
            return True
        return _RANK.get(change.state, 4) > _RANK.get(known, 4)

    def _after_break(self, failure: Failure | None) -> Iterator[Changed]:
        if failure and failure.code == Code.NOT_FOUND:
            # No such stream, or no such task: the question that follows tells.
            self._has_events = False
        elif failure and failure.code != Code.UNREACHABLE:
            raise failure
        yield from self._ask()

    def _ask(self) -> Iterator[Changed]:
        for task_id in self._waiting():
            try:
                state = self._client.state(task_id)
            except Failure as failure:
                if failure.code != Code.UNREACHABLE or self._contact is None:
                    raise
                if time.monotonic() - self._contact > PATIENCE_S:
                    raise
                return
            self._contact = time.monotonic()
            if state != self._states[task_id]:
                self._states[task_id] = state
                yield Changed(task_id, state)

    def _listen(self, task_ids: list[str]) -> None:
        """Reads the event stream of some tasks, again and again, in a thread of its own."""
        last = "0"  # all that the server still knows of them
        left = set(task_ids)
        while left:
            failure = None
            try:
                for number, change in events(self._client, task_ids, last):
                    last = number or last
                    if change.state in TERMINAL:
                        left.discard(change.task_id)
                    self._inbox.put(change)
            except Failure as error:
                failure = error
            except (httpx.HTTPError, httpx.StreamError, msgspec.DecodeError, RuntimeError):
                pass  # the connection broke, its data was torn, or the client was closed
            if left:
                self._inbox.put(_Broken(failure))
                if failure and failure.code != Code.UNREACHABLE:
                    return
                time.sleep(self._poll_s)


def events(client: TesClient, task_ids: Sequence[str], last: str) -> Iterator[tuple[str, Changed]]:
    """State changes of the tasks after event number `last`, each with its number, until all have
    ended or the server closes the stream. Raises Failure, and httpx.HTTPError for a broken one."""
    params = {"task_id": ",".join(task_ids)}
    headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
    with client.stream("/events", params, headers) as response:
        if response.status_code == 204:
            return
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            raise Failure(Code.NOT_FOUND, f"{client.root} has no stream of events")
        yield from parse_events(response.iter_lines())


def parse_events(lines: Iterable[str]) -> Iterator[tuple[str, Changed]]:
    """Server-sent events (WHATWG HTML, 9.2.6) whose data is {"id": …, "state": …}."""
    number, data = "", ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            number = value
        elif field == "data":
            data += value
        elif not line and data:
            event = msgspec.json.decode(data, type=_Data)
            yield number, Changed(event.id, event.state)
            data = ""


class _Data(msgspec.Struct):
    id: str
    state: State
