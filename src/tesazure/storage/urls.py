"""URLs as TES clients write them: schemes, file paths, joining, and naming them in messages
without their secrets. Pure."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote_to_bytes, urlsplit

from tesazure.errors import StorageError, UnsupportedUrl
from tesazure.errors import printable as printable  # noqa: PLC0414 - storage takes it from here
from tesazure.secrecy import begin, is_of_this_machine

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_NO_PORT = re.compile(r":[^:\]]*[^0-9:\]][^:\]]*$")
_BEGINNING = re.compile(r"((?:[^/?#@:]*:)?//)?([^?#]*)")
_NO_AUTHORITY = re.compile(r"[\x00-\x20\x7f\\]")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ESCAPED = frozenset({"file", "http", "https", "ftp", "sftp"})
"""Schemes whose URLs hold percent-encoded paths; s3, gs and az URLs hold keys as they are."""


def scheme_of(url: str) -> str:
    """The URL's scheme in lower case; empty for a bare path."""
    found = None if url.startswith("/") else _SCHEME.match(url)
    return found[1].lower() if found else ""


def redact(url: str) -> str:
    """The URL for messages: without user information, query and fragment, any of which may hold a
    password or a signature. An absolute path and a file URL have none of these; whatever else is no
    URL is taken for one that was written wrong."""
    if is_of_this_machine(url):
        return printable(url)
    found = _BEGINNING.match(url, begin(url))
    start, rest = found.groups() if found else (None, "")
    if start is None:
        return printable(rest.rpartition("@")[2])
    authority, slash, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    if scheme_of(start) in _ESCAPED and _NO_PORT.search(host):
        # The beginning of a password with one of / ? # in it, perhaps.
        return printable(f"{start}***")
    return printable(f"{start}{host}{slash}{path}")


@contextlib.contextmanager
def named(url: str) -> Iterator[None]:
    """Storage's errors of the block name `url`, as those who wrote it know it; what follows is the
    request that failed."""
    shown = redact(url)
    try:
        yield
    except StorageError as error:
        text = str(error)
        raise type(error)(text if shown in text else f"{shown}: {text}") from error


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
    none, or what other readers of URLs might take for another one."""
    try:
        if _NO_AUTHORITY.search(re.split(r"[/?#]", url.partition("//")[2], maxsplit=1)[0]):
            text = "a space, a \\ or a control character cannot be in front of the path"
            raise UnsupportedUrl(f"{redact(url)}: {text}")
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        # Its text may quote a part of a password.
        text = "not a URL: in a user's name or password, percent-encode / ? # [ ] and @"
        raise UnsupportedUrl(f"{redact(url)}: {text}") from None
    if not host:
        raise UnsupportedUrl(f"{redact(url)}: names no host")
    if ":" not in host:
        # As it is written: to lower case, some letters become ASCII.
        require_host_name(parts.netloc.rpartition("@")[2].partition(":")[0], url)
    return host


def require_host_name(host: str, url: str) -> None:
    """Raises UnsupportedUrl for what name servers cannot know as it is: a name with a character
    that ends it, or becomes another one, for some readers of URLs leads each of them elsewhere."""
    if not _NAME.fullmatch(host):
        remedy = "" if host.isascii() else "; write the host in ASCII (punycode)"
        raise UnsupportedUrl(f"{redact(url)}: not a host name: {printable(host)}{remedy}")
