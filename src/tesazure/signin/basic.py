"""HTTP Basic, for clients that know nothing else: the user, and an API token as the password."""

from __future__ import annotations

import base64
import binascii

LONGEST = 1024
"""Characters of a header that are looked at: several times what our longest needs."""


def parse(header: str) -> tuple[str, str] | None:
    """User and password of an `Authorization` header; None if it is not one of Basic (RFC 7617)."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic" or len(header) > LONGEST:
        return None
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    user, colon, password = text.partition(":")
    return (user, password) if colon else None
