"""Inputs that attempts on one node have in common: downloaded once, copied from then on.

A directory that all runners of a node share, without a process of its own:

    KEY/data         what was downloaded; nobody writes to it again
    KEY/about.json   size, SHA-256, and what shows that `data` is untouched; its mtime: last used
    KEY/room         as large as what is being downloaded, to keep its place
    KEY.lock         held with flock by whoever downloads, checks or deletes KEY
    room.lock        held while room is made

KEY is a digest of the URL without its secrets, and of version, size and checksum as the storage
system tells them. Each attempt asks the system with its own credentials: what it may not read, it
does not get from here either. Whatever a killed runner leaves has no about.json and a free lock,
and is deleted when room is needed next, or when the same input is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tesazure.errors import StorageError, StorageFull
from tesazure.secrecy import is_hidden
from tesazure.storage.base import Probing, Progress, Stat, Storage
from tesazure.storage.local import copy_bytes, opened_directory, os_errors, whole_file, write_all
from tesazure.storage.urls import redact, scheme_of

SMALLEST = 2**20
"""Bytes. Asking for the version of a smaller object takes as long as bringing it."""

_BLOCK = 2**20
_TICK_S = 0.1
_KEY = re.compile(r"([0-9a-f]{64})(?:\.lock)?")
_SIGNATURES = re.compile(
    r"((?:[?&](?:sig|signature|awsaccesskeyid|x-(?:amz|goog)-(?:signature|credential)"
    r"|x-amz-security-token)=)|(?<=//)[^/?#@]*:)\*\*\*",
    re.IGNORECASE,
)
"""Hidden secrets that only say who asks. Any other may say what is asked for as well."""


class _About(msgspec.Struct, frozen=True):
    """What is known of an entry's data. It is hashed again when it is first used after a boot:
    until then the disk may have lost what had been written to it."""

    size: int
    sha256: str
    inode: int
    modified_ns: int
    boot: str


class InputCache:
    """A cache in `directory` of at most `capacity` bytes: when that is reached, what has not been
    used for longest goes. May be used by several threads and processes."""

    def __init__(self, directory: Path, capacity: int, *, smallest: int = SMALLEST) -> None:
        self._directory = directory
        self._capacity = capacity
        self._smallest = smallest

    def get(self, storage: Storage, url: str, shown: str, path: Path, progress: Progress) -> int:
        """As `storage.get(url, path, progress)`. `shown` is the URL with its secrets hidden, the
        same in all attempts.

        Not kept: local files, small objects, those without a version that tells contents apart,
        those that `shown` does not tell apart. A cache that does not work is passed by.
        """
        found = self._admitted(storage, url, shown)
        if found is None:
            return storage.get(url, path, progress)
        key = _key_of(shown, found)
        try:
            content = self._content(storage, url, key, found, path, progress)
        except (OSError, StorageFull):
            content = None
        if content is None:
            return storage.get(url, path, progress)
        descriptor, is_new = content
        try:
            if not is_new and not _may_read(storage, url):
                return storage.get(url, path, progress)
            return _copy(descriptor, url, path, _silent(progress) if is_new else progress)
        finally:
            os.close(descriptor)

    def _admitted(self, storage: Storage, url: str, shown: str) -> Stat | None:
        """What lies at the URL, if this attempt may read it and it can be kept."""
        if scheme_of(url) in ("", "file") or is_hidden(_SIGNATURES.sub(r"\1", shown)):
            return None
        try:
            found = storage.stat(url)
        except StorageError:
            return None  # some may be read but not asked about; the download will tell
        if found.is_directory or found.size is None or not found.version or not found.is_firm:
            return None
        return found if self._smallest <= found.size <= self._capacity else None

    def _content(
        self,
        storage: Storage,
        url: str,
        key: str,
        found: Stat,
        path: Path,
        progress: Progress,
    ) -> tuple[int, bool] | None:
        """A descriptor of an entry's data, and whether it has just come; None without room."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self._lock_of(key), progress):
            descriptor = self._kept(key, progress)
            if descriptor is not None:
                return descriptor, False
            entry = self._directory / key
            shutil.rmtree(entry, ignore_errors=True)
            entry.mkdir(mode=0o700)
            complete = False
            try:
                if not self._make_room(entry / "room", found.size or 0, progress):
                    return None
                try:
                    descriptor = _download(storage, url, entry / "data", path, progress)
                except StorageFull:  # the disk, of which the cache may well have a large part
                    if not self._give_up(found.size or 0, progress):
                        raise
                    descriptor = _download(storage, url, entry / "data", path, progress)
                # What came may be newer than what was asked about.
                if _is_still(storage, url, found):
                    _describe(entry, descriptor, _hash(descriptor, progress))
                    complete = True
                return descriptor, True
            except BaseException:
                if descriptor is not None:
                    os.close(descriptor)
                raise
            finally:
                if complete:
                    (entry / "room").unlink()
                else:
                    self._delete(key)

    def _kept(self, key: str, progress: Progress) -> int | None:
        """A descriptor of an entry's data, if it is there and untouched. The lock is held."""
        entry = self._directory / key
        try:
            about = msgspec.json.decode((entry / "about.json").read_bytes(), type=_About)
            descriptor = os.open(entry / "data", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (OSError, msgspec.MsgspecError):
            return None
        try:
            is_good = _state(descriptor) == (about.size, about.inode, about.modified_ns)
            if is_good and about.boot != _boot():
                is_good = _hash(descriptor, progress) == about.sha256
                if is_good:
                    _describe(entry, descriptor, about.sha256)
            if is_good:
                os.utime(entry / "about.json")
                os.lseek(descriptor, 0, os.SEEK_SET)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _make_room(self, place: Path, size: int, progress: Progress) -> bool:
        """Delete what has not been used for longest until `size` bytes more fit, and keep their
        place by a file at `place`. False when everything else is in use."""
        with _locked(self._directory / "room.lock", progress):
            held = sorted(self._held())
            used = sum(bytes_ for _, bytes_, _ in held)
            for _, bytes_, key in held:
                if used + size <= self._capacity:
                    break
                if self._delete_unless_busy(key):
                    used -= bytes_
            if used + size > self._capacity:
                return False
            with place.open("wb") as file:
                file.truncate(size)
            return True

    def _give_up(self, size: int, progress: Progress) -> int:
        """Delete what has not been used for longest until that was `size` bytes; how many it was,
        as most may be in use."""
        given_up = 0
        with _locked(self._directory / "room.lock", progress):
            for _, bytes_, key in sorted(self._held()):
                if given_up < size and self._delete_unless_busy(key):
                    given_up += bytes_
        return given_up

    def _held(self) -> Iterator[tuple[float, int, str]]:
        """When each entry was last used, its bytes, its key. Deletes what was left unfinished."""
        with os.scandir(self._directory) as found:
            keys = {name[1] for entry in found if (name := _KEY.fullmatch(entry.name))}
        for key in keys:
            entry = self._directory / key
            try:
                used = (entry / "about.json").stat().st_mtime
            except OSError:
                if self._delete_unless_busy(key):
                    continue
                used = time.time()
            yield used, max(_size(entry / "data"), _size(entry / "room")), key

    def _delete_unless_busy(self, key: str) -> bool:
        """Delete an entry that nobody is just downloading or checking. Who copies from it keeps
        the data until that is done."""
        lock = os.open(self._lock_of(key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _try_lock(lock) or not _is_at(lock, self._lock_of(key)):
                return False
            self._delete(key)
            return True
        finally:
            os.close(lock)

    def _delete(self, key: str) -> None:
        """Delete an entry, and its lock last, which is held."""
        shutil.rmtree(self._directory / key, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            self._lock_of(key).unlink()

    def _lock_of(self, key: str) -> Path:
        return self._directory / f"{key}.lock"


def _may_read(storage: Storage, url: str) -> bool:
    """Whether the system gives this attempt the content too, which what it tells of it may not
    prove."""
    try:
        if isinstance(storage, Probing):
            storage.probe(url)
    except StorageError:
        return False
    return True


def _key_of(shown: str, found: Stat) -> str:
    known = msgspec.json.encode([shown, found.version, found.size, found.checksum])
    return hashlib.sha256(known).hexdigest()


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock file at `path`, which others may delete while they hold it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while not _try_lock(lock):
                progress(0)
                time.sleep(_TICK_S)
            if _is_at(lock, path):
                yield
                return
        finally:
            os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _download(storage: Storage, url: str, place: Path, path: Path, progress: Progress) -> int:
    """Bring the object to `place`; a descriptor of it. Errors speak of `path` instead."""
    try:
        storage.get(url, place, progress)
    except StorageError as error:
        raise type(error)(str(error).replace(str(place), str(path))) from error
    return os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _is_still(storage: Storage, url: str, found: Stat) -> bool:
    try:
        return storage.stat(url) == found
    except StorageError:
        return False


def _describe(entry: Path, descriptor: int, sha256: str) -> None:
    """Write an entry's about.json, which makes it one."""
    os.fchmod(descriptor, 0o400)
    size, inode, modified_ns = _state(descriptor)
    about = _About(size, sha256, inode, modified_ns, _boot())
    with opened_directory(entry) as directory, whole_file(directory, "about.json", 0o600) as file:
        write_all(file, msgspec.json.encode(about))


def _state(descriptor: int) -> tuple[int, int, int]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_ino, found.st_mtime_ns


def _hash(descriptor: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    offset = 0
    while data := os.pread(descriptor, _BLOCK, offset):
        digest.update(data)
        offset += len(data)
        progress(0)
    return digest.hexdigest()


def _copy(descriptor: int, url: str, path: Path, progress: Progress) -> int:
    """A private copy at `path`, which shares the cache's blocks where the file system can."""
    with (
        os_errors(f"{redact(url)} to {path}"),
        opened_directory(path.parent) as directory,
        whole_file(directory, path.name, 0o666) as target,
    ):
        return copy_bytes(descriptor, target, os.fstat(descriptor).st_size, progress)


def _silent(progress: Progress) -> Progress:
    """Bytes that have been counted already are not counted again."""
    return lambda _: progress(0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _boot() -> str:
    """Which start of this machine it is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
