"""The keys of issuers: changed, withdrawn, made up, out of reach."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tesazure.callers import Role
from tesazure.errors import NotAllowed, NotSignedIn, SignInUnavailable
from tesazure.signin.gate import Gate, SignIn
from tesazure.signin.keys import Pace
from tesazure.store.sql_store import SqlStore
from tests.service.gates import QUICK, bearer, entra, gate, lonely, refused, store, trusted
from tests.services.cutting_proxy import CuttingProxy
from tests.services.entra_server import OTHER_TENANT, TENANT, EntraServer

__all__ = ["entra", "lonely", "store"]


async def test_keys_change_under_load_and_nobody_is_refused(
    store: SqlStore, lonely: EntraServer
) -> None:
    async with gate(store, lonely, Pace(cooldown_s=0.2)) as made:
        admitted = 0
        done = False

        async def client() -> None:
            nonlocal admitted
            while not done:
                # A token of its own each time, so that none comes from the cache.
                await made.admit(Role.WRITE, bearer(lonely.issue()))
                admitted += 1
                await asyncio.sleep(0)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            clients = [group.create_task(client()) for _ in range(64)]
            for _ in range(5):
                before = admitted
                old = lonely.issue()
                await asyncio.to_thread(lonely.rotate)
                await _until(lambda at_least=before + 200: admitted >= at_least)
                await made.admit(Role.READ, bearer(old))
            done = True
        assert all(each.exception() is None for each in clients)
    # The two versions have keys of their own: read at the start, and once for each new key at most.
    assert 2 <= lonely.count("keys") <= 2 + 5


async def test_made_up_keys_neither_burden_an_issuer_nor_keep_a_real_one_out(
    store: SqlStore, lonely: EntraServer
) -> None:
    pace = Pace(cooldown_s=0.5)
    waits, reads = [], []
    async with gate(store, lonely, pace) as made:
        await made.admit(Role.READ, bearer(lonely.issue()))
        await _until(lambda: lonely.count("keys") == 2)
        began, done = time.monotonic(), False

        async def forger(name: int) -> None:
            while not done:
                await refused(made, bearer(lonely.issue(kid=f"made-up-{name}")))

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(forger(number))
            for _ in range(4):
                await asyncio.to_thread(lonely.rotate)
                asked, before = time.monotonic(), lonely.count("keys")
                await made.admit(Role.READ, bearer(lonely.issue()))
                waits.append(time.monotonic() - asked)
                reads.append(lonely.count("keys") - before)
            done = True
        took = time.monotonic() - began
        assert lonely.count("keys") - 2 <= 1 + took / pace.cooldown_s
    assert max(reads) <= 2  # one that was under way, and the next
    assert min(waits) < pace.cooldown_s + 2  # the machine may have other things to do


async def test_clients_that_leave_do_not_make_it_read_more_often(
    store: SqlStore, lonely: EntraServer
) -> None:
    pace = Pace(cooldown_s=0.5)
    async with gate(store, lonely, pace) as made:
        await made.admit(Role.READ, bearer(lonely.issue()))
        await _until(lambda: lonely.count("keys") == 2)
        began = time.monotonic()
        for number in range(50):
            with contextlib.suppress(TimeoutError, NotSignedIn):
                async with asyncio.timeout(0.02):
                    await made.admit(Role.READ, bearer(lonely.issue(kid=f"made-up-{number}")))
        took = time.monotonic() - began
        assert lonely.count("keys") - 2 <= 1 + took / pace.cooldown_s


async def test_a_withdrawn_key_is_no_longer_good(store: SqlStore, lonely: EntraServer) -> None:
    async with gate(store, lonely, QUICK) as made:
        await made.admit(Role.READ, bearer(lonely.issue()))
        old = lonely.issue()
        lonely.rotate(keep=False)
        await made.admit(Role.READ, bearer(lonely.issue()))
        await refused(made, bearer(old))


@pytest.mark.parametrize("trouble", ["closed", "silent", 500])
async def test_an_outage_of_the_issuer_is_ridden_out(
    store: SqlStore, lonely: EntraServer, trouble: Any
) -> None:
    async with gate(store, lonely, QUICK) as made:
        await made.admit(Role.READ, bearer(lonely.issue()))
        lonely.down(trouble)
        ends = time.monotonic() + 3 * QUICK.refresh_s
        while time.monotonic() < ends:
            await made.admit(Role.READ, bearer(lonely.issue()))
            await asyncio.sleep(0.01)
        lonely.up()
        lonely.rotate()
        await _until_admitted(made, lonely)


async def test_without_keys_nobody_is_called_a_forger(store: SqlStore, lonely: EntraServer) -> None:
    lonely.down()
    async with gate(store, lonely, QUICK) as made:
        with pytest.raises(SignInUnavailable):
            await made.admit(Role.READ, bearer(lonely.issue()))
        [(host, known, said)] = made.state()
        assert host in lonely.url
        assert not known
        assert "no keys yet" in said
        lonely.up()
        await _until_admitted(made, lonely)
        assert made.state()[0][1]


async def test_an_issuer_speaks_for_itself_alone(store: SqlStore, entra: EntraServer) -> None:
    """A discovery document that names another issuer is not believed."""
    for changes in (
        {"tenants": ("common",)},
        {"tenants": (), "issuer": f"{entra.authority}/{TENANT}"},
        {"tenants": (), "issuer": f"{entra.oidc_issuer}/nothing-here"},
    ):
        async with gate(store, entra, QUICK, **changes) as made:
            for token in (entra.issue(), entra.issue(version=1), entra.issue_oidc()):
                with pytest.raises(SignInUnavailable):
                    await made.admit(Role.READ, bearer(token))


async def test_an_issuer_is_believed_over_trusted_tls_alone(
    store: SqlStore, entra: EntraServer
) -> None:
    for changes in ({"ca_bundle": ""}, {"authority": entra.authority.replace("https", "http")}):
        async with gate(store, entra, QUICK, **changes) as made:
            with pytest.raises(SignInUnavailable):
                await made.admit(Role.READ, bearer(entra.issue()))


async def test_settings_that_change_in_an_outage_cost_no_keys(
    store: SqlStore, lonely: EntraServer, tmp_path: Path
) -> None:
    copy = str(shutil.copy(lonely.ca_bundle, tmp_path / "copy.pem"))
    async with gate(store, lonely, QUICK) as made:
        await made.admit(Role.READ, bearer(lonely.issue()))
        await made.admit(Role.READ, bearer(lonely.issue(version=1)))
        lonely.down()
        both = trusted(lonely, tenants=(TENANT, OTHER_TENANT), roles_required=True)
        await made.use(SignIn(trusted=both))
        for version in (1, 2):
            ours = {"roles": ["Tasks.Read"]}
            await made.admit(Role.READ, bearer(lonely.issue(ours, version=version)))
            theirs = bearer(lonely.issue(ours | {"tid": OTHER_TENANT}, version=version))
            with pytest.raises(SignInUnavailable):
                await made.admit(Role.READ, theirs)
        with pytest.raises(NotAllowed):
            await made.admit(Role.READ, bearer(lonely.issue()))

        # Whoever gave those keys may not be trusted any more.
        await made.use(SignIn(trusted=trusted(lonely, ca_bundle=copy)))
        with pytest.raises(SignInUnavailable):
            await made.admit(Role.READ, bearer(lonely.issue()))
        lonely.up()
        await _until_admitted(made, lonely)


async def test_no_proxy_of_the_environment_is_used(
    store: SqlStore, entra: EntraServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CuttingProxy(1) as proxy:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        async with gate(store, entra) as made:
            await made.admit(Role.READ, bearer(entra.issue()))
        assert proxy.connections == 0


async def _until_admitted(made: Gate, entra: EntraServer) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            await made.admit(Role.READ, bearer(entra.issue()))
            return
        except (SignInUnavailable, NotSignedIn):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
