"""All storage systems there are, chosen by URL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tesazure.errors import UnsupportedUrl
from tesazure.storage.base import Storage
from tesazure.storage.file import FileStorage
from tesazure.storage.mounts import Mounts
from tesazure.storage.urls import redact, scheme_of

_GOOD_S = 1.0
_GOOD_MOST = 8192
_GOOD_LONGEST = 4096


class Storages:
    """The storage systems of one process; each is made, and its SDK imported, when first used."""

    def __init__(
        self,
        allow_dirs: Sequence[Path | str],
        denied: Sequence[Path | str] = (),
        *,
        allow_private: bool = True,
    ) -> None:
        """`denied` are directories that nothing is read from or written to, whatever `allow_dirs`
        says; `allow_private` is for network addresses."""
        self._allow_dirs = tuple(map(Path, allow_dirs))
        self._denied = tuple(map(Path, denied))
        self._allow_private = allow_private
        self._made: dict[str, Storage] = {}
        self._lock = threading.Lock()
        self._mounts = Mounts()
        self._good: tuple[set[str], set[str]] = (set(), set())
        """URLs found good lately: to be read, to be written."""
        self._good_until = 0.0
        self._by_scheme: dict[str, Callable[[], Storage]] = {
            "": self._file,
            "file": self._file,
            "http": self._http,
            "https": self._http,
        }

    def for_url(self, url: str) -> Storage:
        """The system that serves `url`; raises UnsupportedUrl, which lists those there are."""
        scheme = scheme_of(url)
        storage = self._made.get(scheme)
        return storage or self._make(scheme, url)

    def _make(self, scheme: str, url: str) -> Storage:
        make = self._by_scheme.get(scheme)
        if make is None:
            raise UnsupportedUrl(
                f"{redact(url)}: no storage system serves {scheme}://; there are"
                f" {', '.join(self.schemes())}"
            )
        with self._lock:
            same = [s for s, other in self._by_scheme.items() if other == make]
            if scheme not in self._made:
                self._made.update(dict.fromkeys(same, make()))
            return self._made[scheme]

    def check_input(self, url: str) -> None:
        """Raises UnsupportedUrl or PermissionDenied if `url` can never be read. No network, but the
        file system, which may hang where it is one of a network."""
        self._check(url, writing=False)

    def check_output(self, url: str) -> None:
        """Raises UnsupportedUrl or PermissionDenied if `url` can never be written. As above."""
        self._check(url, writing=True)

    def checks_at_once(self, url: str) -> bool:
        """Whether a check of `url` cannot hang: it asks no file system, or all of this machine's
        are on its own disks."""
        return self._mounts.are_local() or scheme_of(url) not in ("", "file")

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
        """What service-info lists as `storage`: a URL per allowed directory, and URL schemes."""
        remote = [f"{scheme}://" for scheme in self._by_scheme if scheme not in ("", "file")]
        return [directory.as_uri() for directory in self._allow_dirs] + remote

    def close(self) -> None:
        """Let go of all connections."""
        with self._lock:
            for storage in {id(storage): storage for storage in self._made.values()}.values():
                storage.close()

    def _file(self) -> Storage:
        return FileStorage(self._allow_dirs, self._denied)

    def _http(self) -> Storage:
        from tesazure.storage.http import HttpStorage

        return HttpStorage(allow_private=self._allow_private)
