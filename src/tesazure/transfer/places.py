"""What the URLs and paths mean that a user names: wildcards, names, where they lead."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tesazure.errors import StorageError, StorageNotFound
from tesazure.runner.glob import compile_part
from tesazure.storage.base import Entry, Selecting, Storage
from tesazure.storage.local import os_errors
from tesazure.storage.urls import file_path, join, printable, redact, scheme_of, unescaped
from tesazure.transfer.order import Item

OF_THIS_MACHINE = ("", "file")
"""Schemes of URLs of local files."""


class Place(NamedTuple):
    """An item, and what its URL means: `base` without the components that have wildcards,
    `pattern`, which are these."""

    item: Item
    base: str
    pattern: tuple[str, ...] = ()


def place_of(item: Item, *, wild: bool) -> Place:
    """Where an item lies; `wild`: its URL may have wildcards, of which the first is a `*`. A path
    in the place of the URL may be relative."""
    url = item.url
    if scheme_of(url) == "":
        url = f"{Path(url).absolute()}{'/' if url.endswith('/') else ''}"
    path, mark, query = (url, "", "") if scheme_of(url) in OF_THIS_MACHINE else url.partition("?")
    if not wild or "*" not in path:
        return Place(item, url)
    directory = path[: path.index("*")].rpartition("/")[0]
    pattern = path[len(directory) + 1 :].split("/")
    named = tuple(unescaped(url, part) for part in pattern if part)
    return Place(item, f"{directory}/{mark}{query}", named)


def matching(storage: Storage, url: str, place: Place) -> Iterator[Entry]:
    """What below `url`, the base, matches the pattern, or lies below what matches it. Raises
    StorageNotFound when nothing does."""
    parts = [compile_part(part) for part in place.pattern]
    is_local = scheme_of(url) in OF_THIS_MACHINE
    if is_local:
        found = _on_disk(storage, file_path(url).rstrip("/"), parts)
    elif isinstance(storage, Selecting):
        found = _selected(storage, url, place.pattern[0], parts)
    else:
        found = storage.list(url)
    nothing = True
    for entry in found:
        names = entry.path.split("/")
        fit = (part.fullmatch(name) for part, name in zip(parts, names, strict=False))
        if len(names) >= len(parts) and all(fit):
            nothing = False
            yield entry
    if nothing:
        raise StorageNotFound(f"{redact(place.item.url)}: nothing matches")


def _selected(
    storage: Selecting, url: str, first: str, parts: Sequence[re.Pattern[str]]
) -> Iterator[Entry]:
    """What below a directory can match, and little more; `first` is the pattern's first component.
    One of several would take a request for each directory that the first one matches, of which
    there may be more than there are pages of all files: these are listed together."""
    start = re.split(r"[*?\[\\]", first, maxsplit=1)[0]
    if len(parts) > 1 or first == f"{start}*":
        yield from storage.select(url, start, deep=True)
        return
    for entry in storage.select(url, start, deep=False):
        if not entry.is_directory:
            yield entry
        elif parts[0].fullmatch(entry.path):
            yield from _whole(storage, join(url, entry.path), entry.path)


def _whole(storage: Storage, url: str, path: str) -> Iterator[Entry]:
    """The directory at `url` with all below it; `path` is what it is called here."""
    empty = True
    for entry in storage.list(url):
        empty = False
        yield Entry(f"{path}/{entry.path}", entry.size, entry.is_directory)
    if empty:
        yield Entry(path, 0, is_directory=True)


def _on_disk(
    storage: Storage, top: str, parts: Sequence[re.Pattern[str]], path: str = ""
) -> Iterator[Entry]:
    """What below a local directory, at `path` in it, can match. Nothing else is looked into, nor
    are its faults."""
    here = f"{top}/{path}"
    with os_errors(printable(here)):
        names = [one.name for one in Path(here).iterdir() if parts[0].fullmatch(one.name)]
    for name in names:
        below, full = f"{path}{name}", f"{here}{name}"
        if len(parts) > 1:
            if Path(full).is_dir():
                yield from _on_disk(storage, top, parts[1:], f"{below}/")
        elif (found := storage.stat(full)).is_directory:
            yield from _whole(storage, full, below)
        else:
            yield Entry(below, found.size or 0)


def is_local_pattern(path: str) -> bool:
    """Whether a local path is a pattern (* ? [ ]), and not the name of something."""
    return glob.has_magic(path) and not os.path.lexists(path)


def local_matches(path: str) -> list[Path]:
    """What a local pattern matches, sorted. Raises StorageNotFound for nothing."""
    found = sorted(glob.glob(path))  # noqa: PTH207 - Path.glob has no absolute patterns
    if not found:
        raise StorageNotFound(f"{printable(path)}: nothing matches")
    return [Path(name).absolute() for name in found]


def ends_with_slash(url: str) -> bool:
    """Whether a URL names a directory that something goes into."""
    return (url if scheme_of(url) in OF_THIS_MACHINE else url.partition("?")[0]).endswith("/")


def last_name(url: str) -> str:
    """The name of what a URL leads to. Raises StorageError where it names only a server or a
    container."""
    path = url
    if scheme_of(url) not in OF_THIS_MACHINE:
        path = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")[2]
    _, slash, last = path.rstrip("/").rpartition("/")
    name = unescaped(url, last) if slash else ""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise StorageError(f"{redact(url)}: names no file; name one at the end of the path")
    return name


def harmless(path: str, place: Place) -> str:
    """The path of an entry. Object stores have names that would lead out of a directory: these
    raise StorageError."""
    if any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        shown = printable(join(redact(place.base), path))
        raise StorageError(f"{shown}: has a name that no file can have; get it alone")
    return path
