"""submitters: whose task it is, from what it says; never from what it merely resembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tesazure.model import Task
from tesazure.plan import Defaults, make_plan
from tesazure.submitters import Submitter, recognise, tags_of
from tests.submitted import (
    CALL,
    PARENT,
    WORKFLOW,
    Document,
    by_engine,
    cromwell,
    cromwell_of_2019,
    nextflow,
)

OLD_CALL = f"/tes-wd/shared/wf/{WORKFLOW}/call-md5/shard-1/execution"
NOBODY = Submitter()


def recognised(document: Document) -> Submitter:
    """Without the directory: see test_cromwell_paths."""
    found = recognise(msgspec.convert(document, Task))
    return msgspec.structs.replace(found, directory=None)


def cromwells(
    *, workflow: str = WORKFLOW, workflow_name: str = "wf", stage: str = "md5"
) -> Submitter:
    return Submitter("cromwell", workflow, workflow_name, stage, optional_outputs=True)


def of_2019(call: str = OLD_CALL, **fields: Any) -> Document:
    return cromwell_of_2019(call, **({"description": f"{WORKFLOW}:wf.md5:-1:1"} | fields))


def an_output(name: str, path: str, url: str = "") -> dict[str, Any]:
    return {"outputs": [{"name": name, "path": path, "url": url or f"file://{path}"}]}


def an_input(name: str, path: str) -> dict[str, Any]:
    return {"inputs": [{"name": name, "path": path, "url": "/x"}]}


@pytest.mark.parametrize(
    ("document", "submitter"),
    [
        (cromwell(), cromwells()),
        (cromwell(**an_input("commandScript", f"{CALL}/script")), cromwells()),
        # A shard, and a second attempt of it.
        (cromwell(f"/r/wf/{WORKFLOW}/call-md5/shard-7/execution", shard=7), cromwells()),
        (
            cromwell(f"/r/wf/{WORKFLOW}/call-md5/shard-7/attempt-2/execution", shard=7, attempt=2),
            cromwells(),
        ),
        # The call of a sub-workflow belongs to what the user started.
        (
            cromwell(f"/r/main/{PARENT}/call-sub/shard-0/sub/{WORKFLOW}/call-md5/execution"),
            cromwells(workflow=PARENT, workflow_name="main"),
        ),
        # `output-mode=root`, and a working directory of the task's own.
        (cromwell(**an_output("execution.dir.output", CALL)), cromwells()),
        (cromwell(**an_output("rc", "/own/rc", f"{CALL}/rc")), cromwells()),
        (cromwell(**an_output("rc", "/own/rc", f"https://h/c{CALL}/rc?sig=x")), cromwells()),
        (
            cromwell(
                f"/r/wf/{WORKFLOW}/call-é/execution",
                **an_output("rc", "/rc", f"s3://b/wf/{WORKFLOW}/call-%C3%A9/execution/rc"),
            ),
            cromwells(stage="é"),
        ),
        # Names are the user's: any letters.
        (
            cromwell(f"/r/w f:x/{WORKFLOW}/call-é-x/execution"),
            cromwells(workflow_name="w f:x", stage="é-x"),
        ),
        (of_2019(), cromwells()),
        (of_2019(f"/tes-wd/wf/{WORKFLOW}/call-md5/execution"), cromwells()),
        (of_2019(f"/tes-wd/shared-global/wf/{WORKFLOW}/call-md5/execution"), cromwells()),
    ],
)
def test_cromwells_tasks(document: Document, submitter: Submitter) -> None:
    assert recognised(document) == submitter


@pytest.mark.parametrize(
    "document",
    [
        cromwell(description=None),
        cromwell(description=f"{WORKFLOW}:something"),
        cromwell(description=f"x{WORKFLOW}:BackendJobDescriptorKey_CommandCallNode_wf.md5:-1:1"),
        cromwell(description=f"{WORKFLOW}:BackendJobDescriptorKey_CommandCallNode_wf.md5"),
        cromwell(description="BackendJobDescriptorKey_CommandCallNode_wf.md5:-1:1"),
        # Another workflow's.
        cromwell(description=f"{PARENT}:BackendJobDescriptorKey_CommandCallNode_wf.md5:-1:1"),
        cromwell(inputs=None),
        cromwell(**an_input("commandScript", f"{CALL}/run")),
        cromwell(**an_input("commandScript", "/cromwell-executions/execution/script")),
        cromwell(**an_input("script", f"{CALL}/script")),
        cromwell(outputs=None),
        cromwell(**an_output("rc", "/out/rc")),
        # Results that go elsewhere than to what is the script's directory.
        cromwell(**an_output("rc", f"{CALL}/rc", "/out/execution/rc")),
        cromwell(**an_output("rc", f"{CALL}/rc", f"{CALL}-2/rc".replace("md5", "md6"))),
        cromwell(**an_output("rc", f"{CALL}/rc", f"{CALL.replace(WORKFLOW, PARENT)}/rc")),
        cromwell(f"/r/wf/{WORKFLOW}/call-/execution"),
        cromwell(**an_output("return code", f"{CALL}/rc")),
        cromwell(**an_output("execution.dir.output", "/out")),
        of_2019(description=WORKFLOW),
        of_2019(description=f"{PARENT}:wf.md5:-1:1"),
        of_2019(f"/elsewhere/wf/{WORKFLOW}/call-md5/execution"),
        of_2019(f"/tes-wd-2/wf/{WORKFLOW}/call-md5/execution"),
        of_2019(f"/tes-wd/{WORKFLOW}/call-md5/execution"),
        of_2019(f"/tes-wd/wf/{WORKFLOW}/md5/execution"),
        of_2019(outputs=of_2019()["outputs"][:2]),
        {"executors": [{"image": "i", "command": ["c"]}]},
    ],
)
def test_tasks_that_only_resemble_cromwells(document: Document) -> None:
    assert recognised(document) == NOBODY


@pytest.mark.parametrize(
    ("recording", "submitter"),
    [
        ("cromwell-41-2019-05.request", cromwells(workflow_name="wf_md5")),
        ("cromwell-92-2026-01.request", cromwells(workflow_name="wf_md5")),
        ("py-tes-0.4.2-2", NOBODY),
        ("py-tes-1.1.4-2", NOBODY),
        ("py-tes-1.1.4-7", NOBODY),
        ("snakemake-9.27.1-tes-0.1.3-1", Submitter("snakemake", stage="count")),
    ],
)
def test_recorded_requests(shared_dir: Path, recording: str, submitter: Submitter) -> None:
    file = shared_dir / "clients" / f"{recording}.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    assert recognised(msgspec.json.decode(file.read_bytes())["request"]["body"]) == submitter


def test_tags_say_what_is_known() -> None:
    assert tags_of(recognised(cromwell())) == {
        "ms-submitter-name": "cromwell",
        "ms-submitter-workflow-id": WORKFLOW,
        "ms-submitter-workflow-name": "wf",
        "ms-submitter-workflow-stage": "md5",
    }
    assert tags_of(Submitter("snakemake", stage="count")) == {
        "ms-submitter-name": "snakemake",
        "ms-submitter-workflow-stage": "count",
    }
    assert tags_of(NOBODY) == {}


def test_every_engine_is_known_by_its_name() -> None:
    assert [recognised(document).name for document in by_engine()] == [
        "cromwell",
        "nextflow",
        "snakemake",
        "toil",
        "cwl-tes",
        "galaxy",
    ]


@pytest.mark.parametrize(
    ("document", "required"), [(cromwell(), False), (nextflow(), False), (of_2019(name="n"), False)]
)
def test_optional_outputs_are_not_required_of_the_runner(
    document: Document, required: bool
) -> None:
    check_required(document, required)
    check_required({**document, "description": None, "inputs": None}, True)


def check_required(document: Document, required: bool) -> None:
    task = msgspec.convert(document, Task)
    wanted = not recognise(task).optional_outputs
    plan = make_plan("t", task, Defaults(1, 1, 1, 0), [], outputs_required=wanted)
    assert {upload.required for upload in plan.uploads} == {required}
