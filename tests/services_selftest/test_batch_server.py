"""The Batch stand-in, asked with Microsoft's SDK: who may ask, what it takes, and tells."""

from __future__ import annotations

import base64
import datetime as dt
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.core.rest import HttpRequest
from azure.identity import ClientSecretCredential

from tests.services.batch_server import BatchServer
from tests.services.batch_wire import Request, parse_duration, parse_time
from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer
from tests.services_selftest.batch_account import (
    VERSION,
    BatchAccount,
    at_once,
    code_of,
)


@pytest.fixture
def account(tmp_path: Path) -> Iterator[BatchAccount]:
    """An account whose tasks end at once."""
    with BatchAccount(tmp_path / "batch", simulation=at_once) as found:
        yield found


def refused(account: BatchAccount, method: str, path: str, body: Any = None) -> str:
    """Batch's code for a request that must be refused; what it broke is forgotten."""
    with pytest.raises(HttpResponseError) as raised:
        account.send(method, path, body)
    account.server.violations.clear()
    return code_of(raised.value)


# ---------------------------------------------------------------------- who may ask


def test_the_right_key_is_taken(account: BatchAccount) -> None:
    assert list(account.client.list_pools()) == []


@pytest.mark.parametrize("name", ["labbatch", "another"])
def test_a_wrong_key_or_name_is_refused(account: BatchAccount, name: str) -> None:
    other = base64.b64encode(b"another key").decode()
    key = other if name == "labbatch" else account.server.key
    client = BatchClient(account.server.url, AzureNamedKeyCredential(name, key))
    with pytest.raises(HttpResponseError) as raised:
        list(client.list_pools())
    assert raised.value.status_code == 403
    assert code_of(raised.value) == "AuthenticationFailed"
    assert account.server.key not in str(raised.value)


@pytest.mark.parametrize(
    ("method", "target", "more"),
    [
        ("GET", f"/jobs?api-version={VERSION}", {}),
        ("GET", f"/pools?api-version={VERSION}&maxresults=5", {}),
        ("DELETE", f"/pools?api-version={VERSION}", {}),
        ("GET", f"/pools?api-version={VERSION}", {"ocp-range": "bytes=0-1"}),
        ("GET", f"/pools?api-version={VERSION}", {"if-match": "*"}),
        ("GET", f"/pools?api-version={VERSION}", {"content-length": "1"}),
    ],
)
def test_a_signature_is_good_for_its_request_alone(
    account: BatchAccount, method: str, target: str, more: dict[str, str]
) -> None:
    """What the SDK signed is sent again, as it was and with one thing changed."""
    seen: list[Request] = []
    account.server.before = lambda _, request: seen.append(request)
    list(account.client.list_pools())
    [signed] = seen
    again = account.server.answer(signed)
    assert again is not None
    assert again.status == 200
    changed = account.server.answer(Request(method, target, signed.headers | more, b""))
    assert changed is not None
    assert changed.status == 403
    assert changed.document["code"] == "AuthenticationFailed"


@pytest.mark.parametrize("minutes", [-16, 16])
def test_a_clock_that_is_wrong_is_refused(account: BatchAccount, minutes: int) -> None:
    account.server.skew(minutes * 60)
    with pytest.raises(HttpResponseError) as raised:
        list(account.client.list_pools())
    assert raised.value.status_code == 403
    account.server.skew(minutes * 60 * 0.9)
    assert list(account.client.list_pools()) == []


def test_an_account_may_forbid_keys(account: BatchAccount) -> None:
    account.server.doorkeeper.forbids_keys = True
    with pytest.raises(HttpResponseError) as raised:
        list(account.client.list_pools())
    assert raised.value.status_code == 403


def test_who_shows_nothing_is_told_where_to_go(account: BatchAccount) -> None:
    request = Request("GET", f"/pools?api-version={VERSION}", {}, b"")
    reply = account.server.answer(request)
    assert reply is not None
    assert reply.status == 401
    assert "authorization_uri" in reply.headers["WWW-Authenticate"]


