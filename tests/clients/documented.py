"""The snippets of docs/clients.md, for tests to run as they stand there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"


def snippet(section: str, word: str, here: Mapping[str, str]) -> str:
    """The one code block of a section that contains `word`, with what `here` says for its places.

    Each place must occur in it.
    """
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.M)
    (found,) = (
        block for block in re.findall(r"```\w+\n(.*?)```", text, re.DOTALL) if word in block
    )
    for written, meant in here.items():
        assert written in found, f"{written} is not in the snippet:\n{found}"
        found = found.replace(written, meant)
    return str(found)
