"""Whose tasks are there, in every view and every way of asking: the table of docs/security.md."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.access_tables import table
from tests.service.server import (
    OLD,
    TES,
    RunningServer,
    create,
    ended,
    get,
    start_server,
    task,
    until,
)
from tests.service.signed_in import ask, bearer, entra, settings
from tests.services.entra_server import (
    OTHER_TENANT,
    OTHER_USER,
    EntraServer,
)

__all__ = ["entra"]

UNKNOWN = "0" * 28
ADMIN = {"oid": "eeeeeeee-0000-4444-8888-00000000000a", "roles": ["Tasks.Admin"]}
COLLEAGUE = {"oid": OTHER_USER}
STRANGER = {"tid": OTHER_TENANT}


@dataclass
class Site:
    """Tasks of everybody, and servers on them."""

    entra: EntraServer
    directory: Path
    tasks: dict[str, str]
    """Column of the table -> id."""
    tokens: dict[str, str]

    def server(self, restrictions: str) -> AbstractContextManager[RunningServer]:
        """One with these restrictions."""
        more = {"task_access_restrictions": restrictions}
        return start_server(self.directory, **settings(self.entra, **more))


@pytest.fixture(scope="module")
def site(entra: EntraServer, tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = tmp_path_factory.mktemp("site")
    tokens = {
        "user": entra.issue(),
        "admin": entra.issue(ADMIN),
        "same tenant": entra.issue(COLLEAGUE),
        "other tenant": entra.issue(STRANGER),
    }
    made = Site(entra, directory, {}, tokens)
    with start_server(directory) as running, running.client() as client:
        made.tasks["nobody's"] = _made(client, "nobody's")
    owners = {"own": "user", "same tenant": "same tenant", "other tenant": "other tenant"}
    with made.server("None") as running:
        for column, owner in owners.items():
            with running.client(headers=bearer(tokens[owner])) as client:
                made.tasks[column] = _made(client, column)
    return made


def _made(client: httpx.Client, name: str) -> str:
    """A finished task."""
    document = task("sh", "-c", "echo out; echo err >&2", name=name, tags={"whose": name})
    task_id = create(client, document)
    ended(client, task_id)
    return task_id


RESTRICTIONS = list(dict.fromkeys(row["restrictions"] for row in table("owners")))


@pytest.mark.parametrize("restrictions", RESTRICTIONS)
def test_whose_tasks_are_there(site: Site, restrictions: str) -> None:
    rows = [row for row in table("owners") if row["restrictions"] == restrictions]
    with site.server(restrictions) as running:
        for row in rows:
            with running.client(headers=bearer(site.tokens[row["caller"]])) as client:
                tasks = dict(site.tasks)
                if row["caller"] == "admin":
                    tasks["own"] = _made(client, "own")
                _looks_at(client, {tasks[c]: row[c] == "yes" for c in tasks}, tasks)


def _looks_at(client: httpx.Client, there: dict[str, bool], named: dict[str, str]) -> None:
    for prefix in (TES, OLD):
        for view in ("MINIMAL", "BASIC", "FULL"):
            for more in ({}, {"state": "COMPLETE"}, {"page_size": 1}):
                listed = _listed(client, prefix, {"view": view, **more})
                assert {i for i in there if i in listed} == {i for i in there if there[i]}
            for name, task_id in named.items():
                for query in ({"name_prefix": name}, {"tag_key": "whose", "tag_value": name}):
                    listed = _listed(client, prefix, {"view": view, **query})
                    assert (task_id in listed) == there[task_id]
    for task_id, seen in there.items():
        status = 200 if seen else 404
        logs = f"/api/v1/tasks/{task_id}/logs/0"
        for method, path in (
            *(("GET", f"{TES}/tasks/{task_id}?view={v}") for v in ("MINIMAL", "BASIC", "FULL")),
            *(("GET", f"{OLD}/tasks/{task_id}?view={v}") for v in ("MINIMAL", "BASIC", "FULL")),
            ("POST", f"{TES}/tasks/{task_id}:cancel"),
            ("POST", f"{OLD}/tasks/{task_id}:cancel"),
            ("GET", f"{logs}/stdout"),
            ("GET", f"{logs}/stderr"),
            ("GET", f"{logs}/stdout?follow=1"),
            ("GET", f"{logs}/stdout?attempt=1"),
            ("GET", f"/api/v1/tasks/{task_id}/events"),
            ("GET", f"/api/v1/tasks/{task_id}/events?last_event_id=1"),
            ("GET", f"/api/v1/events?task_id={task_id}"),
        ):
            reply = ask(client, method, path)
            assert reply.status_code == status or (seen and reply.status_code == 204), path
            if not seen:
                # In the words for a task that there never was.
                never = ask(client, method, path.replace(task_id, UNKNOWN))
                said = [r.json()["message"].replace(task_id, UNKNOWN) for r in (reply, never)]
                assert said[0] == said[1]
    assert {i for i in _told(client) if i in there} == {i for i in there if there[i]}


def _listed(client: httpx.Client, prefix: str, query: dict[str, Any]) -> set[str]:
    """The ids on all pages of a list."""
    found: set[str] = set()
    while True:
        page = client.get(f"{prefix}/tasks", params=query).json()
        found |= {each["id"] for each in page["tasks"]}
        if "next_page_token" not in page:
            return found
        query = {**query, "page_token": page["next_page_token"]}


def _told(client: httpx.Client) -> set[str]:
    """The tasks of all events that there ever were, to the end of one made now."""
    newest, found = "", set()
    with client.stream("GET", "/api/v1/events", params={"last_event_id": "0"}) as reply:
        newest = create(client)
        for line in reply.iter_lines():
            if line.startswith("data: "):
                found.add(json.loads(line[6:])["id"])
            if newest in found:
                return found
    raise AssertionError("the stream ended")


def test_a_page_token_is_for_those_who_see_the_same(site: Site) -> None:
    def first(client: httpx.Client) -> str:
        create(client)
        create(client)
        page = client.get(f"{TES}/tasks", params={"page_size": 1}).json()
        return str(page["next_page_token"])

    with site.server("per-user") as running:
        clients = {
            name: running.client(headers=bearer(token)) for name, token in site.tokens.items()
        }
        tokens = {name: first(client) for name, client in clients.items()}
        for name, client in clients.items():
            for other, token in tokens.items():
                reply = client.get(f"{TES}/tasks", params={"page_token": token})
                assert reply.status_code == (200 if name == other else 400), (name, other)
        # The same user with another token, and another way of saying who it is.
        again = bearer(site.entra.issue(version=1))
        with running.client(headers=again) as client:
            reply = client.get(f"{TES}/tasks", params={"page_token": tokens["user"]})
            assert reply.status_code == 200
        for client in clients.values():
            client.close()
    with site.server("per-tenant") as running:
        with running.client(headers=bearer(site.tokens["user"])) as client:
            token = first(client)
            stale = client.get(f"{TES}/tasks", params={"page_token": tokens["user"]})
            assert stale.status_code == 400
        for name, status in (("same tenant", 200), ("other tenant", 400), ("admin", 400)):
            with running.client(headers=bearer(site.tokens[name])) as client:
                reply = client.get(f"{TES}/tasks", params={"page_token": token})
                assert reply.status_code == status, name


def test_others_cannot_end_follow_or_hear_of_a_running_task(site: Site) -> None:
    with (
        site.server("per-user") as running,
        running.client(headers=bearer(site.tokens["user"])) as owner,
        running.client(headers=bearer(site.tokens["same tenant"])) as other,
        running.client(headers=bearer(site.tokens["admin"])) as admin,
    ):
        task_id = create(owner, task("sh", "-c", "echo begun; sleep 300"))
        until(lambda: get(owner, task_id, "MINIMAL")["state"] == "RUNNING")
        follow = f"/api/v1/tasks/{task_id}/logs/0/stdout?follow=1"
        with owner.stream("GET", follow) as reply:
            assert next(reply.iter_lines()) == "begun"
        with (
            other.stream("GET", "/api/v1/events") as heard,
            owner.stream("GET", f"/api/v1/tasks/{task_id}/events") as told,
        ):
            for path in (follow, f"/api/v1/tasks/{task_id}/events"):
                assert other.get(path).status_code == 404
            assert other.post(f"{TES}/tasks/{task_id}:cancel").status_code == 404
            assert get(owner, task_id, "MINIMAL")["state"] == "RUNNING"
            assert admin.post(f"{TES}/tasks/{task_id}:cancel").status_code == 200
            assert "CANCELED" in "".join(told.iter_lines())
            # What comes after all of that shows that nothing of it was missed.
            own = create(other)
            lines = (line for line in heard.iter_lines() if line.startswith("data: "))
            assert json.loads(next(lines)[6:])["id"] == own


def test_a_task_of_nobody_is_nobodys_once_there_are_restrictions(site: Site) -> None:
    """Also for a user whose token came before the restrictions."""
    nobodys = site.tasks["nobody's"]
    for restrictions, status in (("None", 200), ("per-tenant", 404), ("per-user", 404)):
        with site.server(restrictions) as running:
            headers = bearer(site.tokens["other tenant"])
            reply = httpx.get(f"{running.url}{TES}/tasks/{nobodys}", headers=headers)
            assert reply.status_code == status
