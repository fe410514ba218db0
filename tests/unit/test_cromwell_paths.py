"""cromwell_paths: which paths mean blobs, and what is added to a task."""

from __future__ import annotations

import msgspec
import pytest

from tesazure.model import FileType, Input, Task
from tesazure.submitters import recognise
from tesazure.submitters.cromwell_paths import (
    Directory,
    PathMapping,
    with_files,
)
from tesazure.submitters.cromwell_paths import adapted as adapted_of
from tesazure.submitters.cromwell_paths import blob_directory as blob_directory_of
from tesazure.submitters.cromwell_paths import mapped as mapped_of
from tests.submitted import WORKFLOW, Document, cromwell, cromwell_of_2019, snakemake

HERE = "https://acct.blob.core.windows.net/cromwell"
BLOBS = PathMapping(HERE)
BOTH = PathMapping(HERE, shared_global=True)
BELOW = f"shared/wf/{WORKFLOW}/call-md5/execution"
CALL = f"/tes-wd/{BELOW}"
ELSEWHERE = [
    {"path": f"{CALL}/{name}", "url": f"/tes-wd/shared/other/execution/{name}"}
    for name in ("rc", "stdout", "stderr")
]


def task(document: Document) -> Task:
    return msgspec.convert(document, Task)


def mapped(sent: Task, mapping: PathMapping) -> Task:
    return mapped_of(sent, recognise(sent), mapping)


def adapted(sent: Task, mapping: PathMapping) -> Task:
    return adapted_of(sent, recognise(sent), mapping)


def blob_directory(sent: Task, mapping: PathMapping) -> Directory | None:
    return blob_directory_of(recognise(sent), mapping)


@pytest.mark.parametrize(
    ("url", "means"),
    [
        ("/tes-wd/shared/in/large.cram", f"{HERE}/shared/in/large.cram"),
        ("/tes-wd/shared", f"{HERE}/shared"),
        ("//tes-wd/./shared//a/", f"{HERE}/shared/a"),
        ("/tes-wd/shared/a b#é?%25", f"{HERE}/shared/a%20b%23%C3%A9%3F%2525"),
        ("file:///tes-wd/shared/a%20b", f"{HERE}/shared/a%20b"),
        ("file://localhost/tes-wd/shared/a", f"{HERE}/shared/a"),
        ("FILE:///tes-wd/shared/a%20B", f"{HERE}/shared/a%20B"),
        ("File://LocalHost/tes-wd/shared/a", f"{HERE}/shared/a"),
    ],
)
def test_paths_below_the_mount_mean_blobs(url: str, means: str) -> None:
    assert BLOBS.url_of(url) == BOTH.url_of(url) == means
    assert PathMapping().url_of(url) == PathMapping(shared_global=True).url_of(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "/tes-wd/shared-global-2/a",
        "/tes-wd/shared2/a",
        "/tes-wd/a",
        "/tes-wd/shared/../a",
        "/tes-wd/shared/../../etc/passwd",
        "/data/tes-wd/shared/a",
        "tes-wd/shared/a",
        "file://other/tes-wd/shared/a",
        "https://host/tes-wd/shared/a",
        "s3://tes-wd/shared/a",
        "",
    ],
)
def test_all_others_stay_what_they_are(url: str) -> None:
    assert BLOBS.url_of(url) == BOTH.url_of(url) == url


def test_the_shared_directory_only_by_setting() -> None:
    path = "/tes-wd/shared-global/wf/a"
    assert BLOBS.url_of(path) == path
    assert BOTH.url_of(path) == f"{HERE}/shared-global/wf/a"


@pytest.mark.parametrize(
    "document", [cromwell(CALL), cromwell_of_2019(CALL, f"{WORKFLOW}:wf.md5:-1:1")]
)
def test_a_task_of_cromwells(document: Document) -> None:
    sent = task(document)
    found = adapted(sent, BLOBS)
    assert [output.path for output in found.outputs or ()] == [
        output.path for output in sent.outputs or ()
    ]
    assert f"{HERE}/{BELOW}/rc" in [output.url for output in found.outputs or ()]
    assert found.executors[0].env == {"AZ_BATCH_TASK_DIR": "/tes-wd"}
    assert mapped(sent, BLOBS).executors == sent.executors
    assert blob_directory(sent, BLOBS) == Directory(f"{HERE}/{BELOW}", CALL)
    assert sent == task(document)


