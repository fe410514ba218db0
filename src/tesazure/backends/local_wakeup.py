"""How the local backend learns without polling that an attempt may have changed: runners send
datagrams, and the kernel tells of their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

LONGEST = 100
"""Bytes of a Unix socket's path: unix(7) allows 107."""


class Wakeup:
    """A socket that runners knock at, and a watch on each runner's life."""

    def __init__(self) -> None:
        self.address = ""
        """The socket's path, for the runners."""
        self._socket: socket.socket | None = None
        self._pidfds: dict[str, int] = {}
        self._event = asyncio.Event()

    def open(self, path: Path) -> None:
        """Listen at `path`, in place of an earlier server that listened there. Raises OSError."""
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        listener.bind(str(path))
        path.chmod(0o600)
        self._socket, self.address = listener, str(path)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._knocked)

    def close(self) -> None:
        """Stop listening and watching. May be called twice."""
        for key in list(self._pidfds):
            self.unwatch(key)
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._event.set()

    def knock(self) -> None:
        """Something changed."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Until something changed, at most `timeout_s`; whether it did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        changed = self._event.is_set()
        self._event.clear()
        return changed

    def is_watched(self, key: str) -> bool:
        """Whether the process of this attempt is watched."""
        return key in self._pidfds

    def watch(self, key: str, pid: int) -> None:
        """Tell when process `pid` ends. The caller makes sure afterwards that it was the right
        one: that the runner still lived when this returned. No such process: nothing."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        self._pidfds[key] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._ended, key)

    def unwatch(self, key: str) -> None:
        """Watch a process no more."""
        pidfd = self._pidfds.pop(key, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def send(self, key: str, sign: signal.Signals) -> None:
        """Signal a watched process; never another one that got its id. Gone: nothing."""
        pidfd = self._pidfds.get(key)
        if pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, sign)

    def _knocked(self) -> None:
        assert self._socket is not None  # noqa: S101 - the reader is removed before it is closed
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
                self._event.set()

    def _ended(self, key: str) -> None:
        self.unwatch(key)
        self._event.set()
