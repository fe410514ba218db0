"""New settings of a running server: what takes effect at once, what later, what never."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from tesazure.errors import ConfigurationError, StoreUnavailable, VaultUnavailable
from tesazure.settings import FIELDS, Effective, Settings, help_of
from tesazure.settings.reloading import Reloader, change

KEY, OTHER_KEY = "c2VjcmV0LWtleQ==", "YW5vdGhlci1rZXk="
SIGNED_IN = {"aad_verify": True, "aad_audience": ("a",), "aad_tenant_id": ("t",)}


def made(**given: Any) -> Settings:
    return Settings(**given)


@pytest.mark.parametrize(
    ("old", "new", "now", "later"),
    [
        ({}, {}, (), ()),
        ({}, {"log_level": "debug"}, ("log_level",), ()),
        ({}, {"port": 1}, (), ("port",)),
        ({}, {"port": 1, "log_level": "debug"}, ("log_level",), ("port",)),
        (
            {"storage_account_name": "a", "storage_account_key": KEY},
            {"storage_account_name": "a", "storage_account_key": OTHER_KEY},
            ("storage_account_key",),
            (),
        ),
        # What a backend is made with: another one is made, see stations.switching.
        (
            {"compute_backend": "batch", "private_docker_registry_url": "r.example"},
            {
                "compute_backend": "batch",
                "batch_account_name": "other",
                "private_docker_registry_url": "r2.example",
                "storage_account_name": "b",
                "storage_account_key": OTHER_KEY,
                "credential_hours": 3,
            },
            (
                "batch_account_name",
                "private_docker_registry_url",
                "storage_account_name",
                "storage_account_key",
                "credential_hours",
            ),
            (),
        ),
        (
            {},
            {"compute_backend": "batch", "local_engine": "docker"},
            ("compute_backend",),
            ("local_engine",),
        ),
        ({}, SIGNED_IN, ("aad_verify", "aad_audience", "aad_tenant_id"), ()),
        (SIGNED_IN, {**SIGNED_IN, "aad_tenant_id": ("t", "u")}, ("aad_tenant_id",), ()),
        # Protection is not taken away from a running server.
        (SIGNED_IN, {**SIGNED_IN, "aad_verify": False}, (), ("aad_verify",)),
        ({"api_tokens": True}, {}, (), ("api_tokens",)),
        (SIGNED_IN, {**SIGNED_IN, "aad_roles_required": True}, ("aad_roles_required",), ()),
        ({**SIGNED_IN, "aad_roles_required": True}, SIGNED_IN, (), ("aad_roles_required",)),
        (
            {**SIGNED_IN, "api_tokens": True},
            {"api_tokens": True},
            ("aad_verify", "aad_audience", "aad_tenant_id"),
            (),
        ),
        (
            {**SIGNED_IN, "task_access_restrictions": "per-tenant"},
            {**SIGNED_IN, "task_access_restrictions": "per-user"},
            ("task_access_restrictions",),
            (),
        ),
        (
            {**SIGNED_IN, "task_access_restrictions": "per-user"},
            {**SIGNED_IN, "task_access_restrictions": "per-tenant"},
            (),
            ("task_access_restrictions",),
        ),
    ],
)
def test_what_changes_when(
    old: dict[str, Any], new: dict[str, Any], now: tuple[str, ...], later: tuple[str, ...]
) -> None:
    before, after = made(**old), made(**new)
    found = change(before, after)
    assert (set(found.now), set(found.later)) == (set(now), set(later))
    for name in FIELDS:
        source = after if name in now else before
        assert getattr(found.settings, name) == getattr(source, name)


def test_what_says_where_to_listen_or_store_is_never_live() -> None:
    live = {name for name in FIELDS if help_of(name).live}
    assert live.isdisjoint({"host", "port", "data_dir", "database_url", "secrets_key", "lease_s"})
    assert {"log_level", "azure_secret", "storage_account_key", "aad_tenant_id"} <= live


class Server:
    """What a Reloader works on: `next` is what the sources give, `applied` what it did."""

    def __init__(self, **given: Any) -> None:
        self.next: Settings | Exception = made(**given)
        self.warnings: tuple[str, ...] = ()
        self.applied: list[Settings] = []
        self.refusal: Exception | None = None
        self.loads: asyncio.Queue[None] = asyncio.Queue()
        self.changes = 0
        self._heard = 0
        self.reloader = Reloader(
            Effective(made(**given), {}),
            self._load,
            self._apply,
            self._changed,
            look_s=0.02,
            again_s=0.05,
        )

    async def _changed(self) -> bool:
        if self.changes < 0:
            raise StoreUnavailable("the database is away")
        return self.changes != self._heard

    async def _load(self) -> Effective:
        self._heard = self.changes
        self.loads.put_nowait(None)
        if isinstance(self.next, Exception):
            raise self.next
        return Effective(self.next, {}, self.warnings)

    async def _apply(self, settings: Settings) -> None:
        if self.refusal:
            raise self.refusal
        self.applied.append(settings)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.reloader.start()
        try:
            yield
        finally:
            await self.reloader.stop()

    async def ask(self) -> None:
        """Have everything read again, and wait until that is done."""
        self.reloader.ask()
        await self.loaded()

    async def loaded(self) -> None:
        """Wait until everything has been read again from now on, and what follows is done."""
        while not self.loads.empty():  # it may have been meanwhile, with what was in force then
            self.loads.get_nowait()
        await asyncio.wait_for(self.loads.get(), 30)
        for _ in range(5):  # what follows waits for nothing
            await asyncio.sleep(0)

    def change(self, **given: Any) -> None:
        assert isinstance(self.next, Settings)
        self.next = msgspec.structs.replace(self.next, **given)


async def test_asking_applies_what_is_live(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tesazure")
    server = Server()
    async with server.running():
        server.change(log_level="debug", drs_tokens=("drs.org=planted-1",), port=77)
        await server.ask()
        assert [each.log_level for each in server.applied] == ["debug"]
        assert server.reloader.settings.log_level == "debug"
        assert server.reloader.settings.port == Settings().port
        text = caplog.text
        assert "in effect now: DRS_TOKENS, LOG_LEVEL" in text
        assert "at the next start: PORT" in text
        assert "planted-1" not in text
        caplog.clear()
        await server.ask()
        assert "at the next start: PORT" in caplog.text


async def test_faulty_settings_change_nothing_and_are_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    async with server.running():
        server.next = ConfigurationError(["PORT: must be at most 65535"])
        await server.ask()
        await server.ask()
        assert server.applied == []
        assert caplog.text.count("nothing has changed: PORT: must be at most 65535") == 1
        server.next = made(log_level="error")
        await server.ask()
        assert server.reloader.settings.log_level == "error"


async def test_what_cannot_be_applied_is_not_in_effect(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    async with server.running():
        server.change(log_level="error")
        server.refusal = ConfigurationError(["AZURE_SECRET: needs packages"])
        await server.ask()
        assert server.reloader.settings.log_level == "info"
        assert "AZURE_SECRET: needs packages" in caplog.text
        server.refusal = None
        await server.ask()
        assert server.reloader.settings.log_level == "error"


async def test_what_could_not_be_applied_is_tried_again() -> None:
    """A backend may become ready."""
    server = Server()
    async with server.running():
        server.change(log_level="error")
        server.refusal = ConfigurationError(["batch account: no answer"])
        await server.ask()
        await server.loaded()
        server.refusal = None
        await server.loaded()
        assert server.reloader.settings.log_level == "error"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.loads.get(), 0.2)


@pytest.mark.parametrize(
    "error",
    [
        VaultUnavailable("Key Vault v is away"),
        ConfigurationError(["KEYVAULT_URL: v: refuses this server's identity"]),
        TimeoutError(),
        RuntimeError("a bug"),
    ],
)
async def test_what_could_not_be_read_is_tried_again(error: Exception) -> None:
    """Of another vault nothing is known yet that would be good still."""
    server = Server()
    async with server.running():
        server.next = error
        server.changes = 1
        await server.loaded()
        await server.loaded()
        server.next = made(log_level="error")
        await server.loaded()
        assert server.reloader.settings.log_level == "error"


async def test_settings_that_others_have_kept_are_read() -> None:
    server = Server()
    async with server.running():
        server.changes = -1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.loads.get(), 0.2)
        server.change(log_level="error")
        server.changes = 1
        await server.loaded()
        assert server.reloader.settings.log_level == "error"
        assert (await server.reloader.take_up()).now == ()
        server.next = VaultUnavailable("away")
        with pytest.raises(VaultUnavailable):
            await server.reloader.take_up()


async def test_live_settings_that_need_later_ones_are_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Together with what stays as it is until the next start they would not work."""
    server = Server()
    async with server.running():
        server.change(gcs_credentials_file="/no/such/file")
        await server.ask()
        assert server.applied == []
        assert "GCS_CREDENTIALS_FILE: No such file" in caplog.text


