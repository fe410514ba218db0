"""The Batch backend in an account that takes no keys: a service principal, over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.access import Access
from tesazure.azure_identity import Identity
from tesazure.backends.azure_batch.backend import AzureBatchBackend
from tesazure.errors import BackendUnavailable
from tesazure.model import State
from tesazure.settings import CLOUDS, batch_scope_of, load
from tests.conftest import refuse, shared
from tests.contract.backend_site import BatchSite, ended
from tests.services import base
from tests.services.azurite import Azurite
from tests.services.batch_lab import QUICK, BatchLab, batch_lab
from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer

# Other tests' attempts have the same keys, by which sandboxes are ended.
pytestmark = pytest.mark.xdist_group("attempt-keys")


@pytest.fixture
def lab(short_dir: Path) -> Iterator[BatchLab]:
    try:
        base.require_program("bwrap", "bubblewrap")
    except base.Unavailable as error:
        refuse(str(error))
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
    seen = await ended(backend, handle)
    assert seen.report.ended is not None
    assert seen.report.ended.state is State.COMPLETE
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
