"""Workflows of Cromwell's, by its double, run to their end by a real server: on one machine, with
the directory that all tasks share, and in Azure Blob."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.cromwell.double import Call, Configuration, Workflow
from tests.clients.cromwell.places import InContainer, OnDisk, Place
from tests.conftest import shared
from tests.service.server import RunningServer, contents, get, start_server, until
from tests.service.tool import api_token
from tests.services.azurite import Azurite

LOCAL, FILES, BLOB = "local", "files", "blob"
PRINTED = "until test -s stdout && test -s stderr; do :; done"
"""At the end of a command that prints: Cromwell's script does not wait for its `tee`, and what that
has not yet written goes with the script."""


@dataclass(frozen=True)
class Site:
    """A server, and a Cromwell that uses it."""

    server: RunningServer
    client: httpx.Client
    place: Place
    configuration: Configuration
    data: str
    """Where the user's own files are, as Cromwell knows them."""

    def workflow(self, version: int, **options: Any) -> Workflow:
        configuration = self.configuration
        for name in ("of_2019", "output_mode"):
            if name in options:
                configuration = replace(configuration, **{name: options.pop(name)})
        return Workflow(self.client, self.place, configuration, version, **options)


Begin = Callable[[str], Site]


def local(directory: Path, stack: contextlib.ExitStack, **settings: Any) -> Site:
    """Both share a directory; tasks see it elsewhere."""
    allowed = directory / "allowed"
    allowed.mkdir()
    return _site(
        stack, directory, OnDisk(allowed, str(allowed)), str(allowed), "/cromwell-executions",
        allow_dir=allowed, **settings,
    )  # fmt: skip


def files(directory: Path, stack: contextlib.ExitStack) -> Site:
    """Cromwell has what tasks see as /tes-wd/shared-global at just that path."""
    root, share = "/tes-wd/shared-global", directory / "share"
    share.mkdir()
    return _site(stack, directory, OnDisk(share, root), root, root, shared_global_dir=share)


def blob(
    directory: Path, stack: contextlib.ExitStack, root: str = "/tes-wd/shared", **settings: Any
) -> Site:
    """Cromwell has a container mounted at /tes-wd."""
    azurite = shared(Azurite)
    container = stack.enter_context(azurite.container())
    return _site(
        stack, directory, InContainer(azurite, container, "/tes-wd"), root, root,
        storage_account_name=azurite.account,
        storage_account_key=azurite.key,
        storage_blob_endpoint=azurite.endpoint,
        cromwell_storage_container_name=container,
        **settings,
    )  # fmt: skip


def _site(
    stack: contextlib.ExitStack, directory: Path, place: Place, root: str, docker_root: str,
    **settings: Any,
) -> Site:  # fmt: skip
    server = stack.enter_context(start_server(directory / "server", **settings))
    client = stack.enter_context(server.client())
    configuration = Configuration("/v1/tasks", root, docker_root)
    return Site(server, client, place, configuration, f"{root}/inputs of mine")


@pytest.fixture
def begin(short_dir: Path) -> Iterator[Begin]:
    with contextlib.ExitStack() as stack:
        yield lambda mode: {LOCAL: local, FILES: files, BLOB: blob}[mode](short_dir, stack)


def scattered(site: Site, flow: Workflow, words: list[str]) -> list[str]:
    """The first call of the workflow, once for each word; the paths of what they counted."""
    calls = []
    for shard, word in enumerate(words):
        path = f"{site.data}/{word}.txt"
        site.place.write(path, f"{word}\n{word}\n".encode())
        command = 'wc -l < "{reads}" > count; echo {shard} > a.part; echo {shard} > b.part'
        calls.append(
            Call(
                "count",
                command.replace("{shard}", str(shard)),
                {"reads": [path]},
                outputs=("count",),
                globs=("*.part",),
                shard=shard,
            )
        )
    with ThreadPoolExecutor(len(calls)) as pool:
        results = list(pool.map(flow.run, calls))
    assert all(result.succeeded for result in results), results
    assert all(len(result.globbed) == 2 for result in results), results
    return [result.outputs["count"] for result in results]


