"""A TCP proxy that makes loopback look like a cloud store: a rate for each connection, and latency.

    python -m benchmarks.capped_proxy HOST:PORT [--rate 40e6] [--latency 0.02]

Prints the port it listens on, and serves until its standard input ends. Each direction of each
connection is a link of its own that carries `rate` bytes a second and delivers what it took half of
`latency` later, so that a question and its answer take `latency` longer than without; a new
connection's first bytes wait one `latency` more, as for TCP's handshake. Connections do not share
anything: the sum of their rates is limited by the machine alone.

Bytes are spliced from socket to pipe to socket, so that one core carries well over 400 MB/s and is
left to what is being measured.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import heapq
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator

CAP = 40e6
"""Bytes a second that one connection gets."""
LATENCY_S = 0.02

_CHUNK = 256 * 1024
_LINE = 2**20
"""Room for what is under way on a link, rate times delay and some: as much as a pipe may have."""
_RETRY_S = 0.001
_SLACK_S = 0.005
"""How far behind its rate a link may be and catch up: our own waking is late by up to 1 ms."""


class Link:
    """One direction of a connection. What `take` read at a time is delivered when a wire of this
    rate and latency would have: the bytes themselves wait in a pipe."""

    def __init__(
        self, source: socket.socket, target: socket.socket, rate: float, delay: float
    ) -> None:
        self.source, self.target = source, target
        self.ended = False
        self._rate, self._delay = rate, delay
        self._clear_at = 0.0
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _LINE)
        self._under_way: deque[tuple[float, int]] = deque()
        self._end_due: float | None = None
        self._full = False

    def hold(self, until: float) -> None:
        """Take nothing before this time."""
        self._clear_at = until

    def advance(self, now: float) -> tuple[float | None, bool]:
        """Move what can be moved now. Returns when to come again at the latest, and whether to
        come as soon as the source has something. Raises OSError when the connection broke."""
        blocked = self._deliver(now)
        if self._end_due is None and not self._full and now >= self._clear_at:
            waits = not self._take(now)
        else:
            waits = False
        times = [self._clear_at] if self._end_due is None and not waits and not self._full else []
        if blocked:
            times.append(now + _RETRY_S)
        elif self._under_way:
            times.append(self._under_way[0][0])
        elif self._end_due is not None and not self.ended:
            times.append(self._end_due)
        return min(times, default=None), waits

    def _deliver(self, now: float) -> bool:
        """Write what is due; whether the target takes no more now."""
        while self._under_way and self._under_way[0][0] <= now:
            due, size = self._under_way.popleft()
            try:
                sent = os.splice(self._reader, self.target.fileno(), size)
            except BlockingIOError:
                sent = 0
            self._full = self._full and not sent
            if sent < size:
                self._under_way.appendleft((due, size - sent))
                return True
        if not self._under_way and self._end_due is not None and self._end_due <= now:
            self.ended = True
            with contextlib.suppress(OSError):
                self.target.shutdown(socket.SHUT_WR)
        return False

    def _take(self, now: float) -> bool:
        """Read once; whether there was something."""
        try:
            size = os.splice(self.source.fileno(), self._writer, _CHUNK)
        except BlockingIOError:
            # Either there is nothing, or the pipe has no room until something is delivered.
            self._full = bool(self._under_way)
            return self._full
        if size:
            self._clear_at = max(self._clear_at, now - _SLACK_S) + size / self._rate
            self._under_way.append((max(self._clear_at, now) + self._delay, size))
        else:
            self._end_due = now + self._delay
        return True

    def close(self) -> None:
        """Let go of the pipe."""
        os.close(self._reader)
        os.close(self._writer)


class Proxy:
    """Listens on a port of loopback, `port`, for connections to `address`."""

    def __init__(self, address: tuple[str, int], rate: float, latency: float) -> None:
        self._address, self._rate, self._latency = address, rate, latency
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._by_source: dict[int, Link] = {}
        self._pairs: dict[Link, Link] = {}
        self._wakes: list[tuple[float, int, Link]] = []
        self._next_wake: dict[Link, float] = {}
        self._count = 0

    def serve(self, until: int) -> None:
        """Carry bytes until the descriptor `until` can be read."""
        self._poll.register(until, select.EPOLLIN)
        while True:
            patience = self._wakes[0][0] - time.monotonic() if self._wakes else 1.0
            for descriptor, _ in self._poll.poll(max(0.0, patience)):
                if descriptor == until:
                    return
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._by_source:
                    self._advance(self._by_source[descriptor])
            now = time.monotonic()
            while self._wakes and self._wakes[0][0] <= now:
                wake, _, link = heapq.heappop(self._wakes)
                if self._next_wake.get(link) == wake:
                    del self._next_wake[link]
                    self._advance(link)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            server = socket.create_connection(self._address)
            for one in (client, server):
                one.setblocking(False)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            there = Link(client, server, self._rate, self._latency / 2)
            back = Link(server, client, self._rate, self._latency / 2)
            there.hold(time.monotonic() + self._latency)
            for link, other in ((there, back), (back, there)):
                self._pairs[link] = other
                self._by_source[link.source.fileno()] = link
                self._poll.register(link.source, select.EPOLLIN | select.EPOLLONESHOT)
                self._advance(link)

    def _advance(self, link: Link) -> None:
        try:
            wake, waits = link.advance(time.monotonic())
        except OSError:
            self._drop(link)
            return
        other = self._pairs.get(link)
        if link.ended and (other is None or other.ended):
            self._drop(link)
            return
        events = select.EPOLLIN | select.EPOLLONESHOT if waits else select.EPOLLONESHOT
        self._poll.modify(link.source, events)
        if wake is not None and self._next_wake.get(link, float("inf")) > wake:
            self._count += 1
            self._next_wake[link] = wake
            heapq.heappush(self._wakes, (wake, self._count, link))

    def _drop(self, link: Link) -> None:
        """Close a connection, both ways."""
        for one in (link, self._pairs.pop(link)):
            self._pairs.pop(one, None)
            self._next_wake.pop(one, None)
            del self._by_source[one.source.fileno()]
            self._poll.unregister(one.source)
            one.close()
        link.source.close()
        link.target.close()


@contextlib.contextmanager
def capped(port: int, rate: float, latency: float) -> Iterator[int]:
    """A proxy to this port of loopback, in a process of its own; the port it listens on."""
    command = [sys.executable, "-m", "benchmarks.capped_proxy", f"127.0.0.1:{port}"]
    command += ["--rate", str(rate), "--latency", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield int(child.stdout.readline())
        finally:
            child.stdin.close()
            child.wait(10)


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument(
        "--rate", type=float, default=CAP, help="bytes a second (default %(default)g)"
    )
    parser.add_argument(
        "--latency", type=float, default=LATENCY_S, help="seconds (default %(default)g)"
    )
    given = parser.parse_args()
    host, _, port = given.address.rpartition(":")
    proxy = Proxy((host, int(port)), given.rate, given.latency)
    print(proxy.port, flush=True)
    proxy.serve(sys.stdin.fileno())


if __name__ == "__main__":
    main()
