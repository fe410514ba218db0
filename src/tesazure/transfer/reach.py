"""The files of an Order found and moved, with the systems and credentials that this takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from msgspec import Struct, structs

from tesazure.errors import StorageError, StorageNotFound, StorageUnavailable, TesazureError
from tesazure.model import FileType
from tesazure.runner.transfers import Job, Stopped, Transfers
from tesazure.secrecy import Censor, censor_of
from tesazure.settings import Settings
from tesazure.storage.base import Entry, Progress, Stat, Storage
from tesazure.storage.local import os_errors
from tesazure.storage.registry import Storages
from tesazure.storage.urls import join, printable, redact, scheme_of
from tesazure.transfer.order import Observer, Order, Outcome
from tesazure.transfer.places import (
    OF_THIS_MACHINE,
    Place,
    ends_with_slash,
    harmless,
    is_local_pattern,
    last_name,
    local_matches,
    matching,
    place_of,
)

_ROOT = Path("/")

Fail = Callable[[int, Exception], None]
"""Takes the number of an item, and why it failed."""


class _File(Struct, frozen=True):
    """One file to move. `group` is the number of its item, `name` its URL for people, `leaves`
    whether it is an upload; `size` in bytes, if known."""

    group: int
    name: str
    url: str
    path: str
    size: int | None
    storage: Storage
    leaves: bool

    def move(self, progress: Progress) -> int:
        if self.leaves:
            # A link is followed here: what storage takes must be a file itself.
            return self.storage.put(Path(self.path).resolve(), self.url, progress)
        return self.storage.get(self.url, Path(self.path), progress)


class Reach:
    """The places of one Order, within reach. Items are numbered, downloads first."""

    def __init__(self, settings: Settings, order: Order) -> None:
        """May ask Azure or Google for credentials. Raises StorageError."""
        self._downloads = [place_of(item, wild=item.type is None) for item in order.downloads]
        self._uploads = [place_of(item, wild=False) for item in order.uploads]
        self._items = [*order.downloads, *order.uploads]
        granted = _granted(settings, self._downloads, self._uploads)
        self._storages, self._urls, self._censor = granted

    def stat(self) -> Stat:
        """What the one download is."""
        [url] = self._urls
        with self._censored():
            return self._storages.for_url(url).stat(url)

    def entries(self) -> Iterator[Entry]:
        """What is below the one download."""
        [place], [url] = self._downloads, self._urls
        with self._censored():
            storage = self._storages.for_url(url)
            if place.pattern:
                yield from matching(storage, url, place)
                return
            found = storage.stat(url)
            if found.is_directory:
                yield from storage.list(url)
            else:
                yield Entry(last_name(place.base), found.size or 0)

    @contextmanager
    def _censored(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise _without_secrets(error, self._censor) from error

    def move(self, observer: Observer) -> Outcome:
        """As `transfer.move`."""
        reported: dict[int, TesazureError] = {}
        lock = threading.Lock()

        def fail(group: int, error: Exception) -> None:
            known = _without_secrets(error, self._censor)
            with lock:
                if reported.setdefault(group, known) is not known:
                    return
            item = self._items[group]
            observer.failed(redact(item.url), printable(item.path), known)

        files = self._find(fail)
        sizes = [file.size for file in files if file.size is not None]
        observer.begin(len(files), sum(sizes) if len(sizes) == len(files) else None)
        moved: list[int] = []
        jobs = [Job(file.group, partial(_move, file, observer, fail)) for file in files]
        Transfers(jobs, all_or_nothing=False).run(lambda _, size: moved.append(size))
        return Outcome(len(moved), sum(moved), [reported[group] for group in sorted(reported)])

    def _find(self, fail: Fail) -> list[_File]:
        """All files of all items but those that failed."""
        found: dict[int, list[_File]] = {}

        def search(group: int, _: Progress) -> int:
            is_download = group < len(self._downloads)
            found[group] = list(self._coming(group) if is_download else self._leaving(group))
            return 0

        jobs = [Job(group, partial(search, group)) for group in range(len(self._items))]
        for group, error in Transfers(jobs, all_or_nothing=False).run(_ignore).items():
            fail(group, error)
        taken: dict[str, str] = {}
        files: list[_File] = []
        for group in sorted(found):
            try:
                _take(found[group], taken)
            except StorageError as error:
                fail(group, error)
            else:
                files += found[group]
        return files

    def _coming(self, group: int) -> Iterator[_File]:
        """The files of a download; makes the directories that they go to, and empty ones."""
        place, url = self._downloads[group], self._urls[group]
        item, storage = place.item, self._storages.for_url(url)
        path = Path(item.path).absolute()
        found = Stat(is_directory=bool(place.pattern) or item.type is FileType.DIRECTORY)
        if item.type is None and not place.pattern:
            found = _looked_at(storage, url)
        if not found.is_directory:
            if item.path.endswith("/") or path.is_dir():
                path /= last_name(place.base)
            _make(path.parent)
            yield _File(group, redact(place.base), url, str(path), found.size, storage, False)
            return
        made = {path}
        _make(path)
        for entry in matching(storage, url, place) if place.pattern else storage.list(url):
            target = path / harmless(entry.path, place)
            parent = target if entry.is_directory else target.parent
            if parent not in made:
                _make(parent)
                made.add(parent)
            if not entry.is_directory:
                name, source = redact(join(place.base, entry.path)), join(url, entry.path)
                yield _File(group, name, source, str(target), entry.size, storage, False)

    def _leaving(self, group: int) -> Iterator[_File]:
        """The files of an upload; makes its empty directories."""
        place, url = self._uploads[group - len(self._downloads)], self._urls[group]
        item, name = place.item, place.base
        if item.type is None and is_local_pattern(item.path):
            for path in local_matches(item.path):
                yield from self._tree(group, path, join(name, path.name), join(url, path.name))
            return
        path = Path(item.path).absolute()
        if not path.is_dir() and ends_with_slash(url):
            name, url = join(name, path.name), join(url, path.name)
        is_other = path.is_dir() != (item.type is FileType.DIRECTORY)
        if item.type is not None and path.exists() and is_other:
            raise StorageError(f"{printable(str(path))}: is not a {item.type.value.lower()}")
        yield from self._tree(group, path, name, url)

    def _tree(self, group: int, path: Path, name: str, url: str) -> Iterator[_File]:
        """The files at and below a path, which goes to `url`, for people `name`."""
        storage, local = self._storages.for_url(url), self._storages.for_url(str(path))
        found = local.stat(str(path))
        if not found.is_directory:
            yield _File(group, redact(name), url, str(path), found.size, storage, True)
            return
        empty = True
        for entry in local.list(str(path)):
            empty = False
            target = join(url, entry.path)
            if entry.is_directory:
                storage.make_directory(target)
                continue
            source, shown = f"{path}/{entry.path}", redact(join(name, entry.path))
            yield _File(group, shown, target, source, entry.size, storage, True)
        if empty:
            storage.make_directory(url)


def _looked_at(storage: Storage, url: str) -> Stat:
    """What a URL is. Where it can only be a file, some servers refuse to say, and serve it."""
    try:
        return storage.stat(url)
    except (StorageNotFound, StorageUnavailable):
        raise
    except StorageError:
        if storage.has_directories:
            raise
        return Stat(is_directory=False)


def _make(directory: Path) -> None:
    with os_errors(printable(str(directory))):
        directory.mkdir(parents=True, exist_ok=True)


def _take(files: Iterable[_File], taken: dict[str, str]) -> None:
    """Note where the files go. Raises StorageError where another one goes already."""
    for file in files:
        source, target = (file.path, file.name) if file.leaves else (file.name, file.path)
        other = taken.setdefault(target, source)
        if other != source:
            both = f"{printable(other)} and {printable(source)}"
            raise StorageError(f"{printable(target)}: {both} both go there")


def _move(file: _File, observer: Observer, fail: Fail, progress: Progress) -> int:
    """Move a file, and tell at once how that went."""

    def counted(size: int) -> None:
        observer.moved(size)
        progress(size)

    try:
        size = file.move(counted)
    except Stopped:
        raise
    except Exception as error:
        fail(file.group, error)
        raise
    observer.done(file.name, printable(file.path), size)
    return size


def _without_secrets(error: Exception, censor: Censor) -> TesazureError:
    """The error as it may be shown, whatever a library has put into it."""
    if not isinstance(error, TesazureError):
        return StorageError(censor(f"unexpected {type(error).__name__}: {error}"))
    text = censor(str(error))
    return error if text == str(error) else type(error)(text)


def _ignore(position: int, size: int) -> None:
    """A search is over."""


def _granted(
    settings: Settings, downloads: Sequence[Place], uploads: Sequence[Place]
) -> tuple[Storages, list[str], Censor]:
    """The systems with their credentials, and the URLs, signed where need be, of all places."""
    places = [*downloads, *uploads]
    urls = [place.base for place in places]
    allow_private = settings.allow_private_addresses
    if all(scheme_of(url) in OF_THIS_MACHINE for url in urls):
        return Storages([_ROOT], allow_private=allow_private), urls, Censor()
    from tesazure.storage.configured import endpoints_of, grant_config_of
    from tesazure.storage.grant import Granter

    granter = Granter(grant_config_of(settings))
    signed = [
        granter.resolve(
            place.base,
            writing=number >= len(downloads),
            directory=place.item.type is not FileType.FILE,
            lifetime_s=settings.credential_hours * 3600,
        )
        for number, place in enumerate(places)
    ]
    access = granter.to_systems(urls)
    storages = Storages(
        [_ROOT], allow_private=allow_private, endpoints=endpoints_of(settings), access=access
    )
    return storages, signed, censor_of(structs.replace(access, inputs=dict(enumerate(signed))))
