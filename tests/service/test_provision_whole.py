"""From an empty subscription to a task on Azure Batch by one request: the real server, Microsoft's
SDKs, and stand-ins that really make accounts, and run tasks in them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import need_sandbox
from tests.service.azure_subscription import Subscription, subscription
from tests.service.server import (
    TES,
    contents,
    create,
    ended,
    get,
    start_server,
    task,
    until,
)
from tests.service.test_settings_table import config
from tests.services.azure_cloud_groups import SUBSCRIPTION
from tests.services.entra_server import CLIENT, SECRET, TENANT
from tests.services.key_vault_server import KeyVaultServer

LONG_S = 240.0
PRINCIPAL = {"client_id": CLIENT, "secret": SECRET, "tenant": TENANT}
BY_PRINCIPAL = {"subscription_id": SUBSCRIPTION, "service_principal": PRINCIPAL}


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[Subscription]:
    need_sandbox()
    with subscription(tmp_path / "azure") as made:
        yield made


def settings(azure: Subscription, **more: object) -> dict[str, object]:
    """Of a server that may ask this Azure, and knows no account."""
    return {
        "arm_endpoint": azure.cloud.url,
        "azure_authority_host": azure.entra.authority,
        "ca_bundle": azure.cloud.ca_bundle,
        "filetransfer_container_image": "runner:1",
        "retail_prices_url": "",
        "task_network": "false",
        "retry_delay_s": 0.05,
        **more,
    }


def initialize(client: httpx.Client, request: dict[str, Any]) -> str:
    reply = client.post("/provision/initialize", json=request, timeout=120)
    assert reply.status_code in (200, 202), reply.text
    return str(reply.json()["guid"])


def query(client: httpx.Client, guid: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/provision/query/{guid}").json()
    return found


def over(client: httpx.Client, guid: str) -> dict[str, Any]:
    """The run once it has ended."""
    until(lambda: query(client, guid)["status"] not in ("INPROGRESS", "DELETING"), LONG_S)
    return query(client, guid)


def ran_on(document: dict[str, Any]) -> str:
    return "batch" if "batch_job" in document["logs"][-1]["metadata"] else "local"


def test_one_request_and_tasks_run_on_azure_batch(azure: Subscription, tmp_path: Path) -> None:
    with start_server(tmp_path / "s", **settings(azure)) as server, server.client() as client:
        assert ran_on(ended(client, create(client))) == "local"
        guid = initialize(client, BY_PRINCIPAL)
        run = over(client, guid)
        assert run["status"] == "CREATED", json.dumps(run, indent=1)
        steps = {step["name"]: step for step in run["steps"]}
        assert steps["test-task"]["detail"].startswith("a task ran on Standard_")
        assert "in effect, and kept in the database" in steps["settings"]["detail"]

        done = ended(client, create(client, task("echo", "hello")), LONG_S)
        assert (done["state"], ran_on(done)) == ("COMPLETE", "batch")
        assert done["logs"][0]["logs"][0]["stdout"] == "hello\n"
        [account] = azure.cloud.batch.servers
        keys = [*azure.cloud.batch._keys[account], *azure.cloud.storage._keys[account]]
        for secret in (SECRET, *keys):
            found = [p for p, content in contents(server.data) if secret.encode() in content]
            assert not found, found
            assert secret not in server.log.read_text()
            assert secret not in json.dumps(query(client, guid))


def test_a_removal_gives_the_settings_back(azure: Subscription, tmp_path: Path) -> None:
    """Not while tasks run there; and what the server did before goes on."""
    with start_server(tmp_path / "s", **settings(azure)) as server, server.client() as client:
        guid = initialize(client, BY_PRINCIPAL)
        assert over(client, guid)["status"] == "CREATED"
        long = create(client, task("sleep", "600"))
        until(lambda: get(client, long, "MINIMAL")["state"] == "RUNNING", LONG_S)
        remove = f"/provision/{guid}?confirm=true"
        principal = {"service_principal": PRINCIPAL}
        assert client.request("DELETE", remove, json=principal).status_code == 202
        refused = over(client, guid)
        assert refused["status"] == "ERROR"
        assert "attempts of tasks that are not over" in refused["note"]
        assert azure.cloud.batch.servers

        # It is still looked after, though new tasks run here again.
        here = ended(client, create(client))
        assert (here["state"], ran_on(here)) == ("COMPLETE", "local")
        client.post(f"{TES}/tasks/{long}:cancel")
        assert ended(client, long, LONG_S)["state"] == "CANCELED"
        assert client.request("DELETE", remove, json=principal).status_code == 202
        removed = over(client, guid)
        assert removed["status"] == "DELETED", json.dumps(removed, indent=1)
        assert azure.cloud.ids() == []
        assert ran_on(ended(client, create(client))) == "local"
    with start_server(tmp_path / "s", **settings(azure)) as server, server.client() as client:
        assert ran_on(ended(client, create(client))) == "local"


def test_a_server_with_an_identity_uses_no_keys(azure: Subscription, tmp_path: Path) -> None:
    """Also after a kill, when it starts with what the database says."""
    own = settings(azure, azure_client_id=CLIENT, azure_secret=SECRET, azure_tenant=TENANT)
    with start_server(tmp_path / "s", **own) as server, server.client() as client:
        guid = initialize(client, {"subscription_id": SUBSCRIPTION})
        run = over(client, guid)
        assert run["status"] == "CREATED", json.dumps(run, indent=1)
        done = ended(client, create(client, task("echo", "hello")), LONG_S)
        assert (done["state"], ran_on(done)) == ("COMPLETE", "batch")
        kept = config(server.data, "--json", **own)
        assert json.loads(kept.stdout)["BATCH_ACCOUNT_NAME"]["source"] == "database"
        assert json.loads(kept.stdout)["BATCH_ACCOUNT_KEY"]["source"] == "default"
        server.process.send_signal(signal.SIGKILL)
    with start_server(tmp_path / "s", **own) as server, server.client() as client:
        done = ended(client, create(client, task("echo", "again")), LONG_S)
        assert (done["state"], ran_on(done)) == ("COMPLETE", "batch")


@contextmanager
def vault_beside(
    azure: Subscription, directory: Path
) -> Iterator[tuple[KeyVaultServer, dict[str, Any]]]:
    """A vault, and the settings of a server with an identity that can reach it."""
    own = settings(azure, azure_client_id=CLIENT, azure_secret=SECRET, azure_tenant=TENANT)
    own |= {"keyvault_verify_challenge": "false", "keyvault_refresh_s": 0}
    with KeyVaultServer(directory / "vault", azure.entra) as vault:
        bundle = directory / "all.pem"
        bundle.write_text("".join(Path(p.ca_bundle).read_text() for p in (azure.cloud, vault)))
        yield vault, own | {"ca_bundle": str(bundle)}


def test_a_vault_that_takes_no_settings_is_told_before_anything_is_made(
    azure: Subscription, tmp_path: Path
) -> None:
    with (
        vault_beside(azure, tmp_path) as (vault, own),
        start_server(tmp_path / "s", **own) as server,
        server.client() as client,
    ):
        vault.writers = set()
        for dry_run in (True, False):
            request = {**BY_PRINCIPAL, "key_vault": vault.url, "dry_run": dry_run}
            reply = client.post("/provision/initialize", json=request, timeout=120)
            assert reply.status_code == 400, reply.text
            [said] = reply.json()["error"]["fields"]
            assert said["field"] == "key_vault"
            assert "Key Vault Secrets Officer" in said["message"]
        assert azure.cloud.ids() == []


def test_settings_go_to_a_vault(azure: Subscription, tmp_path: Path) -> None:
    with vault_beside(azure, tmp_path) as (vault, own):
        request = {**BY_PRINCIPAL, "key_vault": vault.url}
        vault.set("TESAZURE-BATCH-MAX-NODES", "7")
        with start_server(tmp_path / "s", **own) as server, server.client() as client:
            guid = initialize(client, request)
            vault.writers = set()  # long before the settings are written
            run = over(client, guid)
            assert run["status"] == "ERROR"
            failure = next(s["failure"] for s in run["steps"] if s["name"] == "settings")
            assert "Key Vault Secrets Officer" in failure["message"]
            assert ran_on(ended(client, create(client))) == "local"

            # What was never kept is not taken back by having all servers read the vault.
            remove = f"/provision/{guid}?confirm=true"
            principal = {"service_principal": PRINCIPAL}
            assert client.request("DELETE", remove, json=principal).status_code == 202
            assert over(client, guid)["status"] == "DELETED"
            shown = json.loads(config(server.data, "--json", **own).stdout)
            assert shown["KEYVAULT_URL"]["source"] == "default"

            vault.writers = None
            vault.set("TESAZURE-BATCH-VM-SIZES-DENIED", "Standard_M*")
            assert initialize(client, request) == guid
            run = over(client, guid)
            assert run["status"] == "CREATED", json.dumps(run, indent=1)
            assert vault.value("TESAZURE-BATCH-ACCOUNT-NAME") in azure.cloud.batch.servers
            done = ended(client, create(client, task("echo", "hello")), LONG_S)
            assert (done["state"], ran_on(done)) == ("COMPLETE", "batch")
            shown = json.loads(config(server.data, "--json", **own).stdout)
            assert shown["BATCH_ACCOUNT_NAME"]["source"] == "Key Vault"
            assert shown["KEYVAULT_URL"]["source"] == "database"

            assert client.request("DELETE", remove, json=principal).status_code == 202
            removed = over(client, guid)
            assert vault.value("TESAZURE-BATCH-ACCOUNT-NAME") is None
            assert vault.value("TESAZURE-BATCH-VM-SIZES-DENIED") == "Standard_M*"
            assert removed["status"] == "DELETED", json.dumps(removed, indent=1)
            assert ran_on(ended(client, create(client))) == "local"
            assert vault.value("TESAZURE-BATCH-ACCOUNT-NAME") is None
            assert vault.value("TESAZURE-BATCH-MAX-NODES") == "7", "which somebody else wrote"

            vault.readers = vault.writers = set()
            reply = client.post("/provision/initialize", json=request, timeout=120)
            assert reply.status_code == 400, reply.text
            assert "Key Vault Secrets" in reply.text


def test_keys_give_way_to_an_identity(azure: Subscription, tmp_path: Path) -> None:
    """The same request, once the server has one: what is left of the keys would lock it out."""
    own = settings(azure, azure_client_id=CLIENT, azure_secret=SECRET, azure_tenant=TENANT)
    with start_server(tmp_path / "s", **settings(azure)) as server, server.client() as client:
        guid = initialize(client, BY_PRINCIPAL)
        assert over(client, guid)["status"] == "CREATED"
        shown = json.loads(config(server.data, "--json", **settings(azure)).stdout)
        assert shown["STORAGE_ACCOUNT_KEY"]["source"] == "database"
    with start_server(tmp_path / "s", **own) as server, server.client() as client:
        assert initialize(client, {"subscription_id": SUBSCRIPTION}) == guid
        run = over(client, guid)
        assert run["status"] == "CREATED", json.dumps(run, indent=1)
        shown = json.loads(config(server.data, "--json", **own).stdout)
        for name in ("BATCH_ACCOUNT_KEY", "STORAGE_ACCOUNT_KEY", "BATCH_FILE_SHARE"):
            assert shown[name]["source"] == "default", name
        done = ended(client, create(client, task("echo", "hello")), LONG_S)
        assert (done["state"], ran_on(done)) == ("COMPLETE", "batch")


def test_what_is_in_the_way_here_is_told_before_anything_is_made(
    azure: Subscription, tmp_path: Path
) -> None:
    """What the environment says wins, and would lead elsewhere; what it does not say is missing."""

    def refused(asked: dict[str, str] | None = None, **more: object) -> list[str]:
        reply = answer(asked, **more)
        assert reply.status_code == 400, reply.text
        return [each["message"] for each in reply.json()["error"]["fields"]]

    def answer(asked: dict[str, str] | None = None, **more: object) -> httpx.Response:
        with (
            start_server(tmp_path / "s", **settings(azure, **more)) as server,
            server.client() as client,
        ):
            request = {**BY_PRINCIPAL, **(asked or {})}
            return client.post("/provision/initialize", json=request, timeout=120)

    [said] = refused(compute_backend="local")
    assert said == "this server: COMPUTE_BACKEND comes from the environment; take it out there"
    [said] = refused(filetransfer_container_image="")
    assert said.startswith("this server: FILETRANSFER_CONTAINER_IMAGE: is missing")
    own = {"azure_client_id": CLIENT, "azure_secret": SECRET, "azure_tenant": TENANT}
    named = {"storage_account_name": "mine"}
    [said] = refused(named, storage_account_key="a2V5", **named, **own)
    assert said == (
        "this server: STORAGE_ACCOUNT_KEY comes from the environment; take it out there"
    )
    open_ = answer(task_network="true")
    assert open_.status_code == 403
    assert "tasks in the sandbox" in open_.json()["message"]
    assert azure.cloud.ids() == []
