"""The Batch backend while storage is away or emptied, and when two servers disagree: what runs is
told to have ended once it has, and not before."""

from __future__ import annotations

import math
import time

import msgspec
import pytest

from tesazure.access import Access
from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tesazure.lifecycle import Phase
from tests.contract.backend_site import MARKS, BatchSite, complete, ended, look, until
from tests.services.batch_lab import QUICK
from tests.services.cutting_proxy import CuttingProxy

# Other tests' attempts have the same keys, by which sandboxes are ended.
pytestmark = pytest.mark.xdist_group("attempt-keys")

WAITS = f"echo x >> {MARKS}/n; until [ -e {MARKS}/go ]; do sleep 0.05; done"


async def test_what_ran_when_somebody_deleted_the_container_has_ended(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    """Though nothing is submitted that would make it anew."""
    handle = await site.submit(backend, WAITS, "k")
    await until(lambda: bool(site.mark("n")))

    async def is_told() -> bool:
        return (await look(backend, handle)).report.executor_started

    await until(is_told)
    with site.lab.azurite.client() as client:
        client.delete_container(site.lab.container)
    (site.marks / "go").touch()  # it finds out when it has something to say
    seen = await ended(backend, handle)
    assert seen.phase is Phase.EXITED
    assert "could not deliver the attempt's report" in seen.reason


async def test_an_attempt_that_another_server_put_into_another_job_hides_no_others(
    site: BatchSite,
) -> None:
    """Each took the other for dead, and had another price for Spot nodes."""
    site.lab.batch.shortage()
    one, two = await site.server("one"), await site.server("two")
    first = await one.submit(site.plan("true", preemptible=True), "k", Access())
    assert (await look(one, first)).phase is Phase.PENDING
    with site.lab.client() as client:
        client.delete_task(first["job"], "k")
    second = await two.submit(site.plan("true", preemptible=False), "k", Access())
    other = await site.submit(one, "true", "other")
    site.submitted.append((two, second))
    assert second["job"] != first["job"]
    assert "other" in await one.observe({"k": second, "other": other})
    site.lab.batch.plenty()
    await complete(one, second)
    await complete(one, other)


async def test_an_attempt_whose_report_cannot_be_read_is_not_known_to_go_on(
    site: BatchSite,
) -> None:
    """It is no more to be taken for late: it may have ended in time."""
    azurite = site.lab.azurite
    with CuttingProxy(azurite.port) as proxy:
        config = site.lab.config(storage_url=f"http://127.0.0.1:{proxy.port}/{azurite.account}")
        backend = AzureBatchBackend(config, msgspec.structs.replace(QUICK, stuck_s=1.0))
        await backend.start()
        handle = await site.submit(backend, WAITS, "k")
        await until(lambda: bool(site.mark("n")))

        async def is_heard() -> bool:
            seen = await look(backend, handle)
            return seen.phase is Phase.RUNNING and seen.since < math.inf

        async def is_not_heard() -> bool:
            seen = await look(backend, handle)
            assert seen.phase is Phase.RUNNING
            return seen.since == math.inf

        await until(is_heard)
        proxy.hold()
        await until(is_not_heard)
        back = time.time()
        proxy.flowing.set()
        await until(is_heard)
        assert (await look(backend, handle)).since >= back
        (site.marks / "go").touch()
        await complete(backend, handle)
        await backend.stop()


async def test_what_a_broken_node_does_not_let_go_is_lost(site: BatchSite) -> None:
    """Though no other attempt waits for the node, and so nobody would look at its pool. Time is
    that of the stand-in: the node has been broken for a quarter of an hour."""
    site.lab.batch.skew(-900)
    backend = AzureBatchBackend(site.lab.config(), msgspec.structs.replace(QUICK, tidy_s=0.1))
    await backend.start()
    handle = await site.submit(backend, WAITS, "k")
    await until(lambda: bool(site.mark("n")))
    node = site.lab.batch.node_of(handle["job"], "k")
    site.lab.batch.fail_node(node, code="DiskFull", said="It is full", keeps=True)
    seen = await ended(backend, handle)
    assert seen.phase is Phase.PREEMPTED
    assert f"node {node} cannot be used: It is full (DiskFull)" in seen.reason
    assert node not in site.lab.batch.nodes(handle["job"])
    await backend.release(handle)
    await backend.stop()
