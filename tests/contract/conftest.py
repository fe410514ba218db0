"""What the suite of the Backend Protocol shares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tesazure.backends.local import LocalBackend
from tests.conftest import refuse
from tests.contract.backend_site import Site
from tests.services import base

ONE_BY_ONE = pytest.mark.xdist_group("backend-docker")
"""Attempts of different tests have the same keys, which one engine takes for the same attempts."""


@pytest.fixture(params=["sandbox", pytest.param("docker", marks=[pytest.mark.docker, ONE_BY_ONE])])
async def site(request: pytest.FixtureRequest, short_dir: Path) -> AsyncIterator[Site]:
    host = image = ""
    if request.param == "docker":
        host = request.getfixturevalue("docker_engine").url
        image = request.getfixturevalue("busybox_image")
    else:
        try:
            base.require_program("bwrap", "bubblewrap")
        except base.Unavailable as error:
            refuse(str(error))
    site = Site(short_dir, request.param, host, image or "unused")
    yield site
    await site.close()


@pytest.fixture
async def backend(site: Site) -> LocalBackend:
    return await site.server()
