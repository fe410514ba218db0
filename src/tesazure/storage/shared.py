"""Files of /tes-wd/shared-global by the paths that tasks know them by, wherever the directory is on
this machine. Each task can read and change all of them anyway."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path

from tesazure.errors import PermissionDenied, StorageError
from tesazure.plan import SHARED_GLOBAL, contains, normalise
from tesazure.storage.base import Entry, Progress, Stat
from tesazure.storage.file import FileStorage
from tesazure.storage.local import os_errors
from tesazure.storage.urls import file_path, printable, scheme_of


def is_shared(url: str) -> bool:
    """Whether a bare path or a file URL names something in the shared directory, or that itself.
    Raises UnsupportedUrl for what is neither and for relative paths."""
    if "shared-global" not in url or scheme_of(url) not in ("", "file"):
        return False
    path = file_path(url)
    return contains(SHARED_GLOBAL, normalise(path))


class SharedStorage:
    """See `FileStorage`, of which this is one directory with another name.

    A link on the way leads where it leads in the containers; one in a directory that is copied
    must lead to a place in the shared directory on this machine, too.
    """

    has_directories = True

    def __init__(self, source: Path, real: Callable[[str], str] = normalise) -> None:
        """`source` is the directory on this machine; `real` tells where the links on the way of a
        container path lead, as a container path (OSError if that cannot be told)."""
        self._files = FileStorage((source,))
        self._source = str(source)
        self._real = real

    def check(self, url: str, *, writing: bool) -> None:
        """Only whether it is a path: where links lead is seen on the node that has the files."""
        file_path(url)

    def stat(self, url: str) -> Stat:
        """As FileStorage."""
        with self._named(url):
            return self._files.stat(self._place(url))

    def list(self, url: str) -> Iterator[Entry]:
        """As FileStorage."""
        with self._named(url):
            yield from self._files.list(self._place(url))

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """As FileStorage."""
        with self._named(url):
            return self._files.get(self._place(url), path, progress)

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """As FileStorage: a link at the destination is replaced."""
        directory, name = posixpath.split(normalise(file_path(url)))
        with self._named(url):
            return self._files.put(path, f"{self._place(directory)}/{name}", progress)

    def make_directory(self, url: str) -> None:
        """As FileStorage."""
        with self._named(url):
            self._files.make_directory(self._place(url))

    def close(self) -> None:
        """Nothing is kept open."""

    def _place(self, url: str) -> str:
        """Where it is on this machine. Raises PermissionDenied for what is not in the directory."""
        real = self._real(normalise(file_path(url)))
        if not contains(SHARED_GLOBAL, real):
            raise PermissionDenied(f"{printable(url)}: a link leads out of {SHARED_GLOBAL}")
        return f"{self._source}{real.removeprefix(SHARED_GLOBAL)}"

    @contextlib.contextmanager
    def _named(self, url: str) -> Iterator[None]:
        """Errors of the block name files as tasks know them."""
        try:
            with os_errors(printable(url)):
                yield
        except StorageError as error:
            text = str(error).replace(printable(self._source), SHARED_GLOBAL)
            raise type(error)(text) from error
