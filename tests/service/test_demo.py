"""The demo, from its first line to its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need_sandbox
from tests.services.docker_engine import DockerEngine
from tests.services.loopback_http import LoopbackHttp, QuietHandler

LENGTHS = [23130, 9416, 6682, 4361, 2322, 2027, 564]
"""Fragments of wild-type lambda cut by HindIII, in bases."""


def demo(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the demo, without the caller's own engines."""
    own = {k: v for k, v in os.environ.items() if k not in ("DOCKER_HOST", "CONTAINER_HOST")}
    return subprocess.run(
        [sys.executable, "-m", "tesazure.cli.demo", "--dir", str(directory)],
        env={**own, "TZ": "UTC", **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def check(done: subprocess.CompletedProcess[str], directory: Path) -> None:
    """It worked, and what it left and showed is right."""
    assert done.returncode == 0, done.stdout + done.stderr
    ladder = (directory / "results/ladder.tsv").read_text().splitlines()
    assert [int(line.split()[0]) for line in ladder[1:]] == LENGTHS
    assert len(list((directory / "results/fragments").iterdir())) == len(LENGTHS)
    assert "GC         49.86 %" in (directory / "results/summary.txt").read_text()
    for state in ("QUEUED", "RUNNING", "COMPLETE"):
        assert f" {state}\n" in done.stdout
    assert "7 checksums of the fragments agree" in done.stdout
    assert "/docs" in done.stdout


@pytest.fixture
def sandbox() -> None:
    need_sandbox()


@pytest.mark.usefixtures("sandbox")
def test_demo_in_the_sandbox(tmp_path: Path) -> None:
    done = demo(tmp_path / "out", APP_LOCAL_ENGINE="sandbox")
    check(done, tmp_path / "out")
    assert "sandbox" in done.stdout
    check(demo(tmp_path / "out", APP_LOCAL_ENGINE="sandbox"), tmp_path / "out")


@pytest.mark.docker
def test_demo_in_docker(docker_engine: DockerEngine, busybox_image: str, short_dir: Path) -> None:
    done = demo(short_dir / "out", DOCKER_HOST=docker_engine.url)
    check(done, short_dir / "out")
    assert "engine docker" in done.stdout
    assert "sandbox" not in done.stdout


@pytest.fixture
def empty_engine() -> Iterator[str]:
    """URL of something that speaks Docker's API as an engine without images or registry does."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.reply(200, b"[]")

        def do_POST(self) -> None:
            self.close_connection = True
            self.reply(404, b'{"message": "no such host"}')

    with LoopbackHttp(Handler) as engine:
        yield f"tcp://{engine.host}"


@pytest.mark.usefixtures("sandbox")
def test_demo_with_an_engine_that_has_no_images(tmp_path: Path, empty_engine: str) -> None:
    done = demo(tmp_path / "out", DOCKER_HOST=empty_engine, CONTAINER_HOST="unix:///nowhere")
    check(done, tmp_path / "out")
    assert "docker runs, but has no image" in done.stdout


def test_demo_says_why_it_cannot_work(tmp_path: Path) -> None:
    nothing = {"APP_LOCAL_ENGINE": "sandbox", "PATH": str(tmp_path)}
    done = demo(tmp_path / "out", **nothing)
    assert done.returncode == 2
    assert "there is no program bwrap; apt install bubblewrap" in done.stderr
    assert "apt install bubblewrap" in done.stderr
    done = demo(tmp_path / "out", APP_PORTT="1")
    assert done.returncode == 2
    assert "did you mean APP_PORT?" in done.stderr
    (tmp_path / "file").touch()
    assert demo(tmp_path / "file" / "out", APP_LOCAL_ENGINE="sandbox").returncode == 2
