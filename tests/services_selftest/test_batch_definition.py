"""The Batch stand-in, and who asks it, keep to Microsoft's published definition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import (
    HttpResponseError,
)
from azure.core.rest import HttpRequest

from tests.services.batch_definition import Definition, definition
from tests.services.batch_server import BatchServer
from tests.services.batch_wire import Reply, Request
from tests.services_selftest.batch_account import (
    MEDIA_TYPE,
    VERSION,
    BatchAccount,
    at_once,
    client_of,
    code_of,
)


@pytest.fixture
def account(tmp_path: Path) -> Iterator[BatchAccount]:
    """An account whose tasks end at once."""
    with BatchAccount(tmp_path / "batch", simulation=at_once) as found:
        yield found


@pytest.fixture
def spec() -> Definition:
    """Microsoft's definition; a visible skip where it is not."""
    found = definition()
    if found is None:
        pytest.skip("BatchService.json is not there (TESAZURE_SHARED)")
    return found


def test_every_operation_is_one_of_the_definition(account: BatchAccount, spec: Definition) -> None:
    for route in account.server.routes:
        path = "/" + route.path.replace("**", "a/b").replace("*", "x")
        found = spec.operation(route.method, path)
        assert found is not None, route
        assert found["operationId"] == route.operation


def test_requests_that_break_the_definition(account: BatchAccount, spec: Definition) -> None:
    bodies: list[dict[str, Any]] = [
        {"id": "t"},
        {"id": "t", "commandLine": "x", "comandLine": "x"},
        {"id": "t", "commandLine": ["x"]},
        {"id": "t", "commandLine": "x", "requiredSlots": "1"},
        {"id": "t", "commandLine": "x", "resourceFiles": [{"httpurl": "x"}]},
    ]
    account.pool()
    for body in bodies:
        with pytest.raises(HttpResponseError) as raised:
            account.send("POST", "/jobs/p/tasks", body)
        assert code_of(raised.value) == "InvalidRequestBody"
        assert len(account.server.violations) == 1
        account.server.violations.clear()
    with pytest.raises(HttpResponseError):
        account.send("GET", "/pools?colour=red")
    assert "unknown colour" in account.server.violations.pop()
    request = HttpRequest(
        "POST",
        f"{account.server.url}/jobs/p/tasks?api-version={VERSION}",
        content='{"id": "t", "commandLine": "x"}',
        headers={"content-type": "application/json"},
    )
    with pytest.raises(HttpResponseError):
        account.client.send_request(request)
    assert "content type" in account.server.violations.pop()


def test_replies_that_break_the_definition(account: BatchAccount, spec: Definition) -> None:
    account.pool()
    pool = account.server.world.pools.get("p")
    assert pool is not None
    pool.given["colour"] = "red"
    account.client.get_pool("p")
    assert "colour" in account.server.violations.pop()
    request = Request("POST", "/pools", {}, b"")
    assert spec.reply(request, Reply(200)) == ["status 200 is not defined"]
    assert "the header ETag is missing" in spec.reply(request, Reply(201))
    assert spec.request(Request("POST", "/pools", {"content-type": MEDIA_TYPE}, b""), None)


def test_a_violation_fails_the_test_that_has_it(tmp_path: Path, spec: Definition) -> None:
    with (
        pytest.raises(AssertionError, match="colour"),
        BatchServer(tmp_path, simulation=at_once) as server,
    ):
        client = client_of(server)
        with pytest.raises(HttpResponseError):
            client.send_request(
                HttpRequest("GET", f"{server.url}/pools?api-version={VERSION}&colour=red")
            )


def test_an_error_of_the_stand_in_itself_is_no_silence(account: BatchAccount) -> None:
    def fail(operation: str, request: Request) -> None:
        raise KeyError(operation, request.path)

    account.server.before = fail
    with pytest.raises(HttpResponseError) as raised:
        list(account.client.list_pools())
    assert raised.value.status_code == 500
    assert "KeyError" in account.server.violations.pop()
