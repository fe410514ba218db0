"""What a server says and does before it can work."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from prometheus_client.core import Metric

from tesazure.telemetry.export import Export, otlp
from tests.service.server import (
    RunningServer,
    command,
    create,
    end_runners,
    ended,
    environment,
    start_server,
    task,
    until,
)
from tests.service.test_api_openapi import valid
from tests.services import base
from tests.services.postgresql import PostgreSQL
from tests.services.telemetry_receivers import Collector

PASSWORD = "secretword"
WAITS = re.compile(r"once the database answers \((http://\S+)/readyz tells when\)")


@contextlib.contextmanager
def starting(directory: Path, url: str, **more: str) -> Iterator[RunningServer]:
    """A server whose database is not there."""
    directory.mkdir(exist_ok=True)
    log, data = directory / "server.log", directory / "data"
    settings = environment(local_engine="sandbox", database_url=url, **more)
    with log.open("wb") as output:
        process = subprocess.Popen(command(data), stdout=output, stderr=output, env=settings)
    try:
        found = until(lambda: WAITS.search(log.read_text()) or process.poll())
        assert isinstance(found, re.Match), log.read_text()
        yield RunningServer(found[1], process, log, data)
    finally:
        process.kill()
        process.wait()
        end_runners(data)


@pytest.fixture
def nowhere() -> Iterator[str]:
    """URL of a database at a port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"postgresql://user:{PASSWORD}@127.0.0.1:{taken.getsockname()[1]}/db"


def test_it_says_that_the_database_is_away(nowhere: str, tmp_path: Path) -> None:
    with starting(tmp_path / "s", nowhere) as server, server.client() as client:
        health = client.get("/healthz")
        assert health.status_code == 503
        assert valid(health, "get", "/healthz") == {"status": "starting"}
        ready = client.get("/readyz")
        assert ready.status_code == 503
        [check] = valid(ready, "get", "/readyz")["checks"]
        assert (ready.json()["ready"], check["name"], check["ok"]) == (False, "store", False)
        assert "the database does not answer" in check["detail"]
        assert client.head("/readyz").status_code == 503
        refused = client.get("/v1/tasks/service-info")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "starting"
        assert refused.json()["error"]["request_id"] == refused.headers["x-request-id"]
        said = server.log.read_text()
        assert "127.0.0.1" in said
        assert said.count("Connection refused") == 1, "the same is not said again and again"
        assert PASSWORD not in said + ready.text + refused.text + health.text


@pytest.mark.postgres
def test_it_begins_once_the_database_is_there(postgresql: PostgreSQL, tmp_path: Path) -> None:
    """What is asked of it shortly before that is answered then."""
    name = f"test_{uuid.uuid4().hex}"
    with starting(tmp_path / "s", postgresql.url(name)) as server, server.client() as client:
        replies: list[httpx.Response] = []

        def ask() -> None:
            replies.append(client.post("/v1/tasks", json=task("true")))

        asking = threading.Thread(target=ask)
        try:
            with httpx.Client(base_url=server.url) as other:
                assert other.get("/readyz").status_code == 503
                asking.start()
                postgresql.execute(f'CREATE DATABASE "{name}"')
                until(lambda: other.get("/readyz").status_code == 200, 60)
                assert other.get("/healthz").status_code == 200
                asking.join()
                again = create(other)
                for id_ in (replies[0].json()["id"], again):
                    assert ended(other, id_)["state"] == "COMPLETE"
            assert f"listening on {server.url} " in server.log.read_text()
            assert server.stop() == 0
        finally:
            postgresql.drop_database(postgresql.url(name))


@pytest.mark.postgres
def test_it_begins_again_when_the_database_fails_late(
    postgresql: PostgreSQL, tmp_path: Path
) -> None:
    """What the start had begun by then has been let go."""
    url = postgresql.create_database()
    with psycopg.connect(url, autocommit=True) as database, Collector() as collector:
        try:
            with start_server(tmp_path / "s", database_url=url) as before:
                assert before.stop() == 0
            database.execute("ALTER TABLE attempts RENAME TO elsewhere")
            more = {"otlp_endpoint": collector.origin}
            with starting(tmp_path / "s", url, **more) as server, server.client() as client:
                until(lambda: server.log.read_text().count('relation \\"attempts\\"') >= 3, 60)
                assert client.get("/readyz").status_code == 503
                database.execute("ALTER TABLE elsewhere RENAME TO attempts")
                until(lambda: client.get("/readyz").status_code == 200, 60)
                assert ended(client, create(client))["state"] == "COMPLETE"
                assert server.stop() == 0
            assert collector.wrong == []
        finally:
            postgresql.drop_database(url)


