"""`drs://host/id`: objects of GA4GH Data Repository Service servers, for reading.

A DRS server tells where an object's bytes are; they are fetched from there by the system that
serves that URL, under the same rules as a URL that a user named. Bundles are directories, and
`drs://host/bundle/name` is what a bundle holds by that name.

Source: "Data Repository Service" 1.x of the GA4GH.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageFull,
    StorageNotFound,
    UnsupportedUrl,
)
from tesazure.storage.base import Entry, Progress, Stat, Storage, settled, waiting
from tesazure.storage.digests import Digest
from tesazure.storage.local import os_errors
from tesazure.storage.parts import download, in_parts
from tesazure.storage.transport import Transport
from tesazure.storage.urls import named, printable, redact, scheme_of
from tesazure.storage.wire import Again, Answer, require, retry_after, status_of

_URL = re.compile(r"drs://([^/?#@]+)/([^/?#]+)((?:/.*)?)", re.DOTALL | re.IGNORECASE)
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_COMPACT = re.compile(r"drs://[^/]+:[^/]+", re.IGNORECASE)
_TYPES = {
    "https": ("https", "http"),
    "gs": ("gs", "https", "http"),
    "s3": ("s3", "https", "http"),
    "ftp": ("ftp",),
    "file": ("file",),
}
"""Ways of access, the ones to prefer first -> schemes of the URLs that they may lead to: signed
ones of buckets are of https."""
_PREFERENCE = tuple(_TYPES)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_OURS = frozenset({"connection", "content-length", "host", "range", "transfer-encoding"})
"""Headers that say how a request is made, which no server has a say in."""
_ALGORITHMS = {"sha-256": "sha256", "sha256": "sha256", "sha-512": "sha512", "md5": "md5"}
"""Names that DRS servers give to checksums -> hashlib's, the ones to prefer first."""
_DEEPEST = 32
_MOST_KNOWN = 100_000
_BLOCK = 2**20


class _AccessUrl(msgspec.Struct):
    url: str
    headers: list[str] = []


class _AccessMethod(msgspec.Struct):
    type: str
    access_url: _AccessUrl | None = None
    access_id: str | None = None


class _Checksum(msgspec.Struct):
    checksum: str
    type: str


class _Content(msgspec.Struct):
    """What a bundle says of one thing it holds."""

    name: str
    id: str | None = None
    drs_uri: list[str] = []


class _Object(msgspec.Struct):
    """A DrsObject, as far as it is needed here."""

    size: int | None = None
    checksums: list[_Checksum] = []
    version: str | None = None
    updated_time: str | None = None
    access_methods: list[_AccessMethod] | None = None
    contents: list[_Content] | None = None

    @property
    def is_bundle(self) -> bool:
        """Whether it holds others instead of bytes."""
        return bool(self.contents) or (self.contents is not None and not self.access_methods)

    def checksum(self) -> tuple[str, bytes] | None:
        """hashlib's name and the value of the checksum to verify by."""
        offered = {c.type.lower(): c.checksum for c in self.checksums}
        for name, algorithm in _ALGORITHMS.items():
            value = _checksum_bytes(offered.get(name, ""))
            if len(value) == hashlib.new(algorithm, usedforsecurity=False).digest_size:
                return algorithm, value
        return None


class _Place(msgspec.Struct, frozen=True):
    """A DRS server (`host` or `host:port`), an object's id as it stands in URLs, and names to
    follow from there through bundles."""

    host: str
    id: str
    names: tuple[str, ...] = ()


_T = TypeVar("_T", _Object, _AccessUrl)


