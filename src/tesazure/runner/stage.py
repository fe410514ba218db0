"""Stage in: a Plan's inputs into the task's tree. Stage out: its outputs from there to storage.

Every input is a private copy: the task may change it, and its source stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from tesazure.access import Access
from tesazure.errors import StorageError, StorageNotFound
from tesazure.model import FileType
from tesazure.plan import Download, Plan, Upload, normalise
from tesazure.runner.collect import Found, collect
from tesazure.runner.engines.base import Say
from tesazure.runner.glob import expand
from tesazure.runner.transfers import Job, Transfers
from tesazure.runner.tree import Tree
from tesazure.secrecy import hide
from tesazure.storage.base import Progress, Storage
from tesazure.storage.local import opened_directory, os_errors, whole_file, write_all
from tesazure.storage.urls import join, printable

if TYPE_CHECKING:
    from tesazure.runner.input_cache import InputCache

_OPEN_DIRECTORY = 0o777
_OPEN_FILE = 0o666
"""Inputs are writable for all: an image may name a user of its own, and the copy is the task's.
What keeps other users of the node out is the attempt's directory around the tree."""


class Systems(Protocol):
    """Chooses storage systems: `storage.registry.Storages`."""

    def for_url(self, url: str) -> Storage:
        """The system that serves `url`; raises UnsupportedUrl."""
        ...


class Calls(msgspec.Struct, frozen=True):
    """Whom staging tells how it goes."""

    say: Say
    typed: Callable[[str, int, FileType], None]
    """The type of `inputs` or `outputs` number n, where the client left it open or it differs."""
    uploaded: Callable[[str, str, int], None]
    """An output file that has been written: URL to show, container path, bytes."""


class _Arrival(msgspec.Struct, frozen=True):
    """Something to come to a container path: an object, a content, or else an empty directory.
    `url` may hold secrets, `shown` is the same for all who read the object."""

    index: int
    path: str
    url: str | None = None
    shown: str = ""
    content: str | None = None


class _Target(msgspec.Struct, frozen=True):
    """Where to write: the URL with whatever secrets that takes, and the one to show."""

    url: str
    shown: str

    def below(self, relative: str) -> _Target:
        """What `relative` names in this directory."""
        return _Target(join(self.url, relative), join(self.shown, relative))


class _Departure(msgspec.Struct, frozen=True):
    """A file of the tree to go somewhere. `path` is where the task's output names it, `real` where
    links lead from there."""

    index: int
    path: str
    real: str
    target: _Target


def stage_in(
    plan: Plan,
    access: Access,
    tree: Tree,
    storages: Systems,
    calls: Calls,
    cache: InputCache | None = None,
) -> None:
    """Bring all inputs to their paths in the tree, several at once, by the `cache` if there is one.

    Where an input lies inside another one, the deeper one wins. Raises the StorageError of the
    first input that failed, by index; what had come by then stays in the tree. An exception that a
    signal handler raises meanwhile ends the transfers first.
    """
    began = time.monotonic()
    paths = {download.index: download.path for download in plan.downloads}
    arrivals: list[_Arrival] = []
    for download in plan.downloads:
        with _about("inputs", download.index, download.path):
            url = access.inputs.get(download.index, download.url)
            arrivals += _arrivals(download, url, storages, calls)
    arrivals.sort(key=lambda a: (paths[a.index].count("/"), a.index))
    winners = sorted({a.path: a for a in arrivals}.values(), key=lambda a: a.index)
    directories: dict[str, str] = {}
    jobs: list[Job] = []
    for arrival in winners:
        with _about("inputs", arrival.index, arrival.path):
            jobs += _prepared(arrival, tree, directories, storages, cache)
    sizes: list[int] = []
    failures = Transfers(jobs, all_or_nothing=True).run(lambda _, size: sizes.append(size))
    if failures:
        first = min(failures)
        with _about("inputs", first, paths[first]):
            raise failures[first]
    if jobs:
        calls.say("info", f"inputs are in place: {_amount(sizes, began)}")


