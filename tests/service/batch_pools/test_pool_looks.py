"""What becomes of pools while attempts wait in them, against the Batch stand-in."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable

import pytest
from azure.batch import models

from tesazure.backends.azure_batch import pools
from tests.service.batch_pools.pool_site import D2, SPOT, Site, until
from tests.services.batch_formula import Samples, evaluate
from tests.services.batch_pools import Demand
from tests.services.batch_server import NodeScript

# -- grown


def without_samples(demand: Demand) -> tuple[int, int]:
    """Batch's evaluation of the formula, of a queue of which it has no sample yet."""
    samples = {"$PendingTasks": Samples((), percent=0.0)}
    found = evaluate(demand.formula, samples, demand.now_s)
    dedicated, spot = (found[f"$Target{kind}Nodes"] for kind in ("Dedicated", "LowPriority"))
    assert isinstance(dedicated, float)
    assert isinstance(spot, float)
    return int(dedicated), int(spot)


async def test_a_queue_has_its_nodes_before_batch_has_a_sample_of_it(site: Site) -> None:
    site.server.evaluate(without_samples)
    site.server.timing.autoscale_s = math.inf
    made = await site.pools(max_nodes=20)
    job = await made.ensure(D2)
    await until(lambda: len(site.server.nodes(job)) == 1)
    site.add(job, *(f"t{n}" for n in range(9)))
    await until(lambda: len(site.server.nodes(job, "running")) == 1)
    await made.look({job: 7})
    await until(lambda: len(site.server.nodes(job)) == 5)
    await made.look({job: 0})
    assert site.server.calls["Pool_EnableAutoScale"] == 1