class DrsStorage:
    """Objects and bundles of DRS servers, read-only.

    Access methods are tried in the order https, gs, s3, ftp, file. What comes has the size and the
    checksum (SHA-256, SHA-512, MD5) that the server tells, or is refused.
    """

    has_directories = True

    def __init__(
        self,
        transport: Transport,
        tokens: Mapping[str, str],
        for_url: Callable[[str], Storage],
        *,
        scheme: str = "https",
    ) -> None:
        """`tokens`: `host`, or `host:port` where the URL has a port -> bearer token. `for_url`
        chooses the system of an access URL. `scheme`: how DRS servers are spoken to; the standard
        knows https only."""
        self._transport = transport
        self._tokens = dict(tokens)
        self._for_url = for_url
        self._scheme = scheme
        self._known: dict[str, _Place] = {}
        """URLs that `list` has come upon."""

    def check(self, url: str, *, writing: bool) -> None:
        """Raises UnsupportedUrl for writing and for compact identifiers, PermissionDenied for a
        server at a refused address."""
        if writing:
            raise self._read_only(url)
        place = _parsed(url)
        try:
            self._transport.check(f"{self._scheme}://{place.host}/")
        except PermissionDenied as error:
            raise PermissionDenied(f"{redact(url)}: {error}") from None

    def stat(self, url: str) -> Stat:
        """The version is the server's own, or else the checksum, or when the object changed."""
        with named(url):
            found, _ = self._resolved(url)
            if found.is_bundle:
                return Stat(is_directory=True)
            checksum = found.checksum()
            told = f"{checksum[0]}:{checksum[1].hex()}" if checksum else None
            version = found.version or told or found.updated_time
            is_firm = bool(found.version or told) or _is_settled(found.updated_time)
            return Stat(False, found.size, checksum=told, version=version, is_firm=is_firm)

    def list(self, url: str) -> Iterator[Entry]:
        """Asks for every object in the bundle, because a bundle does not tell their sizes."""
        with named(url):
            found, place = self._resolved(url)
            if not found.is_bundle:
                raise StorageError("is an object, not a bundle")
            yield from self._below(url.rstrip("/"), found, (place,))

    def get(self, url: str, path: Path, progress: Progress | None = None) -> int:
        """From the first access method that gives what it should."""
        asked = waiting(progress)
        with named(url):
            found, place = self._resolved(url, asked)
            if found.is_bundle:
                raise StorageError("is a bundle, not an object")
            methods = sorted(
                (m for m in found.access_methods or () if m.type in _PREFERENCE),
                key=lambda method: _PREFERENCE.index(method.type),
            )
            failures: list[StorageError] = []
            for method in methods:
                try:
                    access = self._access(place, method, asked)
                    return self._fetch(access, method.type, found, path, progress)
                except StorageFull:
                    raise
                except StorageError as error:
                    failures.append(error)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                retryable = [failure for failure in failures if failure.retryable]
                kind = type((retryable or failures)[0])
                raise kind("no way to its bytes works: " + "; ".join(map(str, failures)))
            kinds = ", ".join(sorted({m.type for m in found.access_methods or ()})) or "none"
            raise UnsupportedUrl(
                f"its ways of access are {kinds}; there must be one of {', '.join(_PREFERENCE)}"
            )

    def put(self, path: Path, url: str, progress: Progress | None = None) -> int:
        """Raises UnsupportedUrl."""
        raise self._read_only(url)

    def make_directory(self, url: str) -> None:
        """Does nothing: nothing can be written."""

    def close(self) -> None:
        """Nothing: the connections are the transport's."""

    def _read_only(self, url: str) -> UnsupportedUrl:
        return UnsupportedUrl(f"{redact(url)}: nothing can be written to a DRS server")

    def _resolved(self, url: str, progress: Progress | None = None) -> tuple[_Object, _Place]:
        """The object at a URL and where it is itself, names followed through bundles."""
        place = self._known.get(url) or _parsed(url)
        found = self._object(place, progress)
        for name in place.names:
            content = next((c for c in found.contents or () if c.name == name), None)
            if content is None:
                raise StorageNotFound(f"the bundle {place.id} holds no {printable(name)}")
            place = _place_of(content, place)
            found = self._object(place, progress)
        return found, place

    def _below(
        self, url: str, bundle: _Object, places: tuple[_Place, ...], prefix: str = ""
    ) -> Iterator[Entry]:
        """What a bundle holds; `places` are its own and those of the bundles around it."""
        contents = bundle.contents or []
        inner = [self._inside(content, places) for content in contents]
        found = [bundle] * len(inner)

        def ask(index: int, _offset: int, _length: int, progress: Progress | None) -> None:
            found[index] = self._object(inner[index], progress)

        in_parts(len(inner), 1, ask, None)
        for content, place, item in zip(contents, inner, found, strict=True):
            path = f"{prefix}{content.name}"
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[f"{url}/{path}"] = place
            if not item.is_bundle:
                yield Entry(path, item.size or 0)
            elif item.contents:
                yield from self._below(url, item, (*places, place), f"{path}/")
            else:
                yield Entry(path, 0, is_directory=True)

    def _inside(self, content: _Content, places: tuple[_Place, ...]) -> _Place:
        """Where something in a bundle is, if it can be a file or a directory."""
        name = content.name
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise StorageError(
                f"the bundle {places[-1].id} holds {printable(name)!r}, which is no file's name"
            )
        place = _place_of(content, places[-1])
        if place in places or len(places) > _DEEPEST:
            raise StorageError(
                f"the bundle {places[-1].id} holds itself, or is inside {_DEEPEST} others"
            )
        return place

    def _object(self, place: _Place, progress: Progress | None = None) -> _Object:
        return self._ask(place.host, f"objects/{place.id}", _Object, progress)

    def _access(
        self, place: _Place, method: _AccessMethod, progress: Progress | None
    ) -> _AccessUrl:
        """Where a method's bytes are; made by the server for this moment if it has an access id."""
        if method.access_url is not None:
            return method.access_url
        if not method.access_id:
            raise StorageError(f"its access by {method.type} has neither a URL nor an id")
        access = f"objects/{place.id}/access/{quote(method.access_id, safe='')}"
        return self._ask(place.host, access, _AccessUrl, progress)

    def _ask(self, host: str, path: str, kind: type[_T], progress: Progress | None) -> _T:
        """A document of a DRS server, which may ask for patience with a 202."""
        url = f"{self._scheme}://{host}/ga4gh/drs/v1/{path}"
        what = f"GET {redact(url)}"
        token = self._tokens.get(host)
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"

        def once() -> Answer:
            answer = self._transport.send("GET", url, headers=headers, progress=progress)
            if answer.status == 202:
                raise Again(status_of(answer), retry_after(answer))
            return answer

        answer = self._transport.persist(what, once, progress)
        require(answer, what, hint=lambda answer: _hint(answer, host, token))
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except msgspec.MsgspecError as error:
            raise StorageError(f"{what}: not a document of DRS 1.x: {error}") from error

    def _fetch(
        self,
        access: _AccessUrl,
        kind: str,
        found: _Object,
        path: Path,
        progress: Progress | None,
    ) -> int:
        """Copy the bytes to a file beside `path`, and give it that name once they are verified."""
        url = access.url
        if scheme_of(url) not in _TYPES[kind]:
            text = f"not a URL that a DRS server's access by {kind} may lead to"
            raise UnsupportedUrl(f"{redact(url)}: {text}")
        storage = self._for_url(url)
        storage.check(url, writing=False)
        headers = _headers_of(access)
        expected = found.checksum()
        kept = path.with_name(f".tesazure-{secrets.token_hex(8)}.part")
        try:
            if headers and scheme_of(url) in ("http", "https"):
                size = download(self._transport, url, kept, progress, headers=lambda: headers)
            else:
                size = storage.get(url, kept, progress)
            if found.size is not None and size != found.size:
                raise StorageError(f"{redact(url)}: has {size} bytes, not {found.size} as DRS says")
            with os_errors(printable(str(path))):
                if expected:
                    _verify(kept, Digest(*expected), redact(url), progress)
                kept.rename(path)
        finally:
            kept.unlink(missing_ok=True)
        return size


