"""URLs as TES clients write them: schemes, file paths, joining, and hiding secrets. Pure."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote_to_bytes, urlsplit

from tesazure.errors import UnsupportedUrl

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_NO_PORT = re.compile(r":[^:\]]*[^0-9:\]][^:\]]*$")
_ESCAPED = frozenset({"file", "http", "https", "ftp", "sftp"})
"""Schemes whose URLs hold percent-encoded paths; s3, gs and az URLs hold keys as they are."""


def scheme_of(url: str) -> str:
    """The URL's scheme in lower case; empty for a bare path."""
    found = None if url.startswith("/") else _SCHEME.match(url)
    return found[1].lower() if found else ""


def redact(url: str) -> str:
    """The URL for messages: without user information, query and fragment, any of which may hold a
    password or a signature. A bare path and a file URL have none of these."""
    scheme = scheme_of(url)
    if scheme in ("", "file"):
        return printable(url)
    rest = url[len(scheme) + 1 :]
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        host = authority.rpartition("@")[2]
        if scheme in _ESCAPED and _NO_PORT.search(
            host
        ):  # the beginning of a password with one of / ? # in it, perhaps
            return printable(f"{url[: len(scheme)]}://***")
        rest = "//" + host + slash + path
    return printable(f"{url[: len(scheme)]}:{rest}")


def printable(name: str) -> str:
    """A file name for JSON and messages: bytes that are not UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def file_path(url: str) -> str:
    """The absolute path meant by a bare path or a file URL (RFC 8089). Raises UnsupportedUrl.

    `?` and `#` are part of a file URL's path: file URLs have no query, and clients do not encode.
    """
    path = url
    if scheme_of(url) == "file":
        authority, slash, rest = url[len("file:") :].removeprefix("//").partition("/")
        if not url[len("file:") :].startswith("/"):
            raise UnsupportedUrl(f"{printable(url)}: a file URL needs an absolute path: file:///…")
        if authority.lower() not in ("", "localhost"):
            host = authority.rpartition("@")[2]
            raise UnsupportedUrl(
                f"{printable(f'file://{host}{slash}{rest}')}: names the host {printable(host)};"
                " only this machine's files can be used, as file:///…"
            )
        path = os.fsdecode(unquote_to_bytes((slash + rest).encode("utf-8", "surrogateescape")))
    if not path.startswith("/"):
        raise UnsupportedUrl(f"{printable(url)}: a path must be absolute: begin it with /")
    if "\0" in path:
        raise UnsupportedUrl(f"{printable(url)}: a path cannot hold a NUL character")
    return path


def join(url: str, relative: str) -> str:
    """The URL of `relative` (a plain name or path) below the directory `url`, before its query."""
    relative = relative.lstrip("/")
    scheme = scheme_of(url)
    if scheme in _ESCAPED:
        relative = quote(relative.encode("utf-8", "surrogateescape"), safe="/!$&'()*+,;=:@~")
    if scheme in ("", "file"):
        return f"{url.rstrip('/')}/{relative}"
    head, mark, query = url.partition("?")
    return f"{head.rstrip('/')}/{relative}{mark}{query}"


def unescaped(url: str, part: str) -> str:
    """The plain name that a part of the URL's path means."""
    if scheme_of(url) not in _ESCAPED:
        return part
    return os.fsdecode(unquote_to_bytes(part.encode("utf-8", "surrogateescape")))


def host_of(url: str) -> str:
    """The host a URL names, in lower case, without port; raises UnsupportedUrl when there is
    none."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        # Its text may quote a part of a password.
        text = "not a URL: in a user's name or password, percent-encode / ? # [ ] and @"
        raise UnsupportedUrl(f"{redact(url)}: {text}") from None
    if not host:
        raise UnsupportedUrl(f"{redact(url)}: names no host")
    return host
