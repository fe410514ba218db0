"""Files moved by hand, by the same means as a runner moves a task's: what `tesazure transfer` does.

All systems and credentials of the settings are at hand. Paths, and file:// URLs, may be anywhere on
this machine: whoever calls this acts for themselves, within their own rights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tesazure.settings import Settings
from tesazure.storage.base import Entry, Stat
from tesazure.storage.urls import join
from tesazure.transfer.aside import alone, aside
from tesazure.transfer.order import Item, Observer, Order, Outcome, mistake_in_path, read_order
from tesazure.transfer.places import is_local_pattern
from tesazure.transfer.reach import Reach

__all__ = [
    "Entry",
    "Item",
    "Observer",
    "Order",
    "Outcome",
    "Stat",
    "download",
    "entries",
    "mistake_in_path",
    "move",
    "read_order",
    "stat",
    "upload",
]


def download(url: str, path: str) -> Order:
    """Bring what is at a URL to a path: a file to it, or into it if it is a directory or ends with
    a slash; what a directory holds, or a pattern matches, into it."""
    return Order(downloads=[Item(url, path)])


def upload(paths: Sequence[str], url: str) -> Order:
    """Bring a file to a URL, or below it if that ends with a slash; what a directory holds below
    it; several paths below it by their names."""
    if len(paths) == 1:
        return Order(uploads=[Item(url, paths[0])])
    return Order(
        uploads=[
            Item(url if is_local_pattern(path) else join(url, Path(path).absolute().name), path)
            for path in paths
        ]
    )


def stat(settings: Settings, url: str) -> Stat:
    """What is at a URL. Raises StorageError."""
    return alone(lambda: Reach(settings, download(url, "")).stat())


def entries(settings: Settings, url: str) -> Iterator[Entry]:
    """What is below a URL, recursively, as it is found; a file is its own only entry. Wildcards in
    the URL choose. Raises StorageError."""
    return aside(lambda: Reach(settings, download(url, "")).entries())


def move(settings: Settings, order: Order, observer: Observer) -> Outcome:
    """Move all. An item that fails ends its own files, not the others. Any exception in this thread
    (KeyboardInterrupt, say) ends all; no file is left half written."""
    return alone(lambda: Reach(settings, order)).move(observer)
