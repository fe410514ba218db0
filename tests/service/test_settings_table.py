"""Settings that the database holds for all servers on it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tesazure.cli.exits import Code
from tesazure.database_settings import DatabaseSettings
from tesazure.errors import ConfigurationError
from tesazure.sealing import KEY_BYTES, Seal, find_seal
from tesazure.store.base import Store
from tesazure.store.records import KeptSetting
from tesazure.store.sql_store import open_store
from tests.conftest import shared
from tests.service.server import TES, command, contents, environment, start_server, until
from tests.service.test_reload import says
from tests.service.vaults import site
from tests.services.postgresql import PostgreSQL
from tests.services.telemetry_receivers import Collector

SECRET = "c2VjcmV0LXBsYW50ZWQ="
OTHER = "YW5vdGhlci1wbGFudGVk"


def config(data: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """`tesazure config` for a data directory."""
    return subprocess.run(
        [sys.executable, "-m", "tesazure.cli.main", "config", "--data-dir", str(data), *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def keep(data: Path, **values: str) -> None:
    """Keep settings as the server does that provisioned something."""

    async def kept() -> None:
        store = await open_store("", data / "tesazure.db")
        try:
            await DatabaseSettings(store, find_seal("", data / "secrets.key")).keep(values)
        finally:
            await store.close()

    asyncio.run(kept())


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Where the database is; empty: in a file."""
    return "" if request.param == "sqlite" else shared(PostgreSQL).create_database()


async def test_what_is_kept_is_read_and_what_is_secret_sealed(url: str, tmp_path: Path) -> None:
    store = await open_store(url, tmp_path / "s.db")
    try:
        kept = DatabaseSettings(store, Seal([bytes(KEY_BYTES)]))
        assert not await kept.changed()
        assert await kept.take() == {}
        await kept.keep({"storage_account_key": SECRET, "batch_account_name": "a", "new": SECRET})
        assert await kept.changed()
        assert await kept.read() == {
            "storage_account_key": SECRET,
            "batch_account_name": "a",
            "new": SECRET,
        }
        assert await kept.changed()  # read, and not taken up
        await kept.take()
        assert not await kept.changed()
        rows = {one.name: one for one in (await store.settings())[1]}
        assert rows["batch_account_name"].value == "a"
        # What this version does not know might be one.
        assert rows["new"].value is rows["storage_account_key"].value is None

        await kept.keep({"storage_account_key": OTHER, "new": "", "unheard_of": ""})
        assert await kept.changed()
        assert await kept.take() == {"storage_account_key": OTHER, "batch_account_name": "a"}
        await kept.keep({"batch_account_name": "a"})
        assert await kept.changed()  # kept again: all servers read again
    finally:
        await store.close()


async def test_a_value_is_good_for_its_own_setting_and_key_alone(tmp_path: Path) -> None:
    old, new = bytes(KEY_BYTES), bytes([1] * KEY_BYTES)
    store = await open_store("", tmp_path / "s.db")
    try:
        first = DatabaseSettings(store, Seal([old]))
        await first.keep({"storage_account_key": SECRET, "azure_secret": "x"})
        with pytest.raises(ConfigurationError, match="AZURE_SECRET: is sealed with a key"):
            await DatabaseSettings(store, Seal([new])).read()

        # A new key, and then without the old one.
        await DatabaseSettings(store, Seal([new, old])).reseal()
        assert await DatabaseSettings(store, Seal([new])).read() == {
            "storage_account_key": SECRET,
            "azure_secret": "x",
        }
        version = await store.settings_version()
        await DatabaseSettings(store, Seal([new])).reseal()
        assert await store.settings_version() == version

        rows = {one.name: one for one in (await store.settings())[1]}
        swapped = KeptSetting("storage_account_key", sealed=rows["azure_secret"].sealed)
        await store.keep_settings([swapped])
        with pytest.raises(ConfigurationError, match="or was altered"):
            await DatabaseSettings(store, Seal([new])).read()
    finally:
        await store.close()


def test_a_server_starts_with_them(tmp_path: Path) -> None:
    """Also with those that are used before the database is there, or at the start alone."""
    data = tmp_path / "s" / "data"
    data.mkdir(mode=0o700, parents=True)
    with Collector() as collector:
        keep(data, max_connections="1", otlp_endpoint=collector.origin)
        with start_server(tmp_path / "s") as server:
            with server.client() as client, server.client() as another:
                client.get("/healthz").raise_for_status()
                refused = another.get("/healthz")
                assert refused.json()["error"]["code"] == "too_many_connections"
            assert server.stop() == 0
        assert collector.metrics
        assert collector.wrong == []


