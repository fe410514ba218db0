"""The rights of docs/batch.md are all that the Batch backend needs, and none too much."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec

from tesazure.access import Access, Endpoints
from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.model import Executor, State, Task
from tesazure.plan import make_plan
from tests.conftest import need_sandbox
from tests.contract.backend_site import DEFAULTS, ended, until
from tests.service.azure_subscription import BATCH, NAME, STORAGE, Subscription, subscription
from tests.services.azure_cloud_groups import REGION, SUBSCRIPTION
from tests.services.batch_lab import QUICK
from tests.services.entra_server import CLIENT

PAGE = Path(__file__).parents[2] / "docs/batch.md"
_POOLS, _JOBS = "Microsoft.Batch/batchAccounts/pools", "Microsoft.Batch/batchAccounts/jobs"
RIGHTS = {
    "Account_ListPoolNodeCounts": f"{_POOLS}/read",
    "Account_ListSupportedImages": f"{_POOLS}/read",
    "Job_Add": f"{_JOBS}/write",
    "Job_Delete": f"{_JOBS}/delete",
    "Job_Get": f"{_JOBS}/read",
    "Job_List": f"{_JOBS}/read",
    "Pool_Add": f"{_POOLS}/write",
    "Pool_Delete": f"{_POOLS}/delete",
    "Pool_EnableAutoScale": f"{_POOLS}/write",
    "Pool_Get": f"{_POOLS}/read",
    "Pool_List": f"{_POOLS}/read",
    "Task_AddCollection": f"{_JOBS}/write",
    "Task_Delete": f"{_JOBS}/delete",
    "Task_Get": f"{_JOBS}/read",
    "Task_List": f"{_JOBS}/read",
    "Task_Terminate": f"{_JOBS}/write",
}
"""What operations need, as the rights are described ("Azure permissions for Compute"); tasks, nodes
and images, which that page does not name, go with jobs and pools."""


def backend_of(azure: Subscription, cache: Path) -> AzureBatchBackend:
    """Of a server with an identity, which keeps no pool that nothing runs in."""
    cloud = azure.cloud
    storage = cloud.storage.gates[NAME].endpoint
    config = BatchConfig(
        installation="abcdefgh",
        account=NAME,
        url=cloud.batch.servers[NAME].url,
        storage_url=storage,
        storage_account=NAME,
        identity=azure.identity(),
        ca_bundle=cloud.ca_bundle,
        runner_image="runner:1",
        subscription=SUBSCRIPTION,
        resource_group="tesazure",
        arm_url=cloud.url,
        prices_url="",
        region=REGION,
        cache_dir=cache,
        endpoints=Endpoints(blob=storage, ca_bundle=cloud.ca_bundle),
        node_engine="sandbox",
        network=False,
        idle_s=0.0,
    )
    return AzureBatchBackend(config, msgspec.structs.replace(QUICK, tidy_s=0.2))


async def test_the_roles_of_the_documentation_are_enough_and_none_too_much(short_dir: Path) -> None:
    """From a look at the region's sizes to the end of an idle pool."""
    need_sandbox()
    written = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    roles = [json.loads(role) for role in written]
    with subscription(short_dir / "azure") as azure:
        with azure.owned() as ground:  # whose accounts take no keys
            azure.make(ground)
        azure.cloud.register("Microsoft.Compute")
        azure.cloud.revoke(CLIENT)
        scopes = (BATCH, STORAGE, f"/subscriptions/{SUBSCRIPTION}")
        for role, scope in zip(roles, scopes, strict=True):
            azure.cloud.grant(CLIENT, role, scope)
        backend = backend_of(azure, short_dir / "cache")
        await backend.start()
        assert [check.ok for check in await backend.check()] == [True, True]
        assert await backend._catalog.refresh()
        task = Task(executors=[Executor(image="unused", command=["echo", "x"])])
        handle = await backend.submit(make_plan("task", task, DEFAULTS, []), "k", Access())
        seen = await ended(backend, handle)
        assert seen.report.ended is not None
        assert seen.report.ended.state is State.COMPLETE
        assert (await backend.read_stream(handle, 0, "stdout", 0, 100)).data == b"x\n"
        await backend.cancel(handle)
        await backend.release(handle)
        await backend.discard(handle)
        calls = azure.cloud.batch.servers[NAME].calls
        await until(lambda: calls["Pool_Delete"] > 0)
        await backend.stop()
        assert azure.cloud.storage.gates[NAME].refusals == []
    # The account itself is read from Azure Resource Manager, for its quotas.
    needed = {"Microsoft.Batch/batchAccounts/read", *(RIGHTS[operation] for operation in calls)}
    assert needed == {*roles[0]["Actions"], *roles[0]["DataActions"]}
