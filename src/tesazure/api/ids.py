"""Identifiers of tasks and of requests."""

from __future__ import annotations

import itertools
import os
import re

_TASK_ID = re.compile("[0-9a-f]{28}")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_serial = itertools.count(1)
_process = os.urandom(6).hex()


def new_task_id(now: float) -> str:
    """28 hexadecimal digits: 48 bits of milliseconds, so ids sort by age and keep the index
    dense, and 64 random bits, so they cannot be guessed. `now` in seconds since the epoch."""
    return f"{int(now * 1000):012x}{os.urandom(8).hex()}"


def is_task_id(text: str) -> bool:
    """Whether this may be the id of one of our tasks; the store need not be asked otherwise."""
    return _TASK_ID.fullmatch(text) is not None


def request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The caller's X-Request-ID if it is a sane one, or a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return f"{_process}-{next(_serial):x}".encode("ascii")