def test_tokens(tmp_path: Path) -> None:
    with (
        EntraServer(tmp_path / "entra") as entra,
        BatchServer(tmp_path / "batch", simulation=at_once, entra=entra) as server,
    ):
        server.doorkeeper.forbids_keys = True

        def ask(secret: str = SECRET) -> list[Any]:
            credential = ClientSecretCredential(
                TENANT,
                CLIENT,
                secret,
                authority=entra.authority,
                disable_instance_discovery=True,
                connection_verify=entra.ca_bundle,
            )
            client = BatchClient(server.url, credential, connection_verify=server.ca_bundle)
            return list(client.list_pools())

        assert server.url.startswith("https://")
        assert ask() == []
        with pytest.raises(ClientAuthenticationError):
            ask("another secret")
        server.doorkeeper.members = set()
        with pytest.raises(HttpResponseError) as raised:
            ask()
        assert code_of(raised.value) == "InsufficientAccountPermissions"
        request = Request("GET", f"/pools?api-version={VERSION}", {}, b"")
        for token in ("nonsense", entra.issue({"aud": "https://storage.azure.com"})):
            request.headers["authorization"] = f"Bearer {token}"
            reply = server.answer(request)
            assert reply is not None
            assert reply.status == 401


# ---------------------------------------------------------------------- what is taken


def test_bodies_are_checked_in_any_case(account: BatchAccount) -> None:
    """What the stand-in knows by itself, with or without Microsoft's definition."""
    account.pool()
    assert refused(account, "POST", "/jobs/none/tasks", {"id": "t", "commandLine": "x"}) == (
        "JobNotFound"
    )
    bad_id = {"id": "a b", "commandLine": "x"}
    assert refused(account, "POST", "/jobs/p/tasks", bad_id) == "InvalidPropertyValue"
    slots = {"id": "t", "commandLine": "x", "requiredSlots": 2}
    assert refused(account, "POST", "/jobs/p/tasks", slots) == "InvalidPropertyValue"
    limit = {"id": "t", "commandLine": "x", "constraints": {"maxWallClockTime": "1 hour"}}
    assert refused(account, "POST", "/jobs/p/tasks", limit) == "InvalidPropertyValue"
    assert refused(account, "GET", "/nothing") == "InvalidUri"
    assert refused(account, "GET", "/pools?maxresults=1001") == "InvalidQueryParameterValue"


def test_an_unknown_version_is_refused(account: BatchAccount) -> None:
    with pytest.raises(HttpResponseError) as raised:
        account.client.send_request(
            HttpRequest("GET", f"{account.server.url}/pools?api-version=2010-01-01")
        )
    assert code_of(raised.value) == "UnsupportedRequestVersion"


def test_conditions_are_not_silently_ignored(account: BatchAccount) -> None:
    account.pool()
    with pytest.raises(HttpResponseError):
        account.client.delete_task("p", "t", if_modified_since=dt.datetime.now(dt.UTC))


def test_ids_are_found_in_any_case_and_kept(account: BatchAccount) -> None:
    account.pool("Pool")
    assert account.client.get_pool("pOOL").id == "Pool"
    with pytest.raises(ResourceExistsError) as raised:
        account.pool("POOL")
    assert code_of(raised.value) == "PoolExists"


def test_collections(account: BatchAccount) -> None:
    account.pool()
    tasks = [models.BatchTaskCreateOptions(id=f"t{n}", command_line="x") for n in range(101)]
    group = models.BatchTaskGroup(task_values=tasks[:100])
    first = account.client.create_task_collection("p", group).result_values
    assert {each.status for each in first or []} == {"success"}
    again = models.BatchTaskGroup(task_values=tasks[99:])
    results = account.client.create_task_collection("p", again).result_values or []
    by_id = {each.task_id: each for each in results}
    assert by_id["t100"].status == "success"
    assert by_id["t99"].status == "clienterror"
    assert by_id["t99"].error is not None
    assert by_id["t99"].error.code == "TaskExists"
    with pytest.raises(HttpResponseError):
        account.client.create_task_collection("p", models.BatchTaskGroup(task_values=tasks))
    account.server.violations.clear()
    assert account.server.calls["Task_AddCollection"] == 3


def test_a_body_that_is_too_large(account: BatchAccount) -> None:
    account.pool()
    settings = [models.EnvironmentSetting(name="X", value="x" * 20_000)]
    tasks = [
        models.BatchTaskCreateOptions(id=f"t{n}", command_line="x", environment_settings=settings)
        for n in range(100)
    ]
    with pytest.raises(HttpResponseError) as raised:
        account.client.create_task_collection("p", models.BatchTaskGroup(task_values=tasks))
    assert raised.value.status_code == 413
    assert code_of(raised.value) == "RequestBodyTooLarge"
    account.client.create_tasks("p", tasks)
    assert len(list(account.client.list_tasks("p"))) == 100


