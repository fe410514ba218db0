"""The SFTP protocol, version 3, over an open SSH channel.

Source: draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL for its extension. Not paramiko's own
client: that either keeps the requests for a whole file in memory, or asks for more from a thread
that goes on when a transfer was stopped. Here one thread does it all, a bounded number of requests
ahead. Paths are bytes.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tesazure.storage.base import Progress
from tesazure.storage.patience import Again, Patience
from tesazure.storage.sockets import TICK_S, patiently

if TYPE_CHECKING:
    import paramiko

T = TypeVar("T")

EOF = 1
NO_SUCH_FILE = 2
PERMISSION_DENIED = 3
FAILURE = 4
FILE_EXISTS = 11  # of later versions, which some servers use all the same

BLOCK = 2**15
"""Bytes asked for or written at once: what every server takes (section 3)."""
AHEAD = 64
"""Requests under way: with BLOCK, 2 MiB, an SSH channel's usual window."""

READ = 0x01
WRITE_NEW = 0x02 | 0x08 | 0x20  # SSH_FXF_WRITE, CREAT, EXCL
WRITE_ON = 0x02

_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _FSTAT = 1, 2, 3, 4, 5, 6, 8
_OPENDIR, _READDIR, _REMOVE, _MKDIR, _REALPATH, _STAT, _RENAME = 11, 12, 13, 14, 16, 17, 18
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED = 101, 102, 103, 104, 105, 200
_LOST = frozenset({6, 7})  # SSH_FX_NO_CONNECTION, SSH_FX_CONNECTION_LOST
_POSIX_RENAME = b"posix-rename@openssh.com"
_LONGEST_PACKET = 2**20


