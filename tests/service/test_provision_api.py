"""/provision over HTTP: what is replied, to whom, and what the replies never hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.provision_server import (
    BY_PRINCIPAL,
    OWN,
    PRINCIPAL,
    Server,
    ended,
    provision_server,
    query,
)
from tests.service.provision_site import BATCH_KEY, SECRET, TOKEN
from tests.service.test_api_openapi import valid

INITIALIZE = "/provision/initialize"
QUERY = "/provision/query/{id}"
ONE = "/provision/{id}"
NOBODY = "0b1f6471-1bf0-4dda-aec3-000000000000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with provision_server(tmp_path_factory.mktemp("provision")) as running:
        running.start()
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as opened:
        yield opened


def request(**more: Any) -> dict[str, Any]:
    """One by a principal; with a name, a run of its own."""
    return {**BY_PRINCIPAL, **more}


def test_a_run_from_its_request_to_its_removal(client: httpx.Client, server: Server) -> None:
    wanted = request(batch_account_name="whole", tags={"team": "genomics"})
    reply = client.post(INITIALIZE, json=wanted)
    begun = valid(reply, "POST", INITIALIZE)
    guid = begun["guid"]
    assert (reply.status_code, begun["status"]) == (202, "INPROGRESS")
    assert reply.headers["location"] == f"/provision/query/{guid}"
    assert reply.headers["cache-control"] == "no-store"
    run = ended(client, guid)
    assert run["status"] == "CREATED", run
    shown = client.get(f"/provision/query/{guid.upper()}")
    assert valid(shown, "GET", QUERY) == run
    assert run["request"]["service_principal"] == {
        name: value for name, value in PRINCIPAL.items() if name != "secret"
    }
    assert run["request"]["tags"] == {"team": "genomics"}
    listed = client.get("/provision")
    assert run in valid(listed, "GET", "/provision")["runs"]
    for text in (reply.text, shown.text, listed.text, server.log.read_text()):
        assert SECRET not in text
        assert BATCH_KEY not in text

    refused = client.delete(f"/provision/{guid}")
    assert valid(refused, "DELETE", ONE)["error"]["fields"][0]["field"] == "confirm"
    refused = client.delete(f"/provision/{guid}?confirm=true")
    assert valid(refused, "DELETE", ONE)["error"]["fields"][0]["field"] == "service_principal"
    reply = removal(client, guid, {"service_principal": PRINCIPAL})
    assert (reply.status_code, valid(reply, "DELETE", ONE)["status"]) == (202, "DELETING")
    assert ended(client, guid)["status"] == "DELETED"
    assert removal(client, guid, {"service_principal": PRINCIPAL}).status_code == 200
    audited = [line for line in server.log.read_text().splitlines() if '"audit"' in line]
    actions = {json.loads(line)["action"] for line in audited}
    assert actions >= {"provision.initialize", "provision.delete"}


def removal(client: httpx.Client, guid: str, body: Any) -> httpx.Response:
    return client.request(
        "DELETE", f"/provision/{guid}", params={"confirm": "true"}, content=json.dumps(body)
    )


def test_a_dry_run_is_a_plan(client: httpx.Client, server: Server) -> None:
    before = server.cloud.journal()
    reply = client.post(INITIALIZE, json=request(dry_run=True, batch_account_name="dry"))
    plan = valid(reply, "POST", INITIALIZE)
    assert (reply.status_code, plan["dry_run"]) == (200, True)
    assert plan["idle_usd_a_month"] == 1.5
    assert plan["request"]["batch_account_name"] == "dry"
    assert SECRET not in reply.text
    assert server.cloud.journal() == before
    assert client.get(f"/provision/query/{plan['guid']}").status_code == 404


def test_all_that_is_wrong_comes_in_one_reply(client: httpx.Client) -> None:
    wrong = request(batch_account_name="NO", storage_sku="Fast", resorce_group="x", vnet="vn")
    reply = client.post(INITIALIZE, json=wrong)
    assert reply.status_code == 400
    fields = {f["field"]: f["message"] for f in valid(reply, "POST", INITIALIZE)["error"]["fields"]}
    assert set(fields) == {"resorce_group", "batch_account_name", "storage_sku", "subnet"}
    assert fields["resorce_group"] == "is unknown; did you mean resource_group?"
    for body in (b"", b"nonsense", b"[]", b'"x"', b"{\xff}", b"null"):
        assert client.post(INITIALIZE, content=body).status_code == 400
    assert SECRET not in reply.text


def test_what_azure_says_is_in_the_way_is_a_400_too(client: httpx.Client) -> None:
    wrong = request(location="atlantis", service_principal={**PRINCIPAL, "secret": "not-it"})
    reply = client.post(INITIALIZE, json=wrong)
    fields = {f["field"] for f in valid(reply, "POST", INITIALIZE)["error"]["fields"]}
    assert (reply.status_code, fields) == (400, {"service_principal.secret", "location"})
    assert "not-it" not in reply.text


@pytest.mark.parametrize("prefer", ["status=422", "respond-async, Status = 422"])
def test_the_originals_status_comes_if_it_is_preferred(client: httpx.Client, prefer: str) -> None:
    wrong = request(storage_sku="Fast")
    reply = client.post(INITIALIZE, json=wrong, headers={"Prefer": prefer})
    assert reply.status_code == 422
    assert valid(reply, "POST", INITIALIZE)["error"]["status"] == 422
    assert reply.headers["preference-applied"] == "status=422"


def test_an_azure_that_cannot_be_asked_is_a_502_with_a_remedy(
    client: httpx.Client, server: Server
) -> None:
    server.cloud.fault("problems", "fail")
    reply = client.post(INITIALIZE, json=request(batch_account_name="unasked"))
    assert reply.status_code == 502
    assert valid(reply, "POST", INITIALIZE)["message"].endswith("; ask for more")


@pytest.mark.parametrize("guid", [NOBODY, "x", "%00", "..%2f", "'; drop table"])
def test_an_unknown_run_is_not_found(client: httpx.Client, guid: str) -> None:
    for method, path, template in (("GET", "query/", QUERY), ("DELETE", "", ONE)):
        reply = client.request(method, f"/provision/{path}{guid}", params={"confirm": "true"})
        assert reply.status_code == 404
        if guid == NOBODY:
            assert valid(reply, method, template)["status"] == "NOTFOUND"


def test_a_run_under_way_is_in_the_way_of_another(client: httpx.Client, server: Server) -> None:
    server.cloud.fault("group.look", "hold")
    first = client.post(INITIALIZE, json=request(storage_account_name="wanted")).json()["guid"]
    same = client.post(INITIALIZE, json={**OWN, "storage_account_name": "wanted"})
    assert (same.status_code, same.json()["guid"]) == (202, first)
    other = client.post(INITIALIZE, json=request(storage_account_name="wanted", tags={"a": "b"}))
    assert other.status_code == 409
    assert first in valid(other, "POST", INITIALIZE)["message"]
    assert removal(client, first, {"service_principal": PRINCIPAL}).status_code == 409
    while not server.cloud.reached("group.look"):
        query(client, first)
    server.cloud.release("group.look")
    ended(client, first)


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"X-Forwarded-For": "127.0.0.1"}, "X-Forwarded-For"),
        ({"Forwarded": "for=127.0.0.1"}, "Forwarded"),
        ({"Via": "1.1 proxy"}, "Via"),
        ({"Host": "attacker.example"}, "names the server otherwise"),
        ({"Origin": "https://attacker.example"}, "web page"),
        ({"Origin": "null"}, "web page"),
        ({"X-Provision-Token": "wrong"}, "is not the setting"),
        ({"X-Provision-Token": ""}, "is not the setting"),
    ],
)
def test_who_is_not_at_the_machine_is_told_how(
    client: httpx.Client, headers: dict[str, str], why: str
) -> None:
    for method, path in (
        ("POST", INITIALIZE),
        ("GET", f"/provision/query/{NOBODY}"),
        ("GET", "/provision"),
        ("DELETE", f"/provision/{NOBODY}?confirm=true"),
    ):
        reply = client.request(method, path, headers=headers)
        assert reply.status_code == 403
        assert why in reply.json()["message"]
        assert "PROVISION_TOKEN" in reply.json()["message"]
        assert TOKEN not in reply.text


def test_the_token_and_this_machines_names_let_in(client: httpx.Client, server: Server) -> None:
    through_proxy = {"X-Forwarded-For": "203.0.113.7", "Host": "tes.example"}
    allowed = client.get("/provision", headers={**through_proxy, "X-Provision-Token": TOKEN})
    assert allowed.status_code == 200
    port = server.url.rpartition(":")[2]
    for host in (f"localhost:{port}", "localhost", f"127.0.0.1:{port}", "[::1]", "127.8.9.1"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert client.get("/provision", headers=headers).status_code == 200


def test_methods_that_are_not_there(client: httpx.Client) -> None:
    assert client.get(INITIALIZE).status_code in (404, 405)
    assert client.post("/provision").status_code == 405
    assert client.put(f"/provision/{NOBODY}").status_code == 405