def test_a_job_that_ends_takes_no_tasks(account: BatchAccount) -> None:
    account.server.timing.deletion_s = math.inf
    account.pool()
    account.send("POST", "/jobs/p/terminate", {"terminateReason": "enough"})
    task = {"id": "t", "commandLine": "x"}
    assert refused(account, "POST", "/jobs/p/tasks", task) == "JobBeingTerminated"
    account.send("DELETE", "/jobs/p")
    assert refused(account, "POST", "/jobs/p/tasks", task) == "JobBeingDeleted"
    assert refused(account, "DELETE", "/jobs/p") == "JobBeingDeleted"


def test_quotas_of_jobs_and_pools(account: BatchAccount) -> None:
    account.server.quotas.jobs = account.server.quotas.pools = 1
    account.pool()
    with pytest.raises(ResourceExistsError) as raised:
        account.pool("q")
    assert code_of(raised.value) == "PoolQuotaReached"
    info = models.BatchPoolInfo(pool_id="later")
    with pytest.raises(ResourceExistsError) as raised:
        account.client.create_job(models.BatchJobCreateOptions(id="q", pool_info=info))
    assert code_of(raised.value) == "ActiveJobAndScheduleQuotaReached"


# ---------------------------------------------------------------------- what is told


def test_filters_and_selections(account: BatchAccount) -> None:
    account.pool(task_slots_per_node=4)
    account.server.fail_tasks(3, lambda task: task.id == "t1")
    ids = account.run("echo a", "echo b", "echo c")
    account.wait(ids)
    client = account.client

    def found(text: str) -> list[str]:
        return [task.id for task in client.list_tasks("p", filter=text)]

    assert found("state eq 'Completed'") == ids
    assert found("startswith(id, 't1')") == ["t1"]
    assert found("id eq 'T2' or (executionInfo/exitCode gt 2 and state ne 'active')") == [
        "t1",
        "t2",
    ]
    assert found("executionInfo/exitCode ne 0") == ["t1"]
    assert found("creationTime lt DateTime'2000-01-01T00:00:00Z'") == []
    assert found("creationTime gt DateTime'Sat, 01 Jan 2000 00:00:00 GMT'") == ids
    whole = next(iter(client.list_tasks("p", filter="id eq 't1'")))
    changed = whole["stateTransitionTime"]
    assert found(f"stateTransitionTime ge DateTime'{changed}' and id eq 't1'") == ["t1"]
    assert found(f"stateTransitionTime gt DateTime'{changed}' and id eq 't1'") == []
    selected = next(iter(client.list_tasks("p", select=["id", "state"])))
    assert set(selected.as_dict()) == {"id", "state"}


@pytest.mark.parametrize(
    "text",
    [
        "State eq 'active'",
        "state gt 'active'",
        "stateTransitionTime ge '2026-01-01T00:00:00Z'",
        "stateTransitionTime ge 2026-01-01T00:00:00Z",
        "stateTransitionTime ge DateTime'yesterday'",
        "startswith(state, 'a')",
        "executionInfo/exitCode eq '0'",
        "id eq",
        "id eq 't1' and",
        "(id eq 't1'",
        "id eq 't1' id eq 't2'",
        "password eq 'x'",
        "id ~ 'x'",
    ],
)
def test_filters_that_are_not_documented(account: BatchAccount, text: str) -> None:
    account.pool()
    with pytest.raises(HttpResponseError) as raised:
        list(account.client.list_tasks("p", filter=text))
    assert raised.value.status_code == 400
    assert code_of(raised.value) == "InvalidQueryParameterValue"


def test_an_unknown_selection(account: BatchAccount) -> None:
    account.pool()
    with pytest.raises(HttpResponseError):
        list(account.client.list_tasks("p", select=["id", "colour"]))


def test_pages_that_change_while_they_are_listed(account: BatchAccount) -> None:
    account.pool()
    account.run(*["x"] * 9)
    account.server.page(3)
    assert len([task.id for task in account.client.list_tasks("p")]) == 9
    assert account.server.calls["Task_List"] == 3

    def change(operation: str, request: Request) -> None:
        if operation == "Task_List" and "$skiptoken" in request.query:
            account.server.before = lambda *_: None
            account.client.delete_task("p", "t0")
            account.client.delete_task("p", "t5")
            for id_ in ("t1a", "t9"):
                account.client.create_task(
                    "p", models.BatchTaskCreateOptions(id=id_, command_line="x")
                )

    account.server.before = change
    seen = [task.id for task in account.client.list_tasks("p")]
    assert seen == ["t0", "t1", "t2", "t3", "t4", "t6", "t7", "t8", "t9"]


