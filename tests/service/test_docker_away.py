"""A dockerd that is not there, goes away, or comes back."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from tesazure.errors import EngineUnavailable
from tesazure.runner.engines.base import Exit
from tesazure.runner.engines.docker import DockerEngine
from tests.conftest import refuse
from tests.service.engine_case import Attempt, attempt_on, in_background, wait_for
from tests.services import base
from tests.services import docker_engine as service
from tests.services.loopback_http import LoopbackHttp, QuietHandler

pytestmark = pytest.mark.docker


@pytest.fixture
def attempt(
    docker_engine: service.DockerEngine, busybox_image: str, short_dir: Path
) -> Iterator[Attempt]:
    yield from attempt_on(DockerEngine(docker_engine.url), busybox_image, short_dir)


def test_an_engine_that_is_not_there(attempt: Attempt, short_dir: Path) -> None:
    gone = DockerEngine(f"unix://{short_dir}/none.sock")
    with pytest.raises(EngineUnavailable, match=r"none\.sock"):
        gone.prepare("busybox", attempt.say)
    with pytest.raises(EngineUnavailable):
        gone.run(attempt.container("true"), lambda: None, attempt.say)
    with pytest.raises(EngineUnavailable):
        gone.sweep("key", None)
    gone.kill()


def test_a_container_that_somebody_else_stops_is_no_failure_of_the_command(
    attempt: Attempt,
) -> None:
    with in_background(lambda: attempt.run("sleep", "600")) as results:
        wait_for(attempt.left)
        name = attempt.left()[0].strip("/")
        with contextlib.closing(docker.APIClient(attempt.url)) as client:
            wait_for(lambda: client.inspect_container(name)["State"]["Running"])
            client.kill(name)
    assert isinstance(results[0], EngineUnavailable), results
    assert attempt.run("sh", "-c", "exit 137") == Exit(137)


class Restartable(service.DockerEngine):
    """A dockerd of our own whose process can be ended and started again."""

    @property
    def pid(self) -> int:
        return int((self.root / "pid").read_text())

    def end(self, number: signal.Signals) -> Callable[[], None]:
        """End the daemon; what is returned starts it again as it was."""
        words = Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")[:-1]
        os.kill(self.pid, number)
        # Its containerd dies with it; the new daemon must not take the dying one for alive.
        for file in (self.root / "pid", self.root / "exec/containerd/containerd.pid"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                pid = int(file.read_text())
                wait_for(lambda pid=pid: not base.is_alive(pid))  # type: ignore[misc]
                file.unlink()

        def again() -> None:
            base.spawn(words, self.log)
            wait_for(self.is_up)

        return again

    def is_up(self) -> bool:
        """Whether the daemon has loaded its containers and answers."""
        with contextlib.suppress(docker.errors.DockerException):
            docker.APIClient(self.url, timeout=5).close()
            return True
        return False


@pytest.fixture
def own_attempt(
    monkeypatch: pytest.MonkeyPatch, short_dir: Path
) -> Iterator[tuple[Restartable, Attempt]]:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    if os.geteuid() != 0:
        refuse("a dockerd of its own needs root")
    try:
        with Restartable(short_dir / "docker") as engine:
            image = engine.image("busybox")
            (short_dir / "attempt").mkdir()
            for attempt in attempt_on(DockerEngine(engine.url), image, short_dir / "attempt"):
                yield engine, attempt
    except base.Unavailable as error:
        refuse(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_that_takes_its_containers_along(
    own_attempt: tuple[Restartable, Attempt], number: signal.Signals
) -> None:
    engine, attempt = own_attempt
    with in_background(lambda: attempt.run("sh", "-c", "echo x; sleep 600")) as results:
        wait_for(lambda: attempt.stdout.exists() and attempt.out == "x\n")
        engine.end(number)()
        wait_for(lambda: results)
    assert isinstance(results[0], EngineUnavailable), results
    assert attempt.left() == []
    assert attempt.sh("echo again") == "again\n"


@pytest.mark.slow
def test_a_container_that_outlives_its_daemon(own_attempt: tuple[Restartable, Attempt]) -> None:
    engine, attempt = own_attempt
    (engine.root / "daemon.json").write_text('{"live-restore": true}')
    os.kill(engine.pid, signal.SIGHUP)
    with contextlib.closing(docker.APIClient(engine.url)) as client:
        wait_for(lambda: client.info()["LiveRestoreEnabled"])
    script = "echo x; until [ -e /tes-wd/go ]; do sleep 0.1; done; echo y; exit 5"
    with in_background(lambda: attempt.run("sh", "-c", script)) as results:
        wait_for(lambda: attempt.stdout.exists() and attempt.out == "x\n")
        again = engine.end(signal.SIGKILL)
        again()
        (attempt.root / "tes-wd/go").touch()
        wait_for(lambda: results)
    assert results == [Exit(5)]
    assert any("went away" in message for level, message in attempt.said if level == "warning")


class Ill(QuietHandler):
    """An engine that answers, and can do nothing: a full disk, say."""

    def do_GET(self) -> None:
        kind = {"Content-Type": "application/json"}
        if self.path.endswith("/_ping"):
            self.reply(200, b"OK", kind)
        else:
            self.reply(500, b'{"message": "input/output error"}', kind)

    def do_POST(self) -> None:
        self.close_connection = True
        self.do_GET()


def test_an_engine_that_is_ill_may_be_tried_again(attempt: Attempt) -> None:
    with LoopbackHttp(Ill) as server:
        ill = DockerEngine(f"tcp://{server.host}")
        for call in (
            lambda: ill.prepare("busybox", attempt.say),
            lambda: ill.run(attempt.container("true"), lambda: None, attempt.say),
            lambda: ill.sweep(attempt.key, None),
        ):
            with pytest.raises(EngineUnavailable, match="input/output error"):
                call()
