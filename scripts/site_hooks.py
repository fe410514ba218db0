"""What the documentation's site (mkdocs.yml) makes otherwise than GitHub does.

README.md is its front page, links to files that it does not have are plain text, and diagrams are
drawn when it is built, by Graphviz: readers' browsers need no program for that.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

# Of the site's own venv (requirements/clients-docs.txt).
from mkdocs.exceptions import PluginError  # type: ignore[import-not-found]
from mkdocs.structure.files import File  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FRONT = "index.md"

LINK = re.compile(r"\[([^\]]+)\]\(([^)#:]+)(#[^)]*)?\)")
"""A link to a file: its text, its path, and the anchor if it has one."""
DIAGRAM = re.compile(r"^```mermaid\nstateDiagram-v2\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
ARROW = re.compile(r"^ +(\S+) --> (\S+)$", re.MULTILINE)


def on_files(files: Any, config: Any, **_: object) -> Any:
    """Add README.md to the pages (an event of MkDocs)."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, FRONT, content=readme))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """A page's text as the site needs it (an event of MkDocs)."""
    name = page.file.src_uri
    written_in = ROOT if name == FRONT else (DOCS / name).parent

    def leading(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(written_in / link[2]))
        if not target.is_relative_to(DOCS):
            return link[1]
        if target.is_dir():
            target /= "README.md"
        return f"[{link[1]}]({os.path.relpath(target, (DOCS / name).parent)}{link[3] or ''})"

    return LINK.sub(leading, DIAGRAM.sub(lambda found: drawn(found[1]), markdown))


def drawn(arrows: str) -> str:
    """The lines of a diagram of states as a picture, which takes the colours of the text around it.

    Raises PluginError if there is no Graphviz.
    """
    edges = [
        f'"{"start" if old == "[*]" else old}" -> "{"end" if new == "[*]" else new}"'
        for old, new in ARROW.findall(arrows)
    ]
    graph = f"""digraph states {{
        rankdir = TB; bgcolor = transparent; ranksep = 0.35
        node [shape = box, style = rounded, fontname = "sans-serif", fontsize = 11, height = 0.3]
        edge [arrowsize = 0.6]
        start, end [shape = circle, label = "", width = 0.15, height = 0.15]
        end [shape = doublecircle]
        {"; ".join(edges)}
    }}"""
    try:
        done = subprocess.run(
            ["dot", "-Tsvg"], input=graph, capture_output=True, text=True, check=True, timeout=60
        )
    except FileNotFoundError:
        raise PluginError("dot is not there to draw the diagrams: apt install graphviz") from None
    picture = done.stdout[done.stdout.index("<svg") :].replace("black", "currentColor")
    picture = re.sub(r"<!--.*?-->\n|<title>.*?</title>\n", "", picture)
    return picture.replace("<svg", '<svg fill="currentColor" style="max-width: 100%"', 1) + "\n"
