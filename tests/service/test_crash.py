"""kill -9 of everything, at random moments, under load: nothing is lost, nothing runs twice."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest

from tesazure.model import Resources, State
from tests.conftest import need_sandbox, refuse
from tests.service import server
from tests.service.assembly import Assembly, eventually, logs, processes
from tests.service.crash import SHARED, Crash
from tests.services.docker_engine import DockerEngine

SEED = int(os.environ.get("CRASH_SEED", "20261122"))


def torment(crash: Crash, tasks: int, kills: int) -> None:
    """Kill while tasks come in and run; then let it end, and check every promise."""
    crash.start()
    with crash.submitting(tasks):
        victims = [crash.kill_server, crash.kill_runner, crash.kill_container]
        weights = [5, 4, 3]
        deadline = time.monotonic() + 300
        while crash.kills.total() < kills and time.monotonic() < deadline:
            time.sleep(crash.chance.random() * 0.8)
            if crash.chance.random() < 0.07:
                crash.kill_spawner()
            else:
                crash.chance.choices(victims, weights)[0]()
    crash.kill_server()
    found = crash.settled()
    counts = crash.check(found)
    crash.end(signal.SIGTERM)
    crash.check_nothing_remains()
    print(
        f"\n{len(crash.accepted)} tasks accepted ({len(found)} in the store,"
        f" {crash.unanswered} requests without an answer); killed: {dict(crash.kills)};"
        f" seen: {dict(counts)}"
    )
    assert crash.kills.total() >= kills
    assert len(crash.accepted) >= tasks


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_everything_under_load(short_dir: Path) -> None:
    need_sandbox()
    with contextlib.closing(Crash(short_dir, SEED, "unused", local_engine="sandbox")) as crash:
        torment(crash, tasks=200, kills=24)


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.timeout(600)
def test_kill_everything_under_load_with_docker(
    short_dir: Path, docker_engine: DockerEngine, busybox_image: str
) -> None:
    crash = Crash(
        short_dir, SEED, busybox_image, local_engine="docker", docker_host=docker_engine.url
    )
    with contextlib.closing(crash):
        torment(crash, tasks=40, kills=8)
    with contextlib.closing(docker.DockerClient(docker_engine.url)) as client:
        left = [c for c in client.api.containers(all=True) if str(short_dir) in str(c)]
    assert not left


# -- one fault at a time ------------------------------------------------------------------------


@pytest.fixture
def crash(short_dir: Path) -> Iterator[Crash]:
    """A server that one test may mistreat."""
    need_sandbox()
    crash = Crash(short_dir, SEED, "unused", local_engine="sandbox")
    with contextlib.closing(crash):
        yield crash


def waits(crash: Crash, name: str) -> dict[str, object]:
    """A task that leaves the mark `name`, and ends once there is a mark `go`."""
    script = f"echo ran >> {SHARED}/{name}; until [ -e {SHARED}/go ]; do sleep 0.05; done"
    return server.task("sh", "-c", script)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_takes_up_what_ran_before(crash: Crash, number: signal.Signals) -> None:
    crash.start()
    with crash.client() as client:
        task_id = server.create(client, waits(crash, "a"))
    server.until((crash.marks / "a").exists)
    crash.end(number)
    assert crash.is_busy(), "the task outlives its server"
    crash.start()
    with crash.client() as client:
        assert server.get(client, task_id)["state"] == "RUNNING"
        (crash.marks / "go").touch()
        task = server.ended(client, task_id)
    assert task["state"] == "COMPLETE"
    assert len(task["logs"]) == 1
    assert (crash.marks / "a").read_text() == "ran\n"


def test_a_cancel_that_the_server_did_not_live_to_carry_out(crash: Crash) -> None:
    crash.start()
    with crash.client() as client:
        task_id = server.create(client, server.task("sh", "-c", f"echo > {SHARED}/c; sleep 5711"))
        server.until((crash.marks / "c").exists)
        client.post(f"{server.TES}/tasks/{task_id}:cancel")
    crash.end(signal.SIGKILL)
    crash.start()
    with crash.client() as client:
        assert server.ended(client, task_id)["state"] == "CANCELED"
    assert not processes("sleep 5711")


@pytest.mark.postgres
def test_a_server_that_is_killed_is_replaced_by_its_neighbour(
    short_dir: Path, postgres_url: str
) -> None:
    need_sandbox()
    shared = short_dir / "marks"
    shared.mkdir()
    with contextlib.ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            (short_dir / name).mkdir()
            crash = Crash(short_dir / name, SEED, "unused", local_engine="sandbox", lease_s=2)
            crash.settings |= {"database_url": postgres_url, "shared_global_dir": shared}
            crash.settings |= {"secrets_key": base64.b64encode(bytes(32)).decode()}
            crash.marks = shared
            servers.append(stack.enter_context(contextlib.closing(crash)))
        one, two = servers
        one.start()
        with one.client() as client:
            ids = [server.create(client, waits(one, f"n{number}")) for number in range(4)]
        server.until(lambda: all((shared / f"n{number}").exists() for number in range(4)))
        two.start()
        one.end(signal.SIGKILL)
        (shared / "go").touch()
        with two.client() as client:
            for number, task_id in enumerate(ids):
                task = server.ended(client, task_id)
                assert (task["state"], len(task["logs"])) == ("COMPLETE", 1)
                assert (shared / f"n{number}").read_text() == "ran\n"
            server.until(lambda: not list(one.data.glob("attempts/*/node.json")))


class Tap:
    """A Unix socket in front of another one, which can be shut."""

    def __init__(self, path: Path, behind: str) -> None:
        self.path, self._behind = path, behind.removeprefix("unix://")
        self._socket: socket.socket | None = None
        self._open: list[socket.socket] = []

    def open(self) -> None:
        """Let connections through."""
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.path))
        self._socket.listen(64)
        threading.Thread(target=self._accept, args=(self._socket,), daemon=True).start()

    def shut(self) -> None:
        """Cut all connections, and refuse new ones."""
        assert self._socket is not None
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._behind)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.docker
def test_an_engine_that_vanishes_and_comes_back(
    short_dir: Path, docker_engine: DockerEngine, busybox_image: str
) -> None:
    tap = Tap(short_dir / "tap.sock", docker_engine.url)
    tap.open()
    url = f"unix://{tap.path}"
    crash = Crash(short_dir, SEED, busybox_image, local_engine="docker", docker_host=url)
    with contextlib.closing(crash), crash.started() as client:
        script = f"echo ran >> {SHARED}/v; sleep 2"
        cut_off = server.create(client, in_image(busybox_image, script))
        server.until((crash.marks / "v").exists)
        tap.shut()
        later = server.create(client, in_image(busybox_image, "true"))

        def is_explained() -> bool:
            said = [log["system_logs"] for log in server.get(client, later).get("logs", [])]
            return str(tap.path) in str(said)

        server.until(is_explained)
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert str(tap.path) in ready.text
        tap.open()
        server.until(lambda: client.get("/readyz").status_code == 200)
        for task_id in (cut_off, later):
            task = server.ended(client, task_id, 90)
            assert task["state"] == "COMPLETE"
        assert "another attempt follows" in task["logs"][0]["system_logs"][-1]
        runs = len((crash.marks / "v").read_text().split())
        assert runs <= len(server.get(client, cut_off)["logs"])
        server.until(lambda: not list(crash.data.glob("attempts/*/node.json")), 60)


def in_image(image: str, script: str) -> dict[str, object]:
    """A task of one shell script."""
    return {"executors": [{"image": image, "command": ["sh", "-c", script]}]}


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    """A file system of 8 MB; only root can mount one."""
    if os.geteuid() != 0:
        refuse("mounting a small file system needs root")
    path = short_dir / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.fixture
async def cramped(short_dir: Path, small_disk: Path) -> AsyncIterator[Assembly]:
    """A server with its attempts on the small disk."""
    need_sandbox()
    one = Assembly(short_dir)
    (short_dir / "one").symlink_to(small_disk)
    await one.start()
    yield one
    await one.close()


async def test_a_full_disk_is_named_and_loses_nothing(cramped: Assembly, small_disk: Path) -> None:
    one = cramped
    fillers = [small_disk / name for name in ("first", "second")]
    megabyte = Resources(disk_gb=0.001)
    running = await one.submit(
        f"echo x > {SHARED}/r; until [ -e {SHARED}/go ]; do sleep 0.05; done", megabyte
    )
    await one.marked("r")
    fill(fillers[0])
    (one.marks / "go").touch()
    assert (await one.until(running)).state is State.COMPLETE, "its report had room kept aside"
    await one.released(running)
    fill(fillers[1])  # that room
    waiting = await one.submit("true", megabyte)
    await eventually(lambda: "0.001 GB of disk" in str(one.scheduler.waiting_for(waiting)))
    assert (await one.record(waiting)).state is State.QUEUED
    checks = {check.name: check for check in await one.backend.check()}
    assert not checks["disk"].ok
    assert "0.00 GB are free" in checks["disk"].detail
    for filler in fillers:
        filler.unlink()
    record = await one.released(waiting)
    assert (record.state, len(record.attempts)) == (State.COMPLETE, 1)
    greedy = await one.released(await one.submit("head -c 20000000 /dev/zero > /tmp/x", megabyte))
    assert greedy.state is State.EXECUTOR_ERROR
    assert logs(greedy)[0].logs[0].exit_code == 1
