"""Tasks as workflow engines send them: TES documents, by hand from what each engine's module in
`submitters` names as its source. Keywords replace or add fields."""

from __future__ import annotations

from typing import Any

WORKFLOW = "0fbd1f3c-1a2b-4c3d-8e4f-5a6b7c8d9e0f"
PARENT = "11111111-2222-3333-4444-555555555555"
CALL = f"/cromwell-executions/wf/{WORKFLOW}/call-md5/execution"

Document = dict[str, Any]


def _at(path: str, **fields: Any) -> Document:
    return {"path": path, "url": f"file://{path}", **fields}


def cromwell(call: str = CALL, shard: int = -1, attempt: int = 1, **fields: Any) -> Document:
    """A call of Cromwell 31 to 92 that runs in the directory `call`."""
    workflow = call.rpartition("/call-")[0].rpartition("/")[2]
    key = f"BackendJobDescriptorKey_CommandCallNode_wf.md5:{shard}:{attempt}"
    names = {"rc": "rc", "stdout": "stdout", "stderr": "stderr", "commandScript": "script"}
    return {
        "name": "wf.md5",
        "description": f"{workflow}:{key}",
        "inputs": [
            _at("/cromwell-executions/in.txt", name="wf.md5.infile.0"),
            _at(f"{call}/script", name="commandScript"),
        ],
        "outputs": [
            *(_at(f"{call}/{file}", name=name) for name, file in names.items()),
            _at(f"{call}/out", name="wf.md5.output.0"),
        ],
        "executors": [{"image": "ubuntu", "command": ["/bin/bash", f"{call}/script"]}],
        **fields,
    }


def cromwell_of_2019(call: str, description: str, **fields: Any) -> Document:
    """As the server for Azure of 2019 knew a call: by description and paths alone."""
    return {
        "description": description,
        "outputs": [_at(f"{call}/{name}") for name in ("rc", "stdout", "stderr")],
        "executors": [{"image": "ubuntu", "command": ["/bin/bash", f"{call}/script"]}],
        **fields,
    }


def nextflow(directory: str = "/work", *, since_2024: bool = True, **fields: Any) -> Document:
    """A task of a process of Nextflow's, by the newer or the older form of its plugin."""
    run, log = f"{directory}/.command.run", f"{directory}/.command.log"
    if since_2024:
        command = ["bash", "-o", "pipefail", "-c", f"bash {run} 2>&1 | tee {log}"]
    else:
        command = ["/bin/bash", "-c", "/bin/bash -ue .command.run &> .command.log"]
    returned = (".command.out", ".command.err", ".command.log", ".exitcode", "reads.count")
    return {
        "name": "ALIGN:COUNT (sample (1))",
        "inputs": [_at(f"{directory}/{name}") for name in (".command.sh", ".command.run", "r.fa")],
        "outputs": [_at(f"{directory}/{name}") for name in returned],
        "executors": [{"image": "ubuntu", "command": command, "workdir": directory}],
        **fields,
    }


def snakemake(**fields: Any) -> Document:
    """A job of Snakemake's."""
    script = (
        '#!/bin/sh\n# properties = {"type": "single", "rule": "count"}\npython -m snakemake …\n'
    )
    return {
        "name": "snakejob.count.1.sh",
        "description": "",
        "inputs": [{"path": "/tmp/run_snakemake.sh", "type": "FILE", "content": script}],
        "outputs": [],
        "executors": [
            {
                "image": "snakemake/snakemake:v9.27.1",
                "command": ["/bin/bash", "/tmp/run_snakemake.sh"],
                "workdir": "/tmp",
            }
        ],
        **fields,
    }


def toil(**fields: Any) -> Document:
    """A job of Toil's."""
    return {
        "name": "'WDLTaskJob' hello.say kind-WDLTaskJob/instance-x1y2 v1",
        "inputs": [_at("/srv/jobstore", type="DIRECTORY")],
        "executors": [
            {
                "image": "quay.io/ucsc_cgl/toil:9.6.0",
                "command": ["_toil_contained_executor", "gASVDwAAAAAAAAB9lIwHY29tbWFuZJRLAXMu"],
                "env": {"TOIL_WORKDIR": "/tmp"},
            }
        ],
        **fields,
    }


def cwl_tes(tags: dict[str, str | None] | None = None, **fields: Any) -> Document:
    """A step of cwl-tes'; without `tags` as 0.3.0 sends them for a tool without an id."""
    return {
        "name": "count_2",
        "description": "",
        "inputs": [_at("/in/reads", name="reads", description="cwl_input:reads", type="FILE")],
        "outputs": [_at("/var/spool/cwl", name="workdir", type="DIRECTORY")],
        "executors": [
            {
                "image": "alpine",
                "command": ["wc", "-c", "/in/reads"],
                "workdir": "/var/spool/cwl",
                "env": {"HOME": "/var/spool/cwl", "TMPDIR": "/tmp"},
            }
        ],
        "tags": {"CWLDocumentId": None} if tags is None else tags,
        **fields,
    }


def galaxy(*, container: bool = True, **fields: Any) -> Document:
    """A job that Galaxy hands to Pulsar; with a `container`, the tool has its own."""
    image = "galaxy/pulsar-pod-staging:0.15.0.0"
    config = ["--base64", "eyJhIjogMX0=", "--app_conf_base64", "eyJiIjogMn0="]
    wait = "--no-wait" if container else "--wait"
    executors = [{"image": image, "command": ["pulsar-submit", wait, *config], "workdir": "/"}]
    if container:
        executors += [
            {"image": "tool", "command": ["sh", "-c", "sh $path"], "workdir": "/"},
            {"image": image, "command": ["pulsar-finish", *config], "workdir": "/"},
        ]
    return {
        "name": "pulsar-main-42",
        "executors": executors,
        "volumes": ["/pulsar_staging/"],
        **fields,
    }


def by_engine() -> list[Document]:
    """One task of every engine."""
    return [cromwell(), nextflow(), snakemake(), toil(), cwl_tes(), galaxy()]
