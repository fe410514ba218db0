"""Work in threads of its own, so that the main one heeds Ctrl-C whatever a library waits for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

_AHEAD = 1000
"""How much of what an iterator gives is fetched before it is asked for."""


def alone(work: Callable[[], T]) -> T:
    """The result of some work."""
    return next(aside(lambda: iter([work()])))


def aside(source: Callable[[], Iterator[T]]) -> Iterator[T]:
    """What an iterator gives. Its thread does not keep the process from ending."""
    passed: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(_AHEAD)

    def work() -> None:
        try:
            for entry in source():
                passed.put((entry,))
            passed.put(None)
        except BaseException as error:  # it is the asker's
            passed.put(error)

    threading.Thread(target=work, daemon=True).start()
    while (found := passed.get()) is not None:
        if isinstance(found, BaseException):
            raise found
        yield found[0]
