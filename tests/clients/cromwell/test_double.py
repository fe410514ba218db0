"""The double of Cromwell does what the source of Cromwell says, by the reference configurations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.cromwell.double import (
    GLOB_OF_2019,
    TEMPORARY_OF_2019,
    Call,
    Configuration,
    Workflow,
)
from tests.clients.cromwell.places import OnDisk
from tests.clients.cromwell.test_cromwell import LOCAL, Begin, begin

__all__ = ["begin"]

REFERENCE = Path(__file__).parents[3] / "deploy" / "cromwell"
RECORDED = {
    41: ("cromwell-41-2019-05", {"ram_gb": 2.0, "disk_gb": 10.0}),
    92: (
        "cromwell-92-2026-01",
        {
            "ram_gb": 2.0,
            "disk_gb": 10.0,
            "preemptible": True,
            "backend_parameters": {"vm_size": "Standard_D2_v3"},
        },
    ),
}
"""The requests that were written down of each version, and what their WDL asks for."""
GLOB = re.compile(r"glob-[0-9a-f]{32}")


def recorded(shared_dir: Path, name: str) -> Any:
    """What a file says of Cromwell; its absence skips."""
    file = shared_dir / "clients" / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    return json.loads(file.read_text())


def arranged(body: dict[str, Any], workflow: str) -> Any:
    """A request whatever the order of its outputs, its workflow's id and its glob's pattern."""
    text = GLOB.sub("glob-of-a-pattern", json.dumps(body).replace(workflow, "ID"))
    body = json.loads(text)
    return body | {"outputs": sorted(body["outputs"], key=lambda each: str(each["name"]))}


@pytest.mark.parametrize("version", RECORDED)
def test_requests_are_those_of_its_version(shared_dir: Path, tmp_path: Path, version: int) -> None:
    name, resources = RECORDED[version]
    theirs = recorded(shared_dir, f"{name}.request")["request"]["body"]
    if "tags" in theirs:
        del theirs["tags"]["team"]  # a label of the user's
    configuration = Configuration(
        "/v1/tasks", "/home/user/cromwell-executions", "/cromwell-executions"
    )
    with httpx.Client() as client:
        place = OnDisk(tmp_path, "/home/user")
        flow = Workflow(client, place, configuration, version, name="wf_md5")
        reads = {"infile": ["/data/in.txt"]}
        call = Call("md5", "", reads, ("md5.txt",), globs=("*",), resources=resources)
        ours = flow.request(call)
    workflow = theirs["description"].partition(":")[0]
    assert arranged(ours, flow.id) == arranged(theirs, workflow)


@pytest.mark.parametrize("version", [41, 92])
def test_calls_are_those_of_its_version(begin: Begin, shared_dir: Path, version: int) -> None:
    known = {
        f"{call['method']} {call['path']}" for call in recorded(shared_dir, "cromwell-http-calls")
    }
    site = begin(LOCAL)
    requests: list[httpx.Request] = []
    site.client.event_hooks = {"request": [requests.append]}
    flow = site.workflow(version)
    assert flow.run(Call("ends", "true")).succeeded
    hangs = Call("hangs", "sleep 600")
    task_id = flow.start(hangs)
    flow.abort(hangs, task_id)
    assert flow.watch(hangs, task_id).aborted
    said = {f"{request.method} {request.url.raw_path.decode()}" for request in requests}
    ids = r"/v1/tasks/[^/:?]+"
    made = {
        re.sub(ids, "{endpoint}/{id}", each).replace("/v1/tasks", "{endpoint}") for each in said
    }
    assert made <= known
    assert len(made) == 3
    view = "FULL" if version == 92 else "MINIMAL"  # FULL until a price is seen: none is here
    assert f"GET {{endpoint}}/{{id}}?view={view}" in made
    (cancel,) = (request for request in requests if request.url.path.endswith(":cancel"))
    assert (cancel.content, cancel.headers["content-length"]) == (b"", "0")
    assert "content-type" not in cancel.headers


@pytest.mark.parametrize(
    ("mode", "root", "docker_root", "of_2019"),
    [
        ("local", "/srv/cromwell/executions", "/cromwell-executions", False),
        ("files", "/tes-wd/shared-global", "/tes-wd/shared-global", True),
        ("blob", "/tes-wd/shared", "/tes-wd/shared", True),
    ],
)
def test_the_reference_configurations_are_what_is_run(
    mode: str, root: str, docker_root: str, of_2019: bool
) -> None:
    text = (REFERENCE / f"cromwell-tes-{mode}.conf").read_text()
    # A string of HOCON in quotation marks is one of JSON (its specification, "Quoted strings").
    said = {
        name: json.loads(value) for name, value in re.findall(r'^ +([\w-]+) = (".*")$', text, re.M)
    }
    commands = {
        "temporary-directory": TEMPORARY_OF_2019,
        "glob-link-command": GLOB_OF_2019.format(
            pattern="GLOB_PATTERN", directory="GLOB_DIRECTORY"
        ),
    }
    assert said == {
        "default": "TES",
        "actor-factory": "cromwell.backend.impl.tes.TesBackendLifecycleActorFactory",
        "endpoint": "http://127.0.0.1:8000/v1/tasks",
        "root": root,
        "dockerRoot": docker_root,
        **(commands if of_2019 else {}),
    }
    assert 'include required(classpath("application"))' in text
    assert text.count("{") == text.count("}") == 4
    lines = [line.strip() for line in text.splitlines()]
    for name in said:
        (at,) = (number for number, line in enumerate(lines) if line.startswith(f"{name} = "))
        assert lines[at - 1].startswith("#") or name == "dockerRoot", f"{name} is not explained"
