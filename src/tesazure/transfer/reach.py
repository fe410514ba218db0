"""The files of an Order found and moved, with the systems and credentials that this takes."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from msgspec import Struct, structs

from tesazure.access import Access
from tesazure.errors import StorageError, StorageNotFound, StorageUnavailable, TesazureError
from tesazure.model import FileType
from tesazure.runner.transfers import Rows, Stopped, Transfers, repeated
from tesazure.secrecy import Censor, censor_of
from tesazure.settings import Settings
from tesazure.storage.base import Entry, Progress, Stat, Storage
from tesazure.storage.local import kind_of, os_errors
from tesazure.storage.registry import Storages
from tesazure.storage.urls import host_of, join, printable, redact, scheme_of
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


class _Files(Struct):
    """The files of one item. `name` is its URL for people, `leaves` whether it is an upload.

    `paths` are local paths, and nothing more, because there may be millions; `tops` has the length
    of that part of each which is the item's own, the rest is below `url`. `size` in bytes, None
    when some file's is not known.
    """

    group: int
    name: str
    url: str
    storage: Storage
    leaves: bool
    paths: list[str]
    tops: array[int]
    size: int | None = 0

    def __len__(self) -> int:
        return len(self.paths)

    def add(self, path: str, top: int, size: int | None) -> None:
        """Note a file."""
        self.paths.append(path)
        self.tops.append(top)
        self.size = None if self.size is None or size is None else self.size + size

    def name_of(self, number: int) -> str:
        """The URL of a file for people."""
        return redact(self._below(self.name, number))

    def move(self, number: int, progress: Progress) -> int:
        """Move a file; its size."""
        path, url = Path(self.paths[number]), self._below(self.url, number)
        if self.leaves:
            # A link is followed here: what storage takes must be a file itself.
            return self.storage.put(path.resolve(), url, progress)
        _require_replaceable(path)
        return self.storage.get(url, path, progress)

    def _below(self, url: str, number: int) -> str:
        below = self.paths[number][self.tops[number] :]
        return join(url, below) if below else url


class Reach:
    """The places of one Order, within reach. Items are numbered, downloads first."""

    def __init__(self, settings: Settings, order: Order) -> None:
        """May ask Azure or Google for credentials. Raises ConfigurationError."""
        self._downloads = [place_of(item, wild=item.type is None) for item in order.downloads]
        self._uploads = [place_of(item, wild=False) for item in order.uploads]
        self._items = [*order.downloads, *order.uploads]
        granted = _granted(settings, self._downloads, self._uploads)
        self._storages, self._urls, self._censor, self._refused = granted

    def stat(self) -> Stat:
        """What the one download is."""
        [url] = self._urls
        with self._censored():
            self._require_granted(0)
            return self._storages.for_url(url).stat(url)

    def entries(self) -> Iterator[Entry]:
        """What is below the one download."""
        [place], [url] = self._downloads, self._urls
        with self._censored():
            self._require_granted(0)
            storage = self._storages.for_url(url)
            if place.pattern:
                yield from matching(storage, url, place)
                return
            found = storage.stat(url)
            if found.is_directory:
                yield from storage.list(url)
            else:
                yield Entry(last_name(place.base), found.size or 0)

    def _require_granted(self, group: int) -> None:
        if group in self._refused:
            raise self._refused[group]

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

        found = self._find(fail)
        files = Rows(found)
        known = [each.size for each in found if each.size is not None]
        observer.begin(len(files), sum(known) if len(known) == len(found) else None)
        count = total = 0

        def move(position: int, progress: Progress) -> int:
            return _move(*files.at(position), observer, fail, progress)

        def done(_: int, size: int) -> None:
            nonlocal count, total
            count, total = count + 1, total + size

        transfers = Transfers(
            len(files), lambda position: files.at(position)[0].group, move, all_or_nothing=False
        )
        transfers.run(done)
        return Outcome(count, total, [reported[group] for group in sorted(reported)])

    def _find(self, fail: Fail) -> list[_Files]:
        """All files of all items but those that failed."""
        found: dict[int, _Files] = {}

        def search(group: int, _: Progress) -> int:
            self._require_granted(group)
            is_download = group < len(self._downloads)
            found[group] = self._coming(group) if is_download else self._leaving(group)
            return 0

        transfers = Transfers(
            len(self._items), lambda position: position, search, all_or_nothing=False
        )
        for group, error in transfers.run(_ignore).items():
            fail(group, error)
        return _without_conflicts([found[group] for group in sorted(found)], fail)

    def _coming(self, group: int) -> _Files:
        """The files of a download; makes the directories that they go to, and empty ones."""
        place, url = self._downloads[group], self._urls[group]
        item, storage = place.item, self._storages.for_url(url)
        files = _Files(group, place.base, url, storage, False, [], array("I"))
        path = Path(item.path).absolute()
        found = Stat(is_directory=bool(place.pattern) or item.type is FileType.DIRECTORY)
        if item.type is None and not place.pattern:
            found = _looked_at(storage, url)
        if not found.is_directory:
            if item.path.endswith("/") or path.is_dir():
                path /= last_name(place.base)
            _make(path.parent)
            files.add(str(path), len(str(path)), found.size)
            return files
        made = {str(path)}
        _make(path)
        top = str(path).rstrip("/") + "/"
        for entry in matching(storage, url, place) if place.pattern else storage.list(url):
            target = top + harmless(entry.path, place)
            parent = target if entry.is_directory else target.rpartition("/")[0]
            if parent not in made:
                _make(Path(parent))
                made.add(parent)
            if not entry.is_directory:
                files.add(target, len(top), entry.size)
        return files

    def _leaving(self, group: int) -> _Files:
        """The files of an upload; makes its empty directories."""
        place, url = self._uploads[group - len(self._downloads)], self._urls[group]
        item, name = place.item, place.base
        if item.type is None and is_local_pattern(item.path):
            files = self._files_to(group, name, url)
            for path in local_matches(item.path):
                self._add_tree(files, str(path), len(str(path)) - len(path.name))
            return files
        path = Path(item.path).absolute()
        if not path.is_dir() and ends_with_slash(url):
            name, url = join(name, path.name), join(url, path.name)
        is_other = path.is_dir() != (item.type is FileType.DIRECTORY)
        if item.type is not None and path.exists() and is_other:
            raise StorageError(f"{printable(str(path))}: is not a {item.type.value.lower()}")
        files = self._files_to(group, name, url)
        self._add_tree(files, str(path), len(str(path)))
        return files

    def _files_to(self, group: int, name: str, url: str) -> _Files:
        return _Files(group, name, url, self._storages.for_url(url), True, [], array("I"))

    def _add_tree(self, files: _Files, path: str, top: int) -> None:
        """Note the files at and below a path; makes empty directories."""
        local = self._storages.for_url(path)
        found = local.stat(path)
        if not found.is_directory:
            files.add(path, top, found.size)
            return
        own = join(files.url, path[top:]) if path[top:] else files.url
        empty = True
        for entry in local.list(path):
            empty = False
            if entry.is_directory:
                files.storage.make_directory(join(own, entry.path))
            else:
                files.add(f"{path.rstrip('/')}/{entry.path}", top, entry.size)
        if empty:
            files.storage.make_directory(own)


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


def _require_replaceable(path: Path) -> None:
    """Raises StorageError for what is neither a file nor nothing, or leads to such a thing
    (/dev/stdout)."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # whoever writes there says it
    if not S_ISREG(mode):
        raise StorageError(f"{printable(str(path))}: is {kind_of(mode)}, which no file replaces")


