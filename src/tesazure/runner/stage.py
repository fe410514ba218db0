"""Stage in: a Plan's inputs into the task's tree. Stage out: its outputs from there to storage.

Every input is a private copy: the task may change it, and its source stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import time
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from tesazure.access import Access
from tesazure.errors import StorageError, StorageNotFound, in_utf8
from tesazure.model import FileType
from tesazure.plan import Download, Plan, Upload, normalise
from tesazure.runner.collect import collect
from tesazure.runner.engines.base import Say
from tesazure.runner.glob import expand
from tesazure.runner.transfers import Rows, Transfers, repeated
from tesazure.runner.tree import Tree
from tesazure.secrecy import hide
from tesazure.storage.base import Progress, Storage
from tesazure.storage.local import kind_of, opened_directory, os_errors, whole_file, write_all
from tesazure.storage.shared import is_shared
from tesazure.storage.urls import file_path, join, printable

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


class _Arrivals(msgspec.Struct):
    """What one input consists of. `url` is where it is read from and may hold secrets, `shown` is
    the same for all who read the object.

    `entries` are paths below the input's own, and nothing more, because there may be millions: ""
    is the input itself, a directory ends in `/`.
    """

    index: int
    path: str
    kind: FileType
    entries: list[str]
    storage: Storage | None = None
    url: str = ""
    shown: str = ""
    content: str = ""

    def __len__(self) -> int:
        return len(self.entries)

    def path_of(self, entry: str) -> str:
        """The container path of an entry."""
        return f"{self.path}/{entry}".rstrip("/") or "/"


def stage_in(
    plan: Plan,
    access: Access,
    tree: Tree,
    storages: Systems,
    calls: Calls,
    cache: InputCache | None = None,
) -> int:
    """Bring all inputs to their paths in the tree, several at once, by the `cache` if there is one.
    How many bytes they have.

    Where an input lies inside another one, the deeper one wins. Raises the StorageError of the
    first input that failed, by index; what had come by then stays in the tree. An exception that a
    signal handler raises meanwhile ends the transfers first.
    """
    tally = _Tally()
    arrivals = _arrivals(plan, access, tree, storages, calls)
    _leave_out_replaced(arrivals)
    directories = _make_directories(arrivals, tree)
    files = Rows(arrivals)

    def bring(position: int, progress: Progress) -> int:
        arrival, number = files.at(position)
        entry = arrival.entries[number]
        directory, name = posixpath.split(arrival.path_of(entry))
        real = f"{directories[directory].rstrip('/')}/{name}"
        storage, url, shown = arrival.storage, arrival.url, arrival.shown
        if storage is None:
            return _write(tree, real, arrival.content)
        if entry:
            url, shown = join(url, entry), join(shown, entry)
        get = partial(cache.get, storage, url, shown) if cache else partial(storage.get, url)
        return _fetch(get, tree, real, progress)

    transfers = Transfers(
        len(files), lambda position: files.at(position)[0].index, bring, all_or_nothing=True
    )
    _raise_first(plan, transfers.run(lambda _, size: tally.add(size)))
    if tally.files:
        calls.say("info", f"inputs are in place: {tally}")
    return tally.bytes


def _arrivals(
    plan: Plan, access: Access, tree: Tree, storages: Systems, calls: Calls
) -> list[_Arrivals]:
    """What all inputs consist of, by index. Several systems are asked at once."""
    downloads = sorted(plan.downloads, key=lambda download: download.index)
    found: dict[int, _Arrivals] = {}

    def look(position: int, _: Progress) -> int:
        download = downloads[position]
        url = access.inputs.get(download.index, download.url)
        found[position] = _looked_up(download, url, tree, storages)
        return 0

    def tell(position: int, _: int) -> None:
        arrival = found[position]
        if downloads[position].content is not None or downloads[position].type is None:
            calls.typed("inputs", arrival.index, arrival.kind)

    transfers = Transfers(
        len(downloads), lambda position: downloads[position].index, look, all_or_nothing=True
    )
    _raise_first(plan, transfers.run(tell))
    return [found[position] for position in range(len(downloads))]


def _looked_up(download: Download, url: str | None, tree: Tree, storages: Systems) -> _Arrivals:
    index, path = download.index, download.path
    if url is None or download.content is not None:
        return _Arrivals(index, path, FileType.FILE, [""], content=download.content or "")
    storage = storages.for_url(url)
    in_place = _is_in_place(tree, url, path)
    kind = download.type
    if kind is None or in_place:
        is_directory = storage.has_directories and storage.stat(url).is_directory
        kind = FileType.DIRECTORY if is_directory else FileType.FILE
    if in_place:
        return _Arrivals(index, path, kind, [])
    entries = [""]
    if kind is FileType.DIRECTORY:
        entries = ["/"]
        entries += (f"{e.path}/" if e.is_directory else e.path for e in storage.list(url))
    return _Arrivals(index, path, kind, entries, storage, url, download.url or "")


def _leave_out_replaced(arrivals: list[_Arrivals]) -> None:
    """Remove what another input, which lies deeper or comes later, has at the same path."""
    at: dict[str, list[_Arrivals]] = {}
    replaced: dict[int, set[str]] = {}
    for inner in sorted(arrivals, key=lambda a: (a.path.count("/"), a.index)):
        above = inner.path
        while above:
            for outer in at.get(above, ()):
                replaced.setdefault(outer.index, set()).update(map(inner.path_of, inner.entries))
            above = above.rpartition("/")[0]
        at.setdefault(inner.path, []).append(inner)
    for outer in arrivals:
        if paths := replaced.get(outer.index):
            outer.entries = [e for e in outer.entries if outer.path_of(e) not in paths]


def _make_directories(arrivals: list[_Arrivals], tree: Tree) -> dict[str, str]:
    """Make all directories, whose real paths it returns; only files are left to come then."""
    made: dict[str, str] = {}
    for arrival in arrivals:
        for entry in arrival.entries:
            path = arrival.path_of(entry)
            directory = path if entry.endswith("/") else posixpath.dirname(path)
            if directory not in made:
                with _about("inputs", arrival.index, path):
                    made[directory] = tree.make_directories(directory, _OPEN_DIRECTORY)
        arrival.entries = [entry for entry in arrival.entries if not entry.endswith("/")]
    return made


def _raise_first(plan: Plan, failures: dict[int, Exception]) -> None:
    if failures:
        first = min(failures)
        path = next(download.path for download in plan.downloads if download.index == first)
        with _about("inputs", first, path):
            raise failures[first]


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


class _Departures(msgspec.Struct):
    """The files of one output, and its empty directories. `url` may hold secrets, `shown` does not.

    `paths` are where the task's output has them, and nothing more, because there may be millions; a
    directory ends in `/`. `tops` has the length of that part of each path which lies at `url`, or
    at what the `prefix` of a pattern makes of it. `reals` is where links lead.
    """

    index: int
    storage: Storage
    url: str
    shown: str
    prefix: str | None
    paths: list[str]
    tops: array[int]
    reals: dict[str, str]

    def __len__(self) -> int:
        return len(self.paths)

    def below(self, url: str, number: int) -> str:
        """What `url`, of the output, is for one of its paths."""
        path, top = self.paths[number].rstrip("/"), self.tops[number]
        if self.prefix is not None:
            url = join(url, _rest(path[:top], self.prefix))
        return join(url, path[top + 1 :]) if len(path) > top else url

    def is_directory(self, number: int) -> bool:
        """Whether it is an empty directory."""
        return self.paths[number].endswith("/")

    def leave_out(self, numbers: set[int]) -> None:
        """Remove some of its paths."""
        kept = [number for number in range(len(self)) if number not in numbers]
        self.paths = [self.paths[number] for number in kept]
        self.tops = array("I", [self.tops[number] for number in kept])


def stage_out(
    plan: Plan, access: Access, tree: Tree, storages: Systems, calls: Calls, *, succeeded: bool
) -> None:
    """Bring all outputs from the tree to their URLs, several at once.

    `succeeded`: whether all executors did. Then the first error, by index (a required output is
    missing, an upload failed), is raised as a StorageError once all other outputs are written, and
    further ones are said. Otherwise all of them are only said, because the task has failed already.
    Calls `calls.uploaded` in the order of the outputs and, below these, of the names.
    """
    tally = _Tally()
    errors: dict[int, StorageError] = {}
    leaving: list[_Departures] = []
    for upload in sorted(plan.uploads, key=lambda upload: upload.index):
        url = access.outputs.get(upload.index, upload.url)
        must_be = upload.required and succeeded
        try:
            with _about("outputs", upload.index, upload.path):
                leaving.append(_departures(upload, url, tree, storages, calls, must_be=must_be))
        except StorageError as error:
            errors[upload.index] = error
    _leave_out_overwritten(leaving, calls.say)
    files = Rows(leaving)

    def send(position: int, progress: Progress) -> int:
        departures, number = files.at(position)
        path, url = departures.paths[number], departures.below(departures.url, number)
        if departures.is_directory(number):
            departures.storage.make_directory(url)
            return 0
        real = departures.reals.get(path, path)
        with _held(tree, real) as place:
            if _is_in_place(tree, url, path) and not tree.is_private(real):
                return _synced(place)
            return departures.storage.put(place, url, progress)

    def done(position: int, size: int) -> None:
        departures, number = files.at(position)
        if not departures.is_directory(number):
            tally.add(size)
            shown = departures.below(departures.shown, number)
            calls.uploaded(in_utf8(shown), in_utf8(departures.paths[number]), size)

    transfers = Transfers(
        len(files), lambda position: files.at(position)[0].index, send, all_or_nothing=False
    )
    for index, failure in transfers.run(done).items():
        path = next(u.path for u in plan.uploads if u.index == index)
        try:
            with _about("outputs", index, path):
                raise failure
        except StorageError as error:
            errors.setdefault(index, error)
    if tally.files:
        calls.say("info", f"outputs are written: {tally}")
    _conclude(errors, calls.say, succeeded)


def _conclude(errors: dict[int, StorageError], say: Say, succeeded: bool) -> None:
    ordered = [errors[index] for index in sorted(errors)]
    for error in ordered[1:] if succeeded else ordered:
        say("error", str(error))
    if ordered and succeeded:
        raise ordered[0]


def _departures(
    upload: Upload, url: str, tree: Tree, storages: Systems, calls: Calls, *, must_be: bool
) -> _Departures:
    """What of one output goes to `url` or below it. Raises StorageNotFound if that is nothing,
    `must_be` and the output is not a pattern."""

    def warn(text: str) -> None:
        calls.say("warning", f"outputs[{upload.index}]: {text}")

    storage = storages.for_url(url)
    prefix = None if upload.prefix is None else _pruned(upload.prefix)
    matches = [upload.path] if prefix is None else expand(tree, upload.path)
    if not matches:
        warn(f"nothing matches {printable(upload.path)}")
    shown = hide(in_utf8(upload.url))
    departures = _Departures(upload.index, storage, url, shown, prefix, [], array("I"), {})
    kinds: set[bool] = set()
    for path in matches:
        try:
            found = collect(tree, path, warn)
        except StorageNotFound as error:
            if prefix is not None:
                warn(f"{printable(path)}: {error}; it is not uploaded")
            elif must_be:
                raise
            else:
                calls.say("warning", f"{_subject('outputs', upload.index, path)}: {error}")
            continue
        kinds.add(found.is_directory)
        departures.paths += (f"{directory}/" for directory in found.empty)
        departures.paths += found.files
        departures.tops.extend(
            repeat(len(path.rstrip("/")), len(departures.paths) - len(departures.tops))
        )
        departures.reals.update(found.reals)
    if kinds:
        kind = FileType.DIRECTORY if kinds == {True} else FileType.FILE
        if upload.type is None or (prefix is None and kind is not upload.type):
            calls.typed("outputs", upload.index, kind)
    return departures


def _leave_out_overwritten(leaving: list[_Departures], say: Say) -> None:
    """Remove the files where others, which come later, go to the same place; says so."""

    def places() -> Iterator[tuple[_Departures, int, str]]:
        for departures in leaving:
            for number in range(len(departures)):
                if not departures.is_directory(number):
                    yield departures, number, departures.below(departures.shown, number)

    suspects = repeated(shown for _, _, shown in places())
    if not suspects:
        return
    last: dict[str, tuple[_Departures, int]] = {}
    overwritten: dict[int, set[int]] = {}
    for departures, number, shown in places():
        if hash(shown) not in suspects:
            continue
        if shown in last:
            other, lost = last[shown]
            say(
                "warning",
                f"outputs[{other.index}] ({printable(other.paths[lost])}) and"
                f" outputs[{departures.index}] ({printable(departures.paths[number])}) both go to"
                f" {shown}; the latter is kept",
            )
            overwritten.setdefault(other.index, set()).add(lost)
        last[shown] = departures, number
    for departures in leaving:
        if departures.index in overwritten:
            departures.leave_out(overwritten[departures.index])


def _is_in_place(tree: Tree, url: str, path: str) -> bool:
    """Whether `url` names just the place of the shared directory at which the task has it."""
    return not tree.is_private(path) and is_shared(url) and normalise(file_path(url)) == path


def _synced(place: Path) -> int:
    """The size of a file that stays where it is, and is on disk from now on if it can be read."""
    found = place.lstat()
    with contextlib.suppress(PermissionError):
        file = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(file)
            if stat.S_ISREG(found.st_mode):
                os.fdatasync(file)
        finally:
            os.close(file)
    if not stat.S_ISREG(found.st_mode):
        raise StorageError(f"{printable(str(place))}: is {kind_of(found.st_mode)}, not a file")
    return found.st_size


def _pruned(prefix: str) -> str:
    """A path_prefix normalised like a path; what follows its last slash may be part of a name."""
    directory, _, start = prefix.rpartition("/")
    return f"{normalise(directory or '/').rstrip('/')}/{start}"


def _rest(path: str, prefix: str) -> str:
    """What of a match is appended to the URL (TES 1.1, tesOutput.path_prefix)."""
    shared = os.path.commonprefix([path, prefix])  # noqa: RUF071 - it may end within a name
    return path[len(shared) :]


@contextlib.contextmanager
def _about(field: str, index: int, path: str) -> Iterator[None]:
    """Errors of the block as StorageErrors of the same class that begin with the item's name."""
    subject = _subject(field, index, path)
    with os_errors(subject):
        try:
            yield
        except StorageError as error:
            raise type(error)(f"{subject}: {error}") from error


def _subject(field: str, index: int, path: str) -> str:
    return f"{field}[{index}] ({printable(path)})"


class _Tally:
    """What has been moved since it was made, in words."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self._began = time.monotonic()

    def add(self, size: int) -> None:
        """Count a file."""
        self.files += 1
        self.bytes += size

    def __str__(self) -> str:
        files = "1 file" if self.files == 1 else f"{self.files} files"
        return f"{files}, {self.bytes} bytes, in {time.monotonic() - self._began:.1f} s"
