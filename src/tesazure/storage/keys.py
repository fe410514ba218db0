"""Objects in buckets, as `s3://` and `gs://` URLs name them, seen as files and directories.

A key stands in a URL as it is: nothing is percent-encoded, and `?` and `#` are part of it. There
are no directories: one is whatever has keys below it, and an empty one is a key of no bytes that
ends in a slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

from tesazure.errors import StorageError, UnsupportedUrl
from tesazure.storage.base import Entry
from tesazure.storage.urls import printable, redact, scheme_of

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9]")
"""As wide as the oldest buckets of both services; the service itself refuses what is none."""
_LONGEST_KEY = 1024
_SIGNED = re.compile(
    r"[?&](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|sig)=", re.IGNORECASE
)


class Place(msgspec.Struct, frozen=True):
    """A bucket and a key in it; the empty key is the bucket itself."""

    bucket: str
    key: str

    @property
    def prefix(self) -> str:
        """What the keys below this place, as a directory, begin with."""
        return f"{self.key.rstrip('/')}/" if self.key.rstrip("/") else ""


def parse(url: str) -> Place:
    """What `SCHEME://bucket/key` means. Raises UnsupportedUrl for names that no service allows, or
    that HTTP cannot carry."""
    scheme = scheme_of(url)
    shown = redact(url)
    rest = url[len(scheme) + 1 :]
    if not rest.startswith("//"):
        raise UnsupportedUrl(f"{shown}: needs the form {scheme}://bucket/key")
    bucket, _, key = rest[2:].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UnsupportedUrl(f"{shown}: this is not a bucket's name; use {scheme}://bucket/key")
    if _SIGNED.search(key):
        raise UnsupportedUrl(f"{shown}: a signed URL is used as it is, beginning with https://")
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        raise UnsupportedUrl(f"{shown}: a key must be UTF-8") from None
    if length > _LONGEST_KEY:
        raise UnsupportedUrl(f"{shown}: a key has at most {_LONGEST_KEY} bytes, not {length}")
    if any(part in (".", "..") for part in key.split("/")):
        raise UnsupportedUrl(f"{shown}: a key with . or .. between slashes cannot be used")
    return Place(bucket, key)


def parse_object(url: str) -> Place:
    """As `parse`, for a single object; raises UnsupportedUrl for a bucket or a directory."""
    place = parse(url)
    if not place.key or place.key.endswith("/"):
        raise UnsupportedUrl(f"{redact(url)}: names a directory, not an object")
    return place


def entries(prefix: str, found: Iterable[tuple[str, int]]) -> Iterator[Entry]:
    """Keys that begin with `prefix`, in their order, and sizes, as entries of that directory.

    Raises StorageError for a key that is no path of a file: it could not be told from another
    one, or would lead out of the directory.
    """
    empty = ""
    for key, size in found:
        relative = key[len(prefix) :]
        if empty and not relative.startswith(empty):
            yield Entry(empty[:-1], 0, is_directory=True)
        empty = ""
        if not relative:
            continue
        is_marker = relative.endswith("/") and size == 0
        path = relative[:-1] if is_marker else relative
        if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise StorageError(
                f"the key {printable(key)!r} below it cannot be the path of a file; name the"
                " objects that are needed as inputs of their own"
            )
        if is_marker:
            empty = relative
        else:
            yield Entry(path, size)
    if empty:
        yield Entry(empty[:-1], 0, is_directory=True)
