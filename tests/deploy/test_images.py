"""The images as their Dockerfiles make them: what is in them, and how they behave when they run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from docker.models.containers import Container

from tests.clients import venvs
from tests.conftest import refuse
from tests.service.server import create, ended, task, until
from tests.services import base, project_images
from tests.services.docker_engine import DockerEngine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("images"),
]

MB = 10**6
LARGEST = {"api": 120 * MB, "runner": 80 * MB}
HARDENED: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "tmpfs": {"/tmp": "", "/var/tmp": ""},
}
ROOT = Path(__file__).parents[2]
START_S = 120


@pytest.fixture(scope="module")
def client(docker_engine: DockerEngine) -> Iterator[docker.DockerClient]:
    with project_images.connected(docker_engine) as client:
        yield client


@pytest.fixture(params=["api", "runner"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(name: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{name}_image"))


def printed(client: docker.DockerClient, image: str, *command: str) -> str:
    """Standard output of a command in the image."""
    run = client.containers.run(image, list(command), remove=True, network_mode="none", **HARDENED)
    return run.decode()


def content(client: docker.DockerClient, image: str, path: str) -> str:
    """A file in the image."""
    container = client.containers.create(image)
    try:
        chunks, _ = container.get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
            file = tar.extractfile(tar.getmembers()[0])
            assert file is not None
            return file.read().decode()
    finally:
        container.remove(v=True)


def layers(client: docker.DockerClient, image: str) -> list[str]:
    """Digests of its layers' contents."""
    found: list[str] = client.images.get(image).attrs["RootFS"]["Layers"]
    return found


def test_what_is_added_to_the_base_is_small(
    client: docker.DockerClient, image: str, name: str, python_image: str
) -> None:
    sizes = [client.images.get(each).attrs["Size"] for each in (image, python_image)]
    added = sizes[0] - sizes[1]
    assert 0 < added <= LARGEST[name]
    page = (ROOT / "docs/deployment.md").read_text()
    (said,) = re.findall(rf"^\|.*`deploy/images/{name}` \| (\d+) MB \|$", page, re.MULTILINE)
    assert abs(int(said) * MB - added) <= 3 * MB


def test_another_build_gives_the_same_bytes(
    client: docker.DockerClient, docker_engine: DockerEngine, image: str, name: str
) -> None:
    before = layers(client, image)
    assert layers(client, project_images.build(docker_engine, name, cache=False)) == before


def test_it_says_what_it_is_and_is_not_root(
    client: docker.DockerClient, image: str, name: str
) -> None:
    config = client.images.get(image).attrs["Config"]
    title = {"api": "tesazure/api", "runner": "tesazure/container-filetransfer"}[name]
    labels = {key.rpartition(".")[2]: value for key, value in config["Labels"].items()}
    assert (labels["title"], labels["licenses"]) == (title, "Apache-2.0")
    assert config["User"] == "10001:10001"
    assert printed(client, image, "sh", "-c", "id -u; id -g") == "10001\n10001\n"
    assert printed(client, image, "tesazure", "version").startswith("tesazure ")


def test_it_has_neither_installers_nor_what_can_be_left_out(
    client: docker.DockerClient, image: str
) -> None:
    script = """
        ls /opt/tesazure/bin
        cd /opt/tesazure/lib/python3.*/site-packages
        find . -name pip -o -name hatchling -o -name '*.c' -o -path './botocore/data'
        find . -name '*.py' ! -path './tesazure/*'
        find /opt -perm /022 ! -type l
    """
    said = printed(client, image, "sh", "-c", script).split()
    assert "tesazure" in said
    assert not [word for word in said if "pip" in word or "/" in word]


IMPORTS = """
import ast, importlib, pathlib, tesazure

asked = set()
for path in pathlib.Path(tesazure.__path__[0]).rglob("*.py"):
    nodes = set(ast.walk(ast.parse(path.read_text())))
    for node in list(nodes):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes -= set(ast.walk(node))
    for node in nodes:
        if isinstance(node, ast.Import):
            asked |= {(each.name, "") for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            asked |= {(node.module, each.name) for each in node.names}
for module, name in sorted(asked):
    if not hasattr(importlib.import_module(module), name or "__name__"):
        importlib.import_module(f"{module}.{name}")
print("azure.mgmt.authorization.v2022_04_01" in dict(asked))
"""


def test_all_that_the_server_ever_imports_is_left(
    client: docker.DockerClient, api_image: str
) -> None:
    """Also where it does so late, such as Azure's clients, much of which is taken out."""
    assert printed(client, api_image, "python", "-c", IMPORTS) == "True\n"


