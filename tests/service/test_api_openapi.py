"""The OpenAPI document, held against the standard's names, the routes, and real replies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from tesazure import model
from tesazure.api import openapi
from tests.service.server import OLD, TES, RunningServer, create, ended, start_server, task

DOCUMENT = openapi.document()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("server")) as running:
        yield running


def valid(reply: httpx.Response, method: str, template: str) -> Any:
    """The reply's body, once it is found to be what the document says of it."""
    responses = DOCUMENT["paths"][template][method.lower()]["responses"]
    assert str(reply.status_code) in responses, (method, template, reply.status_code)
    content = responses[str(reply.status_code)]["content"]
    media = reply.headers["content-type"].partition(";")[0]
    assert media in content
    if media != "application/json":
        return reply.text
    schema = {**content[media]["schema"], "components": DOCUMENT["components"]}
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(reply.json())
    return reply.json()


def test_the_schemas_have_the_models_fields() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name, kind, server_fields in [
        ("tesTask", model.Task, model.SERVER_FIELDS),
        ("tesInput", model.Input, set()),
        ("tesOutput", model.Output, set()),
        ("tesExecutor", model.Executor, set()),
        ("tesResources", model.Resources, set()),
        ("tesExecutorLog", model.ExecutorLog, set()),
        ("tesOutputFileLog", model.OutputFileLog, set()),
        ("tesTaskLog", model.TaskLog, set()),
    ]:
        assert set(schemas[name]["properties"]) == set(kind.__struct_fields__) | server_fields
    assert set(schemas["tesState"]["enum"]) == {str(state) for state in model.State}
    assert schemas["tesFileType"]["enum"] == [str(kind) for kind in model.FileType]


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for item in value.values():
                yield from references(item)
        elif isinstance(value, list):
            for item in value:
                yield from references(item)

    used = set(references(DOCUMENT))
    there = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    # The data of an event is text to OpenAPI; its shape is described all the same.
    assert used | {"#/components/schemas/StateChange"} == there


def test_the_document_has_the_servers_routes_and_no_others(client: httpx.Client) -> None:
    served = client.get("/openapi.json").json()
    assert served == DOCUMENT
    for template, operations in served["paths"].items():
        path = template.replace("{id}", "0" * 26).replace("{executor}", "0")
        allowed = client.options(path).headers["allow"].split(", ")
        assert {m.lower() for m in allowed} - {"head", "options"} == set(operations), template


def test_operations_have_names_of_their_own() -> None:
    names = [op["operationId"] for ops in DOCUMENT["paths"].values() for op in ops.values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("prefix", [TES, OLD])
def test_the_standards_operations_are_there(prefix: str) -> None:
    paths = {
        (path.removeprefix(prefix), method)
        for path, operations in DOCUMENT["paths"].items()
        if path.startswith(f"{prefix}/")
        for method in operations
    }
    assert paths == {
        ("/service-info", "get"),
        ("/tasks/service-info", "get"),
        ("/tasks", "get"),
        ("/tasks", "post"),
        ("/tasks/{id}", "get"),
        ("/tasks/{id}:cancel", "post"),
    }


@pytest.mark.parametrize("prefix", [TES, OLD])
def test_real_replies_are_as_described(client: httpx.Client, prefix: str) -> None:
    tasks, one, cancel = (
        f"{prefix}/tasks",
        f"{prefix}/tasks/{{id}}",
        f"{prefix}/tasks/{{id}}:cancel",
    )
    document = task("sh", "-c", "echo out; echo err >&2", name="described", tags={"a": None})
    document["inputs"] = [{"path": "/tmp/in", "content": "x"}]
    valid(client.post(tasks, json=document), "post", tasks)
    task_id = create(client, document, prefix)
    for view in ("MINIMAL", "BASIC", "FULL"):
        valid(client.get(f"{tasks}/{task_id}", params={"view": view}), "get", one)
    ended(client, task_id)
    for view in ("MINIMAL", "BASIC", "FULL"):
        valid(client.get(f"{tasks}/{task_id}", params={"view": view}), "get", one)
        page = valid(client.get(tasks, params={"view": view, "page_size": 1}), "get", tasks)
        assert page["next_page_token"]
    valid(client.post(f"{tasks}/{task_id}:cancel"), "post", cancel)
    unknown = "0" * 26
    assert "error" in valid(client.get(f"{tasks}/{unknown}"), "get", one)
    assert "error" in valid(client.post(f"{tasks}/{unknown}:cancel"), "post", cancel)
    assert "error" in valid(client.post(tasks, json={"executors": 1}), "post", tasks)
    assert "error" in valid(client.get(tasks, params={"page_size": "x"}), "get", tasks)
    for path in (f"{prefix}/service-info", f"{prefix}/tasks/service-info"):
        valid(client.get(path), "get", path)


def test_our_own_replies_are_as_described(client: httpx.Client) -> None:
    task_id = create(client)
    ended(client, task_id)
    fixed = ("/", "/docs", "/openapi.json", "/api/v1/sign-in", "/healthz", "/readyz", "/metrics")
    for path in fixed:
        valid(client.get(path), "get", path)
    template = "/api/v1/tasks/{id}/logs/{executor}/stdout"
    path = f"/api/v1/tasks/{task_id}/logs/0/stdout"
    valid(client.get(path), "get", template)
    valid(client.get(path, headers={"Range": "bytes=9-"}), "get", template)
    valid(client.get(f"{path}?attempt=0"), "get", template)
    template = "/api/v1/tasks/{id}/events"
    text = valid(client.get(f"/api/v1/tasks/{task_id}/events"), "get", template)
    data = next(line for line in text.splitlines() if line.startswith("data: "))
    schema = DOCUMENT["components"]["schemas"]["StateChange"]
    resolved = {**schema, "components": DOCUMENT["components"]}
    jsonschema_rs.validator_for(resolved, validate_formats=True).validate(json.loads(data[6:]))


def test_the_names_come_from_the_standard(shared_dir: Path) -> None:
    yaml = pytest.importorskip("yaml")
    standard = yaml.safe_load((shared_dir / "spec" / "tes-1.1.0.yaml").read_text())
    ours = DOCUMENT["components"]["schemas"]
    for name, schema in standard["components"]["schemas"].items():
        assert name in ours
        properties = schema.get("properties", {})
        assert set(properties) <= set(ours[name].get("properties", {})), name
        # exit_code: an executor that still runs has none, so that clients do not see a false 0.
        required = set(schema.get("required", ())) - {"exit_code"}
        assert required <= set(ours[name].get("required", ())) | {"executors"}, name
        if "enum" in schema:
            assert set(schema["enum"]) == set(ours[name]["enum"])