async def test_what_sends_telemetry_leaves_no_threads() -> None:
    """Else each start that comes to nothing would."""
    with Collector() as collector:
        export = Export([otlp(collector.origin, {}, "")], 60, "test")
        export.start(no_metrics)
        await asyncio.to_thread(collector.until, lambda: "telemetry" in names_of_threads())
        await export.stop()
        until(lambda: "telemetry" not in names_of_threads())


async def no_metrics() -> list[Metric]:
    """Nothing to send."""
    return []


def names_of_threads() -> set[str]:
    """Of this process."""
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_starts(
    nowhere: str, tmp_path: Path, number: signal.Signals
) -> None:
    """In order: who waits is answered."""
    with (
        starting(tmp_path / "s", nowhere) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as waiting,
    ):
        waiting.sendall(b"GET /v1/tasks HTTP/1.1\r\nHost: x\r\n\r\n")
        with server.client() as client:
            assert client.get("/readyz").status_code == 503
        server.process.send_signal(number)
        assert waiting.recv(4096).startswith(b"HTTP/1.1 503 ")
        assert server.process.wait(15) == 0
        assert "Traceback" not in server.log.read_text()


def test_it_does_not_end_when_the_settings_are_to_be_read_again(
    nowhere: str, tmp_path: Path
) -> None:
    with starting(tmp_path / "s", nowhere) as server, server.client() as client:
        server.process.send_signal(signal.SIGHUP)
        assert client.get("/readyz").status_code == 503
        server.process.terminate()
        assert server.process.wait(15) == 0


@pytest.fixture
def silent() -> Iterator[list[socket.socket]]:
    """Two servers that accept connections and say nothing."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        for each in made:
            each.settimeout(60)
        yield made


def test_a_signal_ends_a_server_that_waits_for_its_vault(
    silent: list[socket.socket], tmp_path: Path
) -> None:
    """In order, and by a handler: process 1 of a container would not hear of it otherwise."""
    log = tmp_path / "log"
    settings = environment(
        keyvault_url=f"https://127.0.0.1:{silent[0].getsockname()[1]}",
        azure_tenant=str(uuid.uuid4()),
        azure_client_id=str(uuid.uuid4()),
        azure_secret=PASSWORD,
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(tmp_path / "data"), stdout=output, stderr=output, env=settings
        )
    try:
        with silent[0].accept()[0]:
            process.terminate()
            assert process.wait(45) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_batch_and_storage_are_asked_at_once(silent: list[socket.socket], tmp_path: Path) -> None:
    """Either may take long not to answer. The server tells meanwhile what it waits for, and a
    signal ends it: the SDKs would wait for more than a minute."""
    key = base64.b64encode(b"a key for tests").decode()
    batch, storage = (each.getsockname()[1] for each in silent)
    settings = environment(
        compute_backend="batch",
        batch_account_url=f"https://127.0.0.1:{batch}",
        batch_account_name="none",
        batch_account_key=key,
        batch_region="westeurope",
        storage_account_name="none",
        storage_account_key=key,
        storage_blob_endpoint=f"http://127.0.0.1:{storage}/none",
        filetransfer_container_image="none.azurecr.io/tesazure/container-filetransfer:1",
        retail_prices_url="",
    )
    port, log = base.free_port(), tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command(tmp_path / "data"), "--port", str(port)],
            stdout=output,
            stderr=output,
            env=settings,
        )
    try:
        with contextlib.ExitStack() as stack:
            try:
                asking = [stack.enter_context(each.accept()[0]) for each in silent]
            except TimeoutError:
                raise AssertionError(log.read_text()) from None
            for each in asking:  # nobody has gone yet: there is nothing to read but a request
                each.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while (sent := each.recv(2**16)) is not None:
                        assert sent, "one was asked after the other had been given up"
            check = httpx.get(f"http://127.0.0.1:{port}/readyz").json()["checks"][0]
            assert (check["name"], check["ok"]) == ("backend", False)
            # Both still say nothing.
            process.terminate()
            assert process.wait(45) == 0
            assert "calls of others were under way" in log.read_text()
    finally:
        process.kill()
        process.wait()
