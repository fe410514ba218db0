"""Docker and runners killed at any moment: nothing of an attempt may stay behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest

from tesazure.backends.local_files import SETTLE_S
from tesazure.model import Executor
from tesazure.runner.config import AttemptDir
from tesazure.runner.engines.choose import make_engine
from tests.service.runner_bench import RunnerBench, wait_for_exit
from tests.services.docker_engine import DockerEngine

pytestmark = pytest.mark.docker


def left_of(url: str, keys: list[str]) -> list[str]:
    """Those of the attempts that have a container."""
    with contextlib.closing(docker.APIClient(url)) as client:
        found = client.containers(all=True, filters={"label": "tesazure.attempt"})
    return [
        c["Labels"]["tesazure.attempt"] for c in found if c["Labels"]["tesazure.attempt"] in keys
    ]


def test_a_killed_runner_leaves_no_container(
    bench: RunnerBench, docker_engine: DockerEngine
) -> None:
    command = Executor(image=docker_engine.image("busybox"), command=["sleep", "0.05"])
    plan = bench.plan(command)
    node = {"engine": "docker", "engine_host": docker_engine.url}
    began = time.monotonic()
    wait_for_exit(bench.begin(bench.attempt(plan, **node)))
    whole = time.monotonic() - began
    chance = random.Random(3)

    def sweep(attempt: AttemptDir) -> str:
        key = attempt.path.name
        make_engine("docker", docker_engine.url).sweep(key, attempt.root, SETTLE_S)
        return key

    with ThreadPoolExecutor() as sweeps:  # they mostly wait
        swept = []
        for _ in range(15):
            attempt = bench.attempt(plan, **node)
            pid = bench.begin(attempt)
            time.sleep(chance.uniform(0, whole))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_for_exit(pid)
            swept.append(sweeps.submit(sweep, attempt))
        keys = [each.result() for each in swept]
    assert left_of(docker_engine.url, keys) == []


class SlowToCreate:
    """Stands before an engine's socket and hands on the creation of a container late."""

    LATE_S = 0.6

    def __init__(self, path: Path, engine: str) -> None:
        self.asked = threading.Event()
        self.handed_on = threading.Event()
        self._engine = engine
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                engine = socket.socket(socket.AF_UNIX)
                engine.connect(self._engine)
                for pair in ((client, engine), (engine, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                late = b"/containers/create" in data
                if late:
                    self.asked.set()
                    time.sleep(self.LATE_S)
                target.sendall(data)
                if late:
                    self.handed_on.set()


def test_a_container_that_appears_after_its_runner_died_is_removed(
    bench: RunnerBench, docker_engine: DockerEngine
) -> None:
    plan = bench.plan(Executor(image=docker_engine.image("busybox"), command=["true"]))
    place = bench.path / "slow.sock"
    slow = SlowToCreate(place, docker_engine.url.removeprefix("unix://"))
    try:
        attempt = bench.attempt(plan, engine="docker", engine_host=f"unix://{place}")
        pid = bench.begin(attempt)
        assert slow.asked.wait(30)
        os.kill(pid, signal.SIGKILL)
        wait_for_exit(pid)
        key = attempt.path.name
        make_engine("docker", docker_engine.url).sweep(key, attempt.root, SETTLE_S)
        assert slow.handed_on.wait(30)
        assert left_of(docker_engine.url, [key]) == []
    finally:
        slow.close()
