"""The tables of docs/security.md, which the tests of access go by."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def table(name: str) -> list[dict[str, str]]:
    """The rows of a table, by the words at the top of its columns."""
    _, _, after = _PAGE.read_text().partition(f"<!-- table: {name} -->\n")
    lines = [line for line in after.partition("\n\n")[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    head, _, *body = rows
    assert body
    assert re.fullmatch(r"[-|]+", lines[1])
    return [dict(zip(head, row, strict=True)) for row in body]
