"""The documentation as a site: built without a warning, whole, loading nothing from elsewhere."""

from __future__ import annotations

import html
import mimetypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.clients import venvs
from tests.conftest import refuse
from tests.docs.blocks import blocks
from tests.services import base
from tests.services.loopback_http import LoopbackHttp, QuietHandler
from tests.site.browser import browser

pytestmark = pytest.mark.xdist_group("site")

ROOT = Path(__file__).parents[2]
SOURCES = ("README.md", "docs", "mkdocs.yml", "scripts")
LOADED = {"src", "srcset", "data", "poster", "action", "background"}
"""Attributes whose URL a browser goes to unasked, or sends a form to; and `href`, but for `a`."""


class Page(HTMLParser):
    """What a test wants to know of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.classes: set[str] = set()
        self.paragraphs: list[str] = []
        self._in_paragraph = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif name == "class":
                self.classes.update((value or "").split())
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in LOADED or name in ("href", "xlink:href"):
                self.loads.append(value or "")
            elif name == "style":
                self.loads += outside_of_styles(value or "")
        if tag == "p":
            self._in_paragraph = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._in_paragraph = False

    def handle_data(self, data: str) -> None:
        if self._in_paragraph:
            self.paragraphs[-1] += data


def outside_of_styles(text: str) -> list[str]:
    """The URLs that a style sheet loads, but for those that hold their data themselves."""
    found = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", text)
    return [url for url in found if not url.startswith("data:")]


def build(
    directory: Path, site: Path, path: str = "/usr/bin:/bin"
) -> subprocess.CompletedProcess[str]:
    """What `make docs` does, of the sources in a directory."""
    try:
        base.require_program("dot", "graphviz")
        python = venvs.python("docs")
    except base.Unavailable as error:
        refuse(str(error))
    return subprocess.run(
        [python, "-m", "mkdocs", "build", "--site-dir", site],
        cwd=directory,
        env={"PATH": path, "NO_MKDOCS_2_WARNING": "1", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    done = build(ROOT, directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(found) > 20
    return found


def test_every_page_is_there_and_in_the_navigation(site: Path) -> None:
    front = site / "index.html"
    listed = {
        (front.parent / unquote(link)).resolve() for link in Page(front.read_text()).links if link
    }
    for source in (ROOT / "docs").rglob("*.md"):
        name = "index" if source.stem == "README" else source.stem
        page = site / source.parent.relative_to(ROOT / "docs") / f"{name}.html"
        assert page.exists()
        assert page.resolve() in listed, f"{source.name} is not in the navigation"


def test_links_and_anchors_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                assert url.scheme in ("http", "https"), (path.name, link)
                continue
            # The page for what does not exist is shown anywhere, so its links begin at the top.
            start = site if url.path.startswith("/") else path.parent
            target = (start / unquote(url.path).lstrip("/")).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path.name, link)
            if url.fragment and not url.fragment.startswith("__"):
                assert unquote(url.fragment) in pages[target].ids, (path.name, link)


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    loads = {path: page.loads for path, page in pages.items()}
    for sheet in site.rglob("*.css"):
        loads[sheet] = outside_of_styles(sheet.read_text())
    for path in pages:
        for style in re.findall(r"<style>(.*?)</style>", path.read_text(), re.DOTALL):
            loads[path] = loads[path] + outside_of_styles(style)
    assert sum(map(len, loads.values())) > 50
    for path, urls in loads.items():
        for url in urls:
            parts = urlsplit(url)
            assert not parts.scheme, (path.name, url)
            assert not parts.netloc, (path.name, url)


def test_the_theme_has_no_cause_to_fetch_its_scripts(site: Path, pages: dict[Path, Page]) -> None:
    """What its program would get from elsewhere: one to draw diagrams, one for browsers of old."""
    (program,) = (site / "assets/javascripts").glob("bundle.*.js")
    fetched = set(
        re.findall(r"""["'`](https://[^"'`]+\.js|https://unpkg[^"'`]+)""", program.read_text())
    )
    assert fetched == {
        "https://unpkg.com/mermaid@11/dist/mermaid.min.js",
        "https://unpkg.com/resize-observer-polyfill",
    }
    for path, page in pages.items():
        assert "mermaid" not in page.classes, path.name


def test_markdown_is_understood_as_github_does(pages: dict[Path, Page]) -> None:
    """A list, table, heading or code block that only GitHub sees would be text of a paragraph."""
    for path, page in pages.items():
        for paragraph in page.paragraphs:
            for line in paragraph.splitlines():
                assert not re.match(r"\s*([-*|#] |```|\|-|1\. )", line), (path.name, line)


