"""A server that is killed at any point of a run: between two steps, and inside each."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from tests.service.provision_server import (
    BY_PRINCIPAL,
    OWN,
    Server,
    ended,
    provision_server,
    query,
)
from tests.service.provision_site import BATCH_KEY, POINTS, SECRET, STEPS


def until_died(server: Server) -> None:
    deadline = time.monotonic() + 60
    while not server.died():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.01)


def begin(client: httpx.Client, request: dict[str, object]) -> str:
    reply = client.post("/provision/initialize", json=request)
    assert reply.status_code == 202, reply.text
    return str(reply.json()["guid"])


def check_whole(server: Server, run: dict[str, object]) -> None:
    """Everything is there, made by this run, once."""
    assert run["status"] == "CREATED", run
    assert [s for s in server.cloud.journal() if s.startswith("make")] == [
        f"make {step}" for step in STEPS
    ]
    for step in STEPS:
        assert server.cloud.read(step) == {"run": run["guid"], "whole": True}
    assert server.cloud.settings.exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_with_the_servers_identity_goes_on_by_itself(tmp_path: Path) -> None:
    """The server dies at every point in turn, in one and the same run."""
    with provision_server(tmp_path) as server:
        client = server.start()
        server.cloud.fault(POINTS[0], "die")
        guid = begin(client, OWN)
        for following in (*POINTS[1:], ""):
            until_died(server)
            if following:
                server.cloud.fault(following, "die")
            client = server.start()
        run = ended(client, guid)
        check_whole(server, run)
        made = {step["name"]: step["made"] for step in run["steps"]}
        # What carries no tag and was made just before a crash is not known to be this run's; it
        # lies in what is, and goes with it.
        assert made | {"container": True} == {**dict.fromkeys(STEPS, True), "settings": True} | {
            "test-task": False
        }
        assert client.delete(f"/provision/{guid}", params={"confirm": "true"}).status_code == 202
        assert ended(client, guid)["status"] == "DELETED"
        assert server.cloud.read("storage") is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_with_a_principal_goes_on_when_it_is_posted_again(tmp_path: Path) -> None:
    with provision_server(tmp_path) as server:
        client = server.start()
        for point in POINTS:
            server.cloud.fault(point, "die")
            guid = begin(client, BY_PRINCIPAL)
            until_died(server)
            client = server.start()
            run = ended(client, guid)
            assert run["status"] == "ERROR", run
            assert run["note"] == "interrupted: post the same request again"
            running = [step for step in run["steps"] if step["state"] == "failed"]
            assert [step["failure"]["code"] for step in running] == ["Interrupted"], point
        assert begin(client, BY_PRINCIPAL) == guid
        check_whole(server, ended(client, guid))
    seen = server.log.read_bytes()
    for file in tmp_path.glob("tesazure.db*"):
        seen += file.read_bytes()
    assert SECRET.encode() not in seen
    assert BATCH_KEY.encode() not in seen


def test_a_removal_goes_on_by_itself(tmp_path: Path) -> None:
    with provision_server(tmp_path) as server:
        client = server.start()
        guid = begin(client, OWN)
        assert ended(client, guid)["status"] == "CREATED"
        server.cloud.fault("storage.remove", "die")
        assert client.delete(f"/provision/{guid}", params={"confirm": "true"}).status_code == 202
        until_died(server)
        server.cloud.fault("withdraw", "die")
        client = server.start()
        run = ended(client, guid)
        assert run["status"] == "DELETED", "settings are withdrawn once"
        assert [server.cloud.read(step) for step in ("group", "storage", "batch")] == [None] * 3
        assert query(client, guid)["request"]["subscription_id"] == OWN["subscription_id"]
