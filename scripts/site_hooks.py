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
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
# What of Mermaid's language the pages use: states or boxes, arrows, and boxes around others.
DIRECTIONS = {"stateDiagram-v2": "TB", "flowchart TB": "TB", "flowchart LR": "LR"}
_NODE = r"(\[\*\]|\w+)(?:\[([^\]\"]+)\])?"
NODE = re.compile(_NODE)
ARROW = re.compile(rf"{_NODE} -->(?:\|([^|\"]+)\|)? {_NODE}")
GROUP = re.compile(rf"subgraph {_NODE}")
STYLE = """compound = true; bgcolor = transparent; ranksep = 0.35
    graph [fontname = "sans-serif", fontsize = 11, style = "rounded,dashed"]
    node [shape = box, style = rounded, fontname = "sans-serif", fontsize = 11, height = 0.3]
    edge [arrowsize = 0.6, fontname = "sans-serif", fontsize = 10]
"""
ENDS = {
    "*start": 'shape = circle, label = "", width = 0.15, height = 0.15',
    "*end": 'shape = doublecircle, label = "", width = 0.15, height = 0.15',
}


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


def drawn(diagram: str) -> str:
    """A diagram in Mermaid's language as a picture, which takes the colours of the text around it.

    Raises PluginError if there is no Graphviz, and for a line that this does not know.
    """
    try:
        done = subprocess.run(
            ["dot", "-Tsvg"],
            input=graph(diagram),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except FileNotFoundError:
        raise PluginError("dot is not there to draw the diagrams: apt install graphviz") from None
    picture = done.stdout[done.stdout.index("<svg") :].replace('"black"', '"currentColor"')
    picture = re.sub(r"<!--.*?-->\n|<title>.*?</title>\n", "", picture)
    return picture.replace("<svg", '<svg fill="currentColor" style="max-width: 100%"', 1) + "\n"


def graph(diagram: str) -> str:
    """It in Graphviz's language."""
    kind, *lines = diagram.splitlines()
    if kind not in DIRECTIONS:
        raise PluginError(f"scripts/site_hooks.py cannot draw such a diagram: {kind}")
    groups = set(re.findall(r"^ *subgraph (\w+)", diagram, re.MULTILINE))
    first: dict[str, str] = {}  # in each group; an arrow to a group ends at its border, before that
    around: list[str] = []
    written, arrows = [f"digraph {{ rankdir = {DIRECTIONS[kind]}; {STYLE}"], []

    def named(node: str, label: str | None, end: str) -> str:
        node = end if node == "[*]" else node
        if node not in groups:
            look = ENDS.get(node) or (f'label = "{label}"' if label else "")
            written.append(f'"{node}" [{look}]')
            for group in around:
                first.setdefault(group, node)
        return node

    for line in map(str.strip, lines):
        if found := GROUP.fullmatch(line):
            around.append(found[1])
            written.append(f'subgraph "cluster_{found[1]}" {{ label = "{found[2] or found[1]}"')
        elif line == "end":
            around.pop()
            written.append("}")
        elif found := ARROW.fullmatch(line):
            old, new = named(found[1], found[2], "*start"), named(found[4], found[5], "*end")
            arrows.append((old, new, found[3] or ""))
        elif found := NODE.fullmatch(line):
            named(found[1], found[2], "*start")
        elif line:
            raise PluginError(f"scripts/site_hooks.py cannot draw this line of a diagram: {line}")
    # Last, as Graphviz has a node in the group that first speaks of it.
    for old, new, label in arrows:
        look = [f'label = "{label}"']
        look += [f'ltail = "cluster_{old}"'] if old in groups else []
        look += [f'lhead = "cluster_{new}"'] if new in groups else []
        written.append(f'"{first.get(old, old)}" -> "{first.get(new, new)}" [{", ".join(look)}]')
    return "\n".join([*written, "}"])
