"""Tasks as Nextflow's TES plugin makes them, run by the server. Nextflow itself is not run.

Built from the plugin's source (`TesTaskHandler.newTesTask`, nextflow-io/nextflow 93b818a8): control
files and patterns in one directory, outputs without a type, and results that Nextflow looks for in
its own work directory also after a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import Server, serving
from tests.clients.documented import snippet
from tests.service.server import OLD, create, ended, get

WRAPPER = """\
cd /job
bash .command.sh > .command.out 2> .command.err
code=$?
echo $code > .exitcode
cat .command.out .command.err
exit $code
"""


@pytest.fixture
def server(short_dir: Path) -> Iterator[Server]:
    """A server whose tasks run in the sandbox: the wrapper needs bash."""
    with serving(short_dir, "any", local_engine="sandbox") as running:
        yield running


def nextflow_task(work: Path, script: str, reads: Path, outputs: dict[str, str]) -> dict[str, Any]:
    """One process of a pipeline; `outputs` maps the patterns of its output block to their types."""
    work.mkdir(parents=True)
    (work / ".command.sh").write_text(script)
    (work / ".command.run").write_text(WRAPPER)
    control = (".command.out", ".command.err", ".command.log", ".exitcode")
    patterns = [
        {"path": f"/job/{name}", "type": kind}
        | ({"path_prefix": "/job", "url": str(work)} if "*" in name else {"url": f"{work}/{name}"})
        for name, kind in outputs.items()
    ]
    command = "bash /job/.command.run 2>&1 | tee /job/.command.log"
    return {
        "name": "COUNT (1)",
        "inputs": [
            *(
                {"url": f"{work}/{name}", "path": f"/job/{name}", "type": "FILE"}
                for name in (".command.sh", ".command.run")
            ),
            {"url": str(reads), "path": f"/job/{reads.name}", "type": "FILE"},
        ],
        "outputs": [
            *({"url": f"{work}/{name}", "path": f"/job/{name}"} for name in control),
            *patterns,
        ],
        "resources": {"cpu_cores": 1, "ram_gb": 0.25, "disk_gb": None},
        "executors": [
            {
                "image": "any",
                "command": ["bash", "-o", "pipefail", "-c", command],
                "workdir": "/job",
            }
        ],
    }


@pytest.fixture
def configuration(server: Server) -> dict[str, str]:
    """What the configuration in docs/clients.md says, for this server."""
    here = {"http://127.0.0.1:8000": server.url, "/srv/work": f"{server.allowed}/work"}
    said = dict(re.findall(r"(\S+) = '(.+)'", snippet("Nextflow", "tes.endpoint", here)))
    assert said["process.executor"] == "tes"
    return said


@pytest.fixture
def client(configuration: dict[str, str]) -> Iterator[httpx.Client]:
    """An HTTP client of the configured endpoint, to which the plugin appends /v1/tasks."""
    endpoint = configuration["tes.endpoint"]
    with httpx.Client(base_url=endpoint, timeout=30, trust_env=False) as opened:
        yield opened


@pytest.fixture
def directory(configuration: dict[str, str]) -> Path:
    """The configured work directory."""
    return Path(configuration["workDir"])


@pytest.fixture
def reads(server: Server) -> Path:
    """An input in the pipeline's launch directory, with a name to be careful with."""
    path = server.allowed / "sample 1 (é).fa"
    path.write_text(">a\nACGT\n>b\nGG\n")
    return path


def test_a_process_finds_its_outputs_in_its_work_directory(
    directory: Path, client: httpx.Client, reads: Path
) -> None:
    work = directory / "ab" / "cdef01"
    script = (
        "grep -c '>' *.fa; echo one > x.count; echo two > y.count\n"
        "mkdir -p d1 d2/deep; echo 1 > d1/f; echo 2 > d2/deep/g"
    )
    wanted = {"*.count": "FILE", "d*": "DIRECTORY"}
    task = ended(client, create(client, nextflow_task(work, script, reads, wanted), OLD))
    assert task["state"] == "COMPLETE", task["logs"]
    assert (work / ".exitcode").read_text() == "0\n"
    assert (work / ".command.out").read_text() == (work / ".command.log").read_text() == "2\n"
    assert [(work / f"{name}.count").read_text() for name in "xy"] == ["one\n", "two\n"]
    assert (work / "d1" / "f").read_text() == "1\n"
    assert (work / "d2" / "deep" / "g").read_text() == "2\n"


def test_a_failed_process_leaves_its_exit_status_and_messages(
    directory: Path, client: httpx.Client, reads: Path
) -> None:
    work = directory / "00" / "failed"
    script = "echo half > x.count; echo no such reference >&2; exit 7"
    wanted = {"*.count": "FILE", "report.html": "FILE"}
    task_id = create(client, nextflow_task(work, script, reads, wanted), OLD)
    assert ended(client, task_id)["state"] == "EXECUTOR_ERROR"
    assert get(client, task_id, prefix=OLD)["logs"][0]["logs"][0]["exit_code"] == 7
    assert (work / ".exitcode").read_text() == "7\n"
    assert (work / ".command.err").read_text() == "no such reference\n"
    assert (work / "x.count").read_text() == "half\n"
    assert not (work / "report.html").exists()


def test_a_process_may_leave_out_what_its_pipeline_calls_optional(
    directory: Path, client: httpx.Client, reads: Path
) -> None:
    """Nextflow names optional outputs like all others, and looks for each itself."""
    work = directory / "11" / "optional"
    wanted = {"*.count": "FILE", "report.html": "FILE"}
    task_id = create(client, nextflow_task(work, "echo 1 > x.count", reads, wanted), OLD)
    assert ended(client, task_id)["state"] == "COMPLETE"
    assert (work / "x.count").read_text() == "1\n"
    notes = get(client, task_id, prefix=OLD)["logs"][0]["system_logs"]
    assert any("report.html" in note for note in notes), notes
