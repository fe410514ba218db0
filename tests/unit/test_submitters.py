"""submitters: whose task it is, from what it says; never from what it merely resembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tesazure.model import Task
from tesazure.plan import Defaults, make_plan
from tesazure.submitters import Submitter, recognise

UUID = "0fbd1f3c-1a2b-4c3d-8e4f-5a6b7c8d9e0f"
CALL = f"/cromwell-executions/wf/{UUID}/call-md5/execution"
OLD_CALL = f"/tes-wd/shared/wf/{UUID}/call-md5/shard-1/execution"
CROMWELL = Submitter("cromwell", optional_outputs=True)
NOBODY = Submitter()


def sent(*, outputs: list[tuple[str, str]], **fields: Any) -> Task:
    """A task; `outputs` are (name, path)."""
    document = {
        "executors": [{"image": "i", "command": ["c"]}],
        "outputs": [{"name": n, "path": p, "url": f"file://{p}"} for n, p in outputs],
        **fields,
    }
    return msgspec.convert(document, Task)


def today(**changes: Any) -> Task:
    """As Cromwell 31 to 92 sends one."""
    fields: dict[str, Any] = {
        "description": f"{UUID}:BackendJobDescriptorKey_CommandCallNode_wf.md5:-1:1",
        "inputs": [{"name": "commandScript", "path": f"{CALL}/script", "url": "/x"}],
        "outputs": [("rc", f"{CALL}/rc"), ("wf.md5.output.0", f"{CALL}/out")],
    }
    return sent(**(fields | changes))


def of_2019(**changes: Any) -> Task:
    """As the server of 2019 knew one."""
    names = ("rc", "stdout", "stderr")
    fields: dict[str, Any] = {
        "description": f"{UUID}:wf.md5:-1:1",
        "outputs": [("", f"{OLD_CALL}/{name}") for name in names],
    }
    return sent(**(fields | changes))


@pytest.mark.parametrize(
    ("task", "submitter"),
    [
        (today(), CROMWELL),
        (today(description=None), NOBODY),
        (today(description=f"{UUID}:something"), NOBODY),
        (today(description=f"x{UUID}:BackendJobDescriptorKey_x"), NOBODY),
        (today(description="BackendJobDescriptorKey_CommandCallNode_wf.md5:-1:1"), NOBODY),
        (today(inputs=None), NOBODY),
        (today(inputs=[{"name": "commandScript", "path": "/a/run", "url": "/x"}]), NOBODY),
        (today(inputs=[{"name": "script", "path": "/a/script", "url": "/x"}]), NOBODY),
        (today(outputs=[("rc", "/out/rc")]), NOBODY),
        (today(outputs=[("return code", f"{CALL}/rc")]), NOBODY),
        (today(outputs=[]), NOBODY),
        (of_2019(), CROMWELL),
        (of_2019(description=f"{UUID}"), NOBODY),
        (of_2019(description=f"{UUID.replace('0', '1')}:wf"), NOBODY),
        (of_2019(outputs=[("", f"{OLD_CALL}/{n}") for n in ("rc", "stdout")]), NOBODY),
        (
            of_2019(
                outputs=[
                    ("", f"/elsewhere/wf/{UUID}/call-x/execution/{n}")
                    for n in ("rc", "stdout", "stderr")
                ]
            ),
            NOBODY,
        ),
        (sent(outputs=[]), NOBODY),
    ],
)
def test_whose_task(task: Task, submitter: Submitter) -> None:
    assert recognise(task) == submitter


@pytest.mark.parametrize(
    ("recording", "submitter"),
    [
        ("cromwell-41-2019-05.request", CROMWELL),
        ("cromwell-92-2026-01.request", CROMWELL),
        *((f"py-tes-1.1.4-{n}", NOBODY) for n in (2, 7)),
        ("snakemake-9.27.1-tes-0.1.3-1", NOBODY),
    ],
)
def test_recorded_requests(shared_dir: Path, recording: str, submitter: Submitter) -> None:
    file = shared_dir / "clients" / f"{recording}.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    body = msgspec.json.decode(file.read_bytes())["request"]["body"]
    if not body:
        pytest.skip(f"{recording} submits nothing")
    assert recognise(msgspec.convert(body, Task)) == submitter


def test_optional_outputs_are_not_required_of_the_runner() -> None:
    for task in (today(), sent(outputs=[("", "/out/x")])):
        required = not recognise(task).optional_outputs
        plan = make_plan("t", task, Defaults(1, 1, 1, 0), [], outputs_required=required)
        assert {upload.required for upload in plan.uploads} == {required}
