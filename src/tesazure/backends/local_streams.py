"""The executors' streams of an attempt, as its runner keeps them in files."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

from tesazure.backends.base import LogChunk, Stream
from tesazure.backends.local_files import Follower, is_alive
from tesazure.errors import BackendUnavailable, NotFound
from tesazure.runner.config import AttemptDir


def read_stream(
    attempt: AttemptDir, executor: int, stream: Stream, offset: int, limit: int
) -> LogChunk:
    """See Backend.read_stream. Blocks."""
    ended = _has_ended(attempt, executor)  # before the size: nothing is added after that
    try:
        with attempt.stream(executor, stream).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = max(size + offset, 0) if offset < 0 else min(offset, size)
            data = os.pread(file.fileno(), limit, start)
    except FileNotFoundError:
        raise NotFound(f"executor {executor} has no {stream} here") from None
    except OSError as error:
        raise BackendUnavailable(f"{stream} of executor {executor}: {error}") from error
    return LogChunk(data, start, max(size, start + len(data)), ended)


def _has_ended(attempt: AttemptDir, executor: int) -> bool:
    """Whether an executor of the attempt writes no more."""
    try:
        size = attempt.report.stat().st_size
    except FileNotFoundError:
        return False
    return not is_alive(attempt) or executor in _told(attempt.path, size)


@functools.lru_cache(1024)
def _told(attempt: Path, _size: int) -> frozenset[int]:
    """The executors that have ended as a report tells which only grows: read once at each size."""
    follower = Follower(AttemptDir(attempt))
    with contextlib.suppress(FileNotFoundError):
        follower.read()
    logs = follower.report.log.logs
    return frozenset(n for n, log in enumerate(logs) if log.exit_code is not None)
