"""Tasks of workflow engines get tags that say so, on a real server that runs nothing."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.service.server import TES, create, get, start_server, task
from tests.submitted import WORKFLOW, by_engine, cromwell

ENGINES = ["cromwell", "nextflow", "snakemake", "toil", "cwl-tes", "galaxy"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        start_server(
            tmp_path_factory.mktemp("server"), scheduler="false", allow_dir="/"
        ) as running,
        running.client() as opened,
    ):
        yield opened


def listed(client: httpx.Client, key: str, value: str) -> set[str]:
    """The ids of all tasks with a tag."""
    reply = client.get(f"{TES}/tasks", params={"tag_key": key, "tag_value": value})
    assert reply.status_code == 200, reply.text
    return {each["id"] for each in reply.json()["tasks"]}


def test_tasks_are_listed_by_their_engine(client: httpx.Client) -> None:
    made = dict(zip(ENGINES, [create(client, document) for document in by_engine()], strict=True))
    create(client, task())
    for engine, task_id in made.items():
        assert get(client, task_id)["tags"]["ms-submitter-name"] == engine
        assert listed(client, "ms-submitter-name", engine) == {task_id}
    assert get(client, made["cromwell"], "BASIC")["tags"] == {
        "ms-submitter-name": "cromwell",
        "ms-submitter-workflow-id": WORKFLOW,
        "ms-submitter-workflow-name": "wf",
        "ms-submitter-workflow-stage": "md5",
    }
    assert get(client, made["cwl-tes"])["tags"]["CWLDocumentId"] is None


def test_a_clients_own_tags_are_left_alone(client: httpx.Client) -> None:
    own = {"ms-submitter-workflow-id": "mine", "ms-submitter-workflow-stage": None, "team": "a"}
    task_id = create(client, cromwell(tags=own))
    assert get(client, task_id)["tags"] == own | {
        "ms-submitter-name": "cromwell",
        "ms-submitter-workflow-name": "wf",
    }
    assert listed(client, "ms-submitter-workflow-id", "mine") == {task_id}
    assert task_id not in listed(client, "ms-submitter-workflow-id", WORKFLOW)


def test_what_no_engine_sent_stays_as_it_is(client: httpx.Client) -> None:
    assert "tags" not in get(client, create(client, task()))
    assert get(client, create(client, task(tags={"a": "b"})))["tags"] == {"a": "b"}
