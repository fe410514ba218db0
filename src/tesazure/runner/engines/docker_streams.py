"""The attached connections of a container: its stdin, and its stdout and stderr as they come.

After the HTTP exchange a connection carries raw stdin to the engine, and frames from it: a byte
that tells the stream, three zero bytes, the payload's length in four bytes, most significant
first, the payload. Source: Docker Engine API, "Attach to a container", Stream format.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Mapping

STDOUT, STDERR = 1, 2

_BUFFER = 256 * 1024
_HEADER = struct.Struct(">BxxxL")
_HEAD = 1024
"""How much of stderr is remembered: enough for a runtime's own complaint."""


class Demultiplexer:
    """Takes frames apart and writes the payloads to file descriptors. Holds no payload."""

    def __init__(self, targets: Mapping[int, int]) -> None:
        """`targets`: stream number -> file descriptor."""
        self._targets = targets
        self._header = bytearray()
        self._stream = 0
        self._left = 0
        self.received = {STDOUT: 0, STDERR: 0}
        """Payload bytes so far."""
        self.stderr_head = bytearray()

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the connection. Raises OSError of the files written to."""
        while data:
            if self._left:
                payload, data = data[: self._left], data[self._left :]
                self._left -= len(payload)
                self._write(payload)
                continue
            missing = _HEADER.size - len(self._header)
            self._header += data[:missing]
            data = data[missing:]
            if len(self._header) == _HEADER.size:
                self._stream, self._left = _HEADER.unpack(self._header)
                self._header.clear()

    def _write(self, payload: memoryview) -> None:
        target = self._targets.get(self._stream)
        if target is None:
            return
        if self._stream == STDERR and len(self.stderr_head) < _HEAD:
            self.stderr_head += payload[: _HEAD - len(self.stderr_head)]
        self.received[self._stream] += len(payload)
        while payload:
            payload = payload[os.write(target, payload) :]


class Feed:
    """A connection that carries a file to a container's stdin. What comes back is thrown away.

    It is not the one that carries the streams: when a command closes its stdin unread, Podman
    writes a message of its own into stderr and ends the connection.
    """

    def __init__(self, connection: socket.socket, file: int) -> None:
        """`file`: descriptor, open for reading."""
        connection.setblocking(False)
        self._connection = connection
        self._file = file
        self._pending = memoryview(b"")
        self.events = select.POLLIN | select.POLLOUT
        """What to poll for now; 0 once all is over."""

    def fileno(self) -> int:
        """What to poll."""
        return self._connection.fileno()

    def move(self, ready: int, buffer: memoryview) -> None:
        """Do what the connection is ready for. Raises OSError of the file."""
        try:
            if ready & select.POLLOUT:
                self._send()
            if ready & ~select.POLLOUT and not self._connection.recv_into(buffer):
                self.events = 0
        except BlockingIOError:
            return
        except ConnectionError:  # the command has ended, or closed its stdin
            self.events = 0

    def _send(self) -> None:
        if not self._pending:
            self._pending = memoryview(os.read(self._file, _BUFFER))
        if self._pending:
            self._pending = self._pending[self._connection.send(self._pending) :]
        else:
            self.events = select.POLLIN
            with contextlib.suppress(OSError):  # ENOTCONN: the command has ended
                self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def serve(
    connection: socket.socket,
    output: Demultiplexer,
    feed: Feed | None,
    others: Mapping[int, Callable[[], None]],
) -> None:
    """Move bytes until the engine ends the connection: one loop, no threads, one buffer.

    `others`: further descriptors; when one becomes readable, its function is called.
    Raises OSError of the files read and written.
    """
    connection.setblocking(False)
    buffer = memoryview(bytearray(_BUFFER))
    poll = select.poll()
    for descriptor in (connection.fileno(), *others):
        poll.register(descriptor, select.POLLIN)
    if feed is not None and feed.events:
        poll.register(feed, feed.events)
    while True:
        for descriptor, ready in poll.poll():
            if descriptor == connection.fileno():
                try:
                    size = connection.recv_into(buffer)
                except BlockingIOError:
                    continue
                except ConnectionError:
                    return
                if size == 0:
                    return
                output.feed(buffer[:size])
            elif feed is not None and descriptor == feed.fileno():
                feed.move(ready, buffer)
                if feed.events:
                    poll.modify(feed, feed.events)
                else:
                    poll.unregister(feed)
            else:
                others[descriptor]()
