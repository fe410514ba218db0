"""The Batch backend in an account that takes no keys: a service principal, over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.access import Access, Endpoints
from tesazure.azure_identity import Identity
from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tesazure.errors import BackendUnavailable
from tesazure.settings import CLOUDS, batch_scope_of, load
from tests.conftest import need_sandbox, shared
from tests.contract.backend_site import BatchSite, complete
from tests.services.azurite import Azurite, AzuriteTls
from tests.services.batch_lab import QUICK, BatchLab, batch_lab
from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer

# Other tests' attempts have the same keys, by which sandboxes are ended.
pytestmark = pytest.mark.xdist_group("attempt-keys")


@pytest.fixture
def lab(short_dir: Path) -> Iterator[BatchLab]:
    need_sandbox()
    with (
        EntraServer(short_dir / "entra") as entra,
        batch_lab(short_dir / "batch", shared(Azurite), entra=entra) as lab,
    ):
        lab.batch.doorkeeper.forbids_keys = True
        lab.identity = Identity(
            tenant=TENANT,
            client_id=CLIENT,
            secret=SECRET,
            authority=entra.authority,
            ca_bundle=entra.ca_bundle,
        )
        yield lab


@pytest.mark.parametrize("cloud", CLOUDS)
async def test_tasks_run_without_a_key(short_dir: Path, lab: BatchLab, cloud: str) -> None:
    scope = batch_scope_of(load({"APP_CLOUD": cloud}).settings)
    lab.batch.doorkeeper.resource = scope.removesuffix("/.default")
    site = BatchSite(short_dir, lab)
    changes = {
        "key": "",
        "identity": lab.identity,
        "ca_bundle": lab.batch.ca_bundle,
        "scope": scope,
    }
    backend = AzureBatchBackend(lab.config(**changes), QUICK)
    await backend.start()
    assert [check.ok for check in await backend.check()] == [True, True]
    handle = await backend.submit(site.plan("true"), "k", Access())
    await complete(backend, handle)
    await backend.release(handle)
    await backend.discard(handle)
    await backend.stop()


async def test_tasks_run_where_neither_account_takes_a_key(short_dir: Path) -> None:
    """The signatures of nodes are of the identity's key then."""
    azurite = shared(AzuriteTls)
    with (
        EntraServer(short_dir / "entra") as entra,
        batch_lab(short_dir / "batch", azurite, entra=entra, trusts=str(azurite.ca)) as lab,
    ):
        lab.batch.doorkeeper.forbids_keys = True
        bundle = short_dir / "authorities.pem"
        trusted = (azurite.ca, Path(entra.ca_bundle), Path(lab.batch.ca_bundle))
        bundle.write_text("".join(each.read_text() for each in trusted))
        identity = Identity(
            tenant=TENANT,
            client_id=CLIENT,
            secret=SECRET,
            authority=entra.authority,
            ca_bundle=str(bundle),
        )
        config = lab.config(
            key="",
            storage_key="",
            identity=identity,
            ca_bundle=str(bundle),
            file_share="",
            file_share_url="",
            endpoints=Endpoints(blob=azurite.endpoint, ca_bundle=str(bundle)),
        )
        backend = AzureBatchBackend(config, QUICK)
        await backend.start()
        handle = await backend.submit(BatchSite(short_dir, lab).plan("echo x"), "k", Access())
        task = lab.batch.task(handle["job"], "k")
        assert task is not None
        assert "skoid=" in task.given["resourceFiles"][0]["httpUrl"]
        await complete(backend, handle)
        assert (await backend.read_stream(handle, 0, "stdout", 0, 100)).data == b"x\n"
        await backend.release(handle)
        await backend.discard(handle)
        await backend.stop()


async def test_a_token_for_another_clouds_batch_is_refused(short_dir: Path, lab: BatchLab) -> None:
    lab.batch.doorkeeper.resource = "https://batch.core.usgovcloudapi.net/"
    config = lab.config(key="", identity=lab.identity, ca_bundle=lab.batch.ca_bundle)
    backend = AzureBatchBackend(config, QUICK)
    await backend.start()
    assert [check.ok for check in await backend.check()] == [False, True]
    await backend.stop()


async def test_what_is_wrong_is_said(short_dir: Path, lab: BatchLab) -> None:
    wrong = Identity(
        tenant=TENANT,
        client_id=CLIENT,
        secret="a-wrong-secret",
        authority=lab.identity.authority,
        ca_bundle=lab.identity.ca_bundle,
    )
    cases = [
        ({}, "roles of this server's identity"),
        ({"key": "", "identity": wrong}, "Azure Batch would not"),
    ]
    for changes, words in cases:
        config = lab.config(ca_bundle=lab.batch.ca_bundle, **changes)
        backend = AzureBatchBackend(config, QUICK)
        await backend.start()
        with pytest.raises(BackendUnavailable, match=words) as refused:
            await backend.submit(BatchSite(short_dir, lab).plan("true"), "k", Access())
        assert "a-wrong-secret" not in str(refused.value)
        await backend.stop()