class Refused(Exception):
    """The server answered a request with an error."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


class Attributes(msgspec.Struct, frozen=True):
    """What is known of a path: `size` in bytes, `mode` as in stat(2), `modified` in seconds since
    1970; None for what the server does not tell."""

    size: int | None = None
    mode: int | None = None
    modified: int | None = None

    @property
    def is_directory(self) -> bool:
        """Whether it is one, as far as the server tells."""
        return self.mode is not None and stat.S_ISDIR(self.mode)


class SftpSession:
    """One channel. For one thread at a time. `progress` is called while the session waits, and may
    raise: then the session must be closed.

    Errors: Again for a broken connection, Refused for what the server does not do.
    """

    def __init__(
        self, transport: paramiko.Transport, channel: paramiko.Channel, patience: Patience
    ) -> None:
        self.progress: Progress | None = None
        self._transport = transport
        self._channel = channel
        self._stall_s = patience.read_s
        self._came = bytearray()
        self._number = 0
        self._extensions: frozenset[bytes] = frozenset()
        channel.settimeout(TICK_S)

    def begin(self) -> None:
        """Agree on the protocol's version."""
        self._send(struct.pack(">IBI", 5, _INIT, 3))
        kind, body = self._packet()
        if kind != _VERSION:
            raise Again("the server does not speak SFTP")
        reader = _Reader(body)
        reader.number()
        names = []
        while reader.left():
            names.append(reader.text())
            reader.text()
        self._extensions = frozenset(names)

    def is_alive(self) -> bool:
        """Whether it can be used, as far as is known without asking the server."""
        return self._transport.is_active() and not self._channel.closed and not self._came

    def close(self) -> None:
        """Close the connection at once."""
        self._transport.close()

    @property
    def replaces(self) -> bool:
        """Whether a rename replaces a file: OpenSSH's extension, version 3 has no such thing."""
        return _POSIX_RENAME in self._extensions

    def find(self, path: bytes) -> Attributes | None:
        """What lies at a path, links followed; None for nothing."""
        try:
            return self.stat(path)
        except Refused as refused:
            if refused.code != NO_SUCH_FILE:
                raise
            return None

    def stat(self, path: bytes) -> Attributes:
        """What lies at a path, links followed."""
        return _attributes(self._ask(_ATTRS, _STAT, _text(path)))

    def stat_open(self, handle: bytes) -> Attributes:
        """What an open file is now."""
        return _attributes(self._ask(_ATTRS, _FSTAT, _text(handle)))

    def real_path(self, path: bytes) -> bytes:
        """The absolute path, without links."""
        reader = self._ask(_NAME, _REALPATH, _text(path))
        reader.number()
        return reader.text()

    def names(self, path: bytes) -> list[tuple[bytes, Attributes]]:
        """What is in a directory, links not followed."""
        handle = self._ask(_HANDLE, _OPENDIR, _text(path)).text()
        found: list[tuple[bytes, Attributes]] = []
        try:
            while True:
                found += _entries(self._ask(_NAME, _READDIR, _text(handle)))
        except Refused as refused:
            if refused.code != EOF:
                raise
        self.close_file(handle)
        return found

    def make_directory(self, path: bytes) -> None:
        """Make a directory."""
        self._ask(_STATUS, _MKDIR, _text(path) + _number(0))

    def remove(self, path: bytes) -> None:
        """Delete a file."""
        self._ask(_STATUS, _REMOVE, _text(path))

    def rename(self, path: bytes, new: bytes) -> None:
        """Give a file another name; whether it replaces what has it says `replaces`."""
        if self.replaces:
            self._ask(_STATUS, _EXTENDED, _text(_POSIX_RENAME) + _text(path) + _text(new))
        else:
            self._ask(_STATUS, _RENAME, _text(path) + _text(new))

    def open_file(self, path: bytes, flags: int) -> bytes:
        """A handle of a file."""
        return self._ask(_HANDLE, _OPEN, _text(path) + struct.pack(">II", flags, 0)).text()

    def close_file(self, handle: bytes) -> None:
        """Give up a handle."""
        self._ask(_STATUS, _CLOSE, _text(handle))

    def read(
        self, handle: bytes, start: int, stop: int, take: Callable[[int, memoryview], None]
    ) -> None:
        """Calls `take(offset, data)` until it has had all bytes from `start` to `stop`, mostly in
        order. Raises Refused(EOF) for a file that is shorter."""
        waiting: dict[int, tuple[int, int]] = {}
        while start < stop or waiting:
            while start < stop and len(waiting) < AHEAD:
                length = min(BLOCK, stop - start)
                waiting[self._post_read(handle, start, length)] = (start, length)
                start += length
            number, kind, body = self._reply()
            offset, length = _taken(waiting, number)
            data = _checked(_DATA, kind, body).view()
            if not data or len(data) > length:
                raise Again("the server sent another length than it was asked for")
            take(offset, data)
            if len(data) < length:
                rest = (offset + len(data), length - len(data))
                waiting[self._post_read(handle, *rest)] = rest

    def write(
        self,
        handle: bytes,
        blocks: Iterator[tuple[int, bytes]],
        written: Callable[[int, int], None],
    ) -> None:
        """Write blocks, each with its offset; calls `written(offset, length)` for what the server
        has confirmed."""
        waiting: dict[int, tuple[int, int]] = {}
        for offset, data in blocks:
            body = _text(handle) + struct.pack(">QI", offset, len(data)) + data
            waiting[self._post(_WRITE, body)] = (offset, len(data))
            if len(waiting) >= AHEAD:
                self._confirm(waiting, written)
        while waiting:
            self._confirm(waiting, written)

    def _confirm(
        self, waiting: dict[int, tuple[int, int]], written: Callable[[int, int], None]
    ) -> None:
        number, kind, body = self._reply()
        block = _taken(waiting, number)
        _checked(_STATUS, kind, body)
        written(*block)

    def _post_read(self, handle: bytes, offset: int, length: int) -> int:
        return self._post(_READ, _text(handle) + struct.pack(">QI", offset, length))

    def _ask(self, expected: int, kind: int, body: bytes) -> _Reader:
        """The answer to one request, when none is under way."""
        number = self._post(kind, body)
        answered, kind, answer = self._reply()
        if answered != number:
            raise Again("the server answered what it was not asked")
        return _checked(expected, kind, answer)

    def _post(self, kind: int, body: bytes) -> int:
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._send(struct.pack(">IBI", len(body) + 5, kind, self._number) + body)
        return self._number

    def _reply(self) -> tuple[int, int, memoryview]:
        """Number, kind and body of the next reply."""
        kind, body = self._packet()
        if len(body) < 4:
            raise Again("the server sent half a reply")
        return int.from_bytes(body[:4], "big"), kind, body[4:]

    def _packet(self) -> tuple[int, memoryview]:
        while len(self._came) < 4:
            self._receive()
        size = int.from_bytes(self._came[:4], "big")
        if not 0 < size <= _LONGEST_PACKET:
            raise Again("the server sent no SFTP packet")
        while len(self._came) < 4 + size:
            self._receive()
        packet = memoryview(bytes(self._came[4 : 4 + size]))
        del self._came[: 4 + size]
        return packet[0], packet[1:]

    def _receive(self) -> None:
        came = self._moved(lambda: self._channel.recv(2**18))
        if not came:
            raise Again("the server closed the connection")
        self._came += came

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            sent = self._moved(partial(self._channel.send, bytes(view)))
            if not sent:
                raise Again("the server closed the connection")
            view = view[sent:]

    def _moved(self, step: Callable[[], T]) -> T:
        import paramiko

        try:
            return patiently(step, self._stall_s, self.progress)
        except paramiko.SSHException as error:
            raise Again(str(error) or "the connection broke") from error


