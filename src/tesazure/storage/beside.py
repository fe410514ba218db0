"""Files beside a destination, for systems that write under another name and then rename: what is
being written, and what the destination was until then where a rename does not replace it."""

from __future__ import annotations

import re
import secrets

_NAME = re.compile(r"\.tesazure-[0-9a-f]{16}\.(?:part|old)")
_FORBIDDEN = re.compile(r"permission|denied|privilege|not allowed|forbidden|quota|space", re.I)


def part_name() -> str:
    """A new name for a file that is being written."""
    return f".tesazure-{secrets.token_hex(8)}.part"


def old_name() -> str:
    """A new name for a file that is being replaced."""
    return f".tesazure-{secrets.token_hex(8)}.old"


def is_beside(name: str) -> bool:
    """Whether a name is one of these. Lists leave such files out: they are just being written, or
    were when their writer was killed."""
    return bool(_NAME.fullmatch(name))


def beside(path: str, name: str) -> str:
    """The path of `name` in the directory of `path`, which may be relative."""
    directory, slash, _ = path.rpartition("/")
    return f"{directory}{slash}{name}"


def says_forbidden(reason: str) -> bool:
    """Whether a server refuses a rename because it may not be, and not because of the file that has
    the name already: nothing is to be moved out of the way then."""
    return bool(_FORBIDDEN.search(reason))
