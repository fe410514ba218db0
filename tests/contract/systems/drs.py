"""GA4GH DRS, on a stand-in that checks tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tesazure.storage.drs import DrsStorage
from tesazure.storage.http import HttpStorage
from tesazure.storage.transport import Transport
from tests.contract.systems import System
from tests.services.drs_server import TOKEN, DrsServer


class Drs(System):
    """What a tree of bundles holds, by the names in them. The server speaks http."""

    can_write = False
    keeps_empty_directories = False

    def __init__(self, server: DrsServer, transport: Transport) -> None:
        self.server = server
        self.tree: dict[str, dict[str, str]] = {"": {}}
        """Directories -> names in them -> ids."""
        self.server.add_bundle("root", {})
        http = HttpStorage(transport)
        tokens = {server.host: TOKEN}
        self.storage = DrsStorage(transport, tokens, lambda _: http, scheme="http")

    @classmethod
    @contextlib.contextmanager
    def made(cls, tmp_path: Path) -> Iterator[Self]:
        with contextlib.closing(Transport()) as transport, DrsServer(TOKEN) as server:
            yield cls(server, transport)

    def url(self, path: str) -> str:
        return f"{self.server.url('root')}/{path}"

    def plant(self, path: str, content: bytes) -> str:
        planted = self.url(path)
        identifier = f"object-{len(self.server.objects)}"
        self.server.add(identifier, content)
        while path:
            directory, _, name = path.rpartition("/")
            inside = self.tree.setdefault(directory, {})
            inside[name] = identifier
            identifier = f"bundle-{directory.encode().hex()}" if directory else "root"
            self.server.add_bundle(identifier, inside)
            path = directory
        return planted

    def planted(self, path: str) -> bytes | None:
        return None


SYSTEMS = {"drs": Drs}
