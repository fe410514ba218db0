"""A running server for real clients, and the clients' interpreters."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.clients import client_image, venvs
from tests.conftest import refuse
from tests.service.server import start_server
from tests.services import base
from tests.services.docker_engine import DockerEngine

ClientPython = Callable[[str], Path]
ClientImage = Callable[[str], str]


@dataclass(frozen=True)
class Server:
    """A running server, the directory its tasks may use, and an image they can run in."""

    url: str
    allowed: Path
    image: str
    log: Path

    def account(self) -> str:
        """The logs of tasks that failed and of the server, to show with a failure."""
        url = f"{self.url}/ga4gh/tes/v1/tasks?view=FULL&state=EXECUTOR_ERROR"
        failed = json.dumps([task["logs"] for task in httpx.get(url).json()["tasks"]], indent=1)
        return f"\n--- failed tasks\n{failed}\n--- server\n{self.log.read_text()[-4000:]}"


@contextlib.contextmanager
def serving(root: Path, image: str, **settings: str) -> Iterator[Server]:
    """A server below `root`."""
    allowed = root / "allowed"
    allowed.mkdir()
    with start_server(root / "server", allow_dir=allowed, **settings) as started:
        yield Server(started.url, allowed, image, started.log)


@pytest.fixture(scope="session")
def client_python() -> ClientPython:
    """Interpreter of a client's venv (a name in `venvs.CLIENTS`)."""

    def find(name: str) -> Path:
        try:
            return venvs.python(name)
        except base.Unavailable as error:
            refuse(str(error))

    return find


@pytest.fixture
def image_of(docker_engine: DockerEngine, python_image: str) -> ClientImage:
    """Reference of an image that has a client (a name in `venvs.CLIENTS`)."""

    def load(name: str) -> str:
        try:
            return client_image.image(docker_engine, python_image, name)
        except base.Unavailable as error:
            refuse(str(error))

    return load


@pytest.fixture(params=["sandbox", pytest.param("docker", marks=pytest.mark.docker)])
def server(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Server]:
    """A server with an engine of each kind, and busybox for an image where images count."""
    image, settings = "any", {"local_engine": request.param}
    if request.param == "docker":
        engine: DockerEngine = request.getfixturevalue("docker_engine")
        image = request.getfixturevalue("busybox_image")
        settings["docker_host"] = engine.url
    with serving(short_dir, image, **settings) as running_server:
        yield running_server