def test_it_lists_what_it_is_made_of(client: docker.DockerClient, image: str, name: str) -> None:
    text = content(client, image, "/opt/tesazure/sbom.cdx.json")
    try:
        python = venvs.python("cyclonedx")
    except base.Unavailable as error:
        refuse(str(error))
    script = ROOT / "tests/clients/scripts/cyclonedx_valid.py"
    checked = subprocess.run(
        [python, script], input=text, capture_output=True, text=True, check=False, timeout=100
    )
    assert checked.returncode == 0, checked.stderr
    document = json.loads(text)
    lock = (ROOT / f"requirements/{name}.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+) ", lock, re.MULTILINE))
    # The lock is for all systems.
    for of_windows in ("colorama", "pywin32", "tzdata"):
        locked.pop(of_windows, None)
    components = {each["name"]: each for each in document["components"]}
    assert {key: each["version"] for key, each in components.items()} == locked
    assert all(each["licenses"] and each["properties"] for each in components.values())
    edges = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert components["azure-core"]["purl"] in edges[components["azure-storage-blob"]["purl"]]
    assert components["awscrt"]["purl"] in edges[components["botocore"]["purl"]]
    ours = document["metadata"]["component"]["purl"]
    assert components["msgspec"]["purl"] in edges[ours]


class Server:
    """A container of the server's image on the machine's network, its data directory at one path
    inside and outside."""

    def __init__(self, container: Container, port: int) -> None:
        self.container = container
        self.port = port

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def health(self) -> str:
        """What Docker says."""
        self.container.reload()
        return str(self.container.attrs["State"]["Health"]["Status"])

    def wait_healthy(self) -> None:
        try:
            until(lambda: self.health() == "healthy", START_S)
        except AssertionError as error:
            raise AssertionError(self.container.logs().decode()) from error


@pytest.fixture
def server(
    client: docker.DockerClient, docker_engine: DockerEngine, api_image: str, short_dir: Path
) -> Iterator[Server]:
    """As its own user, with a read-only root file system, no capability, and Docker's socket."""
    if docker_engine.offered is not None:
        pytest.skip("the engine that DOCKER_HOST names has its directories elsewhere")
    data, port = short_dir / "data", base.free_port()
    data.mkdir(mode=0o700)
    os.chown(data, 10001, 10001)
    container = client.containers.run(
        api_image,
        detach=True,
        init=True,
        network_mode="host",
        environment={"APP_DATA_DIR": str(data), "APP_PORT": str(port), "APP_HOST": "127.0.0.1"},
        volumes=[f"{data}:{data}", f"{docker_engine.socket}:/var/run/docker.sock"],
        group_add=[str(docker_engine.socket.stat().st_gid)],
        **HARDENED,
    )
    try:
        yield Server(container, port)
    finally:
        container.remove(force=True, v=True)


def test_a_hardened_server_is_healthy_and_runs_tasks(
    client: docker.DockerClient, server: Server, busybox_image: str
) -> None:
    server.wait_healthy()
    with server.client() as http:
        document = task("sh", "-c", "echo done", volumes=["/vol"])
        document["executors"][0]["image"] = busybox_image
        record = ended(http, create(http, document), 120)
    assert record["state"] == "COMPLETE", record
    assert record["logs"][0]["logs"][0]["stdout"] == "done\n"


def test_it_ends_what_was_begun_when_it_is_stopped(server: Server, busybox_image: str) -> None:
    """SIGTERM while a request's body is on its way: the answer still comes."""
    server.wait_healthy()
    document = task("true")
    document["executors"][0]["image"] = busybox_image
    body = json.dumps(document).encode()
    head = f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        connection.sendall(head.encode() + body[:10])
        with server.client() as http:  # it has been read by the time that this is answered
            assert http.get("/healthz").status_code == 200
        server.container.kill("SIGTERM")
        until(lambda: refused(server.port), 60)
        connection.sendall(body[10:])
        reply = connection.recv(65536)
    assert reply.startswith(b"HTTP/1.1 200"), reply
    assert server.container.wait(timeout=60)["StatusCode"] == 0
    assert "Traceback" not in server.container.logs().decode()


def refused(port: int) -> bool:
    """Whether nobody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_without_an_engine_it_says_so_and_ends(client: docker.DockerClient, api_image: str) -> None:
    container = client.containers.run(api_image, detach=True, network_mode="none", **HARDENED)
    with contextlib.ExitStack() as stack:
        stack.callback(container.remove, force=True, v=True)
        assert container.wait(timeout=START_S)["StatusCode"] == 2
        assert "no engine to run containers with" in container.logs().decode()


def test_health_is_that_of_readiness(client: docker.DockerClient, api_image: str) -> None:
    """Nobody listens there: not healthy, and said so."""
    with pytest.raises(docker.errors.ContainerError, match="refused"):
        client.containers.run(
            api_image, ["python", "/opt/ready.py"], remove=True, network_mode="none", **HARDENED
        )
