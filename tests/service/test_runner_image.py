"""The runner's image: built without a network, and at work as the user that it names."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import msgspec
import pytest

from tesazure.model import Executor, Input, State, Task
from tesazure.plan import Defaults, make_plan
from tesazure.report import decode, fold
from tesazure.runner.config import AttemptDir, NodeConfig
from tests.services.docker_engine import DockerEngine
from tests.services.faulty_http import FaultyHttp

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("runner-image"),  # one process builds it
]


@pytest.fixture(scope="module")
def client(docker_engine: DockerEngine) -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.DockerClient(docker_engine.url, timeout=300)) as client:
        yield client


@pytest.fixture
def data(short_dir: Path) -> Path:
    """A directory for the image's user."""
    directory = short_dir / "data"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


def run(
    client: docker.DockerClient, image: str, data: Path, *command: str, **more: Any
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in the image."""
    container = client.containers.create(
        image, command, network_mode="host", volumes=[f"{data}:/data"], **more
    )
    try:
        container.start()
        code = container.wait(timeout=120)["StatusCode"]
        out, err = (container.logs(stdout=on, stderr=not on).decode() for on in (True, False))
        return code, out, err
    finally:
        container.remove(force=True)


def test_it_moves_files_both_ways(
    client: docker.DockerClient, runner_image: str, data: Path
) -> None:
    content = os.urandom(20 * 2**20)
    with FaultyHttp() as server:
        url = server.add("/in", content)
        code, out, err = run(client, runner_image, data, "tesazure", "transfer", "get", url, "got/")
        assert (code, err) == (0, ""), out
        assert json.loads(out.splitlines()[-1])["bytes"] == len(content)
        assert (data / "got/in").read_bytes() == content
        assert (data / "got/in").stat().st_uid == 10001
        put = ["tesazure", "transfer", "put", "got", server.url("/out")]
        code, out, err = run(client, runner_image, data, *put, "--json")
        assert code == 0, err
        assert server.objects["/out/in"].content == content


def test_it_has_every_system(client: docker.DockerClient, runner_image: str, data: Path) -> None:
    script = """if True:
        import azure.identity, azure.storage.blob, botocore, docker, google.auth, paramiko, pycurl
    """
    assert run(client, runner_image, data, "python", "-c", script) == (0, "", "")
    code, out, _ = run(client, runner_image, data)
    assert code == 0
    assert "tesazure transfer" in out


def test_it_ends_at_once_when_it_is_stopped(
    client: docker.DockerClient, runner_image: str, data: Path
) -> None:
    """As a container's first process, which gets no signal that it does not handle."""
    with FaultyHttp(rate=1, faults=("stall",), stall_s=60, in_a_row=100) as server:
        command = ["tesazure", "transfer", "get", server.add("/in", b"x" * 10_000), "in"]
        container = client.containers.create(
            runner_image, command, network_mode="host", volumes=[f"{data}:/data"]
        )
        try:
            container.start()
            assert server.asked.wait(60)
            began = time.monotonic()
            container.stop(timeout=30)
            assert time.monotonic() - began < 20
            assert container.wait()["StatusCode"] == 143
            assert list(data.iterdir()) == []
        finally:
            container.remove(force=True)


def test_it_runs_an_attempt(client: docker.DockerClient, runner_image: str, data: Path) -> None:
    """Up to where an engine would be needed, which this test gives it none of."""
    attempt = AttemptDir(data / "attempt")
    attempt.path.mkdir()
    attempt.path.chmod(0o777)
    (data / "in").write_text("input\n")
    task = Task(
        executors=[Executor(image="an/image:1", command=["true"])],
        inputs=[Input(path="/job/in", url="file:///data/in")],
    )
    plan = make_plan("a-task", task, Defaults(1, 0.1, 0.1, 0), [])
    node = NodeConfig(
        key="k", engine="docker", engine_host="unix:///none.sock", allow_dirs=("/data",)
    )
    attempt.plan.write_bytes(msgspec.json.encode(plan))
    attempt.node.write_bytes(msgspec.json.encode(node))
    code, _, err = run(
        client, runner_image, data, "python", "-m", "tesazure.runner", "/data/attempt", user="0"
    )
    assert code == 0, err
    found = fold(decode(attempt.report.read_bytes()))
    assert found.ended is not None
    assert found.ended.state is State.SYSTEM_ERROR
    assert "none.sock" in found.ended.reason
