"""Fixtures for all tests: the real services, and what happens where one is missing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.services import base, project_images, session
from tests.services.docker_engine import DockerEngine
from tests.services.podman_service import PodmanService
from tests.services.postgresql import PostgreSQL


def pytest_configure() -> None:
    """Make the directory that this run's services live in."""
    session.open_session()


def pytest_unconfigure() -> None:
    """Stop this run's services."""
    session.close_session()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give what shares a fixture of its module to one worker: each would make one of its own."""
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("xdist_group") is None:
            made = item._fixtureinfo.name2fixturedefs.values()
            if any(definitions[-1].scope == "module" for definitions in made):
                item.add_marker(pytest.mark.xdist_group(item.path.stem))


def refuse(reason: str) -> NoReturn:
    """End a test that lacks something: in CI (CI=true) that is a failure, elsewhere a skip."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def need_sandbox() -> None:
    """End a test that needs the sandbox engine where there is none."""
    try:
        base.require_program("bwrap", "bubblewrap")
    except base.Unavailable as error:
        refuse(str(error))


def shared(kind: type[session.Shared]) -> session.Shared:
    """The run's instance of a service; a service that is there but broken is an error anywhere."""
    try:
        return session.shared(kind)
    except base.Unavailable as error:
        refuse(str(error))


def image(engine: DockerEngine | PodmanService, name: str) -> str:
    """Load a test image into an engine."""
    try:
        return engine.image(name)
    except base.Unavailable as error:
        refuse(str(error))


def project_image(engine: DockerEngine, name: str) -> str:
    """Build an image of the project's own."""
    try:
        return project_images.build(engine, name)
    except base.Unavailable as error:
        refuse(str(error))


@pytest.fixture(scope="session")
def docker_engine() -> DockerEngine:
    """A Docker engine: `.url`, `.gateway`, `.image(name)`; shared by all tests of the run."""
    return shared(DockerEngine)


@pytest.fixture(scope="session")
def podman_engine() -> PodmanService:
    """Podman's service: `.url`, `.environment`, `.command`, `.image(name)`; shared likewise."""
    return shared(PodmanService)


@pytest.fixture(scope="session")
def postgresql() -> PostgreSQL:
    """A PostgreSQL cluster, for tests that need several databases; shared likewise."""
    return shared(PostgreSQL)


@pytest.fixture
def postgres_url(postgresql: PostgreSQL) -> Iterator[str]:
    """`postgresql://…` of a new, empty database, dropped after the test."""
    url = postgresql.create_database()
    yield url
    postgresql.drop_database(url)


@pytest.fixture(scope="session")
def busybox_image(docker_engine: DockerEngine) -> str:
    """Reference of an image with busybox alone, loaded into `docker_engine`."""
    return image(docker_engine, "busybox")


@pytest.fixture(scope="session")
def genomics_image(docker_engine: DockerEngine) -> str:
    """Reference of an image with samtools, bwa, bcftools, bowtie2 and its lambda phage reads."""
    return image(docker_engine, "genomics")


@pytest.fixture(scope="session")
def python_image(docker_engine: DockerEngine) -> str:
    """Reference of an image with python3, pip and venv."""
    return image(docker_engine, "python")


@pytest.fixture(scope="session")
def api_image(docker_engine: DockerEngine) -> str:
    """Reference of deploy/images/api, built now if it is not there as this checkout has it."""
    return project_image(docker_engine, "api")


@pytest.fixture(scope="session")
def runner_image(docker_engine: DockerEngine) -> str:
    """Reference of deploy/images/runner, likewise."""
    return project_image(docker_engine, "runner")


@pytest.fixture(scope="session")
def shared_dir(pytestconfig: pytest.Config) -> Path:
    """The directory that TESAZURE_SHARED names, else `shared` beside the repository; its absence
    skips, in CI as well."""
    beside = pytestconfig.rootpath.parent / "shared"
    directory = Path(os.environ.get("TESAZURE_SHARED", beside))
    if not directory.is_dir():
        pytest.skip(f"{directory} is not there")
    return directory


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A temporary directory with a path short enough for Unix sockets, readable by every user."""
    with tempfile.TemporaryDirectory(prefix="tz-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
