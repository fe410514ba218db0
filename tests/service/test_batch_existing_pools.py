"""Attempts on pools that are somebody else's, and on our own that are gone: with the backend, Batch
and storage."""

from __future__ import annotations

import pytest
from azure.batch import models

from tesazure.access import Access
from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tesazure.errors import Unplaceable
from tesazure.lifecycle import Handle, Phase
from tests.contract.backend_site import MARKS, BatchSite, complete, ended, look, until
from tests.services.batch_lab import QUICK, SHARE, share_url

# Other tests' attempts have the same keys, by which sandboxes are ended.
pytestmark = pytest.mark.xdist_group("attempt-keys")

POOL = "theirs"


async def server(site: BatchSite, **changes: object) -> AzureBatchBackend:
    """One that lets tasks name the pool."""
    backend = AzureBatchBackend(site.lab.config(pool_ids=(POOL,), **changes), QUICK)
    await backend.start()
    site.stack.push_async_callback(backend.stop)
    return backend


def make_pool(site: BatchSite, nodes: int) -> None:
    """As its owner does, with the share that all our nodes have."""
    share = models.AzureFileShareConfiguration(
        account_name=site.lab.azurite.account,
        account_key=site.lab.azurite.key,
        azure_file_url=share_url(site.lab.azurite),
        relative_mount_path=SHARE,
    )
    machine = models.VirtualMachineConfiguration(
        image_reference=models.BatchVmImageReference(
            publisher="microsoft-dsvm", offer="ubuntu-hpc", sku="2404", version="latest"
        ),
        node_agent_sku_id="batch.node.ubuntu 24.04",
        container_configuration=models.BatchContainerConfiguration(type="dockerCompatible"),
    )
    with site.lab.client() as client:
        client.create_pool(
            models.BatchPoolCreateOptions(
                id=POOL,
                vm_size="Standard_D4s_v5",
                virtual_machine_configuration=machine,
                target_dedicated_nodes=nodes,
                mount_configuration=[
                    models.MountConfiguration(azure_file_share_configuration=share)
                ],
            )
        )


def delete_pool(site: BatchSite, pool: str) -> None:
    """To its end."""
    with site.lab.client() as client:
        client.begin_delete_pool(pool, polling_interval=0.02).wait(20)


async def submit(site: BatchSite, backend: AzureBatchBackend, pool: str = POOL) -> Handle:
    """An attempt that names a pool."""
    plan = site.plan(f"echo x >> {MARKS}/n", backend_parameters={"pool_id": pool})
    handle = await backend.submit(plan, "k", Access())
    site.submitted.append((backend, handle))
    return handle


async def test_an_attempt_runs_on_the_pool_that_it_names(site: BatchSite) -> None:
    make_pool(site, 1)
    handle = await submit(site, await server(site))
    await complete(site.submitted[0][0], handle)
    assert site.mark("n") == "x\n"
    with site.lab.client() as client:
        assert [pool.id for pool in client.list_pools()] == [POOL]


async def test_no_attempt_runs_on_a_pool_that_is_not_listed(site: BatchSite) -> None:
    make_pool(site, 1)
    backend = await site.server()  # without BATCH_POOL_IDS
    own = await site.submit(backend, "true", "own")
    for pool in (POOL, own["job"]):
        with pytest.raises(Unplaceable, match="BATCH_POOL_IDS"):
            backend.admit(site.plan("true", backend_parameters={"pool_id": pool}))
        with pytest.raises(Unplaceable, match="BATCH_POOL_IDS"):
            await submit(site, backend, pool)


async def test_what_waits_in_a_pool_that_somebody_deletes_is_lost(site: BatchSite) -> None:
    make_pool(site, 0)
    backend = await server(site)
    handle = await submit(site, backend)

    async def is_waiting() -> bool:
        return "waiting for a node of pool theirs" in (await look(backend, handle)).reason

    await until(is_waiting)
    delete_pool(site, POOL)
    seen = await ended(backend, handle)
    assert (seen.phase, seen.reason) == (
        Phase.MISSING,
        "pool theirs is gone: somebody deleted it",
    )
    await backend.release(handle)
    # The policy's next attempt.
    plan = site.plan("true", backend_parameters={"pool_id": POOL})
    with pytest.raises(Unplaceable, match="there is no pool theirs"):
        await backend.submit(plan, "k2", Access())


async def test_what_waits_in_a_pool_of_ours_runs_though_it_was_deleted_while_no_server_ran(
    site: BatchSite,
) -> None:
    site.lab.batch.shortage()
    first = await site.server()
    handle = await site.submit(first, f"echo x >> {MARKS}/n", "k")
    await first.stop()
    delete_pool(site, handle["job"])
    site.lab.batch.plenty()
    # Of other settings, by which what comes now goes to other pools.
    await complete(await server(site, node_agent="batch.node.ubuntu 24.04"), handle)
    assert site.mark("n") == "x\n"
