"""The real Toil and its TES plugin: workflows in CWL and in WDL, each job a task of the server.

The tasks run Toil, too, in an image that has it. No container can be made inside their containers:
the CWL tools name no image here, and for the WDL tasks a stand-in for Singularity runs the command
in place (`scripts/singularity`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from tests.clients.client_image import PATH
from tests.clients.conftest import ClientImage, ClientPython, Server, serving
from tests.clients.documented import snippet
from tests.services.docker_engine import DockerEngine

HERE = Path(__file__).parent
GENOMES = {"a.fa": ">1\nACGT\n>2\nGG\n", "b.fa": ">3\nTT\n"}

pytestmark = [
    pytest.mark.clients,
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture
def image(client_python: ClientPython, docker_engine: DockerEngine, image_of: ClientImage) -> str:
    """Reference of an image that has Toil, by a name that Toil does not look up in a registry:
    one that contains the commit that it was made from (`checkDockerImageExists`)."""
    command = [client_python("toil"), "-c", "from toil.version import currentCommit as c; print(c)"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    with contextlib.closing(docker.DockerClient(docker_engine.url)) as client:
        client.images.get(image_of("toil")).tag("tesazure-test/toil", commit)
    return f"tesazure-test/toil:{commit}"


@pytest.fixture
def directory(short_dir: Path) -> Path:
    """Where a workflow is started, with its inputs."""
    directory = short_dir / "workflow"
    directory.mkdir()
    for name, text in GENOMES.items():
        (directory / name).write_text(text)
    return directory


def test_cwl(
    client_python: ClientPython, docker_engine: DockerEngine, image: str, directory: Path
) -> None:
    for source in (HERE / "cwl").iterdir():
        lines = source.read_text().splitlines(keepends=True)
        text = "".join(
            line for line in lines if "DockerRequirement" not in line and "hints" not in line
        )
        (directory / source.name).write_text(text)
    files = [{"class": "File", "path": name} for name in GENOMES]
    (directory / "job.yml").write_text(json.dumps({"genomes": files}))
    names = run("toil-cwl-runner", directory, docker_engine, image, client_python)
    assert (directory / "results" / "sum.txt").read_text() == "3\n"
    jobs = ["count.cwl.0.sequences.cwl", "count.cwl.1.sequences.cwl", "count.cwl.total.total.cwl"]
    assert names == jobs


def test_wdl(
    client_python: ClientPython, docker_engine: DockerEngine, image: str, directory: Path
) -> None:
    shutil.copy(HERE / "wdl" / "count.wdl", directory)
    files = [str(directory / name) for name in GENOMES]
    (directory / "inputs.json").write_text(json.dumps({"count.genomes": files}))
    names = run("toil-wdl-runner", directory, docker_engine, image, client_python)
    (summed,) = (directory / "results").rglob("sum.txt")
    assert summed.read_text() == "3\n"
    commands = ["count.0.sequences.command", "count.1.sequences.command", "count.total.command"]
    assert [name for name in names if name.endswith(".command")] == commands


def run(
    program: str,
    directory: Path,
    engine: DockerEngine,
    image: str,
    client_python: ClientPython,
) -> list[str]:
    """Run the program's snippet; the steps that were tasks, sorted."""
    root = directory.parent
    shared = root / "shared"
    (shared / "bin").mkdir(parents=True)
    shutil.copy(HERE / "scripts" / "singularity", shared / "bin")
    programs = client_python("toil").parent
    settings = {
        "local_engine": "docker",
        "docker_host": engine.url,
        "shared_global_dir": str(shared),
        "mount_dir": str(root / "allowed"),
    }
    with serving(root, image, **settings) as server:
        here = {"http://127.0.0.1:8000": server.url, "/srv/toil": str(server.allowed)}
        script = snippet("Toil", program, here).rstrip()
        done = subprocess.run(
            ["sh", "-ec", f'{script} --setEnv "PATH=/tes-wd/shared-global/bin:{PATH}"'],
            cwd=directory,
            env={
                **os.environ,
                "PATH": f"{programs}:{os.environ['PATH']}",
                "TOIL_APPLIANCE_SELF": server.image,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-8000:] + server.account()
        return steps(server)


def steps(server: Server) -> list[str]:
    """What the server takes for the steps of Toil's tasks, all of them complete."""
    reply = httpx.get(f"{server.url}/ga4gh/tes/v1/tasks", params={"view": "BASIC"})
    tasks: list[dict[str, Any]] = reply.raise_for_status().json()["tasks"]
    assert {(task["tags"]["ms-submitter-name"], task["state"]) for task in tasks} == {
        ("toil", "COMPLETE")
    }
    return sorted(task["tags"]["ms-submitter-workflow-stage"] for task in tasks)
