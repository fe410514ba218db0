"""Pictures for the documentation, of the pages of a server that runs.

python -m tests.site.pictures    takes those in docs/pictures again, with Debian's Chromium
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.service.server import start_server
from tests.site.browser import browser

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
PAGES = {"api.png": "/docs"}
WIDTH, HEIGHT = 960, 640


def take(directory: Path) -> None:
    """Write each picture into a directory. Raises Unavailable if Chromium is not installed."""
    with tempfile.TemporaryDirectory(prefix="tz-") as name:
        here = Path(name)
        with start_server(here / "server") as server, browser(here) as tab:
            tab.size(WIDTH, HEIGHT)
            for picture, path in PAGES.items():
                tab.open(f"{server.url}{path}")
                (directory / picture).write_bytes(tab.picture())


if __name__ == "__main__":
    take(PICTURES)