def test_others_are_left_alone() -> None:
    sent = task(snakemake(outputs=[{"path": "/out", "url": "/tes-wd/shared/x"}]))
    assert adapted(sent, BLOBS) is mapped(sent, BLOBS) is sent
    assert mapped(task(cromwell(CALL)), PathMapping()) == task(cromwell(CALL))


def test_a_variable_of_the_task_is_its_own() -> None:
    (executor,) = cromwell(CALL)["executors"]
    own = {**executor, "env": {"AZ_BATCH_TASK_DIR": "/mine", "A": "b"}}
    found = adapted(task(cromwell(CALL, executors=[own])), BLOBS)
    assert found.executors[0].env == own["env"]


def test_content_needs_no_url() -> None:
    document = cromwell(CALL)
    script = {"name": "commandScript", "path": f"{CALL}/script", "content": "true"}
    document["inputs"] = [script, script | {"path": "/x", "url": "/tes-wd/shared/x"}]
    assert mapped(task(document), BLOBS).inputs == task(document).inputs


@pytest.mark.parametrize(
    ("document", "path"),
    [
        # With a `dockerWorkingDir` only the script is in the call's directory.
        (
            cromwell(
                CALL, outputs=[{"name": "rc", "path": "/elsewhere/rc", "url": f"file://{CALL}/rc"}]
            ),
            CALL,
        ),
        (
            cromwell(
                CALL, outputs=[{"name": "execution.dir.output", "path": CALL, "url": f"{CALL}/"}]
            ),
            CALL,
        ),
        (
            cromwell(CALL, outputs=[{"name": "rc", "path": "/rc", "url": f"{HERE}/{BELOW}/rc"}]),
            CALL,
        ),
        # What the client signed is for that alone, and cannot list.
        (
            cromwell(
                CALL,
                outputs=[
                    {
                        "name": "execution.dir.output",
                        "path": CALL,
                        "url": f"{HERE}/{BELOW}?sp=cw&sig=***",
                        "type": "DIRECTORY",
                    }
                ],
            ),
            None,
        ),
        (cromwell(CALL.replace("/tes-wd/shared", "/data")), None),
        (cromwell_of_2019(CALL, f"{WORKFLOW}:x", outputs=ELSEWHERE), None),
    ],
)
def test_where_a_call_is_executed(document: Document, path: str | None) -> None:
    found = blob_directory(task(document), BLOBS)
    assert found == (Directory(f"{HERE}/{BELOW}", path) if path else None)
    assert blob_directory(task(document), PathMapping()) is None


def test_what_lies_there_becomes_an_input_unless_the_task_says_otherwise() -> None:
    document = cromwell(CALL)
    document["inputs"].append({"path": f"{CALL}/own", "url": "/x", "type": "DIRECTORY"})
    document["outputs"].append({"path": f"{CALL}/glob-1/", "url": "/x", "type": "DIRECTORY"})
    names = ["script", "rc", "stdout", "stderr.background", "out", "glob-1/x", "own/x", "own"]
    found = with_files(
        task(document), Directory(f"{HERE}/d", CALL), [*names, "write_tsv_1.tmp", "sub/rc", "a b"]
    )
    added = (found.inputs or [])[len(document["inputs"]) :]
    assert added == [
        Input(path=f"{CALL}/{name}", url=f"{HERE}/d/{quoted}", type=FileType.FILE)
        for name, quoted in (
            ("write_tsv_1.tmp", "write_tsv_1.tmp"),
            ("sub/rc", "sub/rc"),
            ("a b", "a%20b"),
        )
    ]


def test_with_the_whole_directory_as_output_all_that_lies_there_is_an_input() -> None:
    output = {"name": "execution.dir.output", "path": CALL, "url": CALL, "type": "DIRECTORY"}
    directory = Directory(f"{HERE}/d", CALL)
    found = with_files(task(cromwell(CALL, outputs=[output])), directory, ["t.tmp", "rc"])
    assert [item.path for item in found.inputs or ()][2:] == [f"{CALL}/t.tmp"]
