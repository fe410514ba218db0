"""A TCP proxy that cuts connections after a number of bytes, or holds them."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

_BLOCK = 2**16


class CuttingProxy:
    """Passes connections on to a port of this machine, as a context manager.

    `cuts`: after how many bytes, both ways together, each of the next connections is cut; after
    them none is. While `held`, nothing is passed on. `passed` counts bytes, `connections` counts
    connections.
    """

    def __init__(self, target: int) -> None:
        self.cuts: list[int] = []
        self.passed = 0
        self.connections = 0
        self.flowing = threading.Event()
        self.flowing.set()
        self._target = target
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]

    def hold(self) -> None:
        """Pass nothing on, until `flowing` is set."""
        self.flowing.clear()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.flowing.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            left = list(self._open)
        for connected in left:
            _end(connected)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self.connections += 1
                self._open |= {client, server}
                left = [self.cuts.pop(0) if self.cuts else -1]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(*pair, left), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, left: list[int]) -> None:
        """`left`, shared by both directions: the bytes before the cut; negative: no cut."""
        with contextlib.suppress(OSError):
            while data := source.recv(_BLOCK):
                self.flowing.wait()
                with self._lock:
                    if left[0] >= 0:
                        data = data[: left[0]]
                        left[0] -= len(data)
                    self.passed += len(data)
                sink.sendall(data)
                if left[0] == 0:
                    break
        for connected in (source, sink):
            _end(connected)


def _end(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
    connected.close()