@pytest.mark.parametrize("of_2019", [False, True])
@pytest.mark.parametrize("version", [36, 41, 92])
@pytest.mark.parametrize("mode", [LOCAL, FILES, BLOB])
def test_a_workflow_runs_to_its_end(begin: Begin, mode: str, version: int, of_2019: bool) -> None:
    """Scatter, gather with a table that Cromwell writes, and a call in a sub-workflow."""
    site = begin(mode)
    # In Blob, the table is found also where Cromwell does not say that there is one.
    flow = site.workflow(version, of_2019=of_2019, lists_created=mode != BLOB)
    counts = scattered(site, flow, ["a", "b c", "d"])
    command = "cat {counts} > all; cat {created} >> all; echo told; echo warned >&2; " + PRINTED
    gather = Call("gather", command, {"counts": counts}, ("all",), table="x\t1\ny\t2\n")
    gathered = flow.run(gather)
    assert gathered.succeeded, gathered
    inner = flow.sub("inner", "publish")
    report = Call("report", "sort {all} > report", {"all": [gathered.outputs["all"]]}, ("report",))
    reported = inner.run(replace(report, attempt=2))
    assert reported.succeeded, reported
    assert site.place.read(reported.outputs["report"]).decode() == "2\n2\n2\nx\t1\ny\t2\n"
    assert flow.result(gather, "stdout") == "told\n"
    assert flow.result(gather, "stderr") == "warned\n"
    stages = {task["tags"]["ms-submitter-workflow-stage"] for task in tasks_of(site, flow)}
    assert stages == {"count", "gather", "report"}


def tasks_of(site: Site, flow: Workflow) -> list[Any]:
    """The tasks with the tag of a workflow."""
    tag = {"tag_key": "ms-submitter-workflow-id", "tag_value": flow.id}
    reply = site.client.get("/v1/tasks", params={"view": "FULL", **tag})
    return list(reply.json()["tasks"])


@pytest.mark.parametrize("mode", [LOCAL, FILES, BLOB])
def test_all_of_the_execution_directory_may_be_one_output(begin: Begin, mode: str) -> None:
    site = begin(mode)
    flow = site.workflow(92, output_mode="root")
    command = "mkdir d; echo 1 > d/one; cat {created} > two"
    call = Call("make", command, outputs=("d/one", "two"), table="t\n")
    made = flow.run(call)
    assert made.succeeded, made
    assert flow.result(call, "two") == "t\n"


@pytest.mark.parametrize("mode", [LOCAL, FILES, BLOB])
def test_a_command_that_fails_is_seen_by_its_return_code(begin: Begin, mode: str) -> None:
    """Cromwell's script succeeds all the same: the task is COMPLETE."""
    site = begin(mode)
    flow = site.workflow(92)
    command = f"echo half | tee made; echo no such gene >&2; {PRINTED}; exit 3"
    call = Call("fail", command, outputs=("made", "not"))
    failed = flow.run(call)
    assert (failed.succeeded, failed.reason) == (False, "return code 3")
    assert failed.task["state"] == "COMPLETE"
    assert flow.result(call, "stderr") == "no such gene\n"
    assert flow.result(call, "made") == "half\n"


@pytest.mark.parametrize("mode", [LOCAL, FILES, BLOB])
def test_a_missing_output_is_a_warning_and_cromwells_to_judge(begin: Begin, mode: str) -> None:
    site = begin(mode)
    flow = site.workflow(41)
    outputs = ("here", "wanted", "welcome")
    call = Call("some", "echo 1 > here", outputs=outputs, optional=("welcome",))
    failed = flow.run(call)
    assert failed.reason == f"{flow.directory(call)}/wanted is missing"
    (task,) = tasks_of(site, flow)
    assert task["state"] == "COMPLETE"
    said = [line for line in task["logs"][0]["system_logs"] if "left nothing" in line]
    assert len(said) == 2
    assert flow.run(replace(call, outputs=("here", "welcome"), attempt=2)).succeeded


@pytest.mark.parametrize("mode", [LOCAL, FILES, BLOB])
def test_what_a_killed_script_printed_arrives(begin: Begin, mode: str) -> None:
    """The script itself is killed, before it writes its return code."""
    site = begin(mode)
    flow = site.workflow(92)
    command = f"echo begun; echo trouble >&2; {PRINTED}; kill -9 $$"
    call = Call("die", command, outputs=("not",))
    ended = flow.run(call)
    assert ended.task["state"] == "EXECUTOR_ERROR"
    assert "exit code 137" in ended.reason
    assert flow.result(call, "stdout") == "begun\n"
    assert flow.result(call, "stderr") == "trouble\n"
    with pytest.raises(FileNotFoundError):
        flow.result(call, "rc")


