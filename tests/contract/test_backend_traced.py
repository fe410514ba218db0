"""What a traced backend tells besides, of real attempts on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tesazure.access import Access
from tesazure.errors import BackendUnavailable
from tesazure.plan import Plan
from tesazure.telemetry.attempts import TracedBackend
from tesazure.telemetry.spans import Span
from tesazure.trace import Context, of_task, parse
from tests.conftest import need_sandbox
from tests.contract.backend_site import BatchSite, TracedSite, ended, look, sleeper, until
from tests.contract.conftest import IN_SANDBOXES
from tests.services.batch_lab import BatchLab

pytestmark = IN_SANDBOXES
TASK = "01a2054fc38157667a8d197fe6d1"
KEY = f"{TASK}-643f109f"
CALLER = Context("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)


@pytest.fixture
async def site(short_dir: Path) -> AsyncIterator[TracedSite]:
    need_sandbox()
    site = TracedSite(short_dir)
    yield site
    await site.close()


def plan(site: TracedSite, script: str, context: Context | None = None) -> Plan:
    made = site.plan(script)
    return msgspec.structs.replace(made, task_id=TASK, trace=str(context or ""))


def names(spans: list[Span]) -> list[str]:
    return [span.name for span in spans]


WHOLE = ["place", "attempt", "runner", "stage in", "pull image", "stage out", "executor"]


async def test_an_attempt_is_told_once(site: TracedSite) -> None:
    backend = await site.server()
    handle = await backend.submit(plan(site, "true"), KEY, Access())
    await ended(backend, handle)
    await look(backend, handle)
    await backend.release(handle)
    await backend.release(handle)
    assert names(site.spans) == WHOLE
    assert {span.context.trace_id for span in site.spans} == {f"7e5a{TASK}"}
    assert site.spans[1].parent == of_task(TASK, 1).span_id


async def test_another_server_tells_the_same_spans(site: TracedSite) -> None:
    one = await site.server()
    handle = await one.submit(plan(site, "true", CALLER), KEY, Access())
    await ended(one, handle)
    first, site.spans[:] = list(site.spans), []
    await ended(await site.server(), handle)
    assert names(site.spans) == WHOLE[1:]
    ids = {span.name: (span.context, span.parent) for span in first}
    assert {span.name: (span.context, span.parent) for span in site.spans}.items() <= ids.items()
    assert {span.context.trace_id for span in site.spans} == {CALLER.trace_id}


async def test_a_node_of_azure_batch_tells_the_same(
    short_dir: Path, batch_account: BatchLab
) -> None:
    site, spans = BatchSite(short_dir, batch_account), list[Span]()
    backend = TracedBackend(await site.server(), spans.append, 1)
    made = msgspec.structs.replace(site.plan("echo $TRACEPARENT"), task_id=TASK)
    handle = await backend.submit(made, KEY, Access())
    seen = await ended(backend, handle)
    await backend.release(handle)
    await site.close()
    assert names(spans) == WHOLE
    [executor] = [span for span in spans if span.name == "executor"]
    assert seen.report.log.logs[0].stdout == f"{executor.context}\n"


async def test_one_that_is_ended_from_here_is_told_all_the_same(site: TracedSite) -> None:
    backend = await site.server()
    handle = await backend.submit(plan(site, sleeper("traced")), KEY, Access())
    await until(lambda: bool(site.mark("traced")))
    await backend.release(handle)
    assert names(site.spans) == ["place", "attempt"]
    assert site.spans[1].error


async def test_of_too_many_attempts_the_oldest_are_forgotten(site: TracedSite) -> None:
    plain, spans = await super(TracedSite, site).server(), list[Span]()
    backend = TracedBackend(plain, spans.append, 1, most=1)
    first = await backend.submit(plan(site, "true"), KEY, Access())
    second = await backend.submit(plan(site, sleeper("second")), f"{TASK}-643f1090", Access())
    await until(lambda: bool(site.mark("second")))
    spans.clear()
    await backend.release(second)
    assert names(spans) == ["attempt"]
    await ended(backend, first)
    assert names(spans) == ["attempt", *WHOLE[1:]]
    await backend.release(first)


async def test_what_is_not_wanted_is_not_told_but_goes_along(site: TracedSite) -> None:
    backend = await site.server()
    unwanted = Context(CALLER.trace_id, CALLER.span_id, sampled=False)
    handle = await backend.submit(plan(site, "echo $TRACEPARENT", unwanted), KEY, Access())
    seen = await ended(backend, handle)
    found = parse(seen.report.log.logs[0].stdout.strip())
    await backend.release(handle)
    assert found is not None
    assert (found.trace_id, found.sampled) == (CALLER.trace_id, False)
    assert site.spans == []


async def test_a_placement_that_fails_is_told_and_is_the_same_failure(site: TracedSite) -> None:
    backend = TracedBackend(await site.server(), site.spans.append, 1)
    await backend.stop()
    with pytest.raises(BackendUnavailable):
        await backend.submit(plan(site, "true"), KEY, Access())
    assert set(names(site.spans)) == {"place"}
    assert site.spans[0].error.startswith("BackendUnavailable: ")


async def test_an_untraced_attempt_reports_nothing_of_it(site: TracedSite) -> None:
    plain = await super(TracedSite, site).server()
    handle = await plain.submit(plan(site, "echo =$TRACEPARENT="), KEY, Access())
    seen = await ended(plain, handle)
    assert seen.report.log.logs[0].stdout == "==\n"
    assert seen.report.stages == []
    assert "traceparent" not in seen.report.log.metadata
    await plain.release(handle)
