"""What real clients were seen to send, sent again: every reply is what they then understood."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.server import TES, RunningServer, ended, start_server

CROMWELLS = ("cromwell-41-2019-05", "cromwell-92-2026-01")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    # Nothing runs, so any path may be named.
    with start_server(
        tmp_path_factory.mktemp("server"), scheduler="false", allow_dir="/"
    ) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def recordings(shared_dir: Path) -> Path:
    directory = shared_dir / "clients"
    if not directory.is_dir():
        pytest.skip(f"{directory} is not there")
    return directory


def replay(client: httpx.Client, request: dict[str, Any], path: str) -> httpx.Response:
    left_out = {"host", "content-length", "connection"}
    headers = {k: v for k, v in request["headers"].items() if k.lower() not in left_out}
    body = request["body"]
    return client.request(
        request["method"],
        path,
        params=request["query"],
        headers=headers,
        content=None if body is None else json.dumps(body).encode(),
    )


def same_kind(recorded: Any, ours: Any, where: str = "reply") -> None:
    """Whatever fields the client was given before, it is given now, and of the same type."""
    assert type(recorded) is type(ours), where
    if isinstance(recorded, dict):
        # An empty token and logs that a task has only once it runs.
        optional = {"next_page_token", "logs", "metadata"}
        for key in recorded.keys() - optional:
            assert key in ours, f"{where}.{key}"
            same_kind(recorded[key], ours[key], f"{where}.{key}")


@pytest.mark.parametrize("name", ["py-tes-1.1.4", "py-tes-0.4.2", "snakemake-9.27.1-tes-0.1.3"])
def test_recorded_sessions(client: httpx.Client, recordings: Path, name: str) -> None:
    files = sorted(recordings.glob(f"{name}-[0-9]*.json"))
    if not files:
        pytest.skip(f"no recordings of {name}")
    ids: dict[str, str] = {}
    for file in files:
        record = json.loads(file.read_text())
        path = record["request"]["path"]
        for theirs, ours in ids.items():
            path = path.replace(theirs, ours)
        if not path.startswith(TES):
            # These clients were given <server>/ga4gh/tes or <server>; both must do.
            assert replay(client, record["request"], f"/ga4gh/tes{path}").status_code == 200
        reply = replay(client, record["request"], path)
        assert reply.status_code == record["response"]["status"], (file.name, reply.text)
        assert reply.headers["content-type"] == "application/json"
        same_kind(record["response"]["body"], reply.json())
        if record["request"]["method"] == "POST" and "id" in record["response"]["body"]:
            ids[record["response"]["body"]["id"]] = reply.json()["id"]
            shown = client.get(f"{TES}/tasks/{reply.json()['id']}", params={"view": "FULL"}).json()
            sent = {k: v for k, v in record["request"]["body"].items() if v}
            assert {k: v for k, v in shown.items() if k in sent} == sent


@pytest.mark.parametrize("prefix", [TES, "/v1"])
@pytest.mark.parametrize("name", CROMWELLS)
def test_cromwells_requests(client: httpx.Client, recordings: Path, name: str, prefix: str) -> None:
    request = json.loads((recordings / f"{name}.request.json").read_text())["request"]
    calls = json.loads((recordings / "cromwell-http-calls.json").read_text())
    endpoint = f"{prefix}/tasks"
    task_id = ""
    for call in calls:
        path = call["path"].format(endpoint=endpoint, id=task_id)
        if call["path"] == "{endpoint}":
            reply = replay(client, request, path)
            task_id = reply.json()["id"]
        else:
            sent = {"Content-Length": "0"} if call["method"] == "POST" else {}
            reply = client.request(call["method"], path, headers=sent)
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"] == "application/json"
        assert isinstance(reply.json(), dict)
    full = client.get(f"{endpoint}/{task_id}", params={"view": "FULL"}).json()
    sent = request["body"]
    assert full["executors"] == sent["executors"]
    assert full["tags"] == sent.get("tags", {}) | {
        "ms-submitter-name": "cromwell",
        "ms-submitter-workflow-id": sent["description"].partition(":")[0],
        "ms-submitter-workflow-name": "wf_md5",
        "ms-submitter-workflow-stage": "md5",
    }
    for key in ("inputs", "outputs"):
        assert [x["path"] for x in full[key]] == [x["path"] for x in sent[key]]


def test_a_full_reply_is_one_that_cromwell_92_can_read(recordings: Path, tmp_path: Path) -> None:
    """Its parser wants strings for sizes and metadata, and a number for the exit code."""
    good = json.loads((recordings / "cromwell-92.full-response-ok.json").read_text())["body"]
    document = {
        "name": "n",
        "description": "d",
        "inputs": [{"path": "/in/file", "content": "x"}],
        "outputs": [{"path": "/out/file", "url": f"file://{tmp_path}/out"}],
        "executors": [{"image": "i", "command": ["cp", "/in/file", "/out/file"]}],
        "tags": {"workflow_id": "w", "root_workflow_id": None},
    }
    with (
        start_server(tmp_path / "server", allow_dir=tmp_path) as server,
        server.client() as client,
    ):
        reply = client.post(f"{TES}/tasks", json=document)
        shown = ended(client, reply.json()["id"])
    assert shown["state"] == "COMPLETE"
    for key in ("id", "state", "name", "description", "creation_time"):
        assert isinstance(shown[key], type(good[key]))
    (log,) = shown["logs"]
    assert set(log) <= set(good["logs"][0])
    assert all(isinstance(value, str) for value in log["metadata"].values())
    assert [set(entry) for entry in log["logs"]] == [set(good["logs"][0]["logs"][0])]
    assert log["logs"][0]["exit_code"] == 0
    assert log["outputs"] == [
        {"url": f"file://{tmp_path}/out", "path": "/out/file", "size_bytes": "1"}
    ]
