"""Azure Files, by its REST interface: `https://ACCOUNT.file.core.windows.net/SHARE/PATH`.

A file is written under another name in the same directory and then renamed over the old one, which
is atomic but takes a SAS of the share (sr=s) or the account that permits to read, create, write and
delete: that of a single file is not enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tesazure.access import Endpoints
from tesazure.errors import PermissionDenied, StorageError, UnsupportedUrl
from tesazure.storage.azure_answers import (
    about,
    accept,
    check_sas,
    digest_of,
    stat_of,
    words,
)
from tesazure.storage.azure_requests import VERSION, Requests, name_of
from tesazure.storage.azure_urls import FileUrl
from tesazure.storage.base import Entry, Progress, Stat, waiting
from tesazure.storage.beside import beside, is_beside, part_name
from tesazure.storage.content_types import content_type
from tesazure.storage.parts import download, in_parts
from tesazure.storage.sources import Source, opened_source
from tesazure.storage.transport import Transport
from tesazure.storage.urls import printable, redact
from tesazure.storage.wire import Again, service_code

_RANGE = 4 * 2**20
"""Bytes: the most that Put Range takes."""
_LARGEST = 4 * 2**40
"""Bytes ("Scalability and performance targets for Azure Files")."""
_PAGE = 5000
_EXACT_NAMES = {
    **VERSION,
    # Without these a dot at the end of a name is dropped.
    "x-ms-allow-trailing-dot": "true",
    "x-ms-source-allow-trailing-dot": "true",
}
_NEW_DIRECTORY = {
    "x-ms-file-attributes": "Directory",
    "x-ms-file-creation-time": "now",
    "x-ms-file-last-write-time": "now",
    "x-ms-file-permission": "inherit",
}
_ANOTHER_KIND = frozenset({"ResourceNotFound", "ResourceTypeMismatch"})
"""What is asked about is no file, or no directory."""


class AzureFilesStorage:
    """Files and directories of shares. A URL is used with the SAS that it has.

    Lists leave out files that are just being written by this class, or were when it was killed.
    """

    has_directories = True

    def __init__(self, transport: Transport, endpoints: Endpoints, *, page: int = _PAGE) -> None:
        """`page`: how many names a list asks for at a time."""
        self._requests = Requests(transport, _EXACT_NAMES)
        self._endpoints = endpoints
        self._page = page

    def check(self, url: str, *, writing: bool) -> None:
        """Raises UnsupportedUrl for names that Azure does not allow, and PermissionDenied for a
        refused address and for a SAS that its own text says is expired, for something else, or for
        a single file to write."""
        target = self._parse(url)
        self._requests.transport.check(target.url)
        check_sas(target, redact(url), any_of="w" if writing else "r")
        if writing and target.signed("sr") == "f":
            raise PermissionDenied(
                f"{redact(url)}: the SAS is for this file alone, but writing needs one of the share"
                " (sr=s, sp=rcwd): a file is written under another name and renamed"
            )

    def stat(self, url: str) -> Stat:
        """A file, or a directory."""
        target = self._parse(url)
        with about(url):
            return self._stat(target)

    def list(self, url: str) -> Iterator[Entry]:
        """A request or more for each directory."""
        target = self._parse(url)
        with about(url):
            yield from self._entries(target)

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """In parallel ranges; compared with the MD5 that the file has, if any."""
        target = self._parse(url)
        with about(url):
            _require_name(target)
            return download(
                self._requests.transport,
                target.url,
                path,
                progress,
                headers=lambda: _EXACT_NAMES,
                digest=digest_of,
                hint=lambda answer: words(answer, target),
                conditions=False,  # which are refused: ConditionHeadersNotSupported
            )

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """In parallel ranges, each checked by its MD5; the file keeps that of the whole."""
        target = self._parse(url)
        with about(url), opened_source(path) as source:
            _require_name(target)
            if source.size > _LARGEST:
                raise StorageError(f"{source.size} bytes are more than a file there can hold")
            temporary = target.at(beside(target.path, part_name()))
            try:
                identity = self._write(temporary, content_type(target.path), source, progress)
                source.check_unchanged()
                self._rename(temporary, target, identity, waiting(progress))
            except BaseException:
                with contextlib.suppress(StorageError, Again):
                    url = temporary.url
                    self._requests.transport.send("DELETE", url, headers=_EXACT_NAMES)
                raise
            return source.size

    def make_directory(self, url: str) -> None:
        """The directory and its parents; the share must exist."""
        target = self._parse(url)
        with about(url):
            self._make_directory(target.at(target.path.strip("/")))

    def close(self) -> None:
        """Nothing is kept here: connections are the transport's."""

    def _parse(self, url: str) -> FileUrl:
        return FileUrl.parse(url, self._endpoints)

    def _stat(self, target: FileUrl) -> Stat:
        name = target.path.strip("/")
        if name == target.path and name:
            answer = self._requests.ask("HEAD", target)
            if answer.succeeded:
                return stat_of(answer)
            if service_code(answer) not in _ANOTHER_KIND:
                accept(answer, "HEAD", target)
        answer = self._requests.ask("HEAD", target.at(name), "restype=directory")
        accept(answer, "HEAD", target)
        return Stat(is_directory=True)

    def _entries(self, top: FileUrl) -> Iterator[Entry]:
        """Everything below a directory."""
        start = top.path.strip("/")
        pending = [""]
        while pending:
            relative = pending.pop()
            path = "/".join(filter(None, (start, relative)))
            is_empty = True
            for name, size in self._names(top.at(path)):
                if size is not None and is_beside(name):
                    continue
                is_empty = False
                below = f"{relative}/{name}" if relative else name
                if size is None:
                    pending.append(below)
                else:
                    yield Entry(below, size)
            if is_empty and relative:
                yield Entry(relative, 0, is_directory=True)

    def _names(self, directory: FileUrl) -> Iterator[tuple[str, int | None]]:
        """Names in a directory, and the sizes of files."""
        parameters = f"restype=directory&comp=list&maxresults={self._page}"
        items = self._requests.listed(directory, parameters, "Entries/*")
        for item in items:
            name = name_of(item)
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise StorageError(f"lists {printable(name)!r}, which is no name of a file")
            size = item.findtext("Properties/Content-Length")
            yield name, None if item.tag == "Directory" else int(size or 0)

    def _write(
        self, temporary: FileUrl, kind: str, source: Source, progress: Progress | None
    ) -> str:
        """Make a file of the source's content, with the directories above it; its identity, which
        it keeps when it is renamed."""
        headers = {
            "x-ms-type": "file",
            "x-ms-content-length": str(source.size),
            "x-ms-content-type": kind,
            "x-ms-file-attributes": "None",
            "x-ms-file-creation-time": "now",
            "x-ms-file-last-write-time": "now",
            "x-ms-file-permission": "inherit",
        }
        if source.size <= _RANGE:
            headers["x-ms-content-md5"] = source.md5(0, source.size)
        asked = waiting(progress)
        answer = self._requests.ask("PUT", temporary, headers=headers, progress=asked)
        if service_code(answer) == "ParentNotFound":
            self._make_directory(temporary.at(temporary.path.rpartition("/")[0]), asked)
            answer = self._requests.ask("PUT", temporary, headers=headers, progress=asked)
        accept(answer, "PUT", temporary)

        def send(_: int, offset: int, length: int, progress: Progress | None) -> None:
            answer = self._requests.ask(
                "PUT",
                temporary,
                "comp=range",
                headers={
                    "x-ms-write": "update",
                    "x-ms-range": f"bytes={offset}-{offset + length - 1}",
                    "Content-MD5": source.md5(offset, length),
                },
                body=source.part(offset, length),
                progress=progress,
            )
            accept(answer, "PUT range", temporary)

        if source.size <= _RANGE:
            in_parts(source.size, _RANGE, send, progress)
        else:
            with source.md5_meanwhile() as md5:
                in_parts(source.size, _RANGE, send, progress)
                self._set_md5(temporary, kind, md5(progress), asked)
        return answer.headers.get("x-ms-file-id", "")

    def _set_md5(self, temporary: FileUrl, kind: str, md5: str, progress: Progress | None) -> None:
        """Setting one of a file's properties takes all of them, or they are lost."""
        headers = {
            "x-ms-content-md5": md5,
            "x-ms-content-type": kind,
            "x-ms-file-attributes": "preserve",
            "x-ms-file-creation-time": "preserve",
            "x-ms-file-last-write-time": "preserve",
            "x-ms-file-permission": "preserve",
        }
        answer = self._requests.ask(
            "PUT", temporary, "comp=properties", headers=headers, progress=progress
        )
        accept(answer, "PUT properties", temporary)

    def _rename(
        self, temporary: FileUrl, target: FileUrl, identity: str, progress: Progress | None
    ) -> None:
        headers = {
            "x-ms-file-rename-source": temporary.url,
            "x-ms-file-rename-replace-if-exists": "true",
            "x-ms-file-rename-ignore-readonly": "true",
        }
        answer = self._requests.ask(
            "PUT", target, "comp=rename", headers=headers, progress=progress
        )
        if answer.status == 404 and identity:
            # Perhaps it was done by a try whose answer was lost.
            done = self._requests.ask("HEAD", target, progress=progress)
            if done.headers.get("x-ms-file-id") == identity:
                return
        accept(answer, "PUT rename", target)

    def _make_directory(self, target: FileUrl, progress: Progress | None = None) -> None:
        """Tries the directory itself first, and its parents only where these are missing."""
        if not target.path:
            return
        answer = self._requests.ask(
            "PUT", target, "restype=directory", headers=_NEW_DIRECTORY, progress=progress
        )
        if service_code(answer) == "ParentNotFound":
            self._make_directory(target.at(target.path.rpartition("/")[0]), progress)
            answer = self._requests.ask(
                "PUT", target, "restype=directory", headers=_NEW_DIRECTORY, progress=progress
            )
        if service_code(answer) != "ResourceAlreadyExists":
            accept(answer, "PUT directory", target)
            return
        found = self._requests.ask("HEAD", target, "restype=directory", progress=progress)
        if service_code(found) in _ANOTHER_KIND:
            shown = printable(target.path)
            raise StorageError(f"{shown} is a file there, and cannot become a directory")


def _require_name(target: FileUrl) -> None:
    if not target.path or target.path.endswith("/"):
        raise UnsupportedUrl("names a directory, not a file")
