"""Checksums that HTTP servers offer in their headers."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping

_ITEM = re.compile(r"([A-Za-z0-9-]+)=:?([A-Za-z0-9+/]+=*):?")
_ALGORITHMS = {"sha-512": "sha512", "sha-256": "sha256", "md5": "md5"}
"""Names in Digest headers, the ones to prefer first -> hashlib's names."""


class Digest:
    """A checksum that bytes should have."""

    def __init__(self, algorithm: str, expected: bytes) -> None:
        self.algorithm = algorithm
        self.expected = expected
        self._hash = hashlib.new(algorithm, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        """Take in the next bytes."""
        self._hash.update(data)

    def value(self) -> bytes:
        """The checksum of the bytes so far."""
        return self._hash.digest()

    def matches(self) -> bool:
        """Whether the bytes so far have the checksum."""
        return self.value() == self.expected


def offered_digest(headers: Mapping[str, str], *, whole: bool) -> Digest | None:
    """The strongest checksum of the whole object that a response's headers (names in lower case)
    offer. `whole`: the response holds the whole object, so checksums of the content count too.

    Sources: RFC 9530 (Repr-Digest, Content-Digest), RFC 3230 (Digest), RFC 1864 (Content-MD5), "Get
    Blob" (x-ms-blob-content-md5).
    """
    names = ["repr-digest", "digest", *(["content-digest"] if whole else [])]
    listed = ",".join(headers.get(name, "") for name in names)
    found = {name.lower(): text for name, text in _ITEM.findall(listed)}
    md5 = headers.get("x-ms-blob-content-md5") or (headers.get("content-md5") if whole else None)
    if md5:
        found.setdefault("md5", md5)
    for name, algorithm in _ALGORITHMS.items():
        if name in found:
            digest = _decoded(algorithm, found[name])
            if digest:
                return digest
    return None


def _decoded(algorithm: str, text: str) -> Digest | None:
    """None for what is not a checksum in base64 of the right length."""
    try:
        expected = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    digest = Digest(algorithm, expected)
    return digest if len(expected) == hashlib.new(algorithm).digest_size else None
