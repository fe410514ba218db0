"""A logged-in FTP connection: commands, data connections, and what lies at a path.

Sources: RFC 959 (FTP), RFC 2389 (FEAT), RFC 2428 (EPSV), RFC 3659 (SIZE, MDTM, MLST, MLSD, REST).
Paths are bytes to FTP; here each is a str with one character per byte (ISO 8859-1).
"""

from __future__ import annotations

import contextlib
import ftplib
import os
import re
import socket
from collections.abc import Iterator
from functools import partial

import msgspec

from tesazure.errors import StorageError
from tesazure.storage.base import Progress
from tesazure.storage.patience import Again, Patience
from tesazure.storage.sockets import TICK_S, is_silent, patiently
from tesazure.storage.urls import printable

_LONGEST_REPLY = 2**20
_LONGEST_LIST = 64 * 2**20
"""Bytes of a directory's list, which is kept in memory: some half a million files."""
_UNKNOWN_COMMAND = frozenset({"500", "501", "502", "504"})
_BLOCK = 2**18
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Facts(msgspec.Struct, frozen=True):
    """What a server tells of a path. `identity` is the same for all paths to a directory."""

    is_directory: bool
    size: int | None = None
    version: str | None = None
    identity: str = ""


UNKNOWN = Facts(is_directory=False)
"""The server has no command that tells."""