def _arrivals(
    download: Download, url: str | None, storages: Systems, calls: Calls
) -> Iterator[_Arrival]:
    """What one input consists of. `url` is where it is read from."""
    index, path, shown = download.index, download.path, download.url or ""
    if url is None or download.content is not None:
        calls.typed("inputs", index, FileType.FILE)
        yield _Arrival(index, path, content=download.content or "")
        return
    storage = storages.for_url(url)
    kind = download.type
    if kind is None:
        is_directory = storage.has_directories and storage.stat(url).is_directory
        kind = FileType.DIRECTORY if is_directory else FileType.FILE
        calls.typed("inputs", index, kind)
    if kind is FileType.FILE:
        yield _Arrival(index, path, url, shown)
        return
    yield _Arrival(index, path)
    for entry in storage.list(url):
        below = f"{path}/{entry.path}"
        if entry.is_directory:
            yield _Arrival(index, below)
        else:
            yield _Arrival(index, below, join(url, entry.path), join(shown, entry.path))


def _prepared(
    arrival: _Arrival,
    tree: Tree,
    directories: dict[str, str],
    storages: Systems,
    cache: InputCache | None,
) -> list[Job]:
    """Makes an arrival's directory, the real paths of known ones being in `directories`; the Job of
    a file."""
    is_file = arrival.url is not None or arrival.content is not None
    directory = posixpath.dirname(arrival.path) if is_file else arrival.path
    if directory not in directories:
        directories[directory] = tree.make_directories(directory, _OPEN_DIRECTORY)
    real = f"{directories[directory].rstrip('/')}/{posixpath.basename(arrival.path)}"
    url = arrival.url
    if url is None:
        text = arrival.content
        return [] if text is None else [Job(arrival.index, lambda _: _write(tree, real, text))]
    storage = storages.for_url(url)
    get = partial(cache.get, storage, url, arrival.shown) if cache else partial(storage.get, url)
    return [Job(arrival.index, lambda progress: _fetch(get, tree, real, progress))]


def _fetch(get: Callable[[Path, Progress], int], tree: Tree, real: str, progress: Progress) -> int:
    with _held(tree, real) as place:
        size = get(place, progress)
        file = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            executable = 0o111 if os.fstat(file).st_mode & 0o111 else 0
            os.fchmod(file, _OPEN_FILE | executable)
        finally:
            os.close(file)
    return size


def _write(tree: Tree, real: str, content: str) -> int:
    data = content.encode()
    with (
        os_errors("its content"),
        _held(tree, real) as place,
        opened_directory(place.parent) as directory,
        whole_file(directory, place.name, _OPEN_FILE) as file,
    ):
        os.fchmod(file, _OPEN_FILE)
        write_all(file, data)
    return len(data)


@contextlib.contextmanager
def _held(tree: Tree, real: str) -> Iterator[Path]:
    """As `Tree.held`. Storage's errors of the block name the file as the task knows it."""
    with tree.held(real) as place:
        try:
            yield place
        except StorageError as error:
            shown = printable(real)
            message = str(error).replace(printable(str(place)), shown).replace(str(place), shown)
            raise type(error)(message) from error


def stage_out(
    plan: Plan, access: Access, tree: Tree, storages: Systems, calls: Calls, *, succeeded: bool
) -> None:
    """Bring all outputs from the tree to their URLs, several at once.

    `succeeded`: whether all executors did. Then the first error, by index (a required output is
    missing, an upload failed), is raised as a StorageError once all other outputs are written, and
    further ones are said. Otherwise all of them are only said, because the task has failed already.
    Calls `calls.uploaded` in the order of the outputs and, below these, of the names.
    """
    began, say = time.monotonic(), calls.say
    errors: dict[int, StorageError] = {}
    departures: dict[str, _Departure] = {}
    for upload in plan.uploads:
        try:
            with _about("outputs", upload.index, upload.path):
                target = _Target(
                    access.outputs.get(upload.index, upload.url), hide(printable(upload.url))
                )
                found = _departures(upload, target, tree, storages, calls)
        except StorageNotFound as error:
            if upload.required and succeeded:
                errors[upload.index] = error
            else:
                say("warning", str(error))
            continue
        except StorageError as error:
            errors[upload.index] = error
            continue
        for departure in found:
            other = departures.pop(departure.target.shown, None)
            if other is not None:
                say("warning", _overwritten(other, departure))
            departures[departure.target.shown] = departure
    leaving = list(departures.values())
    jobs = [_sending(departure, tree, storages) for departure in leaving]
    sizes: list[int] = []

    def done(position: int, size: int) -> None:
        sent = leaving[position]
        sizes.append(size)
        calls.uploaded(printable(sent.target.shown), printable(sent.path), size)

    failures = Transfers(jobs, all_or_nothing=False).run(done)
    for index, failure in failures.items():
        path = next(u.path for u in plan.uploads if u.index == index)
        try:
            with _about("outputs", index, path):
                raise failure
        except StorageError as error:
            errors.setdefault(index, error)
    if sizes:
        say("info", f"outputs are written: {_amount(sizes, began)}")
    _conclude(errors, say, succeeded)


