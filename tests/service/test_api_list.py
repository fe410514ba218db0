"""Lists: filters, pages, and tokens, on a real server that runs nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.server import OLD, TES, RunningServer, create, start_server, task


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("server"), scheduler="false") as running:
        yield running


@pytest.fixture(scope="module")
def made(server: RunningServer) -> dict[str, str]:
    """Tasks by name, the oldest first; `c…` are canceled."""
    found = {}
    with server.client() as client:
        for i in range(12):
            name = f"{'ab'[i % 2]}{i:02}"
            tags: dict[str, Any] = {"all": "x", "parity": "even" if i % 2 == 0 else "odd"}
            if i % 3 == 0:
                tags["third"] = ""
            found[name] = create(client, task(name=name, tags=tags))
        for i in range(3):
            found[f"c{i}"] = create(client, task(name=f"c{i}", tags={"all": "y"}))
            client.post(f"{TES}/tasks/{found[f'c{i}']}:cancel")
    return found


def names(made: dict[str, str], reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    by_id = {task_id: name for name, task_id in made.items()}
    return [by_id[item["id"]] for item in reply.json()["tasks"] if item["id"] in by_id]


def pages(client: httpx.Client, url: str, **params: Any) -> Iterator[dict[str, Any]]:
    while True:
        reply = client.get(url, params=params)
        assert reply.status_code == 200, reply.text
        yield reply.json()
        token = reply.json().get("next_page_token")
        if token is None:
            return
        params["page_token"] = token


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("name_prefix=a", ["a10", "a08", "a06", "a04", "a02", "a00"]),
        ("name_prefix=b0", ["b09", "b07", "b05", "b03", "b01"]),
        ("name_prefix=", None),
        ("state=CANCELED", ["c2", "c1", "c0"]),
        ("state=RUNNING", []),
        ("tag_key=third", ["b09", "a06", "b03", "a00"]),
        ("tag_key=third&tag_value=", ["b09", "a06", "b03", "a00"]),
        ("tag_key=all&tag_value=y", ["c2", "c1", "c0"]),
        ("tag_key=parity&tag_value=odd&tag_key=third", ["b09", "b03"]),
        ("tag_key=third&tag_value=&tag_key=parity&tag_value=even", ["a06", "a00"]),
        ("tag_key=nothing", []),
        ("tag_key=all&tag_value=Y", []),
        ("name_prefix=b&state=QUEUED&tag_key=third", ["b09", "b03"]),
        ("name_prefix=%25", []),
        ("name_prefix=_0", []),
    ],
)
def test_filters(
    client: httpx.Client,
    prefix: str,
    made: dict[str, str],
    query: str,
    expected: list[str] | None,
) -> None:
    found = names(made, client.get(f"{prefix}/tasks?{query}"))
    assert found == (list(made)[::-1] if expected is None else expected)


def test_pages_hold_everything_once_the_newest_first(
    client: httpx.Client, prefix: str, made: dict[str, str]
) -> None:
    found = list(pages(client, f"{prefix}/tasks", page_size=4))
    ids = [item["id"] for page in found for item in page["tasks"]]
    assert len(ids) == len(set(ids))
    assert [i for i in ids if i in made.values()] == list(made.values())[::-1]
    assert all(len(page["tasks"]) == 4 for page in found[:-1])
    assert "next_page_token" not in found[-1]


@pytest.mark.parametrize("view", ["MINIMAL", "BASIC", "FULL"])
def test_views_of_lists(client: httpx.Client, made: dict[str, str], view: str) -> None:
    reply = client.get(f"{TES}/tasks", params={"name_prefix": "a", "view": view})
    keys = {key for item in reply.json()["tasks"] for key in item}
    minimal = {"id", "state"}
    assert keys == (
        minimal
        if view == "MINIMAL"
        else minimal | {"name", "tags", "executors", "logs", "creation_time"}
    )


def test_a_token_keeps_its_filters(client: httpx.Client, made: dict[str, str]) -> None:
    filters: dict[str, str | int] = {
        "name_prefix": "a",
        "tag_key": "parity",
        "tag_value": "even",
        "page_size": 2,
    }
    first = client.get(f"{TES}/tasks", params=filters)
    token = first.json()["next_page_token"]
    assert names(made, first) == ["a10", "a08"]
    bare = client.get(f"{TES}/tasks", params={"page_token": token, "page_size": 2})
    repeated = client.get(f"{TES}/tasks", params=filters | {"page_token": token})
    assert names(made, bare) == names(made, repeated) == ["a06", "a04"]
    for other in ({"name_prefix": "b"}, {"state": "QUEUED"}, {"tag_key": "third"}):
        refused = client.get(f"{TES}/tasks", params={"page_token": token, **other})
        assert refused.status_code == 400
        assert refused.json()["error"]["fields"][0]["field"] == "page_token"
    elsewhere = client.get(f"{OLD}/tasks", params={"page_token": token})
    assert elsewhere.status_code == 400


@pytest.mark.parametrize("token", ["x", "AAAA", "1", "%00", "é", "a" * 5000, "null", "../.."])
def test_forged_tokens(client: httpx.Client, prefix: str, token: str) -> None:
    refused = client.get(f"{prefix}/tasks", params={"page_token": token})
    assert refused.status_code == 400
    assert refused.json()["error"]["fields"][0]["field"] == "page_token"


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", "", " ", "\u0661", "0x10", "--1", "00"])
def test_page_sizes_that_are_none(client: httpx.Client, prefix: str, size: str) -> None:
    refused = client.get(f"{prefix}/tasks", params={"page_size": size})
    assert refused.status_code == 400
    assert refused.json()["error"]["fields"][0]["field"] == "page_size"


@pytest.mark.parametrize("size", ["2048", "2049", "99999999999999999999", "0002"])
def test_large_page_sizes_are_cut(client: httpx.Client, prefix: str, size: str) -> None:
    assert client.get(f"{prefix}/tasks", params={"page_size": size}).status_code == 200


def test_what_is_wrong_is_said_at_once(client: httpx.Client, prefix: str) -> None:
    query = "view=x&page_size=0&state=GONE&tag_value=1&name_prefix=%00"
    refused = client.get(f"{prefix}/tasks?{query}")
    fields = {item["field"] for item in refused.json()["error"]["fields"]}
    assert fields == {"view", "page_size", "state", "tag_value", "name_prefix"}


def test_1_0_knows_no_new_states(client: httpx.Client) -> None:
    for word in ("PREEMPTED", "CANCELING"):
        assert client.get(f"{TES}/tasks?state={word}").status_code == 200
        refused = client.get(f"{OLD}/tasks?state={word}")
        assert refused.status_code == 400
        assert "PREEMPTED" not in refused.text


def test_pages_are_stable_while_tasks_are_added(server: RunningServer) -> None:
    with server.client() as client:
        tags = {"stable": "1"}
        before = [create(client, task(tags=tags)) for _ in range(60)]
        stop = threading.Event()

        def add() -> None:
            with server.client() as other:
                while not stop.is_set():
                    create(other, task(tags=tags))

        adding = threading.Thread(target=add)
        adding.start()
        try:
            found = pages(client, f"{TES}/tasks", page_size=7, tag_key="stable")
            ids = [item["id"] for page in found for item in page["tasks"]]
        finally:
            stop.set()
            adding.join()
    assert len(ids) == len(set(ids))
    assert [task_id for task_id in ids if task_id in set(before)] == before[::-1]


def test_a_page_of_large_tasks_ends_early_and_loses_none(
    server: RunningServer, client: httpx.Client
) -> None:
    tags = {"large": "1"}
    content = "x" * (8 * 2**20)
    document = task(tags=tags, inputs=[{"path": "/in", "content": content}])
    ids = [create(client, document) for _ in range(6)]
    found = list(pages(client, f"{TES}/tasks", tag_key="large", view="FULL"))
    assert [item["id"] for page in found for item in page["tasks"]] == ids[::-1]
    assert [len(page["tasks"]) for page in found] == [3, 3]
