"""The pictures of the documentation can be taken at any time, and each is shown somewhere."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tests.conftest import refuse
from tests.docs.blocks import PAGES as WRITTEN
from tests.service.server import start_server
from tests.services import base
from tests.site import pictures
from tests.site.browser import browser


def size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, of the picture's first chunk."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.xdist_group("site")
def test_they_can_be_taken_again(short_dir: Path) -> None:
    try:
        pictures.take(short_dir)
    except base.Unavailable as error:
        refuse(str(error))
    for name in pictures.PAGES:
        assert size((short_dir / name).read_bytes()) == (pictures.WIDTH, pictures.HEIGHT)


def test_each_is_small_and_shown() -> None:
    shown = {
        found
        for page in WRITTEN
        for found in re.findall(r"!\[[^\]]+\]\(pictures/([^)]+)\)", page.read_text())
    }
    kept = {path.name for path in pictures.PICTURES.iterdir()}
    assert kept == shown == set(pictures.PAGES)
    for name in kept:
        picture = (pictures.PICTURES / name).read_bytes()
        assert size(picture) == (pictures.WIDTH, pictures.HEIGHT)
        assert len(picture) < 100_000


@pytest.mark.xdist_group("site")
def test_the_servers_own_pages_load_nothing_from_elsewhere(short_dir: Path) -> None:
    try:
        with start_server(short_dir / "server") as server, browser(short_dir) as tab:
            for path, heading in {"/": "tesazure", "/docs": "tesazure"}.items():
                tab.open(f"{server.url}{path}")
                assert tab.value("document.querySelector('h1').innerText") == heading
    except base.Unavailable as error:
        refuse(str(error))
    assert tab.requests
    assert [url for url in tab.requests if not url.startswith(f"{server.url}/")] == []
