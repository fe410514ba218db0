"""Calls that the kernel may never come back from, such as those on a network file system that is
away, or that may take minutes, as those of Microsoft's SDKs. asyncio's own threads will not do for
these: other work needs them, and the end of the process waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Place:
    """A call's place in the queue."""

    calls: list[tuple[asyncio.Future[Any], Callable[[], Any]]]
    """The call, with what is told of it; empty once a thread has it, or its caller has gone."""
    taken: float = 0.0
    """When a thread took it, on the monotonic clock; 0: none has."""


class DaemonThreads:
    """A few threads that nobody ever waits for. `run` is called in one event loop."""

    def __init__(self, name: str, most: int, patience_s: float) -> None:
        self._name = name
        self._most = most
        self._patience_s = patience_s
        self._started = 0
        self._waiting: SimpleQueue[_Place | None] = SimpleQueue()
        """None ends the thread that takes it."""
        self._taken = 0.0
        """When a thread last took a call, on the monotonic clock."""

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises, in one of the threads. Raises TimeoutError when that takes
        longer than the patience, or no thread has taken any call for so long; a call that was taken
        may then still come to its end."""
        if self._started < self._most:
            self._started += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        place, came = _Place([(future, call)]), time.monotonic()
        self._waiting.put(place)
        try:
            while not future.done():
                # To wait for others' calls to end uses up nothing of a call's own time.
                since = place.taken or max(came, self._taken)
                left = since + self._patience_s - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                await asyncio.wait([future], timeout=left)
            return future.result()
        finally:
            future.cancel()
            place.calls.clear()  # what is left in the queue holds on to nothing

    def close(self) -> None:
        """Have the threads end, each after the call that it is in. Nobody waits for that."""
        for _ in range(self._started):
            self._waiting.put(None)
        self._started = 0

    def _work(self) -> None:
        while (place := self._waiting.get()) is not None:
            try:
                future, call = place.calls.pop()
            except IndexError:
                continue  # its caller went away while all threads were held up
            place.taken = self._taken = time.monotonic()
            _carry_out(future, call)


async def in_thread(call: Callable[[], T]) -> T:
    """What `call` returns or raises, in a thread of its own. Who waits may be cancelled: the call
    then comes to its end unheard, or ends with the process."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    threading.Thread(target=_carry_out, args=(future, call), name="call", daemon=True).start()
    return await future


def _carry_out(future: asyncio.Future[Any], call: Callable[[], Any]) -> None:
    result, failure = None, None
    try:
        result = call()
    except Exception as error:
        failure = error
    with contextlib.suppress(RuntimeError):  # the loop has ended
        future.get_loop().call_soon_threadsafe(_settle, future, result, failure)


def _settle(future: asyncio.Future[Any], result: Any, failure: Exception | None) -> None:
    if future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
