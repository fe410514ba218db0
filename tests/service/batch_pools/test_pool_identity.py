"""Pools whose nodes have a managed identity: made by Azure Resource Manager, used by Batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from azure.batch import models

from tesazure.azure_identity import Identity
from tesazure.backends.azure_batch import pool_form, tasks
from tesazure.backends.azure_batch.shapes import Shape
from tesazure.errors import BackendUnavailable, Unplaceable
from tests.service.batch_pools.pool_site import D2, SPOT, Site, until, until_killed
from tests.services.azure_cloud import AzureCloud
from tests.services.azure_cloud_groups import SUBSCRIPTION
from tests.services.batch_server import BatchServer
from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer
from tests.services.metadata_service import POOL_IDENTITY

REFERENCE = {"registryServer": "reg.azurecr.io", "identityReference": {"resourceId": POOL_IDENTITY}}


@pytest.fixture
def entra(tmp_path: Path) -> Iterator[EntraServer]:
    with EntraServer(tmp_path / "entra") as entra:
        yield entra


@pytest.fixture
def arm(tmp_path: Path, entra: EntraServer) -> Iterator[AzureCloud]:
    """With the account of the site, and an identity."""
    options = {"simulation": until_killed}
    with AzureCloud(tmp_path / "arm", entra, batch_options=options) as arm:
        arm.register("Microsoft.Batch")
        arm.add_group("lab")
        arm.place("lab", "Microsoft.ManagedIdentity/userAssignedIdentities", "puller")
        yield arm


@pytest.fixture
def server(arm: AzureCloud) -> BatchServer:
    return arm.add_batch_account("lab", "acc")


@pytest.fixture
def site(site: Site, arm: AzureCloud, entra: EntraServer) -> Site:
    """Whose pools are to have the identity."""
    site.more = {
        "registry_url": "reg.azurecr.io",
        "pool_identity": POOL_IDENTITY,
        "subscription": SUBSCRIPTION,
        "resource_group": "lab",
        "arm_url": arm.url,
        "ca_bundle": arm.ca_bundle,
        "identity": Identity(
            tenant=TENANT,
            client_id=CLIENT,
            secret=SECRET,
            authority=entra.authority,
            ca_bundle=arm.ca_bundle,
        ),
    }
    return site


def puts(arm: AzureCloud) -> int:
    return arm.count("PUT ")


async def test_a_pool_is_made_with_the_identity_and_runs_tasks(site: Site, arm: AzureCloud) -> None:
    made = await site.pools()
    job = await made.ensure(D2)
    assert puts(arm) == 1
    assert site.server.calls["Pool_Add"] == 0
    pool = site.pool(job)
    assert pool.identity is not None
    assert pool.identity.type == "UserAssigned"
    assert [each.resource_id for each in pool.identity.user_assigned_identities or ()] == [
        POOL_IDENTITY
    ]
    site.add(job, "t")
    await until(lambda: len(site.server.nodes(job, "running")) == 1)
    await made.tidy({job})
    assert site.state(job) == "active"


async def test_it_is_the_same_pool_otherwise(site: Site, arm: AzureCloud) -> None:
    """Whatever can be in a pool is understood by Resource Manager, and then by Batch."""
    more = {
        "subnet": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v"
        "/subnets/n",
        "public_addresses": False,
        "file_share": "shared",
        "file_share_url": "https://st.file.core.windows.net/shared",
        "storage_key": "c3RvcmFnZS1rZXk=",
    }
    shape = msgspec.structs.replace(SPOT, zonal=True, os_disk_gib=256)

    async def given(**changes: Any) -> dict[str, Any]:
        job = await (await site.pools(**more, **changes)).ensure(shape)
        found = site.server.world.pools.get(job)
        assert found is not None
        return dict(found.given)

    with_identity, without = await given(), await given(pool_identity="")
    assert puts(arm) == 1
    [registry] = with_identity["virtualMachineConfiguration"]["containerConfiguration"].pop(
        "containerRegistries"
    )
    assert registry == REFERENCE
    del with_identity["identity"], with_identity["id"], without["id"]
    for each in (with_identity, without):  # it holds the time
        assert "maximum = 5;" in each.pop("autoScaleFormula")
    assert with_identity == without
    assert without["networkConfiguration"]["publicIPAddressConfiguration"]["provision"] == (
        "nopublicipaddresses"
    )


async def test_its_formula_changes_and_it_is_deleted_as_any_other(
    site: Site, arm: AzureCloud
) -> None:
    job = await (await site.pools()).ensure(D2)
    later = await site.pools(max_nodes=9)
    assert await later.ensure(D2) == job
    assert "maximum = 9;" in (site.pool(job).auto_scale_formula or "")
    await later.tidy(())
    await until(lambda: list(site.client.list_pools()) == [])
    assert puts(arm) == 2


async def test_many_at_once_make_it_once(site: Site, arm: AzureCloud) -> None:
    made = await site.pools()
    assert len(set(await asyncio.gather(*(made.ensure(D2) for _ in range(20))))) == 1
    assert puts(arm) == 1


async def test_one_that_goes_is_waited_for(site: Site, arm: AzureCloud) -> None:
    site.server.timing.deletion_s = 10
    made = await site.pools()
    job = await made.ensure(D2)
    site.client.begin_delete_pool(job, polling_interval=0.05)
    with pytest.raises(BackendUnavailable, match=f"pool {job} is being deleted"):
        await made.ensure(D2, again=True)


async def test_what_is_refused_is_said(site: Site, arm: AzureCloud) -> None:
    made = await site.pools()
    arm.revoke(CLIENT)
    arm.grant(CLIENT, "Azure Batch Account Contributor")
    with pytest.raises(
        BackendUnavailable, match=r"assign/action' .*Managed Identity Operator .*Linked"
    ):
        await made.ensure(D2)
    arm.grant(CLIENT, "Managed Identity Operator", POOL_IDENTITY)
    site.server.quotas.pools = 0
    with pytest.raises(BackendUnavailable, match=r"as many pools .* \(PoolQuotaReached\)"):
        await made.ensure(D2)
    site.server.quotas.pools = 10
    arm.down()
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        await made.ensure(D2)
    arm.up()
    assert await made.ensure(D2)


async def test_a_server_that_cannot_sign_in_says_so(site: Site, arm: AzureCloud) -> None:
    wrong = msgspec.structs.replace(site.more["identity"], secret="another")
    made = await site.pools(identity=wrong)
    with pytest.raises(BackendUnavailable, match=r"cannot sign in to make .*AADSTS7000215"):
        await made.ensure(D2)
    assert puts(arm) == 0


async def test_another_identity_is_another_pool(site: Site, arm: AzureCloud) -> None:
    other = POOL_IDENTITY.replace("puller", "other")
    ids = {pool_form.pool_id(site.config(pool_identity=each), D2) for each in (other, "")}
    assert len(ids | {pool_form.pool_id(site.config(), D2)}) == 3
    assert puts(arm) == 0


def test_the_runner_may_ask_for_tokens_where_it_needs_them(site: Site, arm: AzureCloud) -> None:
    def settings(**more: Any) -> dict[str, Any]:
        task = tasks.describe(site.config(**more), "key", "https://st/attempt", 1)
        return dict(task.as_dict()["containerSettings"])

    own = settings()
    assert own["registry"] == REFERENCE
    assert own["containerRunOptions"].endswith(" --network host")
    public = settings(runner_image="docker.io/somebody/runner:1")
    assert "registry" not in public
    assert public["containerRunOptions"].endswith(" --network host")
    login = {"registry_user": "u", "registry_password": "p", "pool_identity": ""}
    assert "--network" not in settings(**login)["containerRunOptions"]
    assert puts(arm) == 0


async def test_an_existing_pool_must_have_the_identity(site: Site, arm: AzureCloud) -> None:
    site.client.create_pool(
        models.BatchPoolCreateOptions(
            id="theirs",
            vm_size="Standard_D4s_v5",
            virtual_machine_configuration=models.VirtualMachineConfiguration(
                image_reference=models.BatchVmImageReference(
                    publisher="microsoft-dsvm", offer="ubuntu-hpc", sku="2404", version="latest"
                ),
                node_agent_sku_id="batch.node.ubuntu 24.04",
                container_configuration=models.BatchContainerConfiguration(type="dockerCompatible"),
            ),
            target_dedicated_nodes=0,
        )
    )
    made = await site.pools()
    theirs = Shape(vm_size="", pool="theirs")
    with pytest.raises(Unplaceable, match="has not the identity of BATCH_POOL_IDENTITY_ID"):
        await made.ensure(theirs)
    public = await site.pools(runner_image="docker.io/somebody/runner:1")
    assert await public.ensure(theirs)
    # One that was made with it, by whomever.
    job = await made.ensure(D2)
    assert await made.ensure(Shape(vm_size="", pool=job)) != job
    assert puts(arm) == 1
