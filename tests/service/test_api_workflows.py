"""Workflows as their users see and end them: over HTTP and by the command line."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tesazure.cli.exits import Code
from tesazure.store.records import WorkflowName
from tesazure.store.sql_store import open_store
from tests.contract.store_tasks import new_task
from tests.service.server import TES, RunningServer, create, get, start_server, task, until
from tests.service.signed_in import bearer, entra, settings
from tests.service.test_api_openapi import valid
from tests.service.tool import Tool
from tests.services.entra_server import OTHER_TENANT, OTHER_USER, EntraServer
from tests.submitted import WORKFLOW, cromwell

__all__ = ["entra"]

ID = "ms-submitter-workflow-id"
LIST = "/api/v1/workflows"
ONE = f"{LIST}/{{workflow}}"


def of(workflow: str, *command: str, **more: Any) -> dict[str, Any]:
    """A small task of a workflow, tagged by its client."""
    return task(*command, tags={ID: workflow}, resources={"cpu_cores": 0.1}, **more)


def asked(client: httpx.Client, workflow: str) -> Any:
    """One workflow."""
    return valid(client.get(f"{LIST}/{quote(workflow, safe='')}"), "get", ONE)


def canceled(client: httpx.Client, workflow: str) -> Any:
    """Cancel it; the reply."""
    path = f"{LIST}/{quote(workflow, safe='')}:cancel"
    return valid(client.post(path), "post", f"{ONE}:cancel")


def audited(server: RunningServer) -> list[dict[str, Any]]:
    """What the server noted, so far."""
    lines = server.log.read_text().splitlines()
    return [json.loads(line) for line in lines if '"event":"audit"' in line]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    database = {}
    if request.param == "postgresql":
        database = {"database_url": request.getfixturevalue("postgres_url")}
    with start_server(tmp_path / "server", allow_dir="/", **database) as running:
        yield running


def test_a_workflow_from_its_first_task_to_its_cancel(
    server: RunningServer, client: httpx.Client
) -> None:
    assert valid(client.get(LIST), "get", LIST) == {"workflows": []}
    stage = {"ms-submitter-workflow-name": "wf", "ms-submitter-name": "mine"}
    done = create(client, task(tags={ID: "run 1", **stage}))
    until(lambda: asked(client, "run 1")["states"] == {"COMPLETE": 1})
    lasting = [create(client, of("run 1", "sleep", "300")) for _ in range(2)]
    other = create(client, of("run 2", "sleep", "300"))
    create(client)
    for task_id in (*lasting, other):
        until(lambda task_id=task_id: get(client, task_id, "MINIMAL")["state"] == "RUNNING")
    found = asked(client, "run 1")
    assert found["states"] == {"COMPLETE": 1, "RUNNING": 2}
    assert (found["name"], found["submitter"]) == ("wf", "mine")
    assert found["estimated_cost_usd"] is None
    assert found["first_activity"] == get(client, done)["creation_time"]
    assert found["last_activity"] > found["first_activity"]
    listed = valid(client.get(LIST), "get", LIST)["workflows"]
    assert [workflow["id"] for workflow in listed] == ["run 2", "run 1"]
    assert listed[1] == found

    first = canceled(client, "run 1")
    assert (first["id"], first["changed"], first["more"]) == ("run 1", 2, False)
    assert first["states"].pop("COMPLETE") == 1
    assert sum(first["states"].values()) == 2
    assert canceled(client, "run 1")["changed"] == 0
    until(lambda: asked(client, "run 1")["states"] == {"COMPLETE": 1, "CANCELED": 2})
    assert get(client, other, "MINIMAL")["state"] == "RUNNING"
    assert canceled(client, "run 2")["changed"] == 1

    def noted() -> list[dict[str, Any]]:
        return [line for line in audited(server) if line["action"] != "task.create"]

    ends = until(lambda: lines if len(lines := noted()) == 5 else None)
    assert [line.get("task") for line in ends[:3]] == [*lasting[::-1], None]
    assert ends[2] == {
        **ends[2],
        "action": "workflow.cancel",
        "workflow": "run 1",
        "tasks": 2,
        "by": "open",
    }


def test_tasks_of_cromwells_are_grouped_by_what_was_recognised(client: httpx.Client) -> None:
    for shard in range(3):
        create(client, cromwell(shard=shard))
    create(client, cromwell(tags={ID: "mine"}))
    create(client, cromwell(tags={ID: None}))
    found = {w["id"]: w for w in client.get(LIST).json()["workflows"]}
    assert found.keys() == {WORKFLOW, "mine"}
    assert (found[WORKFLOW]["name"], found[WORKFLOW]["submitter"]) == ("wf", "cromwell")
    assert sum(found[WORKFLOW]["states"].values()) == 3


@pytest.mark.parametrize("odd", ["a/b", "urn:x:1", "a b%ü?#", "x:cancel", "..."])
def test_an_id_may_be_any_text(client: httpx.Client, odd: str) -> None:
    create(client, of(odd, "sleep", "300"))
    assert canceled(client, odd)["changed"] == 1
    assert asked(client, odd)["id"] == odd


def test_names_are_shown_up_to_a_length(client: httpx.Client) -> None:
    long = {"ms-submitter-workflow-name": "é" * 100_000, "ms-submitter-name": "x" * 100_000}
    create(client, task(tags={ID: "w", **long}))
    found = asked(client, "w")
    assert (found["name"], found["submitter"]) == ("é" * 256, "x" * 512)


def test_what_is_not_there(client: httpx.Client) -> None:
    create(client, of("w"))
    for path in (f"{LIST}/no", f"{LIST}/%00", f"{LIST}/w%20"):
        error = valid(client.get(path), "get", ONE)["error"]
        assert error["message"].startswith("there is no workflow ")
        assert client.post(f"{path}:cancel").status_code == 404
    assert client.get(f"{LIST}?page_size=0").status_code == 400
    assert client.get(f"{LIST}?page_token=x").status_code == 400
    assert client.post(f"{LIST}/w").status_code == 405


def test_pages(client: httpx.Client) -> None:
    ids = [f"w{number}" for number in range(5)]
    for workflow in ids:
        create(client, of(workflow))
    found, query = [], {"page_size": "2"}
    while query:
        page = valid(client.get(LIST, params=query), "get", LIST)
        found += [workflow["id"] for workflow in page["workflows"]]
        token = page.get("next_page_token")
        # A token is for its list alone.
        assert client.get(f"{TES}/tasks", params={"page_token": token or "x"}).status_code == 400
        query = {"page_size": "2", "page_token": token} if token else {}
    assert found == ids[::-1]


def test_others_workflows_are_not_there(entra: EntraServer, tmp_path: Path) -> None:
    """One id, used by three: each has, and ends, what they see."""
    claims = {
        "user": {},
        "colleague": {"oid": OTHER_USER},
        "stranger": {"tid": OTHER_TENANT},
        "admin": {"oid": "eeeeeeee-0000-4444-8888-00000000000a", "roles": ["Tasks.Admin"]},
    }
    clients: dict[str, dict[str, str]] = {
        name: bearer(entra.issue(more)) for name, more in claims.items()
    }
    for restrictions, seen in (
        ("per-user", {"user": 1, "colleague": 1, "stranger": 1, "admin": 3}),
        ("per-tenant", {"user": 2, "colleague": 2, "stranger": 1, "admin": 3}),
        ("None", {"user": 3, "colleague": 3, "stranger": 3, "admin": 3}),
    ):
        more = {"task_access_restrictions": restrictions, "scheduler": "false"}
        workflow = f"shared {restrictions}"
        with start_server(tmp_path / "server", **settings(entra, **more)) as running:

            def client(name: str, running: RunningServer = running) -> httpx.Client:
                return running.client(headers=clients[name])

            for name in ("user", "colleague", "stranger"):
                with client(name) as opened:
                    create(opened, of(workflow))
                    create(opened, of(f"{name}'s own {restrictions}"))
            for name, number in seen.items():
                with client(name) as opened:
                    listed = {w["id"]: w["states"] for w in opened.get(LIST).json()["workflows"]}
                    assert listed[workflow] == {"QUEUED": number}
                    assert asked(opened, workflow)["states"] == {"QUEUED": number}
                    theirs = f"stranger's own {restrictions}"
                    there = number == 3 or name == "stranger"
                    assert (theirs in listed) == there
                    path = f"{LIST}/{quote(theirs)}"
                    assert opened.get(path).status_code == (200 if there else 404)
                    if not there:
                        assert opened.post(f"{path}:cancel").status_code == 404
            with client("user") as opened:
                assert canceled(opened, workflow)["changed"] == seen["user"]
                assert canceled(opened, workflow)["changed"] == 0
            with client("admin") as opened:
                left = {"CANCELED": seen["user"]} | {"QUEUED": 3 - seen["user"]}
                shown = {state: number for state, number in left.items() if number}
                assert asked(opened, workflow)["states"] == shown
                assert canceled(opened, workflow)["changed"] == 3 - seen["user"]


def test_the_command_line(tmp_path: Path) -> None:
    with start_server(tmp_path / "server", scheduler="false") as running:
        tool = Tool(running.url, tmp_path)
        with running.client() as client:
            ids = [create(client, of("run/1", name=f"n{i}")) for i in range(3)]
            create(client, of("run 2"))
            create(client)
        listed = json.loads(tool("list", "--workflow", "run/1", "--json").stdout)
        assert [each["id"] for each in listed] == ids[::-1]
        workflows = json.loads(tool("workflows", "--json").stdout)
        assert [each["id"] for each in workflows] == ["run 2", "run/1"]
        lines = [line.split("\t") for line in tool("workflows").stdout.splitlines()]
        assert lines[1] == ["run/1", "", "3 QUEUED", workflows[1]["last_activity"], "", ""]
        assert json.loads(tool("workflows", "run/1").stdout) == workflows[1]
        shown = tool.on_terminal("workflows")
        assert "3 QUEUED" in shown
        assert "LAST ACTIVITY" in shown
        done = tool("cancel", "--workflow", "run/1")
        assert done.stdout == "run/1\t3 canceled\t3 CANCELED\n"
        again = json.loads(tool("cancel", "--workflow", "run/1", "--json").stdout)
        assert again == {"id": "run/1", "changed": 0, "more": False, "states": {"CANCELED": 3}}
        for verb in (("workflows", "no"), ("cancel", "--workflow", "no")):
            assert "there is no workflow no" in tool(*verb, code=Code.NOT_FOUND).stderr
        tool("cancel", code=Code.USAGE)
        tool("cancel", ids[0], "--workflow", "run/1", code=Code.USAGE)


@pytest.mark.serial
def test_more_tasks_than_one_request_cancels(tmp_path: Path) -> None:
    """Ten thousand are one request's; the command line asks again. Others are served meanwhile."""
    count = 10_050
    data = tmp_path / "server" / "data"
    data.mkdir(mode=0o700, parents=True)
    asyncio.run(_fill(data, count))
    with (
        start_server(tmp_path / "server", scheduler="false") as running,
        running.client() as client,
    ):
        with Tool(running.url, tmp_path).start("cancel", "--workflow", "w") as canceling:
            slowest = 0.0
            while canceling.poll() is None:
                began = time.monotonic()
                assert client.get(f"{LIST}/w").status_code == 200
                slowest = max(slowest, time.monotonic() - began)
            assert canceling.stdout is not None
            assert canceling.stdout.read() == f"w\t{count} canceled\t{count} CANCELED\n"
        assert slowest < 2
        requests = [a["tasks"] for a in audited(running) if a["action"] == "workflow.cancel"]
        assert requests == [10_000, 50]


async def _fill(data: Path, count: int) -> None:
    store = await open_store("", data / "tesazure.db")
    named = WorkflowName("w", "", "")
    tasks = [new_task(id=f"{i:028x}", workflow=named, tags={ID: "w"}) for i in range(count)]
    await asyncio.gather(*map(store.create, tasks))
    await store.close()