def _verify(path: Path, digest: Digest, url: str, progress: Progress | None) -> None:
    with path.open("rb", buffering=0) as file:
        while data := file.read(_BLOCK):
            digest.update(data)
            if progress:
                progress(0)
    if not digest.matches():
        raise StorageError(f"{url}: does not have the {digest.algorithm} checksum that DRS says")


def _is_settled(time: str | None) -> bool:
    """Of a time as RFC 3339 has it."""
    try:
        changed = datetime.fromisoformat(time or "")
    except ValueError:
        return False
    return settled((changed if changed.tzinfo else changed.replace(tzinfo=UTC)).timestamp())


def _parsed(url: str) -> _Place:
    """Raises UnsupportedUrl for what is not `drs://host/id`."""
    shown = redact(url)
    found = _URL.fullmatch(url)
    if found and _HOST.fullmatch(found[1]):
        names = tuple(found[3].strip("/").split("/")) if found[3].strip("/") else ()
        return _Place(found[1].lower(), _id(found[2]), names)
    if _COMPACT.fullmatch(url):
        raise UnsupportedUrl(
            f"{shown}: compact identifiers (drs://prefix:accession) need a registry of prefixes,"
            " which is not asked; use the form drs://host/id"
        )
    raise UnsupportedUrl(f"{shown}: needs the form drs://host/id")


def _id(text: str) -> str:
    """An id as it stands in URLs, where it is percent-encoded already if need be."""
    return quote(text.encode("utf-8", "surrogateescape"), safe="%~:@!$&'()*+,;=")


def _place_of(content: _Content, bundle: _Place) -> _Place:
    """Where a bundle says that a thing is: at its first host-based URI, or else on the same
    server."""
    for uri in content.drs_uri:
        found = _URL.fullmatch(uri)
        if found and not found[3] and _HOST.fullmatch(found[1]):
            return _parsed(uri)
    if not content.id:
        raise StorageError(f"the bundle {bundle.id} does not tell the id of {content.name!r}")
    return _Place(bundle.host, quote(content.id, safe="~"))


def _headers_of(access: _AccessUrl) -> dict[str, str]:
    """Headers that a server wants back, from lines `Name: value`. Raises StorageError for what
    would make another request of ours."""
    headers: dict[str, str] = {}
    for line in access.headers:
        name, _, value = line.partition(":")
        name, value = name.strip(" \t"), value.strip(" \t")
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise StorageError(f"{redact(access.url)}: a header that it needs is malformed")
        if name.lower() in _OURS:
            raise StorageError(f"{redact(access.url)}: a DRS server may not set the header {name}")
        headers[name] = value
    return headers


def _checksum_bytes(text: str) -> bytes:
    """The standard has checksums in hex; some servers write base64. Empty for neither."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        pass
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _hint(answer: Answer, host: str, token: str | None) -> str:
    if answer.status not in (401, 403):
        return ""
    if token:
        return "the token that the setting DRS_TOKENS has for this server may not read it"
    return f"there is no token for {host} in the setting DRS_TOKENS"
