"""What storage systems with buckets and keys have in common: directories where there are none."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from tesazure.errors import StorageError, StorageNotFound
from tesazure.storage.base import Entry, Progress, Stat
from tesazure.storage.keys import Place, entries, parse, parse_object
from tesazure.storage.sources import Source, opened_source
from tesazure.storage.urls import named


class BucketStorage(ABC):
    """The Storage Protocol for objects in buckets; keys below a prefix are a directory.

    Those who inherit move single objects and list keys; their errors need not name the URL.
    """

    has_directories = True

    def __init__(self, page: int) -> None:
        """`page`: how many keys a list asks for at a time."""
        self._page = page

    def check(self, url: str, *, writing: bool) -> None:
        """Raises UnsupportedUrl for what cannot be a bucket and a key."""
        parse(url)

    def stat(self, url: str) -> Stat:
        """An object if there is one of this key, else a directory if there is anything below."""
        with named(url):
            return self._stat(parse(url))

    def list(self, url: str) -> Iterator[Entry]:
        """In pages, so that memory stays small whatever the directory holds."""
        return self.select(url, "", deep=True)

    def select(self, url: str, start: str, *, deep: bool) -> Iterator[Entry]:
        """As above."""
        place = parse(url)
        found = False

        def keys() -> Iterator[tuple[str, int]]:
            nonlocal found
            for key, size in self._keys(place, self._page, start, "" if deep else "/"):
                found = True
                yield key, size

        with named(url):
            yield from entries(place.prefix, keys())
            if not found and place.prefix and not self._stat(place).is_directory:
                raise StorageError("is an object, not a directory")

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """In parallel ranges of one version."""
        place = parse_object(url)
        with named(url):
            try:
                return self._fetch(place, path, progress)
            except StorageNotFound:
                if self._seems_directory(place):
                    raise StorageError("is a directory, not an object") from None
                raise

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """The object appears when all of it is there and has the right checksum."""
        place = parse_object(url)
        with named(url), opened_source(path) as source:
            self._send(source, place, progress)
            return source.size

    def make_directory(self, url: str) -> None:
        """An object of no bytes whose key ends in a slash. A bucket needs none."""
        place = parse(url)
        if place.prefix:
            with named(url):
                self._mark(Place(place.bucket, place.prefix))

    def close(self) -> None:  # noqa: B027 - those who inherit have nothing to close either
        """Nothing: the connections are the transport's."""

    @abstractmethod
    def _find(self, place: Place) -> Stat:
        """An object. Raises StorageNotFound."""

    @abstractmethod
    def _keys(
        self, place: Place, page: int, start: str = "", delimiter: str = ""
    ) -> Iterator[tuple[str, int]]:
        """Keys that begin with `start` below a place, and sizes, in order, so many at a time. With
        a delimiter, keys that hold it further on are cut off behind it, have size 0, and come once,
        after the others of a page. Raises StorageNotFound for a bucket that is not there."""

    @abstractmethod
    def _fetch(self, place: Place, path: Path, progress: Progress | None) -> int:
        """As `Storage.get`."""

    @abstractmethod
    def _send(self, source: Source, place: Place, progress: Progress | None) -> None:
        """As `Storage.put`."""

    @abstractmethod
    def _mark(self, place: Place) -> None:
        """Make an object of no bytes."""

    def _stat(self, place: Place) -> Stat:
        if not place.key or place.key.endswith("/"):
            if self._is_directory(place):
                return Stat(is_directory=True)
            raise StorageNotFound("no key begins so")
        try:
            return self._find(place)
        except StorageNotFound:
            if self._seems_directory(place):
                return Stat(is_directory=True)
            raise

    def _is_directory(self, place: Place) -> bool:
        return any(True for _ in self._keys(place, 1)) or not place.prefix

    def _seems_directory(self, place: Place) -> bool:
        """The same for a key that is not there; False when that cannot be seen."""
        with contextlib.suppress(StorageError):
            return self._is_directory(place)
        return False
