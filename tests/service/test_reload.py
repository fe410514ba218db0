"""Settings of a running server that change: in its file, in its Key Vault; and outages of that."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.server import (
    TES,
    RunningServer,
    command,
    contents,
    create,
    end_runners,
    ended,
    environment,
    start_server,
    task,
    until,
)
from tests.service.vaults import Site
from tests.service.vaults import site as running_site
from tests.services import certificates
from tests.services.drs_server import TOKEN, DrsServer
from tests.services.entra_server import AUDIENCE, SECRET, TENANT

PLANTED = "pl4nted-value"
QUIET = {"local_engine": "sandbox", "scheduler": "true"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running_site(tmp_path / "azure") as running:
        yield running


def events(server: RunningServer) -> list[str]:
    """What the server logged, but for requests and who may have printed."""
    lines = server.log.read_text().splitlines()
    return [json.loads(line).get("event", "") for line in lines if line.startswith("{")]


def says(server: RunningServer, text: str, times: int = 1) -> None:
    """Wait until the server has said so."""
    until(lambda: sum(text in event for event in events(server)) >= times)


def hang_up(server: RunningServer) -> None:
    server.process.send_signal(signal.SIGHUP)


def test_sign_in_from_the_vault_protects_a_running_server(site: Site, tmp_path: Path) -> None:
    """What never worked in 2019: AAD_VERIFY as a secret, and a change of it without a restart."""
    with (
        start_server(tmp_path / "s", **site.settings, aad_authority=site.entra.url) as server,
        server.client() as client,
    ):
        assert client.get(f"{TES}/tasks").status_code == 200
        site.vault.set("TESAZURE-AAD-VERIFY", "True")
        site.vault.set("TESAZURE-AAD-AUDIENCE", AUDIENCE)
        site.vault.set("TESAZURE-AAD-TENANT-ID", TENANT)
        hang_up(server)
        says(server, "in effect now: AAD_VERIFY, AAD_AUDIENCE, AAD_TENANT_ID")
        assert client.get(f"{TES}/tasks").status_code == 401
        token = {"Authorization": f"Bearer {site.entra.issue()}"}
        until(lambda: client.get(f"{TES}/tasks", headers=token).status_code == 200)

        # What a running server protects, it goes on protecting.
        site.vault.remove("TESAZURE-AAD-VERIFY")
        hang_up(server)
        says(server, "take effect at the next start: AAD_VERIFY")
        assert client.get(f"{TES}/tasks").status_code == 401

        site.vault.set("TESAZURE-AAD-VERIFY", "perhaps")
        hang_up(server)
        says(server, "nothing has changed: Key Vault secret TESAZURE-AAD-VERIFY: must be true or")
        assert client.get(f"{TES}/tasks", headers=token).status_code == 200


def test_the_vault_is_looked_at_now_and_then(site: Site, tmp_path: Path) -> None:
    site.vault.set("TESAZURE-LOG-LEVEL", "debug")
    site.vault.set("TESAZURE-S3-ACCESS-KEY-ID", "an-id")
    site.vault.set("TESAZURE-S3-SECRET-ACCESS-KEY", f"{PLANTED}-1")
    with start_server(tmp_path / "s", **site.settings, keyvault_refresh_s=1) as server:
        site.vault.set("TESAZURE-S3-SECRET-ACCESS-KEY", f"{PLANTED}-2")
        says(server, "in effect now: S3_SECRET_ACCESS_KEY")
        site.vault.set("TESAZURE-SERVICE-NAME", "another")
        says(server, "take effect at the next start: SERVICE_NAME")

        # An outage is survived, and told once.
        site.vault.down()
        says(server, "what it held when last read is still used")
        with server.client() as client:
            assert client.get(f"{TES}/service-info").status_code == 200
        site.vault.set("TESAZURE-LOG-LEVEL", "info")
        site.vault.up()
        says(server, "in effect now: LOG_LEVEL")
        told = [event for event in events(server) if "what it held when last read" in event]
        assert len(told) == 1
        text = server.log.read_text()
        assert PLANTED not in text
        assert SECRET not in text
        data = b"".join(content for _, content in contents(server.data))
        assert PLANTED.encode() not in data
        assert SECRET.encode() not in data


def test_credentials_that_change_are_used_by_the_next_attempt(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    made = certificates.make(tmp_path, "127.0.0.1")
    with DrsServer(TOKEN, made) as drs:
        url = drs.add("object", b"words\n")
        document = task("cat", "/in", inputs=[{"url": url, "path": "/in"}])

        def use(token: str) -> None:
            config.write_text(f'drs_tokens = ["{drs.host}={token}"]\nmax_retries = 0\n')

        use(f"{PLANTED}-wrong")
        with (
            server_with_file(config, tmp_path / "s", ca_bundle=str(made.authority)) as server,
            server.client() as client,
        ):
            refused = ended(client, create(client, document))
            assert refused["state"] == "SYSTEM_ERROR"
            assert PLANTED not in json.dumps(refused)
            use(TOKEN)
            hang_up(server)
            says(server, "in effect now: DRS_TOKENS")
            assert ended(client, create(client, document))["state"] == "COMPLETE"
            hang_up(server)
            says(server, "settings were read again; none has changed")
            config.write_text("port = ")
            hang_up(server)
            says(server, "new settings are not used, nothing has changed: --config")
            assert TOKEN not in server.log.read_text()


@contextlib.contextmanager
def server_with_file(config: Path, directory: Path, **settings: str) -> Iterator[RunningServer]:
    directory.mkdir(exist_ok=True)
    log, data = directory / "server.log", directory / "data"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(data, "--config", str(config)),
            stdout=output,
            stderr=output,
            env=environment(**QUIET, **settings),
        )
    try:
        until(lambda: "listening on" in log.read_text() or process.poll() is not None)
        [url] = [word for word in log.read_text().split() if word.startswith("http://")]
        yield RunningServer(url, process, log, data)
    finally:
        process.kill()
        process.wait()
        end_runners(data)


def test_a_level_of_the_log_takes_effect_at_once(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('log_level = "warning"')
    with server_with_file(config, tmp_path / "s") as server, server.client() as client:
        client.get("/first")
        config.write_text('log_level = "info"')
        hang_up(server)
        says(server, "in effect now: LOG_LEVEL")
        client.get("/second")
        until(lambda: '"path":"/second"' in server.log.read_text())
        assert '"path":"/first"' not in server.log.read_text()


def test_a_vault_that_is_away_at_the_start_is_waited_for(site: Site, tmp_path: Path) -> None:
    site.vault.set("TESAZURE-SERVICE-NAME", "named by the vault")
    site.vault.down(503)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(tmp_path / "data"),
            stdout=output,
            stderr=output,
            env=environment(**QUIET, **site.settings),
        )
    try:
        until(lambda: "trying again for 30 s" in log.read_text())
        assert "HTTP 503" in log.read_text()
        assert not (tmp_path / "data").exists()  # nothing begins before its settings are known
        site.vault.up()
        until(lambda: "listening on" in log.read_text())
    finally:
        process.kill()
        process.wait()


def test_a_vault_that_refuses_ends_the_start(site: Site, tmp_path: Path) -> None:
    site.vault.readers = set()
    done = subprocess.run(
        command(tmp_path / "data"),
        env=environment(**QUIET, **site.settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "give it the role Key Vault Secrets User" in done.stderr
    assert SECRET not in done.stderr


def test_a_terminal_that_goes_away_ends_the_server(tmp_path: Path) -> None:
    """The kernel sends the same signal then; nobody would stop such a server otherwise."""
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    # Whoever started the tests may have had the signal ignored, as nohup does.
    terminal = ["env", "--default-signal=HUP", "setsid", "--ctty", "--wait"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*terminal, *command(tmp_path / "data")],
            stdin=theirs,
            stdout=output,
            stderr=output,
            env=environment(**QUIET),
        )
    try:
        os.close(theirs)
        until(lambda: "listening on" in log.read_text())
        os.close(ours)
        assert process.wait(20) == 0
        assert "stopping" in log.read_text()
    finally:
        process.kill()
        process.wait()
