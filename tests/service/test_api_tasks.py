"""The standard's operations, in both flavours, over HTTP on a real server that runs nothing."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.service.server import OLD, TES, RunningServer, create, get, start_server, task, until

UNKNOWN_ID = "0" * 26


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("server")
    allowed = directory / "allowed"
    allowed.mkdir()
    with start_server(
        directory, scheduler="false", allow_dir=allowed, cors_origins="https://a.example"
    ) as running:
        yield running


def fields(reply: httpx.Response) -> list[str]:
    """The fields that a 400 names, after a look at its shape."""
    assert reply.status_code == 400, reply.text
    body = reply.json()
    assert body["message"] == body["error"]["message"]
    assert body["error"]["status"] == 400
    assert body["error"]["code"] == "invalid_input"
    assert body["error"]["request_id"] == reply.headers["x-request-id"]
    return [item["field"] for item in body["error"]["fields"]]


def test_create_get_cancel(client: httpx.Client, prefix: str) -> None:
    reply = client.post(f"{prefix}/tasks", json=task("echo", name="first"))
    assert (reply.status_code, list(reply.json())) == (200, ["id"])
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    task_id = reply.json()["id"]
    assert get(client, task_id, "MINIMAL", prefix) == {"id": task_id, "state": "QUEUED"}
    for _ in range(2):
        canceled = client.post(f"{prefix}/tasks/{task_id}:cancel")
        assert (canceled.status_code, canceled.json()) == (200, {})
        assert canceled.headers["content-type"] == "application/json"
    assert get(client, task_id, "MINIMAL", prefix)["state"] == "CANCELED"


def test_views(client: httpx.Client, prefix: str) -> None:
    document = task("cat", name="views", tags={"a": None, "b": "c"})
    document["inputs"] = [{"path": "/in", "content": "text"}]
    document["bogus"] = 1
    task_id = create(client, document, prefix)
    assert client.get(f"{prefix}/tasks/{task_id}").json() == {"id": task_id, "state": "QUEUED"}
    full, basic = (get(client, task_id, view, prefix) for view in ("FULL", "BASIC"))
    assert full["inputs"] == [{"path": "/in", "content": "text"}]
    assert full["tags"] == {"a": None, "b": "c"}
    assert "bogus" not in full
    assert "unknown field bogus was ignored" in full["logs"][0]["system_logs"][0]
    assert basic["inputs"] == [{"path": "/in"}]
    assert basic["logs"] == []
    assert basic["creation_time"] == full["creation_time"]


def test_fields_of_the_server_are_ignored(client: httpx.Client, prefix: str) -> None:
    document = task() | {"id": "mine", "state": "COMPLETE", "logs": [1], "creation_time": 7}
    task_id = create(client, document, prefix)
    shown = get(client, task_id, "FULL", prefix)
    assert (shown["id"], shown["state"], shown["logs"]) == (task_id, "QUEUED", [])


@pytest.mark.parametrize("task_id", [UNKNOWN_ID, "x", "..", "a" * 5000, "%00", "%ff%fe", "é"])
def test_unknown_tasks(client: httpx.Client, prefix: str, task_id: str) -> None:
    got = client.get(f"{prefix}/tasks/{task_id}")
    canceled = client.post(f"{prefix}/tasks/{task_id}:cancel")
    for reply in (got, canceled):
        assert reply.status_code == 404, reply.text
        assert reply.json()["error"]["code"] == "not_found"


def test_every_error_of_a_body_at_once(client: httpx.Client, prefix: str) -> None:
    document = {
        "executors": [{"image": "", "command": []}, {"image": 7}],
        "inputs": [{"path": "relative", "url": "file:///etc/passwd"}],
        "volumes": ["/ok", 3],
    }
    found = fields(client.post(f"{prefix}/tasks", json=document))
    assert {"executors[1].image", "executors[1].command", "volumes[1]"} <= set(found)
    document = {
        "executors": [{"image": "", "command": []}],
        "inputs": [{"path": "relative", "url": "file:///x"}],
    }
    found = fields(client.post(f"{prefix}/tasks", json=document))
    assert set(found) == {"executors[0].image", "executors[0].command", "inputs[0].path"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff\xfe{}", b'{"executors":[]} x', b"{}"]
)
def test_bodies_that_are_no_task(client: httpx.Client, prefix: str, body: bytes) -> None:
    assert fields(client.post(f"{prefix}/tasks", content=body))


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "application/json; charset=UTF-8", "text/plain", "x", "a/b; c=\xe9"],
)
def test_any_content_type_is_json(client: httpx.Client, content_type: str | None) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(task(name="naïve"), ensure_ascii=False).encode()
    headers = {b"Content-Type": content_type.encode("latin-1")} if content_type else {}
    reply = client.post(f"{TES}/tasks", content=body, headers=headers)
    assert reply.status_code == 200, reply.text
    assert get(client, reply.json()["id"])["name"] == "naïve"


def test_refused_urls_name_the_field_and_the_setting(
    client: httpx.Client, prefix: str, server: RunningServer
) -> None:
    allowed = server.data.parent / "allowed"
    document = task()
    document["inputs"] = [
        {"path": "/a", "url": f"file://{allowed}/ok"},
        {"path": "/b", "url": "/etc/passwd"},
        {"path": "/c", "url": "gopher://x/y"},
        {"path": "/d", "url": "gopher://unused", "content": "wins"},
    ]
    document["outputs"] = [{"path": "/o", "url": f"file://{allowed}/../escape"}]
    reply = client.post(f"{prefix}/tasks", json=document)
    assert fields(reply) == ["inputs[1].url", "inputs[2].url", "outputs[0].url"]
    assert "allow" in reply.json()["error"]["fields"][0]["message"].lower()


def test_backend_parameters(client: httpx.Client) -> None:
    def submit(**resources: Any) -> httpx.Response:
        return client.post(f"{TES}/tasks", json=task(resources=resources))

    reply = submit(backend_parameters={"MAX_Runtime_S": "60", "VmSize": "x"})
    shown = get(client, reply.json()["id"])
    assert shown["resources"] == {"backend_parameters": {"max_runtime_s": "60"}}
    assert "VmSize" in shown["logs"][0]["system_logs"][0]

    # Null reads as absent, here too: Cromwell sends it of an attribute without a value.
    nulls = {"max_runtime_s": None, "MAX_RUNTIME_S": "60", "VmSize": None}
    reply = submit(backend_parameters=nulls, backend_parameters_strict=True)
    assert get(client, reply.json()["id"])["resources"]["backend_parameters"] == {
        "max_runtime_s": "60"
    }

    reply = submit(backend_parameters={"VmSize": "x"})
    assert "backend_parameters" not in get(client, reply.json()["id"])["resources"]

    strict = submit(backend_parameters={"VmSize": "x"}, backend_parameters_strict=True)
    assert fields(strict) == ["resources.backend_parameters.VmSize"]
    twice = submit(backend_parameters={"max_runtime_s": "1", "MAX_RUNTIME_S": "2"})
    assert fields(twice) == ["resources.backend_parameters.MAX_RUNTIME_S"]
    for bad in ("0", "-1", "soon", "nan", "inf", ""):
        wrong = submit(backend_parameters={"max_runtime_s": bad})
        assert fields(wrong) == ["resources.backend_parameters.max_runtime_s"]


def test_unknown_views_and_parameters(client: httpx.Client, prefix: str) -> None:
    task_id = create(client, prefix=prefix)
    assert fields(client.get(f"{prefix}/tasks/{task_id}?view=full")) == ["view"]
    assert fields(client.get(f"{prefix}/tasks?view=ALL")) == ["view"]
    ignored = client.get(f"{prefix}/tasks/{task_id}?view=MINIMAL&pretty=1&x")
    assert ignored.json() == {"id": task_id, "state": "QUEUED"}


def test_methods(client: httpx.Client, prefix: str) -> None:
    task_id = create(client, prefix=prefix)
    for path, allow in [
        (f"{prefix}/tasks", "GET, POST, HEAD, OPTIONS"),
        (f"{prefix}/tasks/{task_id}", "GET, HEAD, OPTIONS"),
        (f"{prefix}/tasks/{task_id}:cancel", "POST, OPTIONS"),
    ]:
        for method in ("PUT", "DELETE", "PATCH", "TRACE"):
            refused = client.request(method, path)
            assert (refused.status_code, refused.headers["allow"]) == (405, allow)
            assert refused.json()["error"]["code"] == "method_not_allowed"
        options = client.options(path)
        assert (options.status_code, options.headers["allow"]) == (204, allow)
    head = client.head(f"{prefix}/tasks/{task_id}")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0


def test_spellings_of_paths(server: RunningServer, prefix: str) -> None:
    parts = urlsplit(server.url)
    with server.client() as client:
        task_id = create(client, prefix=prefix)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=10)
    for method, path in [
        ("GET", f"{prefix}/tasks/"),
        ("GET", f"/{prefix}//tasks/{task_id}/"),
        ("GET", f"{prefix}/service-info/"),
        ("POST", f"{prefix}/tasks/{task_id}:cancel"),
        ("POST", f"{prefix}/tasks/{task_id}%3Acancel"),
        ("POST", f"{prefix}/tasks/{task_id}:cancel/"),
    ]:
        connection.putrequest(method, path)
        if method == "POST":
            connection.putheader("Content-Length", "0")
        connection.endheaders()
        reply = connection.getresponse()
        assert (reply.status, path) == (200, path)
        assert isinstance(json.loads(reply.read()), dict)
    connection.close()


def test_unknown_paths_have_the_error_shape(client: httpx.Client) -> None:
    for path in ("/nothing", f"{TES}/task", f"{TES}/tasks/a/b", "/v2/tasks", "/.env"):
        reply = client.get(path)
        assert reply.status_code == 404
        assert set(reply.json()["error"]) == {"code", "status", "message", "request_id"}


def test_request_ids_come_back(client: httpx.Client, server: RunningServer) -> None:
    given = client.get("/healthz", headers={"X-Request-ID": "my-request.1"})
    assert given.headers["x-request-id"] == "my-request.1"
    made = {client.get("/healthz").headers["x-request-id"] for _ in range(10)}
    assert len(made) == 10


def test_requests_are_logged_as_json_with_their_id(
    client: httpx.Client, server: RunningServer
) -> None:
    client.get(f"{TES}/tasks?page_token=secret", headers={"X-Request-ID": "logged-1"})

    def line() -> Any:
        lines = server.log.read_text().splitlines()
        return next((json.loads(x) for x in lines if "logged-1" in x), None)

    found = until(line)
    assert found["path"] == f"{TES}/tasks"
    assert (found["method"], found["status"], found["client"]) == ("GET", 400, "127.0.0.1")
    assert "secret" not in server.log.read_text()


def test_cors_for_the_origins_of_the_setting(client: httpx.Client) -> None:
    allowed = client.get(f"{TES}/tasks", headers={"Origin": "https://a.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    other = client.get(f"{TES}/tasks", headers={"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    preflight = client.options(
        f"{TES}/tasks",
        headers={
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,authorization",
        },
    )
    assert preflight.status_code == 200
    assert "POST" in preflight.headers["access-control-allow-methods"]


def test_service_info(client: httpx.Client, server: RunningServer) -> None:
    allowed = server.data.parent / "allowed"
    current = client.get(f"{TES}/service-info").json()
    assert current["type"] == {"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"}
    assert current["tesResources_backend_parameters"] == ["max_runtime_s"]
    assert f"file://{allowed}" in current["storage"]
    assert "image" in current["description"], "the sandbox is to be said loudly"
    old = client.get(f"{OLD}/service-info").json()
    assert old["type"]["version"] == "1.0.0"
    assert "tesResources_backend_parameters" not in old
    for prefix in (TES, OLD):
        legacy = client.get(f"{prefix}/tasks/service-info")
        assert (legacy.status_code, set(legacy.json())) == (200, {"name", "doc", "storage"})


def test_accepted_tasks_survive_kill_9(tmp_path: Path) -> None:
    with start_server(tmp_path, scheduler="false") as server, server.client() as client:
        ids = [create(client, task(name=f"n{i}")) for i in range(50)]
        server.process.kill()
        server.process.wait()
    with start_server(tmp_path, scheduler="false") as server, server.client() as client:
        shown = client.get(f"{TES}/tasks").json()["tasks"]
        assert [item["id"] for item in shown] == ids[::-1]
