"""Directories that tasks work in themselves (MOUNT_DIR), in each engine, through the server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.server import TES, create, ended, start_server
from tests.service.test_api_operation import fails


@dataclass
class Site:
    """A server with a directory of engines' job stores in an allowed one."""

    client: httpx.Client
    image: str
    allowed: Path
    jobs: Path

    def task(self, script: str, *inputs: tuple[Path, str], **more: Any) -> dict[str, Any]:
        """A task with directories as inputs."""
        asked = [{"url": f"file://{u}", "path": p, "type": "DIRECTORY"} for u, p in inputs]
        executor = {"image": self.image, "command": ["sh", "-c", script]}
        return {"executors": [executor], "inputs": asked, **more}

    def run(self, script: str, *inputs: tuple[Path, str], **more: Any) -> Any:
        """The task, once it is COMPLETE."""
        found = ended(self.client, create(self.client, self.task(script, *inputs, **more)), 60)
        assert found["state"] == "COMPLETE", found["logs"][-1]
        return found


@pytest.fixture(
    scope="module", params=["sandbox", pytest.param("docker", marks=pytest.mark.docker)]
)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp(request.param)
    allowed = directory / "allowed"
    jobs = allowed / "jobs"
    jobs.mkdir(parents=True)
    engine = {"local_engine": "sandbox"}
    image = "busybox"
    if request.param == "docker":
        host = request.getfixturevalue("docker_engine").url
        engine = {"local_engine": "docker", "docker_host": host}
        image = request.getfixturevalue("busybox_image")
    settings = {**engine, "allow_dir": allowed, "mount_dir": jobs}
    with start_server(directory / "server", **settings) as running, running.client() as client:
        yield Site(client, image, allowed, jobs)


def test_a_task_works_in_the_directory_itself(site: Site) -> None:
    store = site.jobs / "store ü,1"
    (store / "in").mkdir(parents=True)
    (store / "in" / "a").write_text("from the engine\n")
    (store / "gone").write_text("x")
    place = str(store)
    script = f"""
        cd '{place}'; cat in/a > out; mkdir made; echo more >> in/a; rm gone; ln -s in/a link
    """
    found = site.run(script, (store, place))
    assert (store / "out").read_text() == "from the engine\n"
    assert (store / "in" / "a").read_text() == "from the engine\nmore\n"
    assert (store / "made").is_dir()
    assert (store / "link").is_symlink()
    assert not (store / "gone").exists()
    assert any("works in" in line for line in found["logs"][-1]["system_logs"])
    # At another path, seen by two executors, beside a file and an output in it.
    task = site.task("echo one > /data/store/one", (store, "/data/store"))
    task["inputs"].append({"path": "/data/other/file", "content": "x"})
    second = {"image": site.image, "command": ["cat", "/data/store/one", "/data/other/file"]}
    task["executors"].append({**second, "stdout": "/data/store/all"})
    task["outputs"] = [{"path": "/data/store/one", "url": f"file://{site.allowed}/one"}]
    found = ended(site.client, create(site.client, task), 60)
    assert found["state"] == "COMPLETE", found["logs"]
    assert (store / "one").read_text() == (site.allowed / "one").read_text() == "one\n"
    assert (store / "all").read_text() == "one\nx"


def test_tasks_see_what_others_write_there(site: Site) -> None:
    store = site.jobs / "both"
    store.mkdir()
    wait = "until test -e /s/there; do sleep 0.01; done; echo seen > /s/seen"
    small = {"resources": {"cpu_cores": 0.1}}
    waiting = create(site.client, site.task(wait, (store, "/s"), **small))
    site.run("echo > /s/there", (store, "/s"), **small)
    assert ended(site.client, waiting, 60)["state"] == "COMPLETE"
    assert (store / "seen").read_text() == "seen\n"


def test_other_directories_are_copied_as_ever(site: Site) -> None:
    other = site.allowed / "copied"
    other.mkdir()
    (other / "a").write_text("a")
    site.run("echo changed > /d/a; rm -f /d/b; echo x > /d/c", (other, "/d"))
    assert [path.name for path in other.iterdir()] == ["a"]
    assert (other / "a").read_text() == "a"


def test_what_cannot_be_mounted_is_refused_when_it_is_submitted(site: Site) -> None:
    store = site.jobs / "refused"
    (store / "deep").mkdir(parents=True)
    (site.jobs / "link").symlink_to("/etc")
    for inputs in (
        [(store / "deep", "/d")],
        [(site.jobs, "/d")],
        [(site.jobs / "link", "/d")],
        [(site.jobs / "none", "/d")],
        [(store, "/tes-wd")],
        [(store, "/d"), (store, "/d/e")],
    ):
        reply = site.client.post(f"{TES}/tasks", json=site.task("true", *inputs))
        assert reply.status_code == 400, reply.text
        fields = {each["field"] for each in reply.json()["error"]["fields"]}
        assert any(field.startswith(f"inputs[{len(inputs) - 1}]") for field in fields)


def test_a_directory_that_became_a_link_is_not_mounted(tmp_path: Path) -> None:
    """What was looked at when the task was submitted is looked at again when it is mounted."""
    jobs = tmp_path / "jobs"
    (jobs / "store").mkdir(parents=True)
    settings = {"allow_dir": tmp_path, "mount_dir": jobs}
    with (
        start_server(tmp_path / "server", scheduler="false", **settings) as running,
        running.client() as client,
    ):
        here = Site(client, "busybox", tmp_path, jobs)
        task_id = create(client, here.task("touch /s/escaped", (jobs / "store", "/s")))
        running.stop()
    (jobs / "store").rmdir()
    (tmp_path / "away").mkdir()
    (jobs / "store").symlink_to(tmp_path / "away")
    with start_server(tmp_path / "server", **settings) as running, running.client() as client:
        found = ended(client, task_id)
    assert found["state"] == "SYSTEM_ERROR"
    said = "\n".join(found["logs"][-1]["system_logs"])
    assert "inputs[0]: " in said
    assert "cannot be mounted: it is a link or a file" in said
    assert not any((tmp_path / "away").iterdir())


def test_settings_that_would_let_tasks_out_are_refused(tmp_path: Path) -> None:
    for name in ("allowed/jobs/inner", "other", "shared"):
        (tmp_path / name).mkdir(parents=True)
    allowed = tmp_path / "allowed"
    for mounted, words, more in (
        (tmp_path / "other", "MOUNT_DIR: entry 1 lies in no directory of ALLOW_DIR", {}),
        (f"{allowed}/jobs:{allowed}/jobs/inner", "MOUNT_DIR: entry 2 lies in another one", {}),
        (allowed / "none", "MOUNT_DIR: entry 1 is not a directory", {}),
        ("relative", "MOUNT_DIR: entry 1 must be an absolute path", {}),
        (
            allowed / "jobs",
            "MOUNT_DIR: entry 1 and SHARED_GLOBAL_DIR lie in each other",
            {"shared_global_dir": allowed / "jobs" / "inner"},
        ),
    ):
        said = fails(tmp_path / "data", 2, allow_dir=allowed, mount_dir=mounted, **more)
        assert words in said
