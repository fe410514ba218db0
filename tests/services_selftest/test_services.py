"""The test services themselves work, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import docker
import psycopg
import pytest

from tests.conftest import refuse
from tests.services import base, session
from tests.services.azurite import Azurite, AzuriteTls
from tests.services.docker_engine import DockerEngine
from tests.services.podman_service import PodmanService
from tests.services.postgresql import PostgreSQL


def output(url: str, image: str, *argv: str) -> str:
    """What a command prints in a container."""
    with contextlib.closing(docker.DockerClient(url)) as client:
        container = client.containers.create(image, list(argv))
        try:
            container.start()
            # Not followed: Podman may go on telling of what has ended long ago.
            assert container.wait()["StatusCode"] == 0
            printed: bytes = container.logs()
        finally:
            container.remove(force=True)
    return printed.decode()


@pytest.mark.docker
def test_docker_runs_busybox(docker_engine: DockerEngine, busybox_image: str) -> None:
    assert output(docker_engine.url, busybox_image, "echo", "hello") == "hello\n"


@pytest.mark.docker
def test_images_carry_their_configuration(docker_engine: DockerEngine) -> None:
    entrypoint, configured = map(docker_engine.image, ("entrypoint", "configured"))
    assert output(docker_engine.url, entrypoint, "echo", "x") == "entrypoint ran\nx\n"
    script = 'id -u; pwd; echo "$FROM_IMAGE"'
    assert output(docker_engine.url, configured, "sh", "-c", script) == "1000\n/srv\nyes\n"


@pytest.mark.docker
def test_containers_reach_this_machine(docker_engine: DockerEngine, busybox_image: str) -> None:
    command = ("ping", "-c", "1", docker_engine.gateway)
    assert "1 packets received" in output(docker_engine.url, busybox_image, *command)


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_genomics_image_has_its_tools(docker_engine: DockerEngine, genomics_image: str) -> None:
    assert output(docker_engine.url, genomics_image, "samtools", "--version").startswith("samtools")
    for tool in ("bwa", "bcftools", "bowtie2", "seqtk"):
        assert output(docker_engine.url, genomics_image, "which", tool) == f"/usr/bin/{tool}\n"


@pytest.mark.docker
@pytest.mark.slow
def test_an_engine_of_ones_own_leaves_nothing(docker_engine: DockerEngine, short_dir: Path) -> None:
    with DockerEngine(short_dir / "docker") as own:
        if own.offered is not None:
            pytest.skip("DOCKER_HOST offers an engine, so none is started")
        with contextlib.closing(docker.DockerClient(own.url)) as client:
            client.containers.run(own.image("busybox"), ["sleep", "600"], detach=True)
        bridge = socket.if_nametoindex((own.root / "bridge").read_text())
        assert own.gateway != docker_engine.gateway
    assert not own.root.exists()
    # By its number: another test's engine may have taken the name.
    assert bridge not in dict(socket.if_nameindex())
    assert not list(base.processes_naming(own.root))


@pytest.mark.podman
def test_podman_runs_busybox(podman_engine: PodmanService, short_dir: Path) -> None:
    image = podman_engine.image("busybox")
    assert output(podman_engine.url, image, "echo", "hello") == "hello\n"
    podman, *options = podman_engine.command
    run = ("run", "--rm", "--network=none", image, "echo", "again")
    command = [podman, "--log-level=debug", *options, *run]
    environment = {**os.environ, **podman_engine.environment}
    # Into files: a program that Podman leaves running would keep pipes open.
    said, errors = short_dir / "said", short_dir / "errors"
    with said.open("wb") as out, errors.open("wb") as err:
        try:
            code = subprocess.call(command, stdout=out, stderr=err, env=environment, timeout=60)
        except subprocess.TimeoutExpired:
            code = -1
    assert (code, said.read_text()) == (0, "again\n"), errors.read_text()[-8000:]


@pytest.mark.postgres
def test_postgresql_gives_each_test_a_database(postgresql: PostgreSQL, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        assert connection.execute("show fsync").fetchone() == ("on",)
    other = postgresql.create_database()
    assert other != postgres_url
    postgresql.drop_database(other)


@pytest.mark.parametrize("kind", [Azurite, AzuriteTls])
def test_azurite_checks_signatures_and_leaves_nothing(kind: type[Azurite], short_dir: Path) -> None:
    try:
        with kind(short_dir / kind.name) as own, own.container() as container:
            context = ssl.create_default_context(cafile=own.endpoints.ca_bundle or None)
            url = f"{own.endpoint}/{container}?restype=container&comp=list&"
            with urllib.request.urlopen(url + own.container_sas(container), context=context) as a:
                assert b"<Blobs/>" in a.read()
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(url + own.container_sas("another"), context=context)
    except base.Unavailable as error:
        refuse(str(error))
    assert not own.root.exists()
    assert not list(base.processes_naming(own.root))


SESSION = """
import os, sys
from pathlib import Path
from tests.services import session
left = Path(sys.argv[1], f"{session.PREFIX}{os.getpid()}", "azurite.ready")
left.parent.mkdir()
left.touch()
session.open_session()
assert os.environ[session.VARIABLE] == str(left.parent)
assert list(left.parent.iterdir()) == []
session.close_session()
assert not left.parent.exists()
"""


def test_a_run_of_the_same_process_id_that_was_killed_is_swept_up_after(short_dir: Path) -> None:
    """As in containers, where process ids begin anew."""
    environment = {**os.environ, "TMPDIR": str(short_dir)}
    del environment[session.VARIABLE]
    command = [sys.executable, "-c", SESSION, str(short_dir)]
    subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True, timeout=60)


def test_a_refusal_is_remembered(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    class Refusing(PostgreSQL):
        """A service that cannot be had, and counts how often it was asked."""

        asked = 0

        def start(self) -> None:
            Refusing.asked += 1
            raise base.Unavailable("not on this machine")

    monkeypatch.setenv(session.VARIABLE, str(short_dir))
    for _ in range(2):
        with pytest.raises(base.Unavailable, match="not on this machine"):
            session.shared(Refusing)
    assert Refusing.asked == 1
