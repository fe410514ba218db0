"""Requests made up from our OpenAPI document: no 500, no hang, replies as described."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tesazure.api import openapi
from tests.service.server import TES, RunningServer, create, start_server, task

EXAMPLES = 25
SEED = 20250101
PATIENCE_S = 10.0
STREAMS = ("/api/v1/events", "/api/v1/tasks/{id}/events")
"""These do not end by themselves; test_api_streams looks after them."""

schema = schemathesis.openapi.from_dict(
    {
        **openapi.document(),
        "paths": {p: o for p, o in openapi.document()["paths"].items() if p not in STREAMS},
    }
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("server"), scheduler="false") as running:
        with running.client() as client:
            create(client, task(name="one"))
        yield running
        assert running.process.poll() is None
        log = running.log.read_text(errors="replace")
        assert '"status":500' not in log
        assert "Traceback" not in log


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


@pytest.mark.slow
@schema.parametrize()
@hypothesis.seed(SEED)
@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)
def test_made_up_requests(case: schemathesis.Case[Any], server: RunningServer) -> None:
    began = time.monotonic()
    case.call_and_validate(
        base_url=server.url,
        timeout=PATIENCE_S,
        checks=[
            not_a_server_error,
            content_type_conformance,
            response_schema_conformance,
            status_code_conformance,
        ],
    )
    assert time.monotonic() - began < PATIENCE_S


_TEXT = hypothesis.strategies.text(max_size=50)
_HEADER = hypothesis.strategies.text(
    hypothesis.strategies.characters(
        min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"
    ),
    max_size=100,
)


@pytest.mark.slow
@hypothesis.seed(SEED)
@hypothesis.settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@hypothesis.given(
    query=hypothesis.strategies.lists(
        hypothesis.strategies.tuples(
            hypothesis.strategies.sampled_from(
                ["name_prefix", "state", "tag_key", "tag_value", "page_size", "page_token", "view"]
            )
            | _TEXT,
            _TEXT,
        ),
        max_size=6,
    ),
    headers=hypothesis.strategies.dictionaries(
        hypothesis.strategies.sampled_from(
            ["Accept", "Authorization", "Content-Type", "Cookie", "Origin", "Range", "X-Request-ID"]
        ),
        _HEADER,
    ),
)
def test_made_up_parameters_and_headers(
    client: httpx.Client, query: list[tuple[str, str]], headers: dict[str, str]
) -> None:
    encoded: Any = {name: value.strip().encode("latin-1") for name, value in headers.items()}
    reply = client.get(f"{TES}/tasks", params=httpx.QueryParams(tuple(query)), headers=encoded)
    assert reply.status_code in (200, 400), reply.text
    if reply.status_code == 400:
        assert all(item["field"] for item in reply.json()["error"]["fields"])