async def test_warnings_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    async with server.running():
        server.warnings = ("Key Vault v cannot be read now",)
        await server.ask()
        await server.ask()
        assert caplog.text.count("Key Vault v cannot be read now") == 1
        server.warnings = ()
        await server.ask()
        server.warnings = ("Key Vault v cannot be read now",)
        await server.ask()
        assert caplog.text.count("Key Vault v cannot be read now") == 2


async def test_a_vault_is_looked_at_now_and_then() -> None:
    server = Server(keyvault_url="v", keyvault_refresh_s=1)
    async with server.running():
        server.change(log_level="debug")
        await server.loaded()
        assert server.reloader.settings.log_level == "debug"
        # Nobody asked: what is in use stays as long as it is the same.
        await server.loaded()
        assert len(server.applied) == 1


async def test_a_fault_of_ours_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    async with server.running():
        server.next = RuntimeError("a bug")
        await server.ask()
        assert "reading the settings again failed" in caplog.text
        server.next = VaultUnavailable("Key Vault v is away")
        await server.ask()
        assert "Key Vault v is away" in caplog.text
        server.next = made(log_level="error")
        await server.ask()
        assert server.reloader.settings.log_level == "error"


async def test_start_and_stop_may_be_called_twice() -> None:
    server = Server()
    await server.reloader.start()
    await server.reloader.start()
    await server.reloader.stop()
    await server.reloader.stop()