def _make(directory: Path) -> None:
    with os_errors(printable(str(directory))):
        directory.mkdir(parents=True, exist_ok=True)


def _without_conflicts(found: list[_Files], fail: Fail) -> list[_Files]:
    """All but the items of which some file would go where another goes already: these fail."""

    def targets(files: _Files) -> Iterator[str]:
        if not files.leaves:
            return iter(files.paths)
        return (files.name_of(number) for number in range(len(files)))

    suspects = repeated(target for files in found for target in targets(files))
    if not suspects:
        return found
    taken: dict[str, str] = {}
    kept: list[_Files] = []
    for files in found:
        try:
            for number, target in enumerate(targets(files)):
                if hash(target) in suspects:
                    source = files.paths[number] if files.leaves else files.name_of(number)
                    other = taken.setdefault(target, source)
                    if other != source:
                        both = f"{printable(other)} and {printable(source)}"
                        raise StorageError(f"{printable(target)}: {both} both go there")
        except StorageError as error:
            fail(files.group, error)
        else:
            kept.append(files)
    return kept


def _move(files: _Files, number: int, observer: Observer, fail: Fail, progress: Progress) -> int:
    """Move a file, and tell at once how that went."""

    def counted(size: int) -> None:
        observer.moved(size)
        progress(size)

    try:
        size = files.move(number, counted)
    except Stopped:
        raise
    except Exception as error:
        fail(files.group, error)
        raise
    observer.done(files.name_of(number), printable(files.paths[number]), size)
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
) -> tuple[Storages, list[str], Censor, dict[int, TesazureError]]:
    """The systems with their credentials, and the URLs, signed where need be, of all places; why
    some cannot be used. Raises ConfigurationError."""
    places = [*downloads, *uploads]
    urls = [place.base for place in places]
    allow_private = settings.allow_private_addresses
    if all(scheme_of(url) in OF_THIS_MACHINE for url in urls):
        return Storages([_ROOT], allow_private=allow_private), urls, Censor(), {}
    from tesazure.storage.configured import endpoints_of, grant_config_of
    from tesazure.storage.grant import Granter

    granter = Granter(grant_config_of(settings))
    signed = list(urls)
    refused: dict[int, TesazureError] = {}
    for number, place in enumerate(places):
        try:
            if scheme_of(place.base) == "sftp":
                host_of(place.base)
            signed[number] = granter.resolve(
                place.base,
                writing=number >= len(downloads),
                directory=place.item.type is not FileType.FILE,
                lifetime_s=settings.credential_hours * 3600,
            )
        except TesazureError as error:
            refused[number] = error

    def systems() -> Access:
        good = [number for number in range(len(urls)) if number not in refused]
        return granter.to_systems(
            [urls[number] for number in good if number < len(downloads)],
            [urls[number] for number in good if number >= len(downloads)],
        )

    try:
        access = systems()
    except TesazureError as error:  # of Google, which DRS may lead to
        refused |= {n: error for n, url in enumerate(urls) if scheme_of(url) in ("gs", "drs")}
        access = systems()
    storages = Storages(
        [_ROOT],
        allow_private=allow_private,
        endpoints=endpoints_of(settings),
        access=access,
        drs_dirs=settings.allow_dir,
    )
    censor = censor_of(structs.replace(access, inputs=dict(enumerate(signed))))
    return storages, signed, censor, refused