def test_a_running_server_takes_them_up(tmp_path: Path) -> None:
    with start_server(tmp_path / "s") as server, server.client() as client:
        keep(server.data, log_level="debug", s3_access_key_id="a", s3_secret_access_key=SECRET)
        says(server, "in effect now: S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY, LOG_LEVEL")
        keep(server.data, log_level="loud")
        says(server, "nothing has changed: database setting LOG_LEVEL: must be one of debug")
        keep(server.data, log_level="info", service_name="another", database_url="postgresql://h/d")
        says(server, "take effect at the next start: SERVICE_NAME")
        says(server, "database setting DATABASE_URL leads to the database: it is not used there")
        assert client.get(f"{TES}/service-info").json()["name"] == "tesazure"

        shown = json.loads(config(server.data, "--json").stdout)
        assert shown["SERVICE_NAME"] == {"value": "another", "source": "database"}
        assert shown["S3_SECRET_ACCESS_KEY"] == {"value": "***", "source": "database"}
        assert shown["DATABASE_URL"]["source"] == "default"
        over = json.loads(config(server.data, "--json", service_name="mine").stdout)
        assert over["SERVICE_NAME"] == {"value": "mine", "source": "environment"}
        done = config(server.data, "--forget", "S3_ACCESS_KEY_ID", "--forget", "database_url")
        assert done.returncode == 2
        assert "S3_ACCESS_KEY_ID: is missing" in done.stderr
        says(server, "nothing has changed: S3_ACCESS_KEY_ID: is missing")
        done = config(server.data, "--forget", "S3_SECRET_ACCESS_KEY", "--json")
        assert json.loads(done.stdout)["S3_SECRET_ACCESS_KEY"]["source"] == "default"
        says(server, "in effect now: S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY", 2)
        done = config(server.data, "--forget", "S3_SECRET_ACESS_KEY")
        assert done.returncode == 2
        assert "S3_SECRET_ACESS_KEY: is not in the database" in done.stderr
        planted = SECRET.encode()
        assert all(planted not in content for _, content in contents(server.data))
        assert planted not in server.log.read_bytes()


def test_a_start_reads_them_and_they_complete_the_others(tmp_path: Path) -> None:
    """What the environment says alone could not work."""
    whole = {"storage_account_name": "account1", "storage_account_key": SECRET}
    with start_server(tmp_path / "s") as server:
        keep(server.data, **whole, service_name="kept")
    extra: Mapping[str, str] = {"storage_blob_endpoint": "https://blob.example.com"}
    with start_server(tmp_path / "s", **extra) as server, server.client() as client:
        assert client.get(f"{TES}/service-info").json()["name"] == "kept"
        assert config(server.data, **extra).returncode == 0
    # Without them it says why, and has made nothing.
    alone = config(tmp_path / "fresh", **extra)
    assert alone.returncode == 2
    assert "belongs to which account?" in alone.stderr
    assert not (tmp_path / "fresh").exists()


def test_what_cannot_be_opened_or_used_ends_a_start_and_can_be_forgotten(tmp_path: Path) -> None:
    with start_server(tmp_path / "s") as server:
        keep(server.data, storage_account_name="account1", storage_account_key=SECRET)
        data = server.data
    with sqlite3.connect(data / "tesazure.db") as link:
        link.execute("UPDATE settings SET sealed = zeroblob(60) WHERE sealed IS NOT NULL")
    link.close()
    serve = [sys.executable, "-m", "tesazure.cli.main", "serve", "--port", "0", "--data-dir"]
    environ = environment(local_engine="sandbox")
    done = subprocess.run(
        [*serve, str(data)], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "tesazure config --forget STORAGE_ACCOUNT_KEY" in done.stderr
    assert "left out here" in config(data).stderr
    assert config(data, "--forget", "APP_STORAGE_ACCOUNT_KEY").returncode == 0
    assert json.loads(config(data, "--json").stdout)["STORAGE_ACCOUNT_NAME"]["source"] == "database"


def test_a_vault_that_they_lead_to_is_waited_for_at_a_start(tmp_path: Path) -> None:
    with site(tmp_path / "azure") as azure:
        own = {name: value for name, value in azure.settings.items() if name != "keyvault_url"}
        with start_server(tmp_path / "s", **own) as server:
            keep(server.data, keyvault_url=azure.vault.url)
            says(server, "in effect now: KEYVAULT_URL")
            data, log = server.data, tmp_path / "again.log"
        azure.vault.set("TESAZURE-SERVICE-NAME", "of the vault")
        azure.vault.down(503)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(data),
                stdout=output,
                stderr=output,
                env=environment(local_engine="sandbox", **own),
            )
        try:
            until(lambda: "trying again for 30 s" in log.read_text(), 60)
            shown = config(data, **own)
            assert shown.returncode == Code.UNREACHABLE
            assert "cannot be read now" in shown.stderr
            azure.vault.up()
            until(lambda: "listening on" in log.read_text(), 60)
            shown = config(data, "--json", **own)
            assert json.loads(shown.stdout)["SERVICE_NAME"]["source"] == "Key Vault"
        finally:
            process.kill()
            process.wait()


async def test_servers_share_them(tmp_path: Path) -> None:
    url = shared(PostgreSQL).create_database()
    key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    given = {"database_url": url, "secrets_key": key}
    with (
        start_server(tmp_path / "a", **given) as one,
        start_server(tmp_path / "b", **given) as two,
    ):
        store: Store = await open_store(url)
        try:
            await DatabaseSettings(store, find_seal(key, tmp_path / "none")).keep(
                {"drs_tokens": f"drs.example={SECRET}"}
            )
        finally:
            await store.close()
        for server in (one, two):
            await asyncio.to_thread(says, server, "in effect now: DRS_TOKENS")
        until(lambda: SECRET not in one.log.read_text() + two.log.read_text())
