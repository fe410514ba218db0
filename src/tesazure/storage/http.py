"""`http://` and `https://`: objects at plain URLs, read in parts, written by PUT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NoReturn

from tesazure.errors import UnsupportedUrl
from tesazure.storage.base import Entry, Progress, Stat, settled
from tesazure.storage.content_types import content_type
from tesazure.storage.parts import download, offered
from tesazure.storage.sources import opened_source
from tesazure.storage.transport import Transport
from tesazure.storage.urls import redact, scheme_of
from tesazure.storage.wire import Answer, content_length, content_range, require


class HttpStorage:
    """Objects at http and https URLs. HTTP has no directories to read.

    Relative to the Protocol: whether `put` is atomic depends on the server, which gets the size and
    an MD5 (Content-MD5) to check before it takes the object.
    """

    has_directories = False

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def check(self, url: str, *, writing: bool) -> None:
        """Raises PermissionDenied for a refused IP address, UnsupportedUrl for what is no URL."""
        self._transport.check(url)

    def stat(self, url: str) -> Stat:
        """Asks by HEAD, and by GET of the first byte where HEAD is not served."""
        answer = self._transport.ask("HEAD", url)
        return _stat_of(answer if answer.succeeded else self._first_byte(url))

    def probe(self, url: str) -> None:
        """By GET of the first byte: what HEAD tells may be open to more than the object is."""
        self._first_byte(url)

    def _first_byte(self, url: str) -> Answer:
        def first_byte() -> Answer:
            seen: list[Answer] = []

            def enough(answer: Answer) -> Callable[[bytes], None]:
                seen.append(answer)
                return _stop

            try:
                return self._transport.send("GET", url, headers={"Range": "bytes=0-0"}, sink=enough)
            except _Enough:
                return seen[0]

        what = f"GET {redact(url)}"
        answer = self._transport.persist(what, first_byte)
        if answer.status != 416:  # the range of an empty object
            require(answer, what)
        return answer

    def list(self, url: str) -> Iterator[Entry]:
        """Raises UnsupportedUrl: HTTP knows no directories."""
        raise UnsupportedUrl(
            f"{redact(url)}: a directory cannot be read by {scheme_of(url)}; name each file as an"
            " input of its own"
        )

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """In parallel parts where the server has them; see `parts.download`."""
        return download(self._transport, url, path, progress)

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """One PUT, with the content type that the URL's name suggests."""

        def wanted() -> bool:
            if progress:
                progress(0)
            return True

        with opened_source(path) as source:
            headers = {
                "Content-Type": content_type(redact(url)),
                "Content-MD5": source.md5(0, source.size, wanted),
            }
            body = source.part(0, source.size)
            answer = self._transport.ask("PUT", url, headers=headers, body=body, progress=progress)
            require(answer, f"PUT {redact(url)}")
            source.check_unchanged()
            return source.size

    def make_directory(self, url: str) -> None:
        """Does nothing: HTTP knows no directories."""

    def close(self) -> None:
        """Nothing is kept open but by the transport."""


class _Enough(Exception):
    """The headers told all that was asked for."""


def _stop(_: bytes) -> NoReturn:
    raise _Enough


def _stat_of(answer: Answer) -> Stat:
    size = content_length(answer)
    if answer.status in (206, 416):
        _, size = content_range(answer)
    digest = offered(answer)
    return Stat(
        is_directory=False,
        size=size,
        checksum=f"{digest.algorithm}:{digest.expected.hex()}" if digest else None,
        version=answer.headers.get("etag") or answer.headers.get("last-modified"),
        is_firm=digest is not None or _is_firm(answer),
    )


def _is_firm(answer: Answer) -> bool:
    """Many servers make ETags of a file's size and its time in seconds, strong as they look."""
    if answer.headers.get("etag", "").startswith("W/"):
        return False
    modified = answer.headers.get("last-modified")
    if modified is None:
        return True
    try:
        return settled(parsedate_to_datetime(modified).timestamp())
    except (ValueError, OverflowError):
        return False
