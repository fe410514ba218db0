"""The runner's side of the report: events as JSON lines, and whoever waits told of each."""

from __future__ import annotations

import errno
import os
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path

from tesazure.report import AnyEvent, Ended, Said, encode
from tesazure.storage.local import FULL

_RESERVE_BYTES = 256 * 1024
"""Kept aside for the end of the report, so that a full disk can still be reported."""


def now() -> str:
    """This moment, as events carry it: RFC 3339 in UTC with microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Journal:
    """Writes an attempt's report. Safe to use from several threads and from a signal handler."""

    def __init__(self, report: Path) -> None:
        """Creates the report. Raises FileExistsError if there is one: this attempt has begun."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._file = os.open(report, flags, 0o644)
        self._size = 0
        self._lock = threading.RLock()
        self._reserve = report.with_name(report.name + ".reserve")
        self._listener = ""
        self._socket: socket.socket | None = None
        try:
            file = os.open(self._reserve, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(file, 0, _RESERVE_BYTES)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno not in FULL:
                raise

    def notify(self, path: str) -> None:
        """From now on send an empty datagram to the Unix socket at `path` after each event."""
        if path:
            self._listener = path
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def write(self, event: AnyEvent) -> None:
        """Append one event, whole or not at all. Raises OSError."""
        line = encode(event)
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                if error.errno not in FULL or not self._reserve.exists():
                    raise
                self._reserve.unlink()
                self._append(line)
        self._tell()

    def say(self, level: str, message: str) -> None:
        """Append a line of system_logs."""
        self.write(Said(time=now(), level=level, message=message))

    def end(self, event: Ended) -> None:
        """Append the last event and have the whole report on the disk."""
        self._reserve.unlink(missing_ok=True)
        line = encode(event)
        with self._lock:
            self._append(line)
            os.fsync(self._file)
        self._tell()

    def _append(self, line: bytes) -> None:
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the report")
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += written

    def _tell(self) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(b"", self._listener)
        except OSError:
            return  # nobody listens, or they are already awake