def _conclude(errors: dict[int, StorageError], say: Say, succeeded: bool) -> None:
    ordered = [errors[index] for index in sorted(errors)]
    for error in ordered[1:] if succeeded else ordered:
        say("error", str(error))
    if ordered and succeeded:
        raise ordered[0]


def _departures(
    upload: Upload, target: _Target, tree: Tree, storages: Systems, calls: Calls
) -> list[_Departure]:
    """The files of one output, which go to `target` or below it; makes its empty directories.
    Raises StorageNotFound if there is nothing that can be uploaded at the path of an
    output that is not a pattern."""

    def warn(text: str) -> None:
        calls.say("warning", f"outputs[{upload.index}]: {text}")

    storage = storages.for_url(target.url)
    matches = [(upload.path, target)]
    if upload.prefix is not None:
        prefix = _pruned(upload.prefix)
        paths = expand(tree, upload.path)
        matches = [(path, target.below(_rest(path, prefix))) for path in paths]
        if not matches:
            warn(f"nothing matches {printable(upload.path)}")
    departures: list[_Departure] = []
    kinds: set[bool] = set()
    for path, place in matches:
        try:
            found = collect(tree, path, warn)
        except StorageNotFound as error:
            if upload.prefix is None:
                raise
            warn(f"{printable(path)}: {error}; it is not uploaded")
            continue
        kinds.add(found.is_directory)
        departures += _parts(upload.index, path, place, found)
        for relative in found.empty:
            storage.make_directory((place.below(relative) if relative else place).url)
    if kinds:
        kind = FileType.DIRECTORY if kinds == {True} else FileType.FILE
        if upload.type is None or (upload.prefix is None and kind is not upload.type):
            calls.typed("outputs", upload.index, kind)
    return departures


def _parts(index: int, path: str, place: _Target, found: Found) -> Iterator[_Departure]:
    for real, relative in found.files:
        if relative:
            yield _Departure(index, f"{path}/{relative}", real, place.below(relative))
        else:
            yield _Departure(index, path, real, place)


def _sending(departure: _Departure, tree: Tree, storages: Systems) -> Job:
    url = departure.target.url
    storage = storages.for_url(url)

    def send(progress: Progress) -> int:
        with _held(tree, departure.real) as place:
            return storage.put(place, url, progress)

    return Job(departure.index, send)


def _pruned(prefix: str) -> str:
    """A path_prefix normalised like a path; what follows its last slash may be part of a name."""
    directory, _, start = prefix.rpartition("/")
    return f"{normalise(directory or '/').rstrip('/')}/{start}"


def _rest(path: str, prefix: str) -> str:
    """What of a match is appended to the URL (TES 1.1, tesOutput.path_prefix)."""
    shared = os.path.commonprefix([path, prefix])  # noqa: RUF071 - it may end within a name
    return path[len(shared) :]


def _overwritten(other: _Departure, departure: _Departure) -> str:
    return (
        f"outputs[{other.index}] ({printable(other.path)}) and outputs[{departure.index}]"
        f" ({printable(departure.path)}) both go to {departure.target.shown}; the latter is kept"
    )


@contextlib.contextmanager
def _about(field: str, index: int, path: str) -> Iterator[None]:
    """Errors of the block as StorageErrors of the same class that begin with the item's name."""
    subject = f"{field}[{index}] ({printable(path)})"
    with os_errors(subject):
        try:
            yield
        except StorageError as error:
            raise type(error)(f"{subject}: {error}") from error


def _amount(sizes: list[int], began: float) -> str:
    files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
    return f"{files}, {sum(sizes)} bytes, in {time.monotonic() - began:.1f} s"
