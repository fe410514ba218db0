"""OpenSSH's known_hosts: which keys a host may show. Pure.

Source: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT". Lines with @cert-authority are not used.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac

import msgspec


class KnownKeys(msgspec.Struct, frozen=True):
    """What a file says of a host: pairs of key type and key in base64."""

    trusted: frozenset[tuple[str, str]]
    revoked: frozenset[tuple[str, str]]


def known_keys(text: str, host: str, port: int) -> KnownKeys:
    """What the text of a known_hosts file says of a host, named in lower case."""
    name = name_of(host, port)
    trusted: set[tuple[str, str]] = set()
    revoked: set[tuple[str, str]] = set()
    for line in text.splitlines():
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or not _names(words[0], name):
            continue
        if marker == "":
            trusted.add((words[1], words[2]))
        elif marker == "@revoked":
            revoked.add((words[1], words[2]))
    return KnownKeys(frozenset(trusted - revoked), frozenset(revoked))


def name_of(host: str, port: int) -> str:
    """How known_hosts names a server."""
    return host if port == 22 else f"[{host}]:{port}"


def _names(patterns: str, name: str) -> bool:
    """Whether the first field of a line means a host: a hash, or patterns with * and ?, of which
    one with ! excludes."""
    if patterns.startswith("|"):
        return _hashes(patterns, name)
    listed = patterns.lower().split(",")
    if any(pattern[:1] == "!" and _matches(pattern[1:], name) for pattern in listed):
        return False
    return any(_matches(pattern, name) for pattern in listed)


def _matches(pattern: str, name: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def _hashes(field: str, name: str) -> bool:
    """Whether `|1|salt|hash` is a host's name: HMAC-SHA1 of it, keyed with the salt."""
    parts = field.split("|")
    if len(parts) != 4 or parts[1] != "1":
        return False
    try:
        salt, expected = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.digest(salt, name.encode(), hashlib.sha1), expected)
