"""The runner's image on a node, started as Azure Batch starts it: executors are containers of the
same engine, beside it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import msgspec
import pytest
from docker.models.containers import Container

from tesazure.backends.azure_batch.files import AttemptFiles
from tesazure.model import State
from tesazure.plan import Plan
from tesazure.runner.node import ExitCode, NodeAttempt
from tests.conftest import shared
from tests.service.node_bench import NodeBench, config_of, plan_of, until
from tests.services.azurite import Azurite
from tests.services.docker_engine import DockerEngine

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]


class DockerNode:
    """A node with Docker."""

    def __init__(self, bench: NodeBench, engine: DockerEngine, client: docker.DockerClient) -> None:
        self.bench = bench
        self.client = client
        self.runner = ""
        self._socket = engine.url.removeprefix("unix://")

    def start(self, directory: Path, *, engine: bool = True) -> Container:
        """The task's container, with all of the node's directory at its own path."""
        root = self.bench.path
        socket = [f"{self._socket}:/var/run/docker.sock"] if engine else []
        return self.client.containers.run(
            self.runner,
            ["python", "-m", "tesazure.runner.node"],
            user="0",
            init=True,
            detach=True,
            network_mode="host",
            working_dir=str(directory),
            volumes=[*socket, f"{root}:{root}"],
            environment={
                "AZ_BATCH_NODE_ROOT_DIR": str(root),
                "AZ_BATCH_NODE_MOUNTS_DIR": str(self.bench.mounts),
                "AZ_BATCH_NODE_SHARED_DIR": str(root / "shared"),
                "AZ_BATCH_TASK_WORKING_DIR": str(directory),
            },
        )

    def ended(self, container: Container) -> tuple[int, str]:
        """Exit code and output of the task's container, which is removed."""
        code = container.wait(timeout=120)["StatusCode"]
        said = container.logs().decode()
        container.remove()
        return code, said

    async def run(self, plan: Plan) -> tuple[int, str, NodeAttempt]:
        """Exit code, output, attempt."""
        attempt = await self.attempt(plan)
        container = self.start(await self.bench.download(attempt))
        return *self.ended(container), attempt

    async def attempt(self, plan: Plan) -> NodeAttempt:
        return await self.bench.attempt(plan, engine="auto", shared_global="share")

    def left_of(self, key: str) -> list[str]:
        """States of the containers that carry a key."""
        found = self.client.api.containers(all=True, filters={"label": f"tesazure.attempt={key}"})
        return [container["State"] for container in found]


@pytest.fixture(scope="module")
def client(docker_engine: DockerEngine) -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.DockerClient(docker_engine.url, timeout=300)) as client:
        yield client


@pytest.fixture
async def node(
    client: docker.DockerClient, docker_engine: DockerEngine, runner_image: str, short_dir: Path
) -> AsyncIterator[DockerNode]:
    files = AttemptFiles(config_of(shared(Azurite)))
    await files.start()
    node = DockerNode(NodeBench(files, short_dir), docker_engine, client)
    node.runner = runner_image
    (short_dir / "exported").mkdir()
    (node.bench.mounts / "share").symlink_to(short_dir / "exported")
    yield node
    await files.stop()


def in_busybox(image: str, *scripts: str) -> Plan:
    plan = plan_of(*scripts)
    steps = [msgspec.structs.replace(step, image=image) for step in plan.steps]
    return msgspec.structs.replace(plan, steps=steps)


async def test_an_attempt_runs_beside_its_runner(node: DockerNode, busybox_image: str) -> None:
    began = time.monotonic()
    code, said, attempt = await node.run(
        in_busybox(
            busybox_image,
            "echo one > /tes-wd/shared/x; echo hello; echo why >&2",
            "cat /tes-wd/shared/x > /tes-wd/shared-global/y; cat /tes-wd/shared-global/y",
        )
    )
    assert (code, said) == (ExitCode.ENDED, "")
    found = await node.bench.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.COMPLETE, found.log.system_logs
    assert found.log.metadata["engine"] == "docker"
    assert await node.bench.stream(attempt.key) == b"hello\n"
    assert await node.bench.stream(attempt.key, 0, "stderr") == b"why\n"
    assert await node.bench.stream(attempt.key, 1) == b"one\n"
    assert (node.bench.mounts / "share" / "y").read_text() == "one\n"
    assert node.left_of(attempt.key) == []
    assert time.monotonic() - began < 60


async def test_the_next_runner_ends_what_a_killed_one_left(
    node: DockerNode, busybox_image: str
) -> None:
    attempt = await node.attempt(in_busybox(busybox_image, "sleep 1000"))
    container = node.start(await node.bench.download(attempt))
    await node.bench.begun(attempt.key)
    container.kill()
    assert node.ended(container)[0] == 137
    assert node.left_of(attempt.key) == ["running"]

    code, said, _ = await node.run(in_busybox(busybox_image, "true"))
    assert (code, said) == (ExitCode.ENDED, "")
    assert node.left_of(attempt.key) == []


async def test_a_runner_that_runs_ends_what_a_killed_one_left(
    node: DockerNode, busybox_image: str
) -> None:
    living, dying = [await node.attempt(in_busybox(busybox_image, "sleep 1000")) for _ in range(2)]
    survivor = node.start(await node.bench.download(living))
    await node.bench.begun(living.key)
    container = node.start(await node.bench.download(dying))
    await node.bench.begun(dying.key)
    container.kill()
    assert node.ended(container)[0] == 137

    async def is_swept() -> bool:
        await asyncio.sleep(0.1)
        return not node.left_of(dying.key)

    await until(is_swept)
    assert node.left_of(living.key) == ["running"]
    survivor.stop(timeout=30)
    assert node.ended(survivor) == (ExitCode.ENDED, "")


async def test_a_container_that_is_stopped_cancels_its_attempt(
    node: DockerNode, busybox_image: str
) -> None:
    attempt = await node.attempt(in_busybox(busybox_image, "sleep 1000"))
    container = node.start(await node.bench.download(attempt))
    await node.bench.begun(attempt.key)
    container.stop(timeout=30)
    assert node.ended(container) == (ExitCode.ENDED, "")
    found = await node.bench.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.CANCELED
    assert node.left_of(attempt.key) == []


async def test_an_image_that_cannot_be_had_is_told(node: DockerNode) -> None:
    image = "127.0.0.1:1/no/such:image"
    code, said, attempt = await node.run(in_busybox(image, "true"))
    assert (code, said) == (ExitCode.ENDED, "")
    found = await node.bench.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.SYSTEM_ERROR
    assert found.ended.reason.startswith(f"cannot pull {image}: ")
    assert any(f"pulling {image}" in line for line in found.log.system_logs)


async def test_a_node_without_an_engine_is_told(node: DockerNode, busybox_image: str) -> None:
    attempt = await node.attempt(in_busybox(busybox_image, "true"))
    container = node.start(await node.bench.download(attempt), engine=False)
    code, said = node.ended(container)
    assert code == ExitCode.ENDED
    assert "Traceback" not in said
    found = await node.bench.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.SYSTEM_ERROR
    assert found.ended.retryable
    assert "docker" in found.ended.reason
