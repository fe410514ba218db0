"""What single values must look like: names, URLs, keys. No message shows a secret."""

from __future__ import annotations

import base64
import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
"""Microsoft, "Storage account overview", storage account name."""
CONTAINER = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*")
"""Microsoft, "Naming and referencing containers, blobs, and metadata"."""
CONTAINER_FORM = "must be 3 to 63 lower-case letters, digits and single dashes between them"


def endpoint(
    setting: str, url: str, *, path: bool = False, schemes: tuple[str, ...] = ("https", "http")
) -> tuple[SplitResult | None, list[str]]:
    """A URL's parts, or what is wrong with it."""
    example = f"{schemes[0]}://host[:port]{'[/account]' if path else ''}"
    try:
        parsed = urlsplit(url)
        _ = parsed.port
    except ValueError:
        return None, [f"{setting}: is not a URL; write {example}"]
    if parsed.scheme not in schemes or not parsed.hostname:
        return None, [f"{setting}: must be a URL such as {example}"]
    if parsed.username is not None or parsed.query or parsed.fragment:
        return None, [f"{setting}: must hold no user, password, signature or query"]
    if not path and parsed.path.strip("/"):
        return None, [f"{setting}: must hold no path, only {example}"]
    return parsed, []


def is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, whatever its names lead to."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Whether a host is no name that could hold an account's."""
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
