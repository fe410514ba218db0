"""What the Batch backend hands over to a node: how long it is good, and how long it is there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from tesazure.access import Access, RegistryIdentity
from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tesazure.backends.azure_batch.files import BEGUN
from tesazure.runner.config import NodeConfig
from tesazure.runner.node import NodeAttempt
from tests.contract.backend_site import MARKS, BatchSite, complete, ended, until
from tests.services.batch_fleet import cores
from tests.services.batch_lab import QUICK
from tests.services.metadata_service import POOL_IDENTITY

# Other tests' attempts have the same keys, by which sandboxes are ended.
pytestmark = pytest.mark.xdist_group("attempt-keys")


def given(site: BatchSite, key: str) -> bytes:
    """What storage holds for an attempt's node."""
    with site.lab.azurite.client() as client:
        name = f"{site.lab.installation}/attempts/{key}"
        return client.get_blob_client(site.lab.container, name).download_blob().readall()


async def test_what_runs_has_no_secrets_in_storage_any_more(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    """Whoever may read the account's tasks has a URL of it."""
    site.lab.batch.shortage()
    handle = await site.submit(backend, f"until [ -e {MARKS}/go ]; do sleep 0.05; done", "k")
    assert msgspec.json.decode(given(site, "k"), type=NodeAttempt).key == "k"
    site.lab.batch.plenty()
    await until(lambda: given(site, "k") == BEGUN)
    (site.marks / "go").touch()
    await complete(backend, handle)


async def test_credentials_outlast_the_queue_however_short_the_task(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    site.lab.batch.shortage()
    plan = site.plan("true", backend_parameters={"max_runtime_s": "60"})
    handle = await backend.submit(plan, "k", Access())
    site.submitted.append((backend, handle))
    channel = msgspec.json.decode(given(site, "k"), type=NodeAttempt).channel
    task = site.lab.batch.task(handle["job"], "k")
    assert task is not None
    week = datetime.now(UTC) + timedelta(days=7, minutes=-5)
    for url in (
        task.given["resourceFiles"][0]["httpUrl"],
        channel.report,
        *channel.streams.values(),
    ):
        expiry = parse_qs(urlsplit(url).query)["se"][0]
        assert datetime.fromisoformat(expiry) > week


async def test_one_of_several_on_a_node_is_kept_to_its_part(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    site.lab.batch.shortage()
    handle = await site.submit(backend, "true", "k")
    attempt = msgspec.json.decode(given(site, "k"), type=NodeAttempt)
    own, _, slots = attempt.facts["vm_share"].partition("/")
    assert int(slots) > int(own) == 1
    limits = attempt.plan.limits
    assert limits.cpu_cores == pytest.approx(cores(attempt.facts["vm_size"]) / int(slots))
    assert limits.ram_bytes is not None
    assert limits.ram_bytes >= limits.reserved_ram_bytes
    site.lab.batch.plenty()
    await complete(backend, handle)


async def test_the_runner_learns_of_the_identity_that_pulls_images(
    backend: AzureBatchBackend, site: BatchSite
) -> None:
    first = await site.submit(backend, "true", "k1")
    identity = {"registry_url": "https://reg.azurecr.io", "pool_identity": POOL_IDENTITY}
    config = site.lab.config(override_pool=first["job"], **identity)
    with_identity = AzureBatchBackend(config, QUICK)
    await with_identity.start()
    site.stack.push_async_callback(with_identity.stop)
    script = f"touch {MARKS}/up; until [ -e {MARKS}/go ]; do sleep 0.05; done"
    handle = await site.submit(with_identity, script, "k2")
    await until((site.marks / "up").exists)
    node = msgspec.json.decode((site.work_of(handle) / "node.json").read_bytes(), type=NodeConfig)
    assert node.registry_identity == RegistryIdentity(host="reg.azurecr.io", id=POOL_IDENTITY)
    assert node.registry_identity.metadata == "http://169.254.169.254"
    (site.marks / "go").touch()
    await ended(with_identity, handle)
