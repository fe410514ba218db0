"""The real cwl-tes 0.3.0, the newest release (2019), against a running server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.clients.conftest import ClientPython, Server
from tests.clients.documented import snippet

WORKFLOW = Path(__file__).parent / "cwl"
GENOMES = {"a.fa": ">1\nACGT\n>2\nGG\n", "b.fa": ">3\nTT\n"}

pytestmark = [
    pytest.mark.clients,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        sys.version_info >= (3, 12), reason="it needs packages that install on Python 3.11 at most"
    ),
]


def test_a_workflow(client_python: ClientPython, server: Server) -> None:
    """A scatter, and a step that gathers what cwl-tes found at the URLs of its outputs."""
    programs = client_python("cwl-tes").parent
    directory = server.allowed / "run"
    shutil.copytree(WORKFLOW, directory)
    for name, text in GENOMES.items():
        (directory / name).write_text(text)
    files = ", ".join(f"{{class: File, path: {name}}}" for name in GENOMES)
    (directory / "job.yml").write_text(f"genomes: [{files}]\n")
    for tool in directory.glob("*.cwl"):
        tool.write_text(tool.read_text().replace("alpine:3.20", server.image))
    here = {"http://127.0.0.1:8000": server.url, "/srv/cwl": str(directory)}
    done = subprocess.run(
        ["sh", "-ec", snippet("cwl-tes", "--tes", here)],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-6000:] + server.account()
    assert (directory / "results" / "sum.txt").read_text() == "3\n"
    reply = httpx.get(f"{server.url}/ga4gh/tes/v1/tasks", params={"view": "BASIC"}).json()
    found = [(task["tags"]["ms-submitter-name"], task["state"]) for task in reply["tasks"]]
    assert found == [("cwl-tes", "COMPLETE")] * 3
    assert {task["tags"]["ms-submitter-workflow-stage"] for task in reply["tasks"]} == {
        "sequences",
        "sequences_2",
        "total",
    }
