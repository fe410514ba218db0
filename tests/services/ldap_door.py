"""A directory that lets in whoever has a good password: LDAP's simple bind, and nothing else.

PostgreSQL asks it with its own `ldap` authentication. So a real PostgreSQL can take tokens as
Azure's does. Source: RFC 4511, sections 4.2 and 5.1.
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from typing import Self

_SUCCESS, _INVALID_CREDENTIALS = 0, 49


class LdapDoor:
    """Listens on 127.0.0.1, as a context manager. `is_good(name, password)` decides."""

    def __init__(self, is_good: Callable[[str, str], bool]) -> None:
        self._is_good = is_good
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.door = self
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, message: bytes) -> bytes | None:
        """The reply to an LDAPMessage; None to any other than a simple bind."""
        message_id, operation = _elements(_elements(message)[0][1])[:2]
        if operation[0] != 0x60:
            return None
        _version, name, password = _elements(operation[1])[:3]
        is_simple = password[0] == 0x80
        good = is_simple and self._is_good(name[1].decode(), password[1].decode())
        code = bytes([_SUCCESS if good else _INVALID_CREDENTIALS])
        result = _element(0x0A, code) + _element(0x04, b"") + _element(0x04, b"")
        return _element(0x30, _element(0x02, message_id[1]) + _element(0x61, result))


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    door: LdapDoor


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        while True:
            head = self._read(2)
            if len(head) < 2:
                return
            extra = self._read(head[1] & 0x7F) if head[1] & 0x80 else b""
            length = int.from_bytes(extra) if extra else head[1]
            reply = self.server.door.answer(head + extra + self._read(length))
            if reply is None:
                return
            self.request.sendall(reply)

    def _read(self, count: int) -> bytes:
        found = b""
        while len(found) < count and (more := self.request.recv(count - len(found))):
            found += more
        return found


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tags and values that follow each other (BER)."""
    found = []
    while data:
        tag, length, start = data[0], data[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[2:start])
        found.append((tag, data[start : start + length]))
        data = data[start + length :]
    return found


def _element(tag: int, value: bytes) -> bytes:
    """A tag and a short value (BER)."""
    return bytes([tag, len(value)]) + value
