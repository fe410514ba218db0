"""What tasks cost, and what becomes of those beyond a budget, as users and operators see it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tesazure.api.ids import new_task_id
from tesazure.cli.exits import Code
from tesazure.model import State
from tesazure.store.records import Change, TaskRecord
from tesazure.store.sql_store import SqlStore, open_store
from tests.contract.spender import begun, cost, paid, tagged
from tests.service.server import TES, create, ended, get, start_server, task
from tests.service.signed_in import bearer, entra, settings
from tests.service.test_api_openapi import valid
from tests.service.test_reload import hang_up, says, server_with_file
from tests.service.tool import Tool
from tests.services.entra_server import OTHER_USER, TENANT, USER, EntraServer

__all__ = ["entra"]

COSTS = "/api/v1/costs"
COVID = {"project": "covid"}
ELSEWHERE = "another node"
"""Where tasks run that the server under test does not look after."""


def planted(directory: Path, plant: Callable[[SqlStore], Awaitable[Any]]) -> Any:
    """What `plant` returns, done to the database of a server below `directory`."""

    async def run() -> Any:
        data = directory / "data"
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = await open_store("", data / "tesazure.db")
        try:
            return await plant(store)
        finally:
            await store.close()

    return asyncio.run(run())


def said(client: httpx.Client, task_id: str) -> str:
    """The system log of a task that waits."""
    found = get(client, task_id)
    assert found["state"] == "QUEUED", found
    return "\n".join(line for log in found.get("logs", []) for line in log["system_logs"])


def test_tasks_beyond_a_budget_wait_for_a_higher_one(tmp_path: Path) -> None:
    """Others pass. A running attempt counts once it says what it costs."""
    home, config = tmp_path / "server", tmp_path / "c.toml"

    async def begin(store: SqlStore) -> tuple[TaskRecord, TaskRecord]:
        await store.heartbeat("spender", ELSEWHERE, 3600)
        rare = tagged({"project": "rare"}, id=new_task_id(time.time()))
        lost = await begun(store, rare, ELSEWHERE)
        version = await cost(store, lost.id, lost.version, "11", state=State.INITIALIZING)
        again = Change(task_id=lost.id, version=version, state=State.QUEUED, released=True)
        await store.apply(again)
        return await begun(store, tagged(COVID), ELSEWHERE), lost

    running, lost = planted(home, begin)
    config.write_text('budgets = ["owner=1", "tag:project=10/month"]\n')
    with server_with_file(config, home) as server, server.client() as client:
        first = create(client, task(tags=COVID))
        assert ended(client, first)["state"] == "COMPLETE"
        planted(home, lambda store: cost(store, running.id, running.version, "12.5"))
        held = create(client, task(tags=COVID))
        passing = [create(client, task(tags={"project": "flu"})), create(client)]
        assert [ended(client, each)["state"] for each in passing] == ["COMPLETE", "COMPLETE"]
        spent = "budget tag:project=covid is spent: 12.5 of 10 USD this month"
        assert f"{spent}; waits for the next month or a higher budget" in said(client, held)
        listed = client.get(f"{TES}/tasks", params={"view": "FULL", "state": "QUEUED"}).json()
        [shown, placed, retried] = listed["tasks"]
        assert retried["id"] == lost.id
        assert len(retried["logs"]) == 2
        assert "budget tag:project=rare is spent: 11 of 10 USD" in said(client, lost.id)
        assert shown == get(client, held)
        assert (placed["id"], [log["system_logs"] for log in placed["logs"]]) == (running.id, [[]])

        # A budget that cannot be read changes nothing; a higher one lets the task go.
        config.write_text('budgets = ["tag:project=lots"]\n')
        hang_up(server)
        says(server, "BUDGETS: entry 1 must be all=AMOUNT")
        assert spent in said(client, held)
        config.write_text('budgets = ["tag:project=13/month", "all=23.5"]\n')
        hang_up(server)
        says(server, "in effect now: BUDGETS")
        assert "budget all is spent: 23.5 of 23.5 USD; waits for a higher" in said(client, held)
        config.write_text('budgets = ["tag:project=13/month"]\n')
        hang_up(server)
        assert ended(client, held)["state"] == "COMPLETE"
        assert ended(client, lost.id)["state"] == "COMPLETE"


def test_submissions_beyond_a_budget_are_refused(entra: EntraServer, tmp_path: Path) -> None:
    home = tmp_path / "server"
    planted(home, lambda store: paid(store, tagged(COVID, owner=f"{TENANT}/{USER}"), "50.2"))
    budgets = {"budgets": "owner=50/month,all=100", "budget_action": "refuse"}
    user = bearer(entra.issue())
    with start_server(home, **settings(entra, **budgets, scheduler="false")) as server:
        with server.client(headers=user) as client:
            reply = client.post(f"{TES}/tasks", json=task())
            error = valid(reply, "post", f"{TES}/tasks")["error"]
            assert (error["status"], error["code"]) == (403, "budget_spent")
            spent = f"budget owner={TENANT}/{USER} is spent: 50.2 of 50 USD this month"
            assert error["message"] == spent
            assert len(client.get(f"{TES}/tasks").json()["tasks"]) == 1
        with server.client(headers=bearer(entra.issue({"oid": OTHER_USER}))) as client:
            create(client)
        (tmp_path / "task.json").write_text(json.dumps(task()))
        tool = Tool(server.url, tmp_path, {"TESAZURE_TOKEN": user["Authorization"].split()[1]})
        assert spent in tool("create", "task.json", code=Code.DENIED).stderr


@pytest.mark.parametrize("database", ["", pytest.param("p", marks=pytest.mark.postgres)])
def test_costs_are_added_up_for_who_asks(
    request: pytest.FixtureRequest, entra: EntraServer, tmp_path: Path, database: str
) -> None:
    url = request.getfixturevalue("postgres_url") if database else ""
    mine, others = f"{TENANT}/{USER}", f"{TENANT}/{OTHER_USER}"

    async def plant() -> None:
        (tmp_path / "server" / "data").mkdir(mode=0o700, parents=True)
        store = await open_store(url, tmp_path / "server" / "data" / "tesazure.db")
        for owner, dollars, created in ((mine, "1.1", 1e9), (mine, "2", 2e9), (others, "4", 2e9)):
            await paid(store, tagged(COVID, owner=owner, tenant=TENANT, created=created), dollars)
        await paid(store, tagged({"project": "flu"}, owner=mine, tenant=TENANT), "?")
        await store.close()

    asyncio.run(plant())
    more = {"task_access_restrictions": "per-user", "scheduler": "false", "metrics_open": "true"}
    more |= {"database_url": url} if url else {}
    admin = entra.issue({"oid": OTHER_USER, "roles": ["Tasks.Admin"]})
    with start_server(tmp_path / "server", **settings(entra, **more)) as server:

        def sums(token: str, **query: str) -> Any:
            with server.client(headers=bearer(token)) as client:
                return valid(client.get(COSTS, params=query), "get", COSTS)

        covid = {"tag_key": "project", "tag_value": "covid"}
        user = entra.issue()
        assert sums(user, **covid) == {"tasks": 2, "estimated_cost_usd": "3.1"}
        assert sums(admin, **covid) == {"tasks": 3, "estimated_cost_usd": "7.1"}
        assert sums(admin, **covid, owner=mine)["estimated_cost_usd"] == "3.1"
        assert sums(user, **covid, owner=others) == {"tasks": 0, "estimated_cost_usd": None}
        assert sums(admin) == {"tasks": 4, "estimated_cost_usd": "7.1"}
        assert sums(admin, tag_key="project", tag_value="flu") == {
            "tasks": 1,
            "estimated_cost_usd": None,
        }
        for since, tasks in (("2033-05-18", 2), ("2033-05-18T03:33:21Z", 0), ("1970-01-01", 3)):
            assert sums(admin, **covid, since=since)["tasks"] == tasks
        for wrong in ({"since": "yesterday"}, {"tag_value": "x"}, {"tag_key": "\0"}):
            assert sums(user, **wrong)["error"]["status"] == 400
        with server.client() as client:
            assert "\ntesazure_estimated_cost_usd_total 7.1\n" in client.get("/metrics").text

        tool = Tool(server.url, tmp_path, {"TESAZURE_TOKEN": admin})
        asked = ("costs", "--tag", "project=covid", "--since", "2002-01-01")
        assert tool(*asked).stdout == "6 USD\t2 tasks\n"
        assert json.loads(tool(*asked, "--owner", mine, "--json").stdout) == {
            "tasks": 1,
            "estimated_cost_usd": "2",
        }
        assert tool("costs", "--tag", "project=flu").stdout == "no known cost\t1 task\n"
        assert "since: must be a date" in tool("costs", "--since", "x", code=Code.REFUSED).stderr
