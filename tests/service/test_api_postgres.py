"""Two servers on one PostgreSQL are one service: ids, tokens, events and texts go across."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.server import TES, create, ended, get, start_server, task, until
from tests.service.test_api_operation import fails
from tests.service.test_api_streams import LIFE, Listener

KEY = base64.b64encode(b"the key of all servers for tests").decode()

pytestmark = pytest.mark.postgres


def test_two_servers_are_one_service(postgres_url: str, tmp_path: Path) -> None:
    with (
        start_server(tmp_path / "a", database_url=postgres_url, secrets_key=KEY) as first,
        start_server(
            tmp_path / "b", database_url=postgres_url, secrets_key=KEY, scheduler="false"
        ) as second,
        first.client() as a,
        second.client() as b,
    ):
        listener = Listener(b, "/api/v1/events")
        task_id = create(b, task(name="näme", tags={"k": None, "ü": "%_"}))
        assert ended(a, task_id)["state"] == "COMPLETE"
        assert get(b, task_id)["tags"] == {"k": None, "ü": "%_"}
        until(lambda: listener.states(task_id) == LIFE)

        ids = [create(a, task(name=f"page-{i}")) for i in range(5)]
        query = {"name_prefix": "page-", "page_size": "2"}
        found = a.get(f"{TES}/tasks", params=query).json()
        token = found["next_page_token"]
        rest = b.get(f"{TES}/tasks", params={"page_token": token}).json()
        assert [item["id"] for item in [*found["tasks"], *rest["tasks"]]] == ids[::-1]

        for odd in ("name_prefix=%00", "tag_key=%00", "tag_key=a&tag_value=%00"):
            assert b.get(f"{TES}/tasks?{odd}").status_code == 400
        for odd in ("name_prefix=%ff%fe", "tag_key=%ff", "name_prefix=%25'%22\\"):
            assert b.get(f"{TES}/tasks?{odd}").json()["tasks"] == []
        assert "secret" not in first.log.read_text()


def test_a_server_without_the_others_key_does_not_start(postgres_url: str, tmp_path: Path) -> None:
    with start_server(tmp_path / "a", database_url=postgres_url):
        said = fails(tmp_path / "b", 2, database_url=postgres_url)
        assert "set SECRETS_KEY to the same on all its servers" in said
    key = (tmp_path / "a" / "data" / "secrets.key").read_text().strip()
    with start_server(tmp_path / "c", database_url=postgres_url, secrets_key=f"{KEY},{key}"):
        pass
    said = fails(tmp_path / "a" / "data", 2, database_url=postgres_url)
    assert "a key that is being replaced" in said


def test_cut_connections_are_a_503_at_most_and_come_back(postgres_url: str, tmp_path: Path) -> None:
    psycopg = pytest.importorskip("psycopg")
    with (
        start_server(tmp_path, database_url=postgres_url) as server,
        server.client() as client,
    ):
        before = create(client)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        began = time.monotonic()

        def works() -> bool:
            reply: httpx.Response = client.post(f"{TES}/tasks", json=task())
            assert reply.status_code in (200, 503), reply.text
            if reply.status_code == 503:
                assert int(reply.headers["retry-after"]) > 0
            return reply.status_code == 200

        until(works)
        assert time.monotonic() - began < 10
        assert ended(client, before)["state"] == "COMPLETE"


def test_a_server_that_a_newer_one_takes_over_from_answers_and_writes_nothing(
    postgres_url: str, tmp_path: Path
) -> None:
    """As the old and the new revision of a Container App run side by side for a while."""
    psycopg = pytest.importorskip("psycopg")
    with (
        start_server(tmp_path / "old", database_url=postgres_url, secrets_key=KEY) as server,
        server.client() as client,
        psycopg.connect(postgres_url, autocommit=True) as newer,
    ):
        before = create(client)
        assert ended(client, before)["state"] == "COMPLETE"
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
        refused = client.post(f"{TES}/tasks", json=task())
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert get(client, before)["state"] == "COMPLETE"
        assert client.get("/healthz").status_code == 200

        def store_check() -> dict[str, Any] | None:
            reply = client.get("/readyz")
            checks = {each["name"]: each for each in reply.json()["checks"]}
            return checks["store"] if reply.status_code == 503 else None

        assert "another version of tesazure has changed it" in str(until(store_check))
        # Going back to the older version: it does not start, and the newer one is left alone.
        said = fails(tmp_path / "back", 2, database_url=postgres_url, secrets_key=KEY)
        assert "made by a newer tesazure (schema 9999" in said
        assert server.stop() == 0
