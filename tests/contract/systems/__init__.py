"""Every storage system that the suite of the Storage Protocol runs on, one module each."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Self

from tesazure.storage.base import Storage

MODULES = (
    "azure",
    "drs",
    "files",
    "ftp",
    "gcs",
    "http",
    "s3",
    "sftp",
)
"""Each has a dictionary SYSTEMS: the name of a system in tests -> its class."""

NAMES = (
    "plain.txt",
    ".hidden",
    "two words.txt",
    "Ærøskøbing ☃.fq",
    "100%25.txt",
    "a+b&c=d;e.txt",
    "-rf",
    "x" * 200,
)
"""Names of objects that every system should take."""


class System(ABC):
    """One storage system with a place to plant objects in by another way than the Storage's."""

    storage: Storage

    can_write: ClassVar[bool] = True
    has_directories: ClassVar[bool] = True
    keeps_empty_directories: ClassVar[bool] = True
    can_select: ClassVar[bool] = False
    """Its storage is Selecting."""
    query: ClassVar[str] = "?sig=hunter3&token=hunter4"
    """Secrets that may follow a URL of this system, whatever the system makes of them."""
    user: ClassVar[str] = "user:hunter2@"
    """The same before its host."""

    @classmethod
    @abstractmethod
    def made(cls, tmp_path: Path) -> contextlib.AbstractContextManager[Self]:
        """A system with nothing in it. `tmp_path` is the test's own directory. Skips, or fails in
        CI, through `tests.conftest.refuse` or `shared` when a service is missing."""

    @abstractmethod
    def url(self, path: str) -> str:
        """URL of a relative path, encoded as the system wants it."""

    @abstractmethod
    def plant(self, path: str, content: bytes) -> str:
        """Make or replace an object; its URL."""

    @abstractmethod
    def planted(self, path: str) -> bytes | None:
        """What an object holds, None if there is none."""


class InDirectory(System):
    """One whose objects are the files below `root`."""

    root: Path

    def plant(self, path: str, content: bytes) -> str:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return self.url(path)

    def planted(self, path: str) -> bytes | None:
        place = self.root / path
        return place.read_bytes() if place.exists() else None


def systems() -> dict[str, type[System]]:
    """All of them."""
    found: dict[str, type[System]] = {}
    for name in MODULES:
        found.update(import_module(f"{__name__}.{name}").SYSTEMS)
    return found
