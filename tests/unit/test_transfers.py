"""runner.transfers: interrupted, or busy, at the worst moment."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from tesazure.errors import StorageError
from tesazure.runner.transfers import Transfers
from tesazure.storage.base import Progress

START = threading.Thread.start.__code__


class Interrupted(BaseException):
    """As a signal handler raises it."""


@pytest.fixture(autouse=True)
def trace_of_others() -> Iterator[None]:
    """A debugger's or a coverage tool's own trace function comes back."""
    before = sys.gettrace()
    yield
    sys.settrace(before)


def test_an_interruption_while_a_thread_starts_is_what_is_raised() -> None:
    """Where a signal's handler runs: as `Thread.start` begins to wait for the new thread, which is
    then one that cannot be joined yet."""
    starts = 0

    def tracer(frame: FrameType, event: str, _: Any) -> None:
        nonlocal starts
        caller = frame.f_back and frame.f_back.f_code
        if frame.f_code is threading.Event.wait.__code__ and caller is START:
            starts += 1
            if starts == 2:
                raise Interrupted

    transfers = Transfers(3, lambda n: n, lambda *_: 1, all_or_nothing=True, workers=3)
    sys.settrace(tracer)
    with pytest.raises(Interrupted):
        transfers.run(lambda *_: None)
    sys.settrace(None)
    none_runs()


def none_runs() -> None:
    """Once no transfer does."""
    deadline = time.monotonic() + 15
    while any(thread.name.startswith("transfer-") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a transfer still runs"
        time.sleep(0.01)


def test_after_a_failure_no_more_of_its_group_are_tried() -> None:
    """Also while the thread that is told of them is busy with the first: there may be millions."""
    told = threading.Event()
    tried = []

    def run(position: int, _: Progress) -> int:
        if position == 0:
            return 1
        assert told.wait(15)
        tried.append(position)
        raise StorageError(f"{position} failed")

    def done(position: int, size: int) -> None:
        told.set()
        none_runs()

    failures = Transfers(10_000, lambda _: 0, run, all_or_nothing=True, workers=3).run(done)
    assert 1 <= len(tried) <= 3
    assert str(failures[0]) in {f"{position} failed" for position in tried}
