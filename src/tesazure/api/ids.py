"""Identifiers of tasks and of requests."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator

_TASK_ID = re.compile("[0-9a-f]{28}")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_serial = itertools.count(1)
_process = os.urandom(6).hex()


class _Randomness:
    """Random bytes of the system, drawn many at a time: a system call for each id would let
    another thread have the interpreter."""

    def __init__(self) -> None:
        self._drawn: Iterator[str] = iter(())

    def take(self) -> str:
        """64 bits as 16 hexadecimal digits."""
        for digits in self._drawn:
            return digits
        text = os.urandom(8 * 512).hex()
        self._drawn = iter([text[i : i + 16] for i in range(0, len(text), 16)])
        return next(self._drawn)


_randomness = _Randomness()


def new_task_id(now: float) -> str:
    """28 hexadecimal digits: 48 bits of milliseconds, so ids sort by age and keep the index
    dense, and 64 random bits, so they cannot be guessed. `now` in seconds since the epoch."""
    return f"{int(now * 1000):012x}{_randomness.take()}"


def is_task_id(text: str) -> bool:
    """Whether this may be the id of one of our tasks; the store need not be asked otherwise."""
    return _TASK_ID.fullmatch(text) is not None


def request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The caller's X-Request-ID if it is a sane one, or a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return f"{_process}-{next(_serial):x}".encode("ascii")