def test_a_limit_on_a_page(account: BatchAccount) -> None:
    account.pool()
    account.run("x", "x", "x")
    assert len(list(account.client.list_tasks("p", max_results=2))) == 3
    assert account.server.calls["Task_List"] == 2


def test_replies_are_as_recordings_show_them(account: BatchAccount) -> None:
    account.pool()
    with pytest.raises(ResourceNotFoundError) as raised:
        account.client.get_pool("none")
    body = raised.value.response.json()  # type: ignore[union-attr]
    assert body["code"] == "PoolNotFound"
    assert body["message"]["lang"] == "en-US"
    assert body["message"]["value"].startswith("The specified pool does not exist.\nRequestId:")
    assert body["odata.metadata"].startswith(f"{account.server.url}/$metadata#")
    reply = account.send("GET", "/pools")
    assert reply.json()["odata.metadata"]
    assert reply.headers["request-id"]


def test_counts_of_tasks(account: BatchAccount) -> None:
    account.pool(task_slots_per_node=4)
    account.server.fail_tasks(1)
    account.wait(account.run("x", "x", "x", required_slots=2))
    found = account.client.get_job_task_counts("p")
    assert found.task_counts.completed == 3
    assert found.task_counts.failed == 1
    assert found.task_slot_counts.completed == 6


def test_supported_images(account: BatchAccount) -> None:
    images = list(account.client.list_supported_images())
    fitting = [
        image.image_reference.sku
        for image in images
        if "DockerCompatible" in (image.capabilities or []) and image.os_type == "linux"
    ]
    assert "2404" in fitting
    text = "osType eq 'linux' and verificationType eq 'verified'"
    assert 0 < len(list(account.client.list_supported_images(filter=text))) < len(images)
    with pytest.raises(HttpResponseError):
        list(account.client.list_supported_images(filter="sku eq '2404'"))


# ---------------------------------------------------------------------- troubles


def test_troubles(account: BatchAccount) -> None:
    server, client = account.server, account.client
    server.trouble("Pool_List", status=429, retry_after_s=7)
    with pytest.raises(HttpResponseError) as raised:
        list(client.list_pools())
    assert raised.value.status_code == 429
    assert raised.value.response.headers["Retry-After"] == "7"  # type: ignore[union-attr]
    server.trouble("*", status=500)
    with pytest.raises(HttpResponseError) as raised:
        list(client.list_pools())
    assert code_of(raised.value) == "InternalError"
    assert list(client.list_pools()) == []
    server.trouble("Pool_List", slow_s=0.2)
    before = time.monotonic()
    assert list(client.list_pools()) == []
    assert time.monotonic() - before >= 0.2


@pytest.mark.parametrize("when", ["before", "after"])
def test_connections_that_are_cut(account: BatchAccount, when: Any) -> None:
    account.pool()
    account.server.trouble("Task_Add", cut=when)
    with pytest.raises(AzureError):
        account.run("x")
    assert [task.id for task in account.client.list_tasks("p")] == (
        ["t0"] if when == "after" else []
    )


def test_the_sdk_itself_tries_again_when_told_to_wait(account: BatchAccount) -> None:
    client = BatchClient(
        account.server.url, AzureNamedKeyCredential(account.server.account, account.server.key)
    )
    account.server.trouble("Pool_List", status=429, retry_after_s=0.05, times=2)
    assert list(client.list_pools()) == []
    assert account.server.calls["Pool_List"] == 3


# ---------------------------------------------------------------------- small parts


def test_times_have_seven_digits() -> None:
    assert parse_time("1970-01-01T00:00:01Z") == 10_000_000
    assert parse_time("1970-01-01T00:00:00.1234567Z") == 1_234_567
    assert parse_time("1970-01-01T00:00:00.5+00:00") == 5_000_000
    with pytest.raises(ValueError, match="not a time"):
        parse_time("1970-01-01")
    assert parse_duration("P1DT2H3M4.5S") == 93784.5
    for text in ("P", "PT", "1H", "P1M"):
        with pytest.raises(ValueError, match="not a duration"):
            parse_duration(text)
