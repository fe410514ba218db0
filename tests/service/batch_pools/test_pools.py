"""Pools, against the Batch stand-in with Microsoft's SDK: made, shared, deleted."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import msgspec
import pytest
from azure.batch import models

from tesazure.backends.azure_batch import autoscale, begun, pool_form, pools
from tesazure.backends.azure_batch.catalog import Catalog
from tesazure.backends.azure_batch.pools import Pools
from tesazure.backends.azure_batch.shapes import Shape
from tesazure.errors import BackendUnavailable, Unplaceable
from tests.service.batch_pools.pool_site import D2, SPOT, Site, until
from tests.services.batch_wire import Refused, Request, invalid_value

PASSWORD = "the-registrys-password"


# -- made


async def test_a_pool_is_made_as_settings_and_shape_have_it(site: Site) -> None:
    made = await site.pools(
        registry_url="https://reg.azurecr.io",
        registry_user="puller",
        registry_password=PASSWORD,
        subnet="/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v"
        "/subnets/n",
        public_addresses=False,
        file_share="shared",
        file_share_url="https://st.file.core.windows.net/shared",
        storage_key="c3RvcmFnZS1rZXk=",
    )
    shape = msgspec.structs.replace(D2, zonal=True, os_disk_gib=256)
    job = await made.ensure(shape)
    assert job.startswith("tesazure-abcdefgh-d2ads_v5-ded-")
    assert len(job) <= 64
    pool = site.server.world.pools.get(job)
    assert pool is not None
    given = pool.given
    machine = given["virtualMachineConfiguration"]
    assert given["vmSize"] == "Standard_D2ads_v5"
    assert given["taskSlotsPerNode"] == 2
    assert given["taskSchedulingPolicy"] == {"nodeFillType": "pack"}
    assert machine["imageReference"]["sku"] == "2404"
    assert machine["nodeAgentSKUId"] == "batch.node.ubuntu 24.04"
    containers = machine["containerConfiguration"]
    assert containers["type"] == "dockerCompatible"
    assert containers["containerImageNames"] == ["reg.azurecr.io/tesazure/runner:1"]
    assert containers["containerRegistries"][0]["username"] == "puller"
    assert machine["nodePlacementConfiguration"] == {"policy": "zonal"}
    assert machine["securityProfile"] == {"encryptionAtHost": True}
    assert machine["osDisk"]["diskSizeGB"] == 256
    network = given["networkConfiguration"]
    assert network["subnetId"].endswith("/subnets/n")
    assert network["publicIPAddressConfiguration"]["provision"] == "nopublicipaddresses"
    share = given["mountConfiguration"][0]["azureFileShareConfiguration"]
    assert share["relativeMountPath"] == "shared"
    assert "vers=3.1.1" in share["mountOptions"]
    start = given["startTask"]
    assert start["commandLine"] == pool_form.GUARD
    assert start["waitForSuccess"]
    assert start["userIdentity"] == {"autoUser": {"scope": "pool", "elevationLevel": "admin"}}
    assert "containerSettings" not in start
    metadata = {each["name"]: each["value"] for each in given["metadata"]}
    assert metadata["tesazure"] == "abcdefgh"
    assert site.client.get_job(job).pool_info.pool_id == job
    assert site.pool(job).auto_scale_evaluation_interval == autoscale.INTERVAL
    assert "maximum = 5;" in given["autoScaleFormula"]
    assert (
        site.client.get_job(job).metadata
        == pool_form.describe_job(site.config(), job, job, shape).metadata
    )


async def test_many_at_once_make_it_once(site: Site) -> None:
    made = await site.pools()
    jobs = await asyncio.gather(*(made.ensure(D2) for _ in range(50)))
    assert len(set(jobs)) == 1
    assert site.server.calls["Pool_Add"] == site.server.calls["Job_Add"] == 1
    before = sum(site.server.calls.values())
    assert await made.ensure(D2) == jobs[0]
    assert sum(site.server.calls.values()) == before


async def test_another_server_takes_what_is_there_and_gives_it_todays_formula(site: Site) -> None:
    job = await (await site.pools()).ensure(D2)
    later = await site.pools(max_nodes=9)
    assert await later.ensure(D2) == job
    formula = site.pool(job).auto_scale_formula
    assert formula is not None
    assert "maximum = 9;" in formula
    assert len(list(site.client.list_pools())) == 1


async def test_changed_settings_make_other_pools_and_installations_do_not_share(site: Site) -> None:
    ids = {
        pool_form.pool_id(site.config(**more), shape)
        for shape in (D2, SPOT, msgspec.structs.replace(D2, slots=1))
        for more in ({}, {"runner_image": "x"}, {"installation": "zzzzzzzz"}, {"subnet": "s"})
    }
    assert len(ids) == 12
    long = Shape(vm_size="Standard_NC128ds_xl_RTXPRO6000BSE_v6_and_more")
    assert len(pool_form.pool_id(site.config(), long)) <= 64


async def test_changed_secrets_make_other_pools(site: Site) -> None:
    with_secrets = {
        "registry_url": "reg.azurecr.io",
        "registry_user": "u",
        "registry_password": "a",
        "file_share": "shared",
        "storage_key": "c3RvcmFnZS1rZXk=",
    }

    def name(**more: Any) -> str:
        return pool_form.pool_id(site.config(**with_secrets | more), D2)

    assert name() == name()
    assert len({name(), name(registry_password="b"), name(storage_key="bmV3LWtleQ==")}) == 3
    # A key that nodes do not get is none of their pool's.
    assert name(file_share="") == name(file_share="", storage_key="bmV3LWtleQ==")


async def test_what_somebody_deleted_is_made_anew(site: Site) -> None:
    made = await site.pools()
    job = await made.ensure(D2)
    site.client.begin_delete_job(job, polling_interval=0.02).wait(10)
    assert await made.ensure(D2, again=True) == job
    assert site.client.get_job(job).state == "active"
    site.client.begin_delete_pool(job, polling_interval=0.02).wait(10)
    assert await made.ensure(D2, again=True) == job
    assert site.pool(job).state == "active"


async def test_looking_anew_is_done_once_for_all_who_ask(site: Site) -> None:
    made = await site.pools()
    await made.ensure(D2)
    before = site.server.calls["Pool_Add"]
    await asyncio.gather(*(made.ensure(D2, again=True) for _ in range(20)))
    assert site.server.calls["Pool_Add"] == before + 1


async def test_a_job_that_was_ended_is_replaced(site: Site) -> None:
    made = await site.pools()
    job = await made.ensure(D2)
    ended: Any = {"terminateReason": "somebody"}
    site.client.begin_terminate_job(job, ended, polling_interval=0.02).wait(10)
    with pytest.raises(BackendUnavailable, match="is being deleted"):
        await made.ensure(D2, again=True)

    async def again() -> None:
        try:
            await made.ensure(D2, again=True)
        except BackendUnavailable as error:
            assert "is being deleted" in str(error)

    await until(lambda: site.state(job) == "active", again)


async def test_a_pool_that_is_being_deleted_is_waited_for(site: Site) -> None:
    site.server.timing.deletion_s = 0.5
    made = await site.pools()
    job = await made.ensure(D2)
    site.client.begin_delete_pool(job, polling_interval=0.05)
    with pytest.raises(BackendUnavailable, match=f"pool {job} is being deleted"):
        await made.ensure(D2, again=True)


# -- refused


async def test_quotas_of_pools_and_jobs_are_named(site: Site) -> None:
    made = await site.pools()
    site.server.quotas.pools = 0
    with pytest.raises(BackendUnavailable, match=r"as many pools .* \(PoolQuotaReached\)"):
        await made.ensure(D2)
    site.server.quotas.pools, site.server.quotas.jobs = 10, 0
    with pytest.raises(
        BackendUnavailable, match=r"as many active jobs .* \(ActiveJobAndScheduleQuotaReached\)"
    ):
        await made.ensure(D2)
    site.server.quotas.jobs = 10
    assert await made.ensure(D2)


async def test_no_more_pools_than_settings_allow(site: Site) -> None:
    made = await site.pools(max_pools=1, idle_s=3600)
    first = await made.ensure(D2)
    with pytest.raises(BackendUnavailable, match="has 1 pools, and BATCH_MAX_POOLS is 1"):
        await made.ensure(SPOT)
    await made.tidy({first})
    assert await made.ensure(D2) == first


async def test_idle_pools_go_sooner_only_while_others_are_asked_for(site: Site) -> None:
    made = await site.pools(max_pools=1, idle_s=3600)
    first = await made.ensure(D2)
    made._pools[first].used -= pools.CROWDED_IDLE_S
    await made.tidy(())
    assert site.state(first) == "active"
    with pytest.raises(BackendUnavailable, match="BATCH_MAX_POOLS"):
        await made.ensure(SPOT)
    made._crowded -= pools.CROWDED_S
    await made.tidy(())
    assert site.state(first) == "active"
    with pytest.raises(BackendUnavailable, match="BATCH_MAX_POOLS"):
        await made.ensure(SPOT)
    await made.tidy(())
    await until(lambda: site.state(first) == "gone")


async def test_without_the_feature_disks_are_not_encrypted_on_hosts(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(operation: str, request: Request) -> None:
        if operation == "Pool_Add" and b"encryptionAtHost" in request.body:
            name = "virtualMachineConfiguration.securityProfile.encryptionAtHost"
            raise invalid_value(name, "true", "the subscription is not registered for it")

    site.server.before = refuse
    made = await site.pools()
    with caplog.at_level(logging.WARNING):
        job = await made.ensure(D2)
    pool = site.server.world.pools.get(job)
    assert pool is not None
    assert "securityProfile" not in pool.given["virtualMachineConfiguration"]
    assert "not encrypted" in caplog.text
    await made.ensure(SPOT)
    assert site.server.calls["Pool_Add"] == 3


async def test_another_refusal_leaves_disks_encrypted(site: Site) -> None:
    site.server.trouble("Pool_Add", status=400, code="InvalidPropertyValue", times=1)
    made = await site.pools()
    with pytest.raises(BackendUnavailable, match="InvalidPropertyValue"):
        await made.ensure(D2)
    pool = site.server.world.pools.get(await made.ensure(D2))
    assert pool is not None
    assert "securityProfile" in pool.given["virtualMachineConfiguration"]


async def test_a_pool_that_refuses_its_formula_takes_tasks(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    job = await (await site.pools()).ensure(D2)
    site.server.trouble("Pool_EnableAutoScale", status=400, code="InvalidPropertyValue", times=1)
    later = await site.pools()
    with caplog.at_level(logging.WARNING):
        assert await later.ensure(D2) == job
    assert f"pool {job} keeps its formula" in caplog.text


async def test_a_size_that_batch_refuses_is_left_out_next_time(site: Site) -> None:
    def refuse(operation: str, request: Request) -> None:
        if operation == "Pool_Add" and b"Standard_D2ads_v5" in request.body:
            raise invalid_value("vmSize", "Standard_D2ads_v5", "not in this region")

    site.server.before = refuse
    config, catalog = site.config(), Catalog(site.config())
    account = await site.account()
    made = Pools(config, account, catalog)
    with pytest.raises(BackendUnavailable, match="vmSize"):
        await made.ensure(D2)
    assert "vmSize" in catalog.sizes.refused["standard_d2ads_v5"]
    assert site.server.calls["Pool_Add"] == 1
    assert await made.ensure(msgspec.structs.replace(D2, vm_size="Standard_D4ads_v5"))


async def test_an_account_that_is_away_makes_nothing_and_keeps_nothing(site: Site) -> None:
    made = await site.pools()
    trouble = site.server.trouble("Pool_Add", status=403, code="AuthenticationFailed", times=9)
    with pytest.raises(BackendUnavailable):
        await made.ensure(D2)
    trouble.times = 0
    assert await made.ensure(D2)


async def test_a_pool_that_was_made_though_the_answer_was_lost_is_taken(site: Site) -> None:
    made = await site.pools()
    site.server.trouble("Pool_Add", cut="after", times=1)
    site.server.trouble("Job_Add", cut="after", times=1)
    job = await made.ensure(D2)
    assert site.pool(job).state == "active"
    assert len(list(site.client.list_jobs())) == 1


# -- somebody else's


def somebodys(site: Site, **more: Any) -> None:
    machine = models.VirtualMachineConfiguration(
        image_reference=models.BatchVmImageReference(
            publisher="microsoft-dsvm", offer="ubuntu-hpc", sku="2404", version="latest"
        ),
        node_agent_sku_id="batch.node.ubuntu 24.04",
        **more,
    )
    site.client.create_pool(
        models.BatchPoolCreateOptions(
            id="theirs",
            vm_size="Standard_D4s_v5",
            virtual_machine_configuration=machine,
            target_dedicated_nodes=0,
        )
    )


async def test_an_existing_pool_gets_our_job_and_stays_when_idle(site: Site) -> None:
    containers = models.BatchContainerConfiguration(type="dockerCompatible")
    somebodys(site, container_configuration=containers)
    made = await site.pools()
    job = await made.ensure(Shape(vm_size="", pool="theirs"))
    assert job.startswith("tesazure-abcdefgh-on-")
    assert site.client.get_job(job).pool_info.pool_id == "theirs"
    await made.look({job: 1})
    assert made.reason(job).startswith(
        "waiting for a node of pool theirs (Standard_D4s_v5, dedicated): "
    )
    later = await site.pools()
    await later.look({job: 1})
    assert "pool theirs" in later.reason(job)
    await made.tidy(())
    await until(lambda: site.state(job) == "gone")
    assert site.pool("theirs").state == "active"
    assert site.server.calls["Pool_EnableAutoScale"] == 0


async def test_an_existing_pool_must_be_there_and_run_containers(site: Site) -> None:
    made = await site.pools()
    with pytest.raises(Unplaceable, match="there is no pool theirs"):
        await made.ensure(Shape(vm_size="", pool="theirs"))
    somebodys(site)
    with pytest.raises(Unplaceable, match="cannot run containers"):
        await made.ensure(Shape(vm_size="", pool="theirs"))


# -- deleted


async def test_idle_pools_go_with_their_jobs(site: Site) -> None:
    made = await site.pools()
    first, second = await made.ensure(D2), await made.ensure(SPOT)
    await made.tidy({first})
    await until(lambda: site.state(second) == "gone")
    await until(lambda: [pool.id for pool in site.client.list_pools()] == [first])
    assert await made.ensure(SPOT) == second


async def test_pools_are_kept_for_a_while(site: Site) -> None:
    made = await site.pools(idle_s=3600)
    await made.ensure(D2)
    await made.tidy(())
    assert len(list(site.client.list_pools())) == 1
    assert site.server.calls["Task_List"] == 0


async def test_a_job_with_tasks_of_another_server_is_kept(site: Site) -> None:
    made = await site.pools()
    job = await made.ensure(D2)
    site.add(job, "theirs")
    await made.tidy(())
    assert site.state(job) == "active"
    assert site.pool(job).state == "active"


async def test_after_a_crash_pools_and_jobs_are_found_by_their_names(site: Site) -> None:
    before = await site.pools()
    first, second = await before.ensure(D2), await before.ensure(SPOT)
    site.client.begin_delete_pool(second, polling_interval=0.02).wait(10)
    foreign = await (await site.pools(installation="zzzzzzzz")).ensure(D2)
    after = await site.pools()
    await after.tidy(())
    await until(lambda: {site.state(job) for job in (first, second)} == {"gone"})
    await until(lambda: [pool.id for pool in site.client.list_pools()] == [foreign])
    assert site.state(foreign) == "active"


async def test_words_of_a_queue_that_an_earlier_server_left(site: Site) -> None:
    site.server.quotas.spot_cores = 0
    job = await (await site.pools()).ensure(SPOT)
    site.add(job, "t1")
    later = await site.pools()
    words = "quota of Spot cores is used up"
    await until(lambda: words in later.reason(job), lambda: later.look({job: 1}))
    assert later.short() == {SPOT}


async def test_an_account_that_is_away_keeps_no_server_from_starting(site: Site) -> None:
    job = await (await site.pools()).ensure(D2)
    site.server.trouble("Pool_List", status=403, times=1)
    made = await site.pools()
    assert made.reason(job) == f"waiting for a node of pool {job}"
    await made.look({job: 1})
    assert "Standard_D2ads_v5" in made.reason(job)


async def test_nobody_watches_what_is_deleted_to_its_end(site: Site) -> None:
    made = await site.pools()
    job = await made.ensure(D2)
    before = dict(site.server.calls)
    await made.tidy(())
    await until(lambda: site.state(job) == "gone")
    asked = {k: n - before.get(k, 0) for k, n in site.server.calls.items() if n != before.get(k)}
    assert asked == {"Task_List": 1, "Job_Delete": 1, "Pool_Delete": 1}
    assert [t.name for t in threading.enumerate() if "LROPoller" in t.name] == []


async def test_an_answer_that_is_not_batchs_is_an_error_like_others(site: Site) -> None:
    made = await site.pools()
    await made.ensure(D2)

    def refuse(operation: str, request: Request) -> None:
        del request
        if operation == "Job_Delete":
            raise Refused(403, "AuthorizationFailed", "You may not delete it.")

    site.server.before = refuse
    account = await site.account()
    with pytest.raises(BackendUnavailable, match=r"You may not delete it.*AuthorizationFailed"):
        await account.call("delete a job", lambda client: begun.delete_job(client, "j"))
    del made


async def test_an_idle_pool_that_cannot_be_deleted_is_tried_again(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    made = await site.pools()
    job = await made.ensure(D2)
    site.server.trouble("Pool_Delete", status=403, times=1)
    with caplog.at_level(logging.WARNING):
        await made.tidy(())
    assert "is idle and cannot be deleted" in caplog.text
    await made.tidy(())
    await until(lambda: list(site.client.list_pools()) == [])
    assert site.state(job) == "gone"
