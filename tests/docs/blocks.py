"""The code blocks of the documentation, and what their pages say of running them.

Every shell block is run by tests/service/test_documented.py, in the order of its page, unless a
comment on the line before it says who else runs it, or why nobody can:

    <!-- run by: tests/clients/test_toil.py -->
    <!-- not run: needs an Azure subscription; … -->
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "examples/README.md", "deploy/cromwell/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
_BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FENCE = re.compile(r"^\s*```", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block; `remark` is what the comment before it says, or ''."""

    page: Path
    line: int
    language: str
    text: str
    remark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def run_by(self) -> Path | None:
        """The test file that is said to run it."""
        kind, _, name = self.remark.partition(": ")
        return ROOT / name if kind == "run by" else None

    @property
    def why_not_run(self) -> str | None:
        """The reason that is given."""
        kind, _, reason = self.remark.partition(": ")
        return reason if kind == "not run" else None


def blocks(page: Path, language: str = "") -> list[Block]:
    """A page's blocks, in order; of one language only, if it is given.

    Raises ValueError for a fence that is not at the beginning of its line, or has no language.
    """
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text[: match.start(2)].count("\n") + 1, match[2], match[3], match[1] or "")
        for match in _BLOCK.finditer(text)
    ]
    if 2 * len(found) != len(_FENCE.findall(text)):
        raise ValueError(f"{page}: a code block without a language, indented, or never closed")
    return [block for block in found if language in ("", block.language)]
