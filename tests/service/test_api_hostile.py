"""Clients that mean harm or know no better, on raw sockets: refused, never with a 500, and nobody
else is kept waiting."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.server import TES, RunningServer, create, get, start_server, task, until

TIMEOUT_S = 2.0
MAX_BODY = 1024 * 1024
MAX_CONNECTIONS = 40
OK = json.dumps(task()).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(
        tmp_path_factory.mktemp("server"),
        scheduler="false",
        request_timeout_s=TIMEOUT_S,
        max_body_bytes=MAX_BODY,
        max_connections=MAX_CONNECTIONS,
    ) as running:
        yield running
        assert running.process.poll() is None
        assert "Traceback" not in running.log.read_text()


def connect(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def head(path: str = f"{TES}/tasks", method: str = "POST", **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def receive(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One response."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(65536)
        assert chunk, f"the connection ended after {data!r}"
        data += chunk
    top, _, body = data.partition(b"\r\n\r\n")
    status, *lines = top.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers.get("content-length", 0)):
        body += sock.recv(65536)
    return int(status.split()[1]), headers, body


def is_closed(sock: socket.socket) -> bool:
    try:
        while chunk := sock.recv(65536):
            assert b"HTTP/1.1" not in chunk
    except ConnectionResetError:
        pass
    return True


def refused(sock: socket.socket, status: int, code: str) -> dict[str, Any]:
    """The error document of the response, of the shape that all errors have."""
    got, headers, body = receive(sock)
    assert (got, headers["content-type"]) == (status, "application/json"), body
    document: dict[str, Any] = json.loads(body)
    assert document["error"]["code"] == code
    assert document["error"]["status"] == status
    assert document["message"] == document["error"]["message"]
    return document


def exchange(server: RunningServer, data: bytes) -> tuple[int, dict[str, str], bytes]:
    with connect(server) as sock:
        sock.sendall(data)
        return receive(sock)


def post(server: RunningServer, body: bytes) -> tuple[int, Any]:
    status, _, reply = exchange(server, head(Content_Length=len(body)) + body)
    return status, json.loads(reply)


def test_declared_body_over_the_limit_is_refused_before_it_comes(server: RunningServer) -> None:
    with connect(server) as sock:
        sock.sendall(head(Content_Length=10**12))
        document = refused(sock, 413, "too_large")
        assert "MAX_BODY_BYTES" in document["message"]
        sock.shutdown(socket.SHUT_WR)
        assert is_closed(sock)


def test_a_client_that_expects_continue_is_not_asked_to_go_on(server: RunningServer) -> None:
    with connect(server) as sock:
        sock.sendall(head(Content_Length=10**9, Expect="100-continue"))
        refused(sock, 413, "too_large")
    with connect(server) as sock:
        sock.sendall(head(Content_Length=len(OK), Expect="100-continue"))
        assert sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(OK)
        assert receive(sock)[0] == 200


def test_chunked_body_over_the_limit_is_refused_while_it_comes(server: RunningServer) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with connect(server) as sock:
        sock.sendall(head(Transfer_Encoding="chunked"))
        for _ in range(MAX_BODY // 0x10000 + 2):
            sock.sendall(chunk)
        refused(sock, 413, "too_large")


def test_a_client_that_sends_all_before_it_reads_gets_its_413(server: RunningServer) -> None:
    body = b"x" * (8 * MAX_BODY)
    with connect(server) as sock:
        sock.sendall(head(Content_Length=len(body)) + body)
        refused(sock, 413, "too_large")
        assert is_closed(sock)


def test_body_at_the_limit_is_taken_whole(server: RunningServer) -> None:
    with server.client() as client:
        padding = MAX_BODY - len(json.dumps(task(description="")).encode())
        task_id = create(client, task(description="x" * padding))
        assert len(get(client, task_id)["description"]) == padding


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET",
        head(Content_Length=5)[:-2],
        head(Content_Length=100) + b"{",
        head(Transfer_Encoding="chunked") + b"5\r\n{",
    ],
)
def test_requests_that_do_not_come_to_an_end(server: RunningServer, sent: bytes) -> None:
    with connect(server) as sock:
        sock.sendall(sent)
        if sent:
            refused(sock, 408, "timeout")
        assert is_closed(sock)


def test_a_trickle_of_headers_does_not_prolong_the_time(server: RunningServer) -> None:
    with connect(server) as sock:
        sock.sendall(b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(400):
                sock.sendall(b"X-A: b\r\n")
                time.sleep(0.05)


def test_others_are_served_beside_slow_clients_and_refused_beyond_the_limit(tmp_path: Path) -> None:
    limits = {"max_connections": MAX_CONNECTIONS, "request_timeout_s": 600}
    with start_server(tmp_path, scheduler="false", **limits) as server:
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(connect(server)) for _ in range(MAX_CONNECTIONS - 5)]
            for sock in slow:
                sock.sendall(head(Content_Length=10))
            with server.client() as client:
                assert client.get("/healthz").status_code == 200
            more = [stack.enter_context(connect(server)) for _ in range(10)]
            refused(more[-1], 503, "too_many_connections")
        with server.client() as client:
            until(lambda: client.get("/healthz").status_code == 200)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"executors":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        OK[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        OK[:-1] + b',"resources":{"ram_gb":1e999}}',
        OK[:-1] + b',"resources":{"ram_gb":-1e308,"cpu_cores":1e308,"disk_gb":-0.1}}',
        OK[:-1] + b',"resources":{"cpu_cores":' + b"9" * 5000 + b"}}",
        OK[:-1] + b',"resources":{"cpu_cores":NaN}}',
        OK[:-1] + b',"name":"\xff"}',
        OK[:-1] + b',"name":"\xed\xa0\x80"}',
        OK[:-1] + b',"name":"\\ud800"}',
        OK[:-1] + b',"name":"a\\u0000b"}',
        OK[:-1] + b',"name":"a\0b"}',
        OK[:-1] + b',"tags":{"a\\u0000b":"c"}}',
        OK[:-1] + b',"tags":{"a":1}}',
        OK[:-3] + b',"env":{"a\\u0000b":"c"}}]}',
        OK[:-1] + b',"resources":{"backend_parameters":{"max_runtime_s":"315360001"}}}',
        OK[:-1] + b',"inputs":[{"path":"/a","url":"file:///a%00b"}]}',
        OK[:-1] + b',"inputs":[{"path":"/a\\u0000","url":"http://x/"}]}',
        OK[:-1] + b',"inputs":[{"path":"/a","url":"http://[::1"}]}',
        OK[:-1] + b',"outputs":[{"path":"/a","url":"file://host\\ud83d/x"}]}',
        OK[:-1] + b',"outputs":[{"path":"/a","url":"http://\\u2488/x"}]}',
        b'{"executors":[' + b"0," * 200_000 + b"0]}",
        b'{"executors":[' + b"{}," * 200_000 + b"{}]}",
        OK[:-1] + b',"volumes":[' + b'"x",' * 150_000 + b'"x"]}',
    ],
    ids=range(25),
)
def test_bodies_made_to_break_the_parser(server: RunningServer, body: bytes) -> None:
    began = time.monotonic()
    status, document = post(server, body)
    assert status == 400, document
    fields = document["error"]["fields"]
    assert 1 <= len(fields) <= 100
    assert time.monotonic() - began < 10


def test_odd_bodies_that_are_tasks_are_taken(server: RunningServer) -> None:
    unknown = b",".join(b'"u%d":1' % i for i in range(50_000))
    status, document = post(server, OK[:-1] + b"," + unknown + b"}")
    assert status == 200, document
    with server.client() as client:
        (log,) = get(client, document["id"])["logs"]
    assert len(log["system_logs"]) == 51
    assert "49950 more" in log["system_logs"][-1]
    again = OK[:-1] + b',"name":"first","name":"second","\\u0000":1}'
    status, document = post(server, again)
    assert status == 200, document


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW /coffee HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
        b"POST /v1/tasks HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/tasks HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/tasks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\x00\x00\x00\x00",
    ],
    ids=range(11),
)
def test_what_is_not_http(server: RunningServer, data: bytes) -> None:
    with connect(server) as sock:
        sock.sendall(data)
        refused(sock, 400, "invalid_http")
        assert is_closed(sock)


def test_refusals_below_the_application_are_seen(server: RunningServer) -> None:
    """They are in the log under their request id, and in the metrics."""
    with connect(server) as sock:
        sock.sendall(b"GARBAGE\r\n\r\n")
        status, headers, body = receive(sock)
    name = headers["x-request-id"]
    assert json.loads(body)["error"]["request_id"] == name
    with connect(server) as sock:
        sock.sendall(head("/v1/tasks?secret=1", Content_Length=9, X_Request_ID="slow-one"))
        late, headers, _ = receive(sock)
    assert (status, late, headers["x-request-id"]) == (400, 408, "slow-one")

    def logged(name: str) -> dict[str, Any]:
        lines = server.log.read_text().splitlines()
        return next((json.loads(x) for x in lines if f'"request_id":"{name}"' in x), {})

    until(lambda: logged(name) and logged("slow-one"))
    assert logged(name)["status"] == 400
    entry = logged("slow-one")
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", "/v1/tasks", 408)
    assert entry["ms"] >= TIMEOUT_S * 1000
    with server.client() as client:
        metrics = client.get("/metrics").text
    assert 'method="POST",route="(none)",status="4xx"' in metrics
    assert 'method="-",route="(none)",status="4xx"' in metrics


@pytest.mark.parametrize(
    "flood",
    [
        b"".join(b"X-%d: %s\r\n" % (i, b"y" * 100) for i in range(20_000)),
        b"X: " + b"y" * 2_000_000 + b"\r\n",
    ],
    ids=["many", "long"],
)
def test_floods_of_headers(server: RunningServer, flood: bytes) -> None:
    with connect(server) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(b"GET /healthz HTTP/1.1\r\n" + flood)
        with contextlib.suppress(ConnectionResetError):
            refused(sock, 431, "headers_too_large")
        assert is_closed(sock)


def test_a_long_path_is_no_fault(server: RunningServer) -> None:
    assert exchange(server, head("/" + "a" * 30_000, "GET"))[0] == 404


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    count = 50
    one = head("/healthz", "GET", X_Request_ID="r%d")
    with connect(server) as sock:
        sock.sendall(
            b"".join(one % i for i in range(count)) + head("/healthz", "GET", Connection="close")
        )
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    ids = [line for line in data.split(b"\r\n") if line.startswith(b"x-request-id: r")]
    assert ids == [b"x-request-id: r%d" % i for i in range(count)]


def test_an_upgrade_that_is_not_offered_is_ignored(server: RunningServer) -> None:
    """Java's HTTP client asks for h2c with every first request."""
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AA"}
    status, _, body = exchange(server, head(Content_Length=len(OK), **upgrade) + OK)
    assert (status, list(json.loads(body))) == (200, ["id"])
    status, _, body = exchange(server, head("/healthz", "GET", **upgrade))
    assert (status, body) == (200, b'{"status":"ok"}')
    with connect(server) as sock:
        sock.sendall(head("x:443", "CONNECT"))
        refused(sock, 405, "method_not_allowed")


def test_http_1_0(server: RunningServer) -> None:
    with connect(server) as sock:
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert receive(sock)[0] == 200
        assert is_closed(sock)


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(server: RunningServer) -> None:
    for _ in range(20):
        with connect(server) as sock:
            sock.sendall(head(Content_Length=1000) + b"{")
    with server.client() as client:
        assert client.get("/healthz").status_code == 200


def test_a_body_nobody_asked_for_does_no_harm(server: RunningServer) -> None:
    with connect(server) as sock:
        for _ in range(3):
            sock.sendall(head("/healthz", "GET", Content_Length=5) + b"12345")
            assert receive(sock)[0] == 200
            sock.sendall(head("/nowhere", Content_Length=100_000) + b"x" * 100_000)
            assert receive(sock)[0] == 404
