"""All storage systems there are, chosen by URL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tesazure.access import Access, Endpoints
from tesazure.errors import StorageError, UnsupportedUrl
from tesazure.storage.base import Storage
from tesazure.storage.file import FileStorage
from tesazure.storage.mounted import MountDirs, Wanted
from tesazure.storage.mounts import Mounts
from tesazure.storage.shared import is_shared
from tesazure.storage.urls import redact, scheme_of

if TYPE_CHECKING:
    from tesazure.storage.patience import Patience
    from tesazure.storage.transport import Transport

_GOOD_S = 1.0
_GOOD_MOST = 8192
_GOOD_LONGEST = 4096

_SYSTEMS = {
    "": "file",
    "file": "file",
    "http": "http",
    "https": "http",
    "az": "blob",
    "s3": "s3",
    "gs": "gcs",
    "ftp": "ftp",
    "sftp": "sftp",
    "drs": "drs",
}
"""URL scheme -> system. Hosts make http and https URLs Azure's."""

PACKAGES = {"s3": "botocore", "gcs": "google.auth", "sftp": "paramiko"}
"""What a system needs that comes with an extra, for more than what is open to anybody."""


class Storages:
    """The storage systems of one process; each is made, and its SDK imported, when first used."""

    def __init__(
        self,
        allow_dirs: Sequence[Path | str],
        denied: Sequence[Path | str] = (),
        *,
        allow_private: bool = True,
        endpoints: Endpoints | None = None,
        access: Access | None = None,
        drs_dirs: Sequence[Path | str] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """`denied` are directories that nothing is read from or written to, whatever `allow_dirs`
        says; `allow_private` is for network addresses, of which those of `endpoints` are allowed in
        any case. `drs_dirs`: the directories that a DRS server may lead to, which nobody here
        named; None: as `allow_dirs`. `say` hears, sparingly, from any thread, what a transfer waits
        for before it tries again."""
        self._allow_dirs = tuple(map(Path, allow_dirs))
        self._denied = tuple(map(Path, denied))
        self._drs_dirs = self._allow_dirs if drs_dirs is None else tuple(map(Path, drs_dirs))
        self._allow_private = allow_private
        self._endpoints = endpoints or Endpoints()
        self._access = access or Access()
        self._made: dict[str, Storage] = {}
        self._transport_made: Transport | None = None
        self._patience_made: Patience | None = None
        self._say = say
        self._lock = threading.RLock()
        self._mounts = Mounts()
        self._mount_dirs = MountDirs()
        self._good: tuple[set[str], set[str]] = (set(), set())
        """URLs found good lately: to be read, to be written."""
        self._good_until = 0.0
        self._makers: dict[str, Callable[[], Storage]] = {
            "file": self._file,
            "http": self._http,
            "blob": self._blob,
            "azure_files": self._azure_files,
            "s3": self._s3,
            "gcs": self._gcs,
            "ftp": self._ftp,
            "sftp": self._sftp,
            "drs": self._drs,
        }

    def serve_shared(self, storage: Storage) -> None:
        """Have `storage` serve paths below /tes-wd/shared-global, whatever `allow_dirs` says."""
        self._made["shared"] = storage

    def wait(self, patience: Patience) -> None:
        """Have the systems that are not made yet wait so long and no longer."""
        self._patience_made = patience

    def mount(self, mounts: MountDirs) -> None:
        """Have `refused_mounts` answer for these; without, nothing is mounted."""
        self._mount_dirs = mounts

    def refused_mounts(self, wanted: Iterable[Wanted]) -> dict[int, StorageError]:
        """Which inputs cannot be mounted though they are to be, by index, with the reason. Asks the
        file system, as the checks of URLs do."""
        return self._mount_dirs.find(wanted)[1]

    def for_url(self, url: str) -> Storage:
        """The system that serves `url`; raises UnsupportedUrl, which lists those there are, or
        names the extra that is not installed."""
        name = self._name_of(url)
        storage = self._made.get(name)
        if storage is None:
            with self._lock:
                storage = self._made.get(name) or self._makers[name]()
                self._made[name] = storage
        return storage

    def _name_of(self, url: str) -> str:
        """The name of the system that serves `url`."""
        name = _SYSTEMS.get(scheme_of(url))
        if name is None:
            raise UnsupportedUrl(
                f"{redact(url)}: no storage system serves {scheme_of(url)}://; there are"
                f" {', '.join(self.schemes())}"
            )
        if name == "http":
            from tesazure.storage.azure_urls import BlobUrl, FileUrl

            if BlobUrl.serves(url, self._endpoints):
                return "blob"
            if FileUrl.serves(url, self._endpoints):
                return "azure_files"
        if name == "file" and "shared" in self._made and is_shared(url):
            return "shared"
        return name

    def check_input(self, url: str) -> None:
        """Raises UnsupportedUrl or PermissionDenied if `url` can never be read. No network, but the
        file system, which may hang where it is one of a network."""
        self._check(url, writing=False)

    def check_output(self, url: str) -> None:
        """Raises UnsupportedUrl or PermissionDenied if `url` can never be written. As above."""
        self._check(url, writing=True)

    def checks_at_once(self, urls: Iterable[str]) -> bool:
        """Whether checks of `urls` cannot hang: they ask no file system, or all of this machine's
        are on its own disks."""
        return self._mounts.are_local() or all(scheme_of(url) not in ("", "file") for url in urls)

    def _check(self, url: str, *, writing: bool) -> None:
        """Check, unless that was done within the last second: tasks share their large inputs, and
        whatever moves a file checks anew."""
        if url in self._good[writing] and time.monotonic() < self._good_until:
            return
        self.for_url(url).check(url, writing=writing)
        now = time.monotonic()
        if now >= self._good_until or len(self._good[writing]) >= _GOOD_MOST:
            self._good, self._good_until = (set(), set()), now + _GOOD_S
        if len(url) <= _GOOD_LONGEST:
            self._good[writing].add(url)

    def schemes(self) -> list[str]:
        """What service-info lists as `storage`: a URL per allowed directory, URL schemes,
        and the hosts that are Azure's."""
        listed = [directory.as_uri() for directory in self._allow_dirs]
        for scheme, name in _SYSTEMS.items():
            if name == "file" or (scheme == "az" and not self._endpoints.blob):
                continue
            if name not in PACKAGES or is_installed(PACKAGES[name]):
                listed.append(f"{scheme}://")
        e = self._endpoints
        listed += [f"https://*{suffixes[0]}" for suffixes in (e.blob_suffixes, e.file_suffixes)]
        return listed

    def close(self) -> None:
        """Let go of all connections."""
        with self._lock:
            for storage in self._made.values():
                storage.close()
            if self._transport_made is not None:
                self._transport_made.close()

    def _transport(self) -> Transport:
        """The one that all systems share which speak HTTP."""
        from tesazure.storage.transport import Transport
        from tesazure.storage.wire import target_of

        if self._transport_made is None:
            e = self._endpoints
            configured = [target_of(url) for url in (e.blob, e.file, e.s3, e.gcs) if url]
            self._transport_made = Transport(
                allow_private=self._allow_private,
                trusted={f"{target.host}:{target.port}" for target in configured},
                ca_bundle=e.ca_bundle,
                patience=self._patience(),
            )
        return self._transport_made

    def _patience(self) -> Patience:
        """That of all systems."""
        from tesazure.storage.patience import Patience, Sparingly

        if self._patience_made is None:
            say = self._say
            self._patience_made = Patience(say=Sparingly(say)) if say else Patience()
        return self._patience_made

    def _file(self) -> Storage:
        return FileStorage(self._allow_dirs, self._denied)

    def _http(self) -> Storage:
        from tesazure.storage.http import HttpStorage

        return HttpStorage(self._transport())

    def _blob(self) -> Storage:
        from tesazure.storage.blob import BlobStorage

        return BlobStorage(self._transport(), self._endpoints)

    def _azure_files(self) -> Storage:
        from tesazure.storage.azure_files import AzureFilesStorage

        return AzureFilesStorage(self._transport(), self._endpoints)

    def _s3(self) -> Storage:
        from tesazure.storage.s3 import S3Storage

        return S3Storage(self._transport(), self._endpoints, self._access.s3)

    def _gcs(self) -> Storage:
        from tesazure.storage.gcs import GcsStorage

        return GcsStorage(self._transport(), self._endpoints, self._access.gcs_token)

    def _ftp(self) -> Storage:
        from tesazure.storage.ftp import FtpStorage

        return FtpStorage(allow_private=self._allow_private, patience=self._patience())

    def _sftp(self) -> Storage:
        from tesazure.storage.sftp import SftpStorage

        return SftpStorage(
            self._access.sftp_key,
            self._endpoints.sftp_known_hosts,
            allow_private=self._allow_private,
            patience=self._patience(),
        )

    def _drs(self) -> Storage:
        from tesazure.storage.drs import DrsStorage

        files = FileStorage(self._drs_dirs, self._denied)

        def led_to(url: str) -> Storage:
            return files if scheme_of(url) in ("", "file") else self.for_url(url)

        return DrsStorage(self._transport(), self._access.drs_tokens, led_to)


def is_installed(package: str) -> bool:
    """Whether a package, perhaps one within another, can be imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even what it is in
        return False
