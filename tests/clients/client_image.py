"""A container image with a workflow engine, as its users have one, made without any image registry.

Wheels are collected on this machine by the client's lock file and installed in a container of the
`python` test image, which reaches no package index. An engine that installs packages anew in every
task, as Snakemake's TES executor does with storage plugins, finds them in a directory of the image.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from tests.clients import venvs
from tests.services import base, images
from tests.services.docker_engine import DockerEngine

INSTALL = """\
set -e
python3 -m venv --without-pip /opt/client
python3 -m pip --python /opt/client/bin/python install --quiet --no-index --no-deps /wheels/*.whl
mkdir /opt/plugins
find /wheels -name '*_plugin_*.whl' -exec cp -t /opt/plugins {} +
"""
PATH = "/opt/client/bin:/usr/local/bin:/usr/bin:/bin"
SETTINGS = {
    "PATH": PATH,
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_FIND_LINKS": "/opt/plugins",
    "PIP_NO_DEPS": "1",
    "PIP_NO_INDEX": "1",
}
CHANGES = "\n".join(f"ENV {name}={value}" for name, value in SETTINGS.items())


def image(engine: DockerEngine, python_image: str, client: str) -> str:
    """Reference of an image with the packages of a client's lock, loaded if it is not there (5 s).

    The first time on a machine it takes a minute. Raises Unavailable when the packages cannot
    be had.
    """
    lock = venvs.lock_file(client)
    facts = f"{INSTALL}{CHANGES}{images.RECIPES['python']}{images.suite()}".encode()
    repository = f"tesazure-test/{client}"
    digest = hashlib.sha256(lock.read_bytes() + facts).hexdigest()[:16]
    installed = images.CACHE / f"opt-{client}-{digest}.tar"
    with (
        images.lock(f"load-opt-{client}"),
        contextlib.closing(docker.DockerClient(engine.url, timeout=300)) as connection,
    ):
        with contextlib.suppress(ImageNotFound):
            connection.images.get(f"{repository}:{digest}")
            return f"{repository}:{digest}"
        if not installed.exists():
            for older in images.CACHE.glob(f"opt-{client}-*.tar"):
                older.unlink()
            with images.partial(installed) as path:
                install(connection, python_image, lock, path)
        container = connection.containers.create(python_image, ["true"])
        try:
            with installed.open("rb") as tar:
                container.put_archive("/", tar)
            container.commit(repository, digest, changes=CHANGES)
        finally:
            container.remove(force=True)
    return f"{repository}:{digest}"


def install(connection: docker.DockerClient, python_image: str, lock: Path, target: Path) -> None:
    """Write a tar of /opt as it is after the lock's packages were installed in a container."""
    printed = connection.containers.run(python_image, ["python3", "--version"], remove=True)
    container = connection.containers.create(python_image, ["sh", "-c", INSTALL])
    try:
        container.put_archive("/", wheels(lock, printed.decode().split()[1]))
        container.start()
        if container.wait()["StatusCode"] != 0:
            raise base.StartFailed(container.logs().decode()[-1500:])
        chunks, _ = container.get_archive("/opt")
        with target.open("wb") as tar:
            tar.writelines(chunks)
    finally:
        container.remove(force=True)


def wheels(lock: Path, version: str) -> bytes:
    """A tar with `wheels/*.whl`, all that the lock names, for that version of Python."""
    short = ".".join(version.split(".")[:2])
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = sys.executable if here == short else shutil.which(f"python{short}")
    if python is None:
        raise base.Unavailable(f"no Python {short}, the test image's, to collect wheels with")
    with tempfile.TemporaryDirectory() as directory:
        options = (*venvs.ISOLATED, "--quiet", *venvs.EXACTLY, lock)
        command = [python, "-m", "pip", "wheel", "--wheel-dir", directory, *options]
        venvs.pip(command, lock.name)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(directory, arcname="wheels")
    return packed.getvalue()
