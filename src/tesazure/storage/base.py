"""The Storage Protocol: objects and directories at a URL, moved whole or not at all.

Sync on purpose: the runner moves files in threads, and must start without an event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

Progress = Callable[[int], None]
"""Called with the number of bytes moved since the last call, and now and then with 0 while a
transfer waits. May raise to stop the transfer, which then leaves nothing behind."""


def waiting(progress: Progress | None) -> Progress | None:
    """What may stop a transfer as `progress` may, and does not count bytes: for requests whose
    bodies are no part of a file."""
    return (lambda _: progress(0)) if progress else None


class Entry(msgspec.Struct, frozen=True):
    """One object below a URL. `path` is relative to that URL, with `/`; a directory that holds
    nothing is an entry of its own with `is_directory`. `size` in bytes."""

    path: str
    size: int
    is_directory: bool = False


_SETTLED_S = 10
"""More than file systems' clocks tick in (FAT's two seconds), and than clocks should differ."""


def settled(modified: float) -> bool:
    """Whether what was last changed then, in seconds since 1970, will have another time if it is
    changed again, even where times are in seconds."""
    return time.time() - modified > _SETTLED_S


class Stat(msgspec.Struct, frozen=True):
    """What lies at a URL. `size` in bytes, None when the system does not tell; `checksum` as
    `algorithm:hex` when the system offers one; `version` is an ETag or the like. `is_firm`: other
    content is sure to have another version, which neither a weak ETag says nor a time that is not
    `settled`."""

    is_directory: bool
    size: int | None = None
    checksum: str | None = None
    version: str | None = None
    is_firm: bool = True


class Storage(Protocol):
    """One storage system. May be used from several threads at once.

    Errors of every method: StorageNotFound, PermissionDenied, StorageFull, StorageUnavailable
    (after the system's own retries), UnsupportedUrl for what the system cannot do at all, and
    StorageError itself for any other refusal; each names the URL without its secrets.
    """

    @property
    def has_directories(self) -> bool:
        """Whether `stat` tells directories from files, and `list` works."""
        ...

    def check(self, url: str, *, writing: bool) -> None:
        """Raises UnsupportedUrl or PermissionDenied when `url` may not be read, or written, as far
        as can be told without a network. For the moment of submission; `get` and `put` check
        again."""
        ...

    def stat(self, url: str) -> Stat:
        """What lies at `url`; raises StorageNotFound."""
        ...

    def list(self, url: str) -> Iterator[Entry]:
        """Everything below the directory `url`, recursively, in no promised order. An empty
        directory has no entries."""
        ...

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """Copy the object to the local file `path`, whose parent exists. Atomic: `path` appears
        whole, with size and checksum verified, or not at all. Returns bytes written."""
        ...

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """Copy the local file to `url`, replacing what is there. Atomic: no reader sees half an
        object. Makes directories where the system has them. Returns bytes written."""
        ...

    def make_directory(self, url: str) -> None:
        """Make an empty directory at `url` where the system has such a thing; else do nothing."""
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice; a closed storage may be used again."""
        ...


@runtime_checkable
class Selecting(Storage, Protocol):
    """A Storage whose server can list a part of a directory by itself."""

    def select(self, url: str, start: str, *, deep: bool) -> Iterator[Entry]:
        """As `list`, but only paths that begin with `start`; unless `deep`, only what lies directly
        in the directory `url`: a directory there is one entry, whatever it holds."""
        ...


@runtime_checkable
class Probing(Protocol):
    """A Storage whose `stat` may tell of objects whose content it would not give."""

    def probe(self, url: str) -> None:
        """Raises StorageError unless the object's content can be read."""
        ...
