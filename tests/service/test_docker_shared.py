"""Shared directories on a real dockerd, where the image has files in them and where not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.errors import EngineError
from tesazure.runner.engines.base import Exit, Mount
from tesazure.runner.engines.docker import DockerEngine
from tests.service.engine_case import Attempt, attempt_on, image_with
from tests.services import docker_engine as service

pytestmark = pytest.mark.docker

SHARED = ("/tes-wd", "/tmp")


@pytest.fixture
def attempt(
    docker_engine: service.DockerEngine, busybox_image: str, short_dir: Path
) -> Iterator[Attempt]:
    yield from attempt_on(DockerEngine(docker_engine.url), busybox_image, short_dir)


def test_files_of_the_image_stay_visible_and_changes_reach_the_next_executor(
    attempt: Attempt,
) -> None:
    shared = (*SHARED, "/etc", "/opt/tool")
    attempt.directory("/etc/conf")
    (attempt.root / "etc/conf/mine").write_text("mine")
    attempt.directory("/opt/tool")
    files = {"opt/tool/data": "image's"}
    with image_with(attempt.url, files) as image:
        script = """
            cat /etc/conf/mine /opt/tool/data; test -s /etc/passwd
            echo new > /etc/new; mkdir -p /etc/deep/er; echo 1 > "/etc/deep/er/ü 1"
            ln -s ../passwd /etc/deep/link; ln /etc/new /etc/deep/hard
            rm /etc/conf/mine; echo changed > /opt/tool/data; mkfifo /etc/pipe
            mkdir /etc/empty; touch /etc/conf/later; chmod 640 /etc/new
        """
        assert attempt.sh(script, shared=shared, image=image) == "mineimage's"
        etc = attempt.root / "etc"
        assert {str(path.relative_to(etc)) for path in etc.rglob("*")} == {
            *("conf", "conf/later", "empty", "new"),
            *("deep", "deep/er", "deep/er/ü 1", "deep/hard", "deep/link"),
        }
        assert os.readlink(etc / "deep/link") == "../passwd"  # noqa: PTH115 - as it is
        assert stat.S_IMODE((etc / "new").stat().st_mode) == 0o640
        assert [m for level, m in attempt.said if level == "warning" and "/etc/pipe" in m]
        again = "cat /etc/new '/etc/deep/er/ü 1' /etc/deep/link /opt/tool/data; rm -r /etc/deep"
        text = attempt.sh(again, shared=shared, image=image)
        assert text.startswith("new\n1\nroot:")
        assert text.endswith("changed\n")
        assert not (etc / "deep").exists()


def test_files_in_the_top_directory(attempt: Attempt) -> None:
    (attempt.root / "in.txt").write_text("input")
    (attempt.root / "gone").write_text("x")
    (attempt.root / "data").mkdir()
    (attempt.root / "data/big").write_text("bound")
    script = """
        cat /in.txt /data/big; echo out > /out.txt; rm /gone; mkdir /results; echo 1 > /results/1
        echo x > /tmp/x; echo x > /var/log; echo y > /data/y; echo z > /etc/z; mkdir /results/none
    """
    assert attempt.sh(script, shared=("/",)) == "inputbound"
    found = {str(path.relative_to(attempt.root)) for path in attempt.root.rglob("*")}
    assert found == {
        *("in.txt", "out.txt", "results", "results/1", "results/none", "tmp", "tmp/x", "tes-wd"),
        *("data", "data/big", "data/y"),
    }
    assert attempt.sh("cat /out.txt /results/1 /tmp/x", shared=("/",)) == "out\n1\nx\n"


def test_a_stream_in_a_merged_directory_is_left_alone(attempt: Attempt) -> None:
    attempt.stdout = attempt.root / "out.txt"
    attempt.directory("/etc")
    attempt.stderr = attempt.root / "etc/err.txt"
    exit_ = attempt.run(
        *("sh", "-c", "echo streamed; echo err >&2; echo x > /x; touch /out.txt /etc/err.txt"),
        shared=("/",),
        streams={"stdout": "/out.txt", "stderr": "/etc/err.txt"},
    )
    assert (exit_, attempt.out, attempt.err) == (Exit(0), "streamed\n", "err\n")
    assert (attempt.root / "x").exists()


def test_volumes_with_files_are_brought_back(attempt: Attempt) -> None:
    attempt.directory("/var/lib/db")
    (attempt.root / "var/lib/db/in").write_text("in")
    files = {"var/lib/": "", "var/lib/db/": "", "var/lib/db/seed": "seed"}
    with image_with(attempt.url, files, ("VOLUME /var/lib/db",)) as image:
        script = "cd /var/lib/db; cat in seed; echo new > new; echo x > seed"
        text = attempt.sh(script, image=image, shared=(*SHARED, "/var/lib/db"))
    assert text == "inseed"
    assert (attempt.root / "var/lib/db/new").read_text() == "new\n"
    assert (attempt.root / "var/lib/db/seed").read_text() == "x\n"


def test_directories_of_the_image_behind_links(attempt: Attempt) -> None:
    attempt.directory("/opt/current/etc")
    files = {"opt/": "", "opt/v1/": "", "opt/v1/etc/": "", "opt/v1/etc/conf": "image's"}
    with image_with(attempt.url, {**files, "opt/current": "-> v1"}) as image:
        script = "cat /opt/current/etc/conf; echo new > /opt/current/etc/new"
        shared = (*SHARED, "/opt/current/etc")
        assert attempt.sh(script, image=image, shared=shared) == "image's"
    assert (attempt.root / "opt/current/etc/new").read_text() == "new\n"


def test_what_a_task_planted_leads_nowhere(attempt: Attempt, short_dir: Path) -> None:
    outside = short_dir / "outside"
    outside.mkdir()
    attempt.sh(f"ln -s {outside} /etc/way; ln -s {outside} /way", shared=("/", "/etc"))
    attempt.directory("/etc")
    attempt.sh("rm -f /etc/way; mkdir /etc/way; echo x > /etc/way/x", shared=(*SHARED, "/etc"))
    attempt.sh("rm -f /way; mkdir /way; echo x > /way/x", shared=("/",))
    assert list(outside.iterdir()) == []
    assert (attempt.root / "way/x").read_text() == "x\n"


def test_mount_points_are_not_made_by_root(attempt: Attempt, short_dir: Path) -> None:
    outside = short_dir / "global"
    outside.mkdir()
    mounts = (Mount(outside, "/tes-wd/shared-global"),)
    attempt.sh("echo x > /tes-wd/shared-global/x", mounts=mounts)
    assert (outside / "x").exists()
    assert list((attempt.root / "tes-wd/shared-global").iterdir()) == []


def test_the_kernels_directories_are_refused(attempt: Attempt) -> None:
    with pytest.raises(EngineError, match="/proc/x"):
        attempt.run("true", shared=(*SHARED, "/proc/x"))
