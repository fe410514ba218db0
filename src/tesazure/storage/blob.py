"""Azure Blob Storage: `https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME` and `az://`.

A directory is what shares a prefix that ends in a slash. An empty one is a blob without content
and the metadatum `hdi_isfolder=true`, as Azure's own tools make it; a blob without content whose
name ends in a slash is taken for one too.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from xml.etree.ElementTree import Element

import msgspec

from tesazure.access import Endpoints
from tesazure.errors import PermissionDenied, StorageError, StorageNotFound, UnsupportedUrl
from tesazure.storage.azure_answers import (
    about,
    accept,
    check_sas,
    digest_of,
    stat_of,
    words,
)
from tesazure.storage.azure_requests import Requests, name_of
from tesazure.storage.azure_urls import BlobUrl
from tesazure.storage.base import Entry, Progress, Stat, waiting
from tesazure.storage.content_types import content_type
from tesazure.storage.digests import Digest
from tesazure.storage.parts import PART, download, in_parts
from tesazure.storage.sources import Source, opened_source
from tesazure.storage.transport import Transport
from tesazure.storage.urls import printable, redact
from tesazure.storage.wire import Answer, service_code, status_of

_MOST_BLOCKS = 50_000
_LARGEST_BLOCK = 4000 * 2**20
"""Bytes ("Scalability and performance targets for Blob storage")."""
_MIB = 2**20
_PAGE = 5000
"""The most that List Blobs returns at a time."""
_FOLDER = {"x-ms-meta-hdi_isfolder": "true"}


class _Item(msgspec.Struct, frozen=True):
    """A blob of a list, with its whole name."""

    name: str
    size: int
    is_directory: bool


class BlobStorage:
    """Blobs. A URL is used with the SAS that it has, or else anonymously.

    An upload that breaks off leaves uncommitted blocks, which nobody sees and Azure deletes after
    a week.
    """

    has_directories = True

    def __init__(self, transport: Transport, endpoints: Endpoints, *, page: int = _PAGE) -> None:
        """`page`: how many blobs a list asks for at a time."""
        self._requests = Requests(transport)
        self._endpoints = endpoints
        self._page = page

    def check(self, url: str, *, writing: bool) -> None:
        """Raises UnsupportedUrl for names that Azure does not allow, and PermissionDenied for a
        refused address and for a SAS that its own text says is expired or for something else."""
        target = BlobUrl.parse(url, self._endpoints)
        self._requests.transport.check(target.url)
        check_sas(target, redact(url), any_of="cw" if writing else "r")

    def stat(self, url: str) -> Stat:
        """A blob of just this name, else a directory. That one exists only who may list can see."""
        target = BlobUrl.parse(url, self._endpoints)
        with about(url):
            return self._stat(target)

    def list(self, url: str) -> Iterator[Entry]:
        """Needs a SAS of the container that permits to list. A name that is no file's path (an
        empty part, `..`) ends it with an error."""
        return self.select(url, "", deep=True)

    def select(self, url: str, start: str, *, deep: bool) -> Iterator[Entry]:
        """As above; what is not selected can have any name."""
        target = BlobUrl.parse(url, self._endpoints)
        with about(url):
            yield from self._entries(target, start, "" if deep else "/")

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """In parallel ranges of one version; compared with the MD5 that the blob has, if any."""
        target = BlobUrl.parse(url, self._endpoints)
        with about(url):
            _require_name(target)

            def digest(answer: Answer) -> Digest | None:
                # That it is empty is told without the metadata.
                found = answer
                if answer.status == 416:
                    found = self._requests.ask("HEAD", target, progress=waiting(progress))
                if _is_folder(found):
                    raise StorageError("is a directory, not a blob")
                return digest_of(found)

            return download(
                self._requests.transport,
                target.url,
                path,
                progress,
                headers=lambda: self._requests.headers,
                digest=digest,
                hint=lambda answer: words(answer, target),
            )

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """A small file by one request, a large one in parallel blocks that become the blob at the
        end. What is sent is checked by TLS or else by MD5s; the blob keeps that of the whole."""
        target = BlobUrl.parse(url, self._endpoints)
        with about(url), opened_source(path) as source:
            _require_name(target)
            if source.size <= PART:
                self._put_whole(target, source, progress)
            else:
                self._put_blocks(target, source, progress)
            return source.size

    def make_directory(self, url: str) -> None:
        """A blob that stands for the directory, unless there is one; a container must exist."""
        target = BlobUrl.parse(url, self._endpoints)
        target = target.at(target.path.rstrip("/"))
        if not target.path:
            return
        headers = {"x-ms-blob-type": "BlockBlob", "If-None-Match": "*", **_FOLDER}
        with about(url):
            answer = self._requests.ask("PUT", target, headers=headers, body=b"")
            if service_code(answer) != "BlobAlreadyExists":
                accept(answer, "PUT", target)
                return
            # Who may only write cannot look.
            found = self._requests.ask("HEAD", target)
            if found.succeeded and not _is_folder(found):
                raise StorageError("is a blob, and cannot become a directory")

    def close(self) -> None:
        """Nothing is kept here: connections are the transport's."""

    def _stat(self, target: BlobUrl) -> Stat:
        name = target.path.rstrip("/")
        answer = None
        if name:
            blob = target.at(name)
            answer = self._requests.ask("HEAD", blob)
            if answer.succeeded and _is_folder(answer):
                return Stat(is_directory=True)
            if answer.succeeded and name == target.path:
                return stat_of(answer)
            if not answer.succeeded and service_code(answer) != "BlobNotFound":
                accept(answer, "HEAD", blob)
        try:
            is_directory = bool(next(self._items(target, 1), None)) or not name
        except (PermissionDenied, StorageNotFound) as error:
            if answer is None or answer.succeeded:
                raise
            raise StorageNotFound(
                f"HEAD: {status_of(answer)}; {words(answer, target)}, and whether a directory has"
                f" this name cannot be asked: {error}"
            ) from error
        if is_directory:
            return Stat(is_directory=True)
        if answer is not None and not answer.succeeded:
            accept(answer, "HEAD", target)
        raise StorageNotFound("a blob has this name, but no directory")

    def _entries(self, target: BlobUrl, start: str, delimiter: str) -> Iterator[Entry]:
        above_all = len(_prefix(target))
        empty: dict[str, None] = {}
        found = False
        for item in self._items(target, self._page, start, delimiter):
            found = True
            relative = item.name[above_all:]
            if item.is_directory:
                relative = relative.removesuffix("/")
                if not relative:
                    continue
            if any(part in ("", ".", "..") for part in relative.split("/")) or "\0" in relative:
                raise StorageError(
                    f"the blob {printable(item.name)!r} cannot become a file; name the blobs that"
                    " are needed as inputs of their own"
                )
            above = relative
            while empty and (above := above.rpartition("/")[0]):
                empty.pop(above, None)
            if item.is_directory:
                empty[relative] = None
            else:
                yield Entry(relative, item.size)
        for relative in empty:
            yield Entry(relative, 0, is_directory=True)
        if not found and not self._stat(target).is_directory:
            raise StorageError("is a blob, not a directory")

    def _items(
        self, target: BlobUrl, page: int, start: str = "", delimiter: str = ""
    ) -> Iterator[_Item]:
        """The blobs below a directory, and what marks it as one itself. With a delimiter, names are
        cut off behind it, and are directories then."""
        prefix = _prefix(target) + start
        container = target.at("")
        parameters = (
            f"restype=container&comp=list&include=metadata&maxresults={page}"
            f"&prefix={quote(prefix, safe='')}{'&delimiter=' if delimiter else ''}{delimiter}"
        )
        for item in self._requests.listed(container, parameters, "Blobs/*"):
            name, size = name_of(item), int(item.findtext("Properties/Content-Length") or 0)
            is_directory = (
                item.tag == "BlobPrefix"
                or _is_marked(item)
                or item.findtext("Properties/ResourceType") == "directory"
                or (name.endswith("/") and size == 0)
            )
            yield _Item(name, size, is_directory)

    def _put_whole(self, target: BlobUrl, source: Source, progress: Progress | None) -> None:
        answer = self._requests.ask(
            "PUT",
            target,
            headers={
                "x-ms-blob-type": "BlockBlob",
                "Content-Type": content_type(target.path),
                "Content-MD5": source.md5(0, source.size),
            },
            body=source.part(0, source.size),
            progress=progress,
        )
        accept(answer, "PUT", target)

    def _put_blocks(self, target: BlobUrl, source: Source, progress: Progress | None) -> None:
        # Names of this upload alone: blocks of another one to the same blob never mix with them.
        prefix = secrets.token_hex(8)
        block = block_size(source.size)
        names = [_block_name(prefix, n) for n in range(-(-source.size // block))]
        # TLS lets no damaged byte through; without it Azure is to look.
        checks = not target.endpoint.startswith("https:")

        def send(index: int, offset: int, length: int, progress: Progress | None) -> None:
            answer = self._requests.ask(
                "PUT",
                target,
                f"comp=block&blockid={quote(names[index], safe='')}",
                headers={"Content-MD5": source.md5(offset, length)} if checks else {},
                body=source.part(offset, length),
                progress=progress,
            )
            accept(answer, "PUT block", target)

        with source.md5_meanwhile() as md5:
            in_parts(source.size, block, send, progress)
            whole = md5(progress)
        source.check_unchanged()
        items = "".join(f"<Latest>{name}</Latest>" for name in names)
        answer = self._requests.ask(
            "PUT",
            target,
            "comp=blocklist",
            headers={
                "Content-Type": "application/xml",
                "x-ms-blob-content-type": content_type(target.path),
                "x-ms-blob-content-md5": whole,
            },
            body=f'<?xml version="1.0" encoding="utf-8"?><BlockList>{items}</BlockList>'.encode(),
            progress=waiting(progress),
        )
        accept(answer, "PUT block list", target)


def block_size(size: int) -> int:
    """Bytes of a block so that a blob of `size` bytes has not too many; whole MiB. Raises
    StorageError for what is too large for a blob (190.7 TiB)."""
    needed = -(-size // _MOST_BLOCKS)
    chosen = max(PART, -(-needed // _MIB) * _MIB)
    if chosen > _LARGEST_BLOCK:
        raise StorageError(f"{size} bytes are more than a blob can hold")
    return chosen


def _block_name(prefix: str, number: int) -> str:
    return base64.b64encode(f"{prefix}-{number:06d}".encode()).decode()


def _prefix(target: BlobUrl) -> str:
    directory = target.path.rstrip("/")
    return f"{directory}/" if directory else ""


def _require_name(target: BlobUrl) -> None:
    if not target.path or target.path.endswith("/"):
        raise UnsupportedUrl("names a directory, not a blob")


def _is_folder(answer: Answer) -> bool:
    return answer.headers.get("x-ms-meta-hdi_isfolder", "").lower() == "true"


def _is_marked(item: Element) -> bool:
    """Names of metadata keep the case that they were written with."""
    return any(
        found.tag.lower() == "hdi_isfolder" and (found.text or "").lower() == "true"
        for found in item.iterfind("Metadata/*")
    )