def test_every_block_of_code_is_one(site: Path) -> None:
    for source in (ROOT / "docs").glob("*.md"):
        page = (site / f"{source.stem}.html").read_text()
        drawn = page.count("<svg fill")
        assert page.count('<div class="highlight">') + drawn == len(blocks(source)), source.name


@pytest.mark.parametrize(
    ("page", "node"), [("design", "CANCELING"), ("provisioning", "containers batchtmp, cromwell")]
)
def test_diagrams_are_drawn(page: str, node: str, site: Path) -> None:
    (diagram,) = blocks(ROOT / f"docs/{page}.md", "mermaid")
    shown = (site / f"{page}.html").read_text()
    picture = html.unescape(shown[shown.index("<svg fill") :].partition("</svg>")[0])
    assert picture.count('class="edge"') == diagram.text.count(" -->")
    assert picture.count('class="cluster"') == diagram.text.count("subgraph ")
    assert f">{node}</text>" in picture
    for label in re.findall(r"-->\|(.+?)\|", diagram.text):
        assert f">{label}</text>" in picture


BREAKS = {
    "a link to a page that is not there": ("usage.md", "[gone](gone.md)", "gone.md"),
    "an anchor that is not there": ("usage.md", "[gone](cli.md#gone)", "#gone"),
    "an anchor within the page": ("usage.md", "[gone](#gone)", "#gone"),
    "a page outside the navigation": ("unlisted.md", "# Unlisted", "unlisted.md"),
    "a diagram of another kind": ("usage.md", "```mermaid\npie\n    a\n```", "diagram: pie"),
    "a diagram that would be drawn in part": (
        "usage.md",
        "```mermaid\nflowchart LR\n    a --> b\n    b -.-> c\n```",
        "diagram: b -.-> c",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_what_is_broken_is_not_built(case: str, tmp_path: Path) -> None:
    name, text, said = BREAKS[case]
    # What Python compiles comes and goes as other tests run.
    compiled = shutil.ignore_patterns("__pycache__")
    for source in SOURCES:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=compiled)
        else:
            shutil.copy(ROOT / source, tmp_path / source)
    with (tmp_path / "docs" / name).open("a") as page:
        page.write(f"\n{text}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert said in done.stderr


def test_without_graphviz_it_says_so(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site", path=str(tmp_path))
    assert done.returncode == 1
    assert "apt install graphviz" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            path = site / unquote(urlsplit(self.path).path).lstrip("/")
            if path.is_file():
                kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
                self.reply(200, path.read_bytes(), {"Content-Type": kind})
            else:
                self.reply(404)

    with LoopbackHttp(Handler) as server:
        yield server.origin


SEARCH = """
const field = document.querySelector('[data-md-component=search-query]');
field.focus(); field.value = 'MOUNT_DIR'; field.dispatchEvent(new Event('keyup'));
"""
FOUND = "[...document.querySelectorAll('.md-search-result__link')].map(each => each.href).join(' ')"


def test_a_browser_shows_it_and_searches_it(address: str, tmp_path: Path) -> None:
    try:
        with browser(tmp_path) as tab:
            tab.size(1200, 900)
            tab.open(f"{address}/index.html")
            assert tab.value("document.title") == "tesazure"
            # Wide enough for both columns, so styles are in effect; and something is drawn.
            assert tab.value(
                "document.querySelector('article h1').getBoundingClientRect().width > 500"
            )
            assert len(tab.picture()) > 20_000
            tab.value(SEARCH)
            assert f"{address}/usage.html" in tab.until(FOUND)
            tab.open(f"{address}/design.html")
            assert tab.value(
                "document.querySelector('article svg').getBoundingClientRect().height > 100"
            )
    except base.Unavailable as error:
        refuse(str(error))
    asked = [url for url in tab.requests if not url.startswith("data:")]
    assert any(url.endswith(".css") for url in asked)
    assert [url for url in asked if not url.startswith(f"{address}/")] == []