class FtpSession(ftplib.FTP):
    """One control connection, in binary mode. Data connections are passive, and go to the host of
    the control connection whatever the server says.

    Errors: Again for a broken connection, ftplib's error_temp and error_perm for replies 4yz and
    5yz. `progress` is called while the session waits, and may raise: then it must be closed.
    """

    def __init__(self, connected: socket.socket, patience: Patience) -> None:
        super().__init__(timeout=patience.connect_s, encoding="latin-1")
        self.sock = connected
        self.af = connected.family
        self.progress: Progress | None = None
        self.home = ""
        self._stall_s = patience.read_s
        self._came = b""
        self._reply_bytes = 0
        self._features: frozenset[str] = frozenset()

    def enter(self, user: str, password: str) -> None:
        """Log in, and learn what the server can. Raises error_perm for a refused user."""
        self.welcome = self.getresp()
        self.login(user, password)
        self.voidcmd("TYPE I")
        with contextlib.suppress(ftplib.error_perm):
            lines = self.sendcmd("FEAT").split("\n")[1:-1]
            self._features = frozenset(line.split()[0].upper() for line in lines if line.split())
        if "UTF8" in self._features:
            with contextlib.suppress(ftplib.error_perm):
                self.sendcmd("OPTS UTF8 ON")
        with contextlib.suppress(ftplib.error_perm, ftplib.error_reply):
            self.home = self.pwd()

    def is_alive(self) -> bool:
        """Whether the server has neither closed the connection nor said that it will."""
        return self.sock is not None and not self._came and is_silent(self.sock)

    def putline(self, line: str) -> None:
        """Send one command."""
        if _CONTROL.search(line):
            raise ValueError("a control character in a command")
        self._reply_bytes = 0
        self._send(self._open_socket(), (line + "\r\n").encode("latin-1"))

    def getline(self) -> str:
        """One line of a reply."""
        connected = self._open_socket()
        while b"\n" not in self._came:
            came = patiently(lambda: connected.recv(8192), self._stall_s, self.progress)
            if not came:
                raise Again("the server closed the connection")
            self._came += came
            self._reply_bytes += len(came)
            if self._reply_bytes > _LONGEST_REPLY:
                raise Again("the server sends a reply without end")
        line, _, self._came = self._came.partition(b"\n")
        return line.rstrip(b"\r").decode("latin-1")

    @contextlib.contextmanager
    def data(self, command: str, rest: int = 0) -> Iterator[socket.socket]:
        """The data connection of a command; after the block, the server has confirmed it all."""
        try:
            connected = self.transfercmd(command, rest or None)
        except OSError as error:
            raise Again(f"no data connection: {error.strerror or error}") from error
        with connected:
            connected.settimeout(TICK_S)
            yield connected
        self.voidresp()

    def blocks(self, connected: socket.socket) -> Iterator[memoryview]:
        """What comes on a data connection; each is good until the next."""
        buffer = memoryview(bytearray(_BLOCK))
        while size := patiently(lambda: connected.recv_into(buffer), self._stall_s, self.progress):
            yield buffer[:size]

    def send(self, connected: socket.socket, data: bytes) -> None:
        """Send all of `data` on a data connection."""
        self._send(connected, data)

    def look(self, path: str) -> Facts | None:
        """What lies at a path, links followed; None for nothing, UNKNOWN when that cannot be
        found out."""
        if "MLST" in self._features:
            try:
                lines = self.sendcmd(f"MLST {path}").split("\n")
            except ftplib.error_perm as error:
                if code_of(error) not in _UNKNOWN_COMMAND:
                    if says_denied(str(error), path):
                        raise
                    return None
            else:
                found = facts_of(lines[1].lstrip(" ")) if len(lines) > 1 else None
                if found:
                    return found[1]
        return self._probe(path)

    def children(self, path: str) -> list[tuple[str, Facts]]:
        """Names in a directory, and what lies there."""
        if "MLST" not in self._features:
            names = {line.rpartition("/")[2] for line in self._lines(f"NLST {path}")}
            for name in filter(_CONTROL.search, names):
                raise StorageError(f"the server lists {name!r}, which is no name of a file")
            names -= {".", ".."}
            found = [(name, self.look(below(path, name))) for name in sorted(names)]
            return [(name, facts) for name, facts in found if facts]
        children: list[tuple[str, Facts]] = []
        for line in self._lines(f"MLSD {path}"):
            kind, _, name = line.partition(" ")
            if name in (".", "..") or re.search(r"(^|;)type=[cp]dir;", kind, re.IGNORECASE):
                continue
            if _CONTROL.search(name):
                raise StorageError(f"the server lists {name!r}, which is no name of a file")
            told = facts_of(line)
            facts = told[1] if told else self._probe(below(path, name))
            if facts is None:
                shown = printable(os.fsdecode(f"{path}/{name}".encode("latin-1")))
                raise StorageError(f"{shown}: this symbolic link leads nowhere")
            children.append((name, facts))
        return children

    def make_directories(self, path: str) -> str:
        """Make a directory and its parents; what the server said to the last of these."""
        said = ""
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            directory = "/".join(parts[:depth])
            if directory:
                try:
                    said = self.sendcmd(f"MKD {directory}")
                except ftplib.error_perm as error:  # most likely it is there
                    said = str(error)
        return said

    def _probe(self, path: str) -> Facts | None:
        """As `look`, for servers without MLST."""
        try:
            self.voidcmd(f"CWD {path}")
        except ftplib.error_perm:
            pass
        else:
            if path and not path.startswith("/"):
                for _ in path.split("/"):  # back home, as the server does not say where that is
                    self.voidcmd("CDUP")
            return Facts(is_directory=True)
        try:
            size = int(self.sendcmd(f"SIZE {path}").split()[1])
        except ftplib.error_perm as error:
            return UNKNOWN if code_of(error) in _UNKNOWN_COMMAND else None
        except (IndexError, ValueError):
            return UNKNOWN
        try:
            modified = self.sendcmd(f"MDTM {path}").split()[1]
        except (ftplib.error_perm, IndexError):
            return Facts(is_directory=False, size=size)
        return Facts(is_directory=False, size=size, version=f"{modified}-{size}")

    def _lines(self, command: str) -> list[str]:
        """The lines of a list. Raises StorageError for one that is too long to be kept."""
        whole = bytearray()
        with self.data(command) as connected:
            for block in self.blocks(connected):
                whole += block
                if len(whole) > _LONGEST_LIST:
                    size = f"{_LONGEST_LIST // 2**20} MiB"
                    raise StorageError(f"the server's list of a directory is longer than {size}")
        lines = (line.rstrip(b"\r").decode("latin-1") for line in whole.split(b"\n"))
        return [line for line in lines if line]

    def _send(self, connected: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[patiently(partial(connected.send, view), self._stall_s, self.progress) :]

    def _open_socket(self) -> socket.socket:
        if self.sock is None:
            raise Again("the connection is closed")
        return self.sock


def facts_of(line: str) -> tuple[str, Facts] | None:
    """Name and facts of a line of MLSD or MLST (RFC 3659, 7.2); None for a link or another kind
    of its own, of which the line does not tell what it leads to."""
    listed, _, name = line.partition(" ")
    facts = {
        key.lower(): value
        for key, separator, value in (fact.partition("=") for fact in listed.split(";"))
        if separator
    }
    identity = facts.get("unique", "")
    match facts.get("type", "").lower():
        case "dir" | "cdir" | "pdir":
            return name, Facts(is_directory=True, identity=identity)
        case "file":
            size = facts.get("size", "")
            modified = facts.get("modify", "")
            return name, Facts(
                is_directory=False,
                size=int(size) if size.isascii() and size.isdigit() else None,
                version=f"{modified}-{size}-{identity}" if modified else None,
                identity=identity,
            )
    return None


def below(directory: str, name: str) -> str:
    """The path of `name` in a directory, of which "" is the user's home."""
    return f"{directory.rstrip('/')}/{name}" if directory else name


def code_of(error: ftplib.Error) -> str:
    """The three digits of a reply."""
    return str(error)[:3]


def says_denied(reply: str, path: str) -> bool:
    """Whether a reply's words mean that something may not be done: 550 means that, and also that
    nothing is there."""
    words = reply.replace(path, "").lower()
    return bool(re.search(r"permission|denied|privilege|not allowed|forbidden", words))
