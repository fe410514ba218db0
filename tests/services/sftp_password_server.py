"""An SFTP server that lets a user in by password, and knows none of OpenSSH's extensions."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, Self

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED
from paramiko.sftp import SFTP_FAILURE, SFTP_OK

USER = "ann"
PASSWORD = "ann's p@ss/word"


class PasswordServer:
    """Serves the directory `root` as `/` on loopback, as a context manager. `tries` counts logins
    that were refused. `refuse` may refuse renames with a status, told both paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tries = 0
        self.refuse: Callable[[str, str], int | None] = lambda *_: None
        self._key = paramiko.ECDSAKey.generate()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._transports: list[paramiko.Transport] = []

    @property
    def known_hosts(self) -> str:
        """A known_hosts file with this server."""
        return f"[127.0.0.1]:{self.port} {self._key.get_name()} {self._key.get_base64()}\n"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Close all connections."""
        for transport in self._transports:
            transport.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            transport = paramiko.Transport(client)
            self._transports.append(transport)
            transport.add_server_key(self._key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files, self)
            with contextlib.suppress(paramiko.SSHException, EOFError):
                transport.start_server(server=_Door(self), event=threading.Event())


class _Door(paramiko.ServerInterface):
    def __init__(self, owner: PasswordServer) -> None:
        self._owner = owner

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_auth_password(self, username: str, password: str) -> int:
        if (username, password) == (USER, PASSWORD):
            return AUTH_SUCCESSFUL
        self._owner.tries += 1
        return AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED


class _Files(paramiko.SFTPServerInterface):
    def __init__(self, server: paramiko.ServerInterface, owner: PasswordServer) -> None:
        super().__init__(server)
        self._owner = owner
        self._root = owner.root

    def stat(self, path: str) -> paramiko.SFTPAttributes | int:
        try:
            return paramiko.SFTPAttributes.from_stat(self._place(path).stat())
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    def open(
        self, path: str, flags: int, attr: paramiko.SFTPAttributes
    ) -> paramiko.SFTPHandle | int:
        try:
            descriptor = os.open(self._place(path), flags, 0o644)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        handle = _Handle(flags)
        mode: Literal["wb", "rb"] = "wb" if flags & os.O_WRONLY else "rb"
        handle.readfile = handle.writefile = os.fdopen(descriptor, mode)
        return handle

    def remove(self, path: str) -> int:
        self._place(path).unlink()
        return SFTP_OK

    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        self._place(path).mkdir()
        return SFTP_OK

    def rename(self, oldpath: str, newpath: str) -> int:
        """As version 3 has it: not over what is there."""
        refused = self._owner.refuse(oldpath, newpath)
        if refused is not None:
            return refused
        if self._place(newpath).exists():
            return SFTP_FAILURE
        self._place(oldpath).rename(self._place(newpath))
        return SFTP_OK

    def _place(self, path: str) -> Path:
        return self._root / path.lstrip("/")


class _Handle(paramiko.SFTPHandle):
    readfile: BinaryIO
    writefile: BinaryIO

    def stat(self) -> paramiko.SFTPAttributes:
        self.writefile.flush()
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.writefile.fileno()))
