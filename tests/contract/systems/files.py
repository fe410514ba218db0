"""Files of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tesazure.plan import SHARED_GLOBAL
from tesazure.storage.base import Storage
from tesazure.storage.file import FileStorage
from tesazure.storage.shared import SharedStorage
from tesazure.storage.urls import join
from tests.contract.systems import InDirectory


class Files(InDirectory):
    """`file://` URLs."""

    query = user = ""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.storage: Storage = FileStorage([root])

    @classmethod
    @contextlib.contextmanager
    def made(cls, tmp_path: Path) -> Iterator[Self]:
        root = tmp_path / "data"
        root.mkdir()
        yield cls(root)

    def url(self, path: str) -> str:
        return join(self.root.as_uri(), path)


class BarePaths(Files):
    """Absolute paths."""

    def url(self, path: str) -> str:
        return f"{self.root}/{path}"


class Shared(Files):
    """Paths of the directory that all tasks share, which is elsewhere on this machine."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.storage = SharedStorage(root)

    def url(self, path: str) -> str:
        return f"{SHARED_GLOBAL}/{path}"


SYSTEMS = {"file": Files, "bare": BarePaths, "shared": Shared}