class _Reader:
    """Takes the fields of a reply one by one; Again when there is less than there should be."""

    def __init__(self, body: memoryview) -> None:
        self._body = body

    def left(self) -> int:
        return len(self._body)

    def number(self, size: int = 4) -> int:
        return int.from_bytes(self._cut(size), "big")

    def view(self) -> memoryview:
        return self._cut(self.number())

    def text(self) -> bytes:
        return bytes(self.view())

    def _cut(self, size: int) -> memoryview:
        if size > len(self._body):
            raise Again("the server sent half a reply")
        taken, self._body = self._body[:size], self._body[size:]
        return taken


def _checked(expected: int, kind: int, body: memoryview) -> _Reader:
    """A reply of the kind that was expected. Raises Refused for a status that is an error."""
    reader = _Reader(body)
    if kind == _STATUS:
        code = reader.number()
        if code in _LOST:
            raise Again("the server lost its connection")
        if code or expected != _STATUS:
            message = reader.text().decode("utf-8", "replace") if reader.left() else ""
            raise Refused(code, message or f"SFTP error {code}")
    elif kind != expected:
        raise Again(f"the server sent a packet of type {kind} instead of {expected}")
    return reader


def _taken(waiting: dict[int, tuple[int, int]], number: int) -> tuple[int, int]:
    try:
        return waiting.pop(number)
    except KeyError:
        raise Again("the server answered what it was not asked") from None


def _entries(reader: _Reader) -> Iterator[tuple[bytes, Attributes]]:
    for _ in range(reader.number()):
        name = reader.text()
        reader.text()
        yield name, _attributes(reader)


def _attributes(reader: _Reader) -> Attributes:
    flags = reader.number()
    size = reader.number(8) if flags & 0x1 else None
    if flags & 0x2:
        reader.number(8)
    mode = reader.number() if flags & 0x4 else None
    modified = None
    if flags & 0x8:
        reader.number()
        modified = reader.number()
    if flags & 0x80000000:
        for _ in range(2 * reader.number()):
            reader.text()
    return Attributes(size, mode, modified)


def _text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _number(value: int) -> bytes:
    return struct.pack(">I", value)
