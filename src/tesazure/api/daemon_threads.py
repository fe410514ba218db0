"""Calls that the kernel may never come back from, such as those on a network file system that is
away. asyncio's own threads will not do for these: other work needs them, and the end of the process
waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """A few threads that nobody ever waits for. `run` is called in one event loop."""

    def __init__(self, name: str, most: int, patience_s: float) -> None:
        self._name = name
        self._most = most
        self._patience_s = patience_s
        self._started = 0
        self._waiting: SimpleQueue[list[tuple[asyncio.Future[Any], Callable[[], Any]]]] = (
            SimpleQueue()
        )
        """Of each call the future and the function; empty once its caller has gone."""

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises, in one of the threads. Raises TimeoutError when that takes
        longer than the patience; the call itself may then still come to its end."""
        if self._started < self._most:
            self._started += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        place: list[tuple[asyncio.Future[Any], Callable[[], Any]]] = [(future, call)]
        self._waiting.put(place)
        try:
            async with asyncio.timeout(self._patience_s):
                return await future
        finally:
            place.clear()  # what is left in the queue holds on to nothing

    def _work(self) -> None:
        while True:
            place = self._waiting.get()
            try:
                future, call = place.pop()
            except IndexError:
                continue  # its caller went away while all threads were held up
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
