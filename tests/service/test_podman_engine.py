"""The Podman engine on a real `podman system service`, where it differs from Docker's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.errors import EngineUnavailable, ImageUnavailable
from tesazure.runner.engines.base import Exit, Mount
from tesazure.runner.engines.docker import DockerEngine
from tests.conftest import refuse
from tests.service.engine_case import Attempt, attempt_on, image_with, in_background, wait_for
from tests.services import base
from tests.services.podman_service import PodmanService

pytestmark = pytest.mark.podman

SHARED = ("/tes-wd", "/tmp")


@pytest.fixture
def attempt(podman_engine: PodmanService, short_dir: Path) -> Iterator[Attempt]:
    yield from podman_attempt(podman_engine, short_dir)


def podman_attempt(service: PodmanService, path: Path) -> Iterator[Attempt]:
    engine = DockerEngine(service.url, "podman")
    yield from attempt_on(engine, service.image("busybox"), path)


def test_the_images_configuration(podman_engine: PodmanService, attempt: Attempt) -> None:
    assert attempt.sh("echo x", image=podman_engine.image("entrypoint")) == "x\n"
    script = 'id -u; pwd; echo "$FROM_IMAGE"; echo x > /tes-wd/out'
    image = podman_engine.image("configured")
    assert attempt.sh(script, image=image) == "1000\n/srv\nyes\n"
    assert (attempt.root / "tes-wd/out").read_text() == "x\n"
    assert "NoNewPrivs:\t1" in attempt.sh("cat /proc/self/status")


def test_a_single_word_is_a_command_whatever_it_looks_like(attempt: Attempt) -> None:
    exit_ = attempt.run('["sh"]')
    assert exit_.exit_code == 127


def test_paths_are_no_options(attempt: Attempt, short_dir: Path) -> None:
    # In Podman's own reading of a Docker mount, this one would mount the host's /etc.
    directory = "/data,source=/etc,x=y:ro"
    attempt.directory(directory)
    text = attempt.sh(f"ls -A '{directory}'; echo x > '{directory}/x'", shared=(*SHARED, directory))
    assert text == ""
    assert (attempt.root / directory[1:] / "x").read_text() == "x\n"
    outside = short_dir / 'o,ut"side'
    outside.mkdir()
    attempt.sh("echo y > /g,ro=true/y", mounts=(Mount(outside, "/g,ro=true"),))
    assert (outside / "y").read_text() == "y\n"


def test_out_of_memory_is_named_every_time(attempt: Attempt) -> None:
    for _ in range(3):
        exit_ = attempt.run("tail", "/dev/zero", ram_bytes=32 * 2**20)
        assert exit_ == Exit(137, out_of_memory=True)
    script = "tail /dev/zero; exit 3"
    assert attempt.run("sh", "-c", script, ram_bytes=32 * 2**20) == Exit(3, out_of_memory=True)
    assert attempt.run("sh", "-c", "exit 137", ram_bytes=32 * 2**20) == Exit(137)


def test_merged_directories(attempt: Attempt) -> None:
    attempt.directory("/etc")
    (attempt.root / "etc/mine").write_text("mine")
    (attempt.root / "in.txt").write_text("input")
    script = """
        cat /etc/mine /in.txt; test -s /etc/passwd; ln -s passwd /etc/link; rm /etc/mine
        mkdir -p /etc/a/b /results; echo 1 > /etc/a/b/c; ln -s c /etc/a/b/l; echo out > /out.txt
        echo 2 > /results/2
    """
    assert attempt.sh(script, shared=("/",)) == "mineinput"
    found = {str(path.relative_to(attempt.root)) for path in attempt.root.rglob("*")}
    assert found == {
        *("etc", "etc/link", "etc/a", "etc/a/b", "etc/a/b/c", "etc/a/b/l"),
        *("in.txt", "out.txt", "results", "results/2", "tmp", "tes-wd"),
    }
    assert (attempt.root / "etc/link").is_symlink()
    text = attempt.sh("cat /etc/link /etc/a/b/l /out.txt /results/2", shared=("/",))
    assert text.startswith("root:")
    assert text.endswith("1\nout\n2\n")


def test_volumes_of_the_image(attempt: Attempt) -> None:
    before = attempt.volumes()
    attempt.directory("/var/db")
    files = {"var/db/": "", "var/db/seed": "seed"}
    with image_with(attempt.url, files, ("VOLUME /var/db", "VOLUME /tes-wd/d")) as image:
        script = "cat /var/db/seed; echo new > /var/db/new; echo kept > /tes-wd/d/f"
        assert attempt.sh(script, image=image, shared=(*SHARED, "/var/db")) == "seed"
        assert attempt.volumes() == before
    assert (attempt.root / "var/db/new").read_text() == "new\n"
    assert (attempt.root / "tes-wd/d/f").read_text() == "kept\n"


def test_a_large_output_is_exact(attempt: Attempt) -> None:
    assert attempt.run("sh", "-c", "yes 0123456789 | head -c 104857600") == Exit(0)
    assert attempt.stdout.stat().st_size == 104857600
    with attempt.stdout.open("rb") as file:
        while chunk := file.read(11 * 2**16):
            assert chunk == (b"0123456789\n" * 2**16)[: len(chunk)]


def test_stdin_that_is_not_read_disturbs_no_stream(attempt: Attempt, short_dir: Path) -> None:
    source = short_dir / "in"
    with source.open("wb") as file:
        file.truncate(64 * 2**20)
    script = "exec <&-; sleep 0.3; head -c 1000000 /dev/zero; echo end >&2"
    assert attempt.run("sh", "-c", script, stdin=source) == Exit(0)
    assert (attempt.stdout.stat().st_size, attempt.err) == (1_000_000, "end\n")
    assert attempt.run("wc", "-c", stdin=source) == Exit(0)
    assert attempt.out == f"{64 * 2**20}\n"


def test_a_registry_that_is_not_there(attempt: Attempt) -> None:
    with base.nobodys_port() as port, pytest.raises(ImageUnavailable, match="refused"):
        attempt.engine.prepare(f"127.0.0.1:{port}/a/b:1", attempt.say)
    attempt.said.clear()
    attempt.engine.prepare(attempt.image, attempt.say)
    assert attempt.said == []


def test_a_container_outlives_the_service(short_dir: Path) -> None:
    try:
        service = PodmanService(short_dir / "podman")
        with service:
            (short_dir / "attempt").mkdir()
            for attempt in podman_attempt(service, short_dir / "attempt"):
                outlive(service, attempt)
    except base.Unavailable as error:
        refuse(str(error))


def outlive(service: PodmanService, attempt: Attempt) -> None:
    script = "echo x; until [ -e /tes-wd/go ]; do sleep 0.1; done; echo y; exit 5"

    def kill_service() -> None:
        named = b"\0system\0service\0"
        for pid in list(base.processes_naming(service.root)):
            if named in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda pid=pid: not base.is_alive(pid))  # type: ignore[misc]
        service.socket.unlink(missing_ok=True)

    with in_background(lambda: attempt.run("sh", "-c", script)) as results:
        wait_for(lambda: attempt.stdout.exists() and attempt.out == "x\n")
        kill_service()
        service.start()
        (attempt.root / "tes-wd/go").touch()
        wait_for(lambda: results)
    assert results == [Exit(5)]
    assert any("went away" in message for level, message in attempt.said if level == "warning")
    kill_service()
    with pytest.raises(EngineUnavailable):
        DockerEngine(service.url, "podman").run(attempt.container("true"), int, attempt.say)
    service.start()
