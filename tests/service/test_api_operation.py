"""What operators meet: start, stop, what stands in the way, health, metrics, the documents."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.service.server import (
    TES,
    RunningServer,
    command,
    create,
    ended,
    environment,
    start_server,
    task,
    until,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("server")) as running:
        yield running


def fails(
    data: Path, code: int, *arguments: str, under: Sequence[str] = (), **settings: object
) -> str:
    """What a server says on standard error that ends with `code` instead of starting."""
    settings = {"local_engine": "sandbox", **settings}
    done = subprocess.run(
        [*under, *command(data, *arguments)],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "listening" not in done.stdout
    return done.stderr


def test_start_says_where_it_listens_and_what_to_beware_of(server: RunningServer) -> None:
    said = server.log.read_text()
    assert re.search(r"listening on http://127\.0\.0\.1:\d+ ", said)
    assert re.search(r'"level":"warning","event":"no container engine', said)
    assert "sandbox" in said
    assert (server.data.stat().st_mode & 0o777) == 0o700


def test_a_first_start_says_only_what_matters(server: RunningServer) -> None:
    said = server.log.read_text()
    assert "alembic" not in said
    assert "migration" not in said


def test_health_and_readiness(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert {"store", "scheduler", "engine"} <= {check["name"] for check in ready.json()["checks"]}


def test_metrics(client: httpx.Client) -> None:
    task_id = create(client)
    ended(client, task_id)

    def read() -> dict[str, str]:
        lines = client.get("/metrics").text.splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    complete = 'tesazure_tasks_finished_total{reason="",state="COMPLETE"}'
    since = "tesazure_scheduler_seconds_since_tick"
    until(lambda: float(read()[complete]) >= 1 and 0 <= float(read()[since]) < 5)
    samples = read()
    assert float(samples['tesazure_tasks{state="COMPLETE"}']) >= 1
    assert float(samples["tesazure_queue_age_seconds"]) == 0
    assert float(samples["tesazure_scheduler_lag_seconds"]) >= 0
    assert float(samples["process_resident_memory_bytes"]) > 1e6
    labels = f'method="POST",route="{TES}/tasks",status="2xx"'
    name = "tesazure_http_request_duration_seconds"
    assert float(samples[f"{name}_count{{{labels}}}"]) >= 1
    assert samples[f'{name}_bucket{{le="+Inf",{labels}}}'] == samples[f"{name}_count{{{labels}}}"]


def test_unknown_paths_do_not_fill_the_metrics(client: httpx.Client) -> None:
    for i in range(20):
        client.get(f"/no-such-path-{i}")
        client.get(f"{TES}/tasks/{i:026}")
    text = client.get("/metrics").text
    assert "no-such-path" not in text
    assert 'route="(none)"' in text
    assert f'route="{TES}/tasks/{{id}}"' in text


def test_pages_for_people_need_nothing_from_elsewhere(client: httpx.Client) -> None:
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "<script" not in page.text
        assert not re.search(r"(src|href)=\"(https?:)?//", page.text)
    docs = client.get("/docs").text
    for path in client.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in docs
    anchors = set(re.findall(r'id="([^"]+)"', docs))
    assert set(re.findall(r'href="#([^"]+)"', docs)) <= anchors


def test_port_in_use(server: RunningServer, tmp_path: Path) -> None:
    said = fails(tmp_path / "other", 3, "--port", str(server.port))
    assert f"127.0.0.1 port {server.port}" in said
    assert "Address already in use" in said


def test_two_servers_on_one_data_directory(server: RunningServer) -> None:
    said = fails(server.data, 3)
    assert f"process {server.process.pid}" in said
    assert str(server.data) in said


def test_wrong_settings_are_all_named(tmp_path: Path) -> None:
    said = fails(tmp_path / "d", 2, lease_s="x", no_such_thing=1, database_url="mysql://a:pw@b/c")
    assert "LEASE_S" in said
    assert "NO_SUCH_THING" in said
    assert "DATABASE_URL" in said
    assert "pw" not in said.replace("pwd", "")


def test_an_address_that_is_not_ours(tmp_path: Path) -> None:
    assert "HOST" in fails(tmp_path / "d", 2, "--host", "no-such-host.invalid")
    assert "192.0.2.1" in fails(tmp_path / "d", 3, "--host", "192.0.2.1")


def test_a_data_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "DATA_DIR" in fails(tmp_path / "file" / "data", 2)
    assert "DATA_DIR" in fails(tmp_path / "file", 2)


def test_a_spoilt_database_is_left_alone_and_named(tmp_path: Path) -> None:
    with start_server(tmp_path, scheduler="false") as server:
        assert server.stop() == 0
    database = server.data / "tesazure.db"
    spoilt = b"this is no database" * 1000
    database.write_bytes(spoilt)
    for beside in ("tesazure.db-wal", "tesazure.db-shm"):
        (server.data / beside).unlink(missing_ok=True)
    assert "tesazure.db" in fails(server.data, 2)
    assert database.read_bytes() == spoilt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with start_server(tmp_path) as server:
        server.process.send_signal(number)
        assert server.process.wait(60) == 0
    with start_server(tmp_path) as server, server.client() as client:
        assert client.get("/readyz").status_code == 200


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with (
        start_server(tmp_path, request_timeout_s=60) as server,
        socket.create_connection(("127.0.0.1", server.port)) as sock,
        server.client() as client,
    ):
        # A request that does not come to its end holds up the first signal's orderly stop.
        sock.sendall(b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        assert client.get("/healthz").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        until(lambda: _refuses(server))
        server.process.send_signal(signal.SIGTERM)
        # An orderly stop, which gives such a request some seconds, ends with 0.
        assert server.process.wait(60) == 128 + signal.SIGTERM


def _refuses(server: RunningServer) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
    except OSError:
        return True
    return False


def test_requests_under_way_are_answered_before_the_server_stops(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        body = b'{"executors":[{"image":"i","command":["true"]}]}'
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            head = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            sock.sendall(head % len(body) + body[:10])
            with server.client() as client:
                assert client.get("/healthz").status_code == 200
            server.process.terminate()
            until(lambda: _refuses(server))
            sock.sendall(body[10:])
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(60) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of somebody else")
def test_a_data_directory_of_somebody_else(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    os.chown(data, 65534, 65534)
    powers = "-dac_override,-dac_read_search"  # without these root is a user like any other
    under = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"]
    assert "DATA_DIR" in fails(data, 2, under=under)


def test_engines_that_are_not_there_are_named(tmp_path: Path) -> None:
    host = f"unix://{tmp_path}/no.sock"
    said = fails(tmp_path / "d", 2, local_engine="docker", docker_host=host)
    assert "no.sock" in said


def test_the_same_installation_after_a_restart(tmp_path: Path) -> None:
    created = set()
    for _ in range(2):
        with start_server(tmp_path) as server, server.client() as client:
            created.add(client.get(f"{TES}/service-info").json()["createdAt"])
            create(client, task())
            assert server.stop() == 0
    assert len(created) == 1
