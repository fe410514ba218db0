"""A real FTP server (pyftpdlib) on loopback, that can lack commands and break in the middle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from pyftpdlib.authorizers import DummyAuthorizer  # type: ignore[import-untyped]
from pyftpdlib.handlers import DTPHandler, FTPHandler  # type: ignore[import-untyped]
from pyftpdlib.ioloop import IOLoop  # type: ignore[import-untyped]
from pyftpdlib.servers import FTPServer  # type: ignore[import-untyped]

USER = "ann"
PASSWORD = "ann's p@ss/word"
WHO = f"{USER}:{quote(PASSWORD, safe='')}"
"""Both, as in URLs."""


class FtpServer:
    """Serves the directory `root` to USER with all rights, and to anonymous users for reading, as a
    context manager.

    `cuts`: how many bytes each of the next data connections carries before everything is cut off.
    `stalled` transfers send nothing until it is cleared. `without` are commands the server does not
    know. `replaces`: whether a rename may replace a file (IIS refuses that). `answer` may answer a
    command instead of the server, or have the connection closed with "". `lost` are commands (STOR,
    RNTO) that are done, each once, but for whose answer the connection is closed. `said` is every
    command that came, passwords left out.
    """

    def __init__(
        self,
        root: Path,
        *,
        without: Collection[str] = (),
        replaces: bool = True,
        pasv_address: str = "",
    ) -> None:
        self.root = root
        self.cuts: list[int] = []
        self.stalled = False
        self.answer: Callable[[str], str | None] = lambda _: None
        self.lost: list[str] = []
        self.said: list[str] = []
        self.logins = 0
        self.sent = 0
        self.replaces = replaces
        authorizer = DummyAuthorizer()
        authorizer.add_user(USER, PASSWORD, str(root), perm="elradfmwMT")
        authorizer.add_anonymous(str(root))
        known = {name: how for name, how in FTPHandler.proto_cmds.items() if name not in without}
        settings = {
            "owner": self,
            "authorizer": authorizer,
            "masquerade_address": pasv_address or None,
            "proto_cmds": known,
        }
        self._ended = threading.Event()
        self._loop = IOLoop()
        handler = type("Handler", (_Control,), settings)
        self._server = FTPServer(("127.0.0.1", 0), handler, ioloop=self._loop)
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="ftp-server", daemon=True)

    def url(self, path: str = "", user: str = "") -> str:
        """URL of an (escaped) path; `user` as `name:password`, escaped too."""
        return f"ftp://{user and user + '@'}127.0.0.1:{self.port}/{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        self._server.close_all()

    def _serve(self) -> None:
        while not self._ended.is_set():
            self._loop.loop(0.02, False)


class _Data(DTPHandler):  # type: ignore[misc]
    """A data connection, which may be cut."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.owner: FtpServer = self.cmd_channel.owner
        self.left = self.owner.cuts.pop(0) if self.owner.cuts else None

    def use_sendfile(self) -> bool:
        return False

    def writable(self) -> bool:
        return not self.owner.stalled and bool(super().writable())

    def send(self, data: bytes) -> int:
        sent = int(super().send(data if self.left is None else data[: self.left]))
        self.owner.sent += sent
        self._spend(sent)
        return sent

    def recv(self, size: int) -> bytes:
        data = bytes(super().recv(size))
        self._spend(len(data))
        return data

    def handle_close(self) -> None:
        if self.receive and "STOR" in self.owner.lost:
            self.owner.lost.remove("STOR")
            self.cmd_channel.close()
        else:
            super().handle_close()

    def _spend(self, size: int) -> None:
        if self.left is not None:
            self.left -= size
            if self.left <= 0:
                self.cmd_channel.close()


class _Control(FTPHandler):  # type: ignore[misc]
    """A control connection."""

    owner: FtpServer
    auth_failed_timeout = 0
    dtp_handler = _Data
    use_sendfile = False

    def on_login(self, username: str) -> None:
        self.owner.logins += 1

    def pre_process_command(self, line: str, cmd: str, arg: str) -> None:
        answer = self.owner.answer(line)
        self.owner.said.append(line if cmd != "PASS" else cmd)
        if answer:
            self.respond(answer)
        elif answer == "":
            self.close()
        else:
            super().pre_process_command(line, cmd, arg)

    def ftp_RNTO(self, path: str) -> None:  # noqa: N802 - the base's name
        if not self.owner.replaces and self.fs.lexists(path):
            self._rnfr = None
            self.respond("550 Cannot create a file when that file already exists.")
        elif "RNTO" in self.owner.lost:
            self.owner.lost.remove("RNTO")
            self.fs.rename(self._rnfr, path)
            self.close()
        else:
            super().ftp_RNTO(path)
