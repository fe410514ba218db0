"""What kind of content an object's name suggests."""

from __future__ import annotations

import mimetypes

_ENCODINGS = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_UNKNOWN = "application/octet-stream"


def content_type(name: str) -> str:
    """The media type that a name's ending stands for, as systems keep it beside an object. A
    compressed file is what it is: nobody is to unpack it on the way."""
    # Only what follows a slash: `guess_type` sees something else in `data:` and other schemes.
    kind, encoding = mimetypes.guess_type(name.rpartition("/")[2])
    if encoding:
        return _ENCODINGS.get(encoding, _UNKNOWN)
    return kind or _UNKNOWN