@pytest.mark.parametrize("mode", [LOCAL, FILES, BLOB])
def test_what_a_script_printed_before_its_time_was_over_arrives(begin: Begin, mode: str) -> None:
    site = begin(mode)
    flow = site.workflow(92)
    # Long enough for it to be printed, also on a busy machine.
    limit = {"backend_parameters": {"max_runtime_s": "10"}}
    call = Call("hang", "echo begun; echo trouble >&2; sleep 600", resources=limit)
    ended = flow.run(call)
    assert ended.task["state"] == "SYSTEM_ERROR"
    assert "timed out after 10 s" in ended.reason
    assert flow.result(call, "stdout") == "begun\n"
    assert flow.result(call, "stderr") == "trouble\n"


@pytest.mark.parametrize("mode", [LOCAL, FILES, BLOB])
def test_a_command_that_exceeds_its_memory_leaves_what_it_printed(begin: Begin, mode: str) -> None:
    """The largest process is killed, and that is not Cromwell's script around it."""
    site = begin(mode)
    flow = site.workflow(92)
    resources = {"ram_gb": 0.064}
    call = Call("hungry", "echo begun; tail /dev/zero", resources=resources)
    ended = flow.run(call)
    if "no control group for memory" in str(tasks_of(site, flow)):
        pytest.skip("no control group for memory here")
    assert ended.reason == "return code 137"
    assert flow.result(call, "stdout") == "begun\n"


@pytest.mark.parametrize("version", [41, 92])
@pytest.mark.parametrize("mode", [LOCAL, FILES, BLOB])
def test_an_aborted_workflow(begin: Begin, mode: str, version: int) -> None:
    site = begin(mode)
    flow = site.workflow(version)
    calls = [Call("hang", "echo on; sleep 600", shard=shard) for shard in range(3)]
    ids = [flow.start(call) for call in calls]
    until(lambda: get(site.client, ids[0], "MINIMAL")["state"] == "RUNNING")
    for call, task_id in zip(calls, ids, strict=True):
        flow.abort(call, task_id)
    results = [flow.watch(call, task_id) for call, task_id in zip(calls, ids, strict=True)]
    assert all(result.aborted for result in results), results
    assert {flow.result(call, "rc") for call in calls} == {"143\n"}
    for call, task_id in zip(calls, ids, strict=True):
        flow.abort(call, task_id)  # again, as Cromwell does when it is restarted meanwhile


