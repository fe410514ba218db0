"""Every endpoint, asked by everybody: the roles of docs/security.md hold, and the log says who."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tesazure.api import openapi
from tests.service.access_tables import table
from tests.service.forged_tokens import forgeries
from tests.service.server import (
    TES,
    RunningServer,
    create,
    ended,
    start_server,
    task,
    until,
)
from tests.service.signed_in import api_token, ask, bearer, entra, settings
from tests.service.test_api_openapi import valid
from tests.services.entra_server import (
    TENANT,
    USER,
    EntraServer,
)

__all__ = ["entra"]

ROLES = ("Tasks.Read", "Tasks.Write", "Tasks.Admin")
UNKNOWN = "0" * 28


@pytest.fixture(scope="module")
def server(entra: EntraServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    more = {"task_access_restrictions": "per-user", "cors_origins": "https://example.org"}
    with start_server(tmp_path_factory.mktemp("server"), **settings(entra, **more)) as running:
        yield running


@pytest.fixture(scope="module")
def callers(entra: EntraServer, server: RunningServer) -> dict[str, list[Any]]:
    """Column of the table -> ways to be such a caller, as arguments of a client."""
    found: dict[str, list[Any]] = {
        "nobody": [{}],
        "no role": [
            {"headers": bearer(entra.issue_app_only())},
            {"headers": bearer(entra.issue_app_only({"roles": ["Other"]}, version=1))},
        ],
    }
    for role in ROLES:
        secret = api_token(server.data, "ann", role)
        found[role] = [
            {"headers": bearer(entra.issue({"roles": [role]}))},
            {"headers": bearer(entra.issue_app_only({"roles": [role]}, version=1))},
            {"headers": bearer(secret)},
            {"auth": ("ann", secret)},
        ]
    found["Tasks.Read"].append({"headers": bearer(entra.issue({"scp": "access Tasks.Read"}))})
    found["Tasks.Write"].append({"headers": bearer(entra.issue())})
    return found


@pytest.fixture(scope="module")
def own(server: RunningServer, callers: dict[str, list[Any]]) -> dict[str, str]:
    """A finished task of each owner: of Entra's user, and of the API tokens' one."""
    tasks = {}
    for owner, caller in (("entra", callers["Tasks.Write"][0]), ("ann", callers["Tasks.Write"][2])):
        with server.client(**caller) as client:
            tags = {"ms-submitter-workflow-id": f"{owner}s"}
            tasks[owner] = create(client, task("sh", "-c", "echo out; echo err >&2", tags=tags))
            ended(client, tasks[owner])
    return tasks


def test_the_table_has_every_operation() -> None:
    written = {tuple(row["request"].split()) for row in table("roles")}
    served = {
        (method.upper(), path)
        for path, operations in openapi.document()["paths"].items()
        for method in operations
    }
    assert written == served


@pytest.mark.parametrize("row", table("roles"), ids=lambda row: row["request"])
def test_each_role_may_what_the_table_says(
    server: RunningServer,
    callers: dict[str, list[Any]],
    own: dict[str, str],
    row: dict[str, str],
) -> None:
    method, template = row["request"].split()
    operation = openapi.document()["paths"][template][method.lower()]
    for column, said in row.items():
        for caller in callers.get(column, ()):
            secret = str(caller)
            owner = "ann" if "tesz_" in secret else "entra"
            path = template.replace("{id}", own[owner]).replace("{executor}", "0")
            path = path.replace("{workflow}", f"{owner}s")
            with server.client(**caller) as client:
                reply = ask(client, method, path)
            assert str(reply.status_code) in operation["responses"], (column, reply.status_code)
            if said == "yes":
                # No run is asked for here: the request is let in, and then says too little.
                let_in = (200, 400, 404) if template.startswith("/provision") else (200, 204)
                assert reply.status_code in let_in, (column, secret, reply.status_code)
                continue
            assert str(reply.status_code) == said, (column, secret)
            error = valid(reply, method, template)["error"]
            challenge = reply.headers["www-authenticate"]
            needed = operation["security"][0]["bearer"][0]
            if said == "403":
                assert needed in error["message"]
                assert 'error="insufficient_scope"' in challenge
                assert f'scope="{needed}"' in challenge
            else:
                assert challenge.startswith('Bearer realm="tesazure"')
                assert 'Basic realm="tesazure"' in challenge
    assert (operation["security"] == []) == (row["nobody"] == "yes" and template != "/metrics")


def test_metrics_may_be_open(entra: EntraServer, tmp_path: Path) -> None:
    open_to_all = settings(entra, metrics_open="true")
    with start_server(tmp_path, **open_to_all) as running, running.client() as client:
        assert client.get("/metrics").status_code == 200
        assert client.get(f"{TES}/tasks").status_code == 401


def test_only_readers_are_told_what_was_found(
    server: RunningServer, callers: dict[str, list[Any]]
) -> None:
    expired = {"headers": bearer("tesz_" + "0" * 16 + "_" + "1" * 64)}
    for column, ways in {**callers, "refused": [expired]}.items():
        for way in ways:
            with server.client(**way) as client:
                reply = client.get("/readyz")
            assert reply.status_code == 200
            checks = valid(reply, "get", "/readyz")["checks"]
            assert {"store", "scheduler", "sign-in", "engine", "disk"} <= {
                c["name"] for c in checks
            }
            reads = column in ROLES
            assert all(("detail" in c) == reads for c in checks), column
            assert (str(server.data) in reply.text) == reads
            assert reads or all(set(c) == {"name", "ok"} for c in checks)


def test_a_browser_may_ask_whether_it_may(server: RunningServer) -> None:
    with server.client() as client:
        asked = {
            "Origin": "https://example.org",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        reply = client.options(f"{TES}/tasks", headers=asked)
        assert reply.status_code == 200
        assert "authorization" in reply.headers["access-control-allow-headers"]
        reply = client.get(f"{TES}/tasks", headers={"Origin": "https://example.org"})
        assert reply.status_code == 401
        assert reply.headers["access-control-allow-origin"] == "https://example.org"
        assert client.options(f"{TES}/tasks").status_code == 204
        assert client.put(f"{TES}/tasks").status_code == 405
        assert client.get("/nothing").status_code == 404


def test_a_refused_submission_leaves_the_connection_usable(
    server: RunningServer, callers: dict[str, list[Any]]
) -> None:
    with server.client() as client:
        for _ in range(3):
            large = task("true", description="x" * 300_000)
            assert client.post(f"{TES}/tasks", json=large).status_code == 401
        headers = callers["Tasks.Write"][0]["headers"]
        assert client.post(f"{TES}/tasks", json=task(), headers=headers).status_code == 200


def test_no_forged_or_broken_token_gets_anything_but_401(
    server: RunningServer, entra: EntraServer
) -> None:
    # Version 1 and 2 of one tenant are what `forgeries` takes for trusted; the other tenant, too,
    # is one of this server's.
    tokens = {
        name: token
        for name, token in forgeries(entra).items()
        if name not in ("other tenant", "other tenant, version 1")
    }
    assert len(tokens) > 80
    with server.client() as client:
        for name, token in tokens.items():
            reply = client.get(
                f"{TES}/tasks", headers={b"authorization": (b"Bearer " + token).strip()}
            )
            if len(token) > 60_000:
                assert reply.status_code in (401, 431)
                continue
            assert reply.status_code == 401, (name, reply.text)
            body = valid(reply, "get", f"{TES}/tasks")
            assert body["error"]["code"] == "unauthenticated"
            assert 'error="invalid_token"' in reply.headers["www-authenticate"], name
            assert not any(
                len(p) > 20 and p in reply.text for p in token.decode("latin-1").split(".")
            )


def test_without_an_issuer_the_server_is_not_ready_and_refuses_nobody(tmp_path: Path) -> None:
    with EntraServer(tmp_path / "entra") as lonely:
        lonely.down()
        with (
            start_server(tmp_path, **settings(lonely)) as running,
            running.client(headers=bearer(lonely.issue())) as client,
        ):
            said = client.get("/readyz")
            assert said.status_code == 503
            # Who asks cannot be proven now, so that only the log may say what is wrong.
            assert {"name": "sign-in", "ok": False} in said.json()["checks"]
            assert "CA_BUNDLE" in running.log.read_text()
            reply = client.get(f"{TES}/tasks")
            assert reply.status_code == 503
            assert reply.headers["retry-after"]
            assert client.get("/healthz").status_code == 200
            lonely.up()
            until(lambda: client.get(f"{TES}/tasks").status_code == 200)
            until(lambda: client.get("/readyz").status_code == 200)
            lonely.down()
            assert client.get(f"{TES}/tasks").status_code == 200
            assert client.get("/readyz").status_code == 200


def test_the_log_says_who_did_what_and_holds_no_token(entra: EntraServer, tmp_path: Path) -> None:
    with start_server(tmp_path, **settings(entra, log_level="warning")) as running:
        secret = api_token(running.data, "ann", "Tasks.Write")
        ways = {
            "bearer": {"headers": bearer(entra.issue())},
            "token": {"headers": bearer(secret)},
            "basic": {"auth": ("ann", secret)},
        }
        owners = {"bearer": f"{TENANT}/{USER}", "token": "local/ann", "basic": "local/ann"}
        names = {"bearer": "user@example.org", "token": "ann", "basic": "ann"}
        tasks = {}
        for how, way in ways.items():
            with running.client(**way) as client:  # type: ignore[arg-type]
                named = {"X-Request-ID": f"request-{how}"}
                reply = client.post(f"{TES}/tasks", json=task(), headers=named)
                tasks[how] = reply.json()["id"]
                named = {"X-Request-ID": f"cancel-{how}"}
                for _ in range(2):  # the second one changes nothing
                    client.post(f"{TES}/tasks/{tasks[how]}:cancel", headers=named)
                client.post(f"{TES}/tasks/{UNKNOWN}:cancel")
                client.post(f"{TES}/tasks", json={})
        with running.client(headers=bearer("tesz_" + "0" * 16 + "_" + "1" * 64)) as client:
            client.get(f"{TES}/tasks")
        running.stop()
        log = running.log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if '"event":"audit"' in line]
    assert len(lines) == 6
    for how, task_id in tasks.items():
        made, canceled = [line for line in lines if line["by"] == how]
        assert (made["action"], canceled["action"]) == ("task.create", "task.cancel")
        for line, request_id in ((made, f"request-{how}"), (canceled, f"cancel-{how}")):
            assert line["task"] == task_id
            assert (line["owner"], line["caller"]) == (owners[how], names[how])
            assert (line["client"], line["request_id"]) == ("127.0.0.1", request_id)
            assert line["time"].endswith("Z")
    signed = ways["bearer"]["headers"]["Authorization"][7:]  # type: ignore[index]
    for part in (signed, signed.rpartition(".")[2], secret, secret.rpartition("_")[2]):
        assert part not in log
    assert "1" * 64 not in log


def test_the_access_log_names_the_caller(entra: EntraServer, tmp_path: Path) -> None:
    with start_server(tmp_path, **settings(entra)) as running:
        token = entra.issue({"preferred_username": 'eve"\n{}'})
        with running.client(headers=bearer(token)) as client:
            client.get(f"{TES}/tasks")
            client.get(f"{TES}/service-info")
        with running.client() as client:
            client.get(f"{TES}/tasks")
        with running.client(headers=bearer(entra.issue({"scp": "Tasks.Read"}))) as client:
            client.post(f"{TES}/tasks", json=task())
        odd = entra.issue({"preferred_username": "x\ud800\0" + "y" * 1000})
        with running.client(headers=bearer(odd)) as client:
            assert client.post(f"{TES}/tasks", json=task()).status_code == 200
        running.stop()
        log = running.log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if '"event":"request"' in line]
    assert [(line["status"], line["caller"]) for line in lines] == [
        (200, 'eve"\n{}'),
        (200, None),
        (401, None),
        (403, "user@example.org"),
        (200, "x?\0" + "y" * 97),
    ]
    assert token.rpartition(".")[2] not in log
