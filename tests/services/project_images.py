"""The project's own images, built by its Dockerfiles on bases of Debian packages, and stand-ins for
the images of others that its compose files name. No container registry; no network in the builds.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker

from scripts import image_context
from tests.services import images, npm
from tests.services.docker_engine import DockerEngine

STAND_INS = Path(__file__).parent / "stand_ins"
TIMEOUT_S = 600
"""Of one step of a build, on a busy machine."""


def build(engine: DockerEngine, image: str, *, cache: bool = True) -> str:
    """Reference of `api` or `runner` as this checkout has it (30 s; 1 s if it was built before)."""
    tag = f"tesazure-test/{image}:1"
    with connected(engine) as client, context(client, engine, image) as (directory, arguments):
        client.images.build(
            path=str(directory),
            dockerfile=f"deploy/images/{image}/Dockerfile",
            tag=tag,
            buildargs=arguments,
            network_mode="none",
            nocache=not cache,
            rm=True,
        )
    return tag


@contextlib.contextmanager
def context(
    client: docker.DockerClient, engine: DockerEngine, image: str
) -> Iterator[tuple[Path, dict[str, str]]]:
    """A build context and the build's arguments; for one caller on the machine at a time."""
    base, build_base = engine.image("python"), engine.image("python-build")
    ask = ["python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    version = client.containers.run(base, ask, remove=True).decode().strip()
    directory = images.CACHE / f"context-{image}-{version}"
    with images.lock(directory.name):
        image_context.make_context(image, directory, version)
        yield directory, {"BASE": base, "BUILD_BASE": build_base, "PIP_NO_INDEX": "1"}


def stand_in(engine: DockerEngine, name: str, on: str = "", **files: Path) -> str:
    """Reference of an image made by stand_ins/NAME.Dockerfile, whose context is that directory, and
    the files given, by their names; `on` that image, or Debian with what the others need."""
    tag = f"tesazure-test/stand-in-{name}:1"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(STAND_INS, ".")
        for file, path in files.items():
            tar.add(path, file, filter=source)
    packed.seek(0)
    with connected(engine) as client:
        client.images.build(
            fileobj=packed,
            custom_context=True,
            dockerfile=f"{name}.Dockerfile",
            tag=tag,
            buildargs={"BASE": on or engine.image("services")},
            network_mode="none",
            rm=True,
        )
    return tag


def source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The member, unless it is what Python compiled: that comes and goes as other tests run."""
    return None if Path(member.name).name == "__pycache__" else member


def postgres(engine: DockerEngine) -> str:
    """Debian's PostgreSQL, which starts as docker-library's image does, as far as compose.yaml uses
    that."""
    return stand_in(engine, "postgres")


def azurite(engine: DockerEngine) -> str:
    """Azurite as Microsoft's image has it."""
    return stand_in(engine, "azurite", node_modules=npm.installed("azurite") / "node_modules")


def cromwell(engine: DockerEngine) -> str:
    """The double of Cromwell, as a server that is configured as Cromwell's image is."""
    return stand_in(engine, "cromwell", build(engine, "api"), tests=image_context.ROOT / "tests")


@contextlib.contextmanager
def connected(engine: DockerEngine) -> Iterator[docker.DockerClient]:
    """Docker's SDK."""
    with contextlib.closing(docker.DockerClient(engine.url, timeout=TIMEOUT_S)) as client:
        yield client


@contextlib.contextmanager
def checkout(engine: DockerEngine, *parts: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory with the parts given and with what the build of the server's image needs, and the
    build's arguments."""
    with tempfile.TemporaryDirectory(prefix="tz-") as name:
        directory = Path(name)
        with connected(engine) as client, context(client, engine, "api") as (made, arguments):
            shutil.copytree(made, directory, dirs_exist_ok=True)
        for part in parts:
            shutil.copytree(image_context.ROOT / part, directory / part)
        yield directory, arguments