def test_a_bearer_token_of_its_configuration_signs_cromwell_in(short_dir: Path) -> None:
    with contextlib.ExitStack() as stack:
        site = local(short_dir, stack, api_tokens="true", task_access_restrictions="per-user")
        flow = site.workflow(92)
        call = Call("own", "echo 1 > made", outputs=("made",))
        request = flow.request(call)
        assert site.client.post(site.configuration.endpoint, json=request).status_code == 401
        token = api_token(site.server.data, "cromwell")
        site.client.headers["Authorization"] = f"Bearer {token}"
        assert flow.run(call).succeeded
        assert len(tasks_of(site, flow)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", [LOCAL, FILES, BLOB])
def test_a_scatter_of_64(begin: Begin, mode: str) -> None:
    site = begin(mode)
    flow = site.workflow(92)
    counts = scattered(site, flow, [f"word{number}" for number in range(64)])
    gathered = flow.run(Call("gather", "cat {counts} > all", {"counts": counts}, ("all",)))
    assert site.place.read(gathered.outputs["all"]) == b"2\n" * 64
    assert len(tasks_of(site, flow)) == 65


def test_files_that_are_in_place_are_not_moved(begin: Begin) -> None:
    site = begin(FILES)
    flow = site.workflow(92)
    call = Call("inode", "ls -i script > seen; ls -i seen > own", outputs=("seen", "own"))
    assert flow.run(call).succeeded
    place = site.place
    assert isinstance(place, OnDisk)
    for name, told in (("script", "seen"), ("seen", "own")):
        inode = place.at(f"{flow.directory(call)}/{name}").stat().st_ino
        assert flow.result(call, told).split() == [str(inode), name]
    (task,) = tasks_of(site, flow)
    assert "inputs are in place" not in str(task["logs"][0]["system_logs"])
    logged = {output["url"]: output["size_bytes"] for output in task["logs"][0]["outputs"]}
    assert logged[f"{flow.directory(call)}/rc"] == "2"


def test_blobs_are_reached_by_signatures_that_are_nowhere_kept(begin: Begin) -> None:
    """The task stays as Cromwell sent it; its log says where the files are."""
    site = begin(BLOB)
    flow = site.workflow(92)
    call = Call("own", "true", table="t\n")
    place = site.place
    assert isinstance(place, InContainer)
    # An earlier attempt's, lost with its node: none of them is an input of this one.
    for name in ("rc", "stdout", "stderr", "made"):
        place.write(f"{flow.directory(call)}/{name}", b"old\n")
    ended = flow.run(replace(call, command="ls > made; test ! -e rc", outputs=("made",)))
    assert ended.succeeded, ended
    listed = set(flow.result(call, "made").split())
    assert len({name for name in listed if name.startswith("write_tsv_")}) == 1
    assert not {"rc", "glob"} & listed
    (task,) = tasks_of(site, flow)
    sent = {output["url"] for output in task["outputs"]}
    assert f"{flow.directory(call)}/rc" in sent
    logged = {output["url"] for output in task["logs"][0]["outputs"]}
    start = place.url("/tes-wd/shared")
    assert logged
    assert all(url.startswith(f"{start}/wf/{flow.id}/") for url in logged), logged
    seen = [b"sig=", place.key.encode()]
    kept = [content for _, content in contents(site.server.data)]
    for content in [*kept, site.server.log.read_bytes(), str(task).encode()]:
        assert not [secret for secret in seen if secret in content]


def test_a_directory_with_too_many_blobs_is_brought_in_part_and_said(begin: Begin) -> None:
    site = begin(BLOB)
    flow = site.workflow(92)
    call = Call("many", "ls part-* | wc -l > count", outputs=("count",))
    place = site.place
    assert isinstance(place, InContainer)
    with ThreadPoolExecutor(16) as pool:
        directory = flow.directory(call)
        list(pool.map(lambda n: place.write(f"{directory}/part-{n:04}", b""), range(1010)))
    assert flow.run(call).succeeded
    assert int(flow.result(call, "count")) == 1000
    (task,) = tasks_of(site, flow)
    assert "has more than 1000 files already" in str(task["logs"][0]["system_logs"])


def test_a_directory_that_cannot_be_listed_is_only_a_warning(begin: Begin) -> None:
    """For a blob in it that can be no file."""
    site = begin(BLOB)
    flow = site.workflow(92)
    call = Call("odd", "echo 1 > made", outputs=("made",))
    place = site.place
    assert isinstance(place, InContainer)
    place.put(f"{flow.directory(call).removeprefix('/tes-wd/')}/a//b", b"x")
    assert flow.run(call).succeeded
    (task,) = tasks_of(site, flow)
    (said,) = (line for line in task["logs"][0]["system_logs"] if "are not brought" in line)
    assert "WARNING" in said
    assert "a//b" in said


def test_the_shared_directory_may_mean_blobs_too(short_dir: Path) -> None:
    """As in one example of 2019."""
    root = "/tes-wd/shared-global"
    with contextlib.ExitStack() as stack:
        site = blob(short_dir, stack, root, cromwell_map_shared_global="true")
        flow = site.workflow(92)
        made = flow.run(Call("make", "cat {created} > out", outputs=("out",), table="t\n"))
        assert made.succeeded, made
        used = flow.run(Call("use", "cat {out} > copy", {"out": [made.outputs["out"]]}, ("copy",)))
        assert site.place.read(used.outputs["copy"]) == b"t\n"
        assert used.outputs["copy"].startswith(root)


def test_paths_that_only_resemble_the_shared_ones_are_refused(begin: Begin) -> None:
    site = begin(BLOB)
    for root in ("/tes-wd/shared-global-2", "/tes-wd/sharedx", "/tes-wd"):
        flow = replace(site, configuration=replace(site.configuration, root=root)).workflow(41)
        document = flow.request(Call("x", "true"))
        reply = site.client.post("/v1/tasks", json=document)
        assert reply.status_code == 400
        assert "not in an allowed directory" in reply.text