async def test_what_is_said_again_waits_as_long_as_batch_demands(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.server.evaluate(without_samples)
    site.server.timing.autoscale_s = math.inf
    site.server.timing.between_enables_s = 30
    made = await site.pools(max_nodes=20)
    job = await made.ensure(D2)
    for count in (4, 40, 100):
        await made.look({job: count})
    assert site.server.calls["Pool_EnableAutoScale"] == 1
    other = await site.pools(max_nodes=20)
    for code in pools.TOO_SOON:  # the first server has just written it
        site.server.trouble("Pool_EnableAutoScale", status=409, code=code)
        other._pools[job].told_at = -math.inf
        await other.look({job: 100})
    assert site.server.calls["Pool_EnableAutoScale"] == 3
    assert "cannot be looked at" not in caplog.text


async def test_spot_that_cannot_be_had_becomes_dedicated(site: Site) -> None:
    site.server.evaluate(without_samples)
    site.server.shortage(code="AllocationFailed", spot=True)
    made = await site.pools()
    job = await made.ensure(SPOT)
    site.add(job, "t1")
    await until(lambda: "AllocationFailed" in made.reason(job), lambda: made.look({job: 1}))
    assert made.short() == {SPOT}
    await until(
        lambda: [n for n in site.server.nodes(job, "running") if n.endswith("_d")] != [],
        lambda: made.look({job: 1}),
    )


async def test_without_fallback_spot_is_waited_for(site: Site) -> None:
    site.server.evaluate(without_samples)
    site.server.shortage(code="AllocationFailed", spot=True)
    made = await site.pools(spot_fallback=False)
    job = await made.ensure(SPOT)
    site.add(job, "t1")
    await until(lambda: made.short() == {SPOT}, lambda: made.look({job: 1}))
    assert site.pool(job).target_dedicated_nodes == 0
    site.server.plenty()
    await until(lambda: site.server.nodes(job, "running") != [], lambda: made.look({job: 0}))


# -- watched


async def test_a_job_that_somebody_disabled(site: Site) -> None:
    made = await site.pools(min_nodes=1)
    job = await made.ensure(D2)
    options = models.BatchJobDisableOptions(disable_tasks="requeue")
    site.client.begin_disable_job(job, options, polling_interval=0.02).wait(10)
    site.add(job, "t1")
    await until(lambda: "somebody has disabled its job" in made.reason(job), look_for(made, job))


def look_for(made: pools.Pools, job: str) -> Callable[[], Awaitable[None]]:
    """A look at what an attempt waits for."""
    return lambda: made.look({job: 1})


async def test_the_reasons_for_waiting(site: Site) -> None:
    made = await site.pools()
    site.server.script_nodes(NodeScript("starting"))
    job = await made.ensure(D2)
    begin = f"waiting for a node of pool {job} (Standard_D2ads_v5, dedicated): "
    assert made.reason(job) == f"waiting for a node of pool {job}"
    site.add(job, "t1")
    await until(
        lambda: made.reason(job) == begin + "nodes are starting", lambda: made.look({job: 1})
    )


@pytest.mark.parametrize(
    ("cores", "words"),
    [
        (0, r"quota of dedicated cores is used up; .*portal.* \(AccountCoreQuotaReached\)"),
        (2, "all nodes that there are have work, and no more come: .*AccountCoreQuotaReached"),
    ],
)
async def test_a_quota_that_is_used_up(site: Site, cores: int, words: str) -> None:
    site.server.quotas.dedicated_cores = cores
    made = await site.pools()
    job = await made.ensure(D2)
    site.add(job, *(f"t{n}" for n in range(5)))
    await until(lambda: re.search(words, made.reason(job)) is not None, lambda: made.look({job: 3}))


async def test_all_nodes_busy(site: Site) -> None:
    made = await site.pools(max_nodes=1)
    job = await made.ensure(D2)
    site.add(job, "t1", "t2", "t3")
    await until(lambda: "BATCH_MAX_NODES" in made.reason(job), lambda: made.look({job: 1}))


@pytest.mark.parametrize(
    ("state", "words"), [("unusable", "cannot be used"), ("starttaskfailed", "could not be made")]
)
async def test_nodes_that_fail(site: Site, state: str, words: str) -> None:
    errors = [
        {
            "code": "DiskFull",
            "message": "There is no space left",
            "errorDetails": [{"name": "Path", "value": "/mnt"}],
        }
    ]
    site.server.script_nodes(*(NodeScript(state, errors=errors) for _ in range(5)))
    made = await site.pools()
    job = await made.ensure(D2)
    site.add(job, "t1")
    await until(lambda: words in made.reason(job), lambda: made.look({job: 1}))
    (node,) = site.server.nodes(job)
    said = made.failed_node(job, node)
    assert said.startswith(f"node {node} {words}")
    assert "There is no space left; Path: /mnt (DiskFull)" in said.replace(") (", " (")
    assert made.failed_node(job, "another") == made.failed_node("another", node) == ""


async def test_nodes_that_stay_unusable_are_replaced(site: Site) -> None:
    """Time is that of the stand-in: nodes have been broken for a quarter of an hour."""
    site.server.skew(-900)
    site.server.script_nodes(*(NodeScript("unusable") for _ in range(3)))
    made = await site.pools(max_nodes=1, between_s=0)
    job = await made.ensure(D2)
    site.add(job, "t1")
    await until(lambda: site.server.nodes(job, "running") != [], lambda: made.look({job: 1}))
    assert site.server.calls["Pool_RemoveNodes"] == 3
    assert site.server.calls["Pool_DisableAutoScale"] == 3  # Batch removes none otherwise
    await until(lambda: bool(site.pool(job).enable_auto_scale), lambda: made.look({job: 0}))


async def test_what_breaks_every_node_is_tried_with_one(site: Site) -> None:
    site.server.skew(-900)
    site.server.script_nodes(*(NodeScript("starttaskfailed") for _ in range(1000)))
    made = await site.pools(max_nodes=5, between_s=0)
    job = await made.ensure(D2)
    site.add(job, *(f"t{n}" for n in range(20)))
    await until(lambda: len(site.server.nodes(job)) == 5)
    words = "no node of it works, so that one at a time is tried: a node could not be made ready"
    await until(lambda: words in made.reason(job), lambda: made.look({job: 20}))
    await until(
        lambda: "maximum = 1;" in (site.pool(job).auto_scale_formula or ""),
        lambda: made.look({job: 20}),
    )
    later = await site.pools(max_nodes=5, between_s=0)  # knows it, too
    assert await later.ensure(D2) == job
    assert "maximum = 1;" in (site.pool(job).auto_scale_formula or "")
    site.server.script_nodes()  # from now on they work
    await until(lambda: len(site.server.nodes(job, "running")) == 5, lambda: later.look({job: 20}))
    assert "maximum = 5;" in (site.pool(job).auto_scale_formula or "")


async def test_a_server_that_crashed_while_it_removed_nodes_leaves_no_pool_without_a_formula(
    site: Site,
) -> None:
    job = await (await site.pools()).ensure(D2)
    site.client.disable_pool_auto_scale(job)
    later = await site.pools(idle_s=3600)
    await later.tidy(())
    assert site.pool(job).enable_auto_scale
    before = site.server.calls["Pool_EnableAutoScale"]
    await later.tidy(())
    assert site.server.calls["Pool_EnableAutoScale"] == before == 1


async def test_a_pool_without_a_formula_that_somebody_deleted_stays_away(site: Site) -> None:
    job = await (await site.pools()).ensure(D2)
    site.client.disable_pool_auto_scale(job)
    later = await site.pools(idle_s=3600)
    site.client.begin_delete_pool(job, polling_interval=0.02).wait(10)
    await later.tidy(())
    assert list(site.client.list_pools()) == []


async def test_a_formula_that_is_refused_hides_no_reason(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.server.quotas.dedicated_cores = 0
    made = await site.pools()
    job = await made.ensure(D2)
    site.server.trouble("Pool_EnableAutoScale", status=400, code="InvalidPropertyValue", times=99)
    site.add(job, *(f"t{n}" for n in range(9)))
    await until(lambda: "AccountCoreQuotaReached" in made.reason(job), lambda: made.look({job: 9}))
    assert f"pool {job} keeps its formula" in caplog.text


async def test_a_preempted_node(site: Site) -> None:
    site.server.timing.replacement_s = math.inf
    made = await site.pools()
    job = await made.ensure(SPOT)
    site.add(job, "t1")
    await until(lambda: site.server.nodes(job, "running") != [])
    node = site.server.node_of(job, "t1")
    site.server.preempt(node)
    await until(lambda: made.failed_node(job, node) != "", lambda: made.look({job: 1}))
    assert "was taken away by Azure" in made.failed_node(job, node)


async def test_one_pool_that_cannot_be_seen_hides_no_other(site: Site) -> None:
    made = await site.pools()
    first, second = await made.ensure(D2), await made.ensure(SPOT)
    await made.look({first: 1, second: 1})
    site.client.begin_delete_job(first, polling_interval=0.02).wait(10)
    site.client.begin_delete_pool(first, polling_interval=0.02).wait(10)
    site.server.quotas.pools = 1
    await made.look({first: 1, second: 1})
    assert made.reason(first) == f"pool {first} is gone: somebody deleted it"
    assert "Spot" in made.reason(second)


async def test_a_pool_that_was_deleted_under_its_queue_comes_back(site: Site) -> None:
    made = await site.pools()
    job = await made.ensure(D2)
    site.client.begin_delete_pool(job, polling_interval=0.02).wait(10)
    site.add(job, "t1")
    await made.look({job: 1})
    assert site.pool(job).state == "active"
    await until(lambda: site.server.nodes(job, "running") != [])


async def test_after_a_restart_a_pool_that_was_deleted_comes_back(site: Site) -> None:
    """As of other settings, under which its shape would be in another pool."""
    job = await (await site.pools()).ensure(D2)
    site.client.begin_delete_pool(job, polling_interval=0.02).wait(10)
    site.add(job, "t1")
    later = await site.pools(runner_image="reg.azurecr.io/tesazure/runner:2")
    await later.look({job: 1})
    assert [pool.id for pool in site.client.list_pools()] == [job]
    assert not later.is_lost(job)
    await until(lambda: site.server.nodes(job, "running") != [])


async def test_what_waits_in_somebodys_pool_that_is_gone_is_lost(site: Site) -> None:
    made = await site.pools()
    job = await made.ensure(D2)
    somebodys = "tesazure-abcdefgh-on-0123456789"
    form = models.BatchJobCreateOptions(
        id=somebodys, pool_info=models.BatchPoolInfo(pool_id="theirs")
    )
    site.client.create_job(form)
    later = await site.pools()
    assert not later.is_lost(somebodys)
    await later.look({job: 1, somebodys: 1})
    assert later.is_lost(somebodys)
    assert not later.is_lost(job)
    assert not later.is_lost("unknown")
    assert later.reason(somebodys) == "pool theirs is gone: somebody deleted it"


async def test_a_look_costs_two_calls_and_one_more_when_nodes_fail(site: Site) -> None:
    made = await site.pools()
    job = await made.ensure(D2)
    site.add(job, "t1", "t2")
    await until(lambda: site.server.nodes(job, "running") != [])
    before = dict(site.server.calls)
    await made.look({job: 0})
    asked = {k: n - before.get(k, 0) for k, n in site.server.calls.items() if n != before.get(k)}
    assert asked == {"Pool_Get": 1, "Account_ListPoolNodeCounts": 1}
    site.server.fail_node(site.server.nodes(job)[0])
    before = dict(site.server.calls)
    await made.look({job: 0})
    assert site.server.calls["ComputeNode_List"] == before.get("ComputeNode_List", 0) + 1


async def test_looks_are_not_more_frequent_than_they_are_to_be(site: Site) -> None:
    made = await site.pools()
    made._look_s = 3600
    job = await made.ensure(D2)
    for _ in range(5):
        await made.look({job: 1})
    assert site.server.calls["Account_ListPoolNodeCounts"] == 1
