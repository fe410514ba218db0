"""storage.transport: requests as servers see them, and answers as callers do."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.storage.transport import (
    MOST_CONNECTIONS,
    Again,
    Answer,
    FilePart,
    Patience,
    Transport,
    require,
    service_code,
)
from tests.services.faulty_http import FaultyHttp, Handler

HASTY = Patience(attempts=3, connect_s=5, read_s=0.4, pause_s=0.005, longest_pause_s=0.02)


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(patience=HASTY)) as made:
        yield made


def saying(body: bytes, status: int = 200, **headers: str) -> Callable[[Handler], None]:
    """An answer with a body."""

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.write(body)

    return answer


def test_a_request_and_its_answer(server: FaultyHttp, transport: Transport) -> None:
    server.answers["/a b/ü"] = saying(b"hello", 202, X_Twice="one", ETag='"x"')
    answer = transport.send("GET", server.url("/a b/ü?x=[1]&y=%2f#z"), headers={"X-Mine": "1"})
    assert (answer.status, answer.reason, answer.body) == (202, "Accepted", b"hello")
    assert answer.headers["x-twice"] == "one"
    assert answer.headers["etag"] == '"x"'
    ((method, path, headers),) = server.requests
    assert (method, path) == ("GET", "/a%20b/%C3%BC?x=%5B1%5D&y=%2f")
    assert headers["X-Mine"] == "1"
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Expect", "Content-Length", "Authorization"} & headers.keys()


def test_a_location_may_be_utf_8(server: FaultyHttp, transport: Transport) -> None:
    """As some servers write it, unescaped."""

    def lead(handler: Handler) -> None:
        # In Latin-1, which is how this server writes what it is given.
        handler.send_plain(302, {"Location": "/ü 中?x=é".encode().decode("latin-1")})

    server.answers["/a"] = lead
    server.add("/ü 中", b"x")
    assert transport.send("GET", server.url("/a")).body == b"x"
    assert server.requests[1][1] == "/%C3%BC%20%E4%B8%AD?x=%C3%A9"


@pytest.mark.parametrize("header", [{"X": "ü"}, {"ü": "a"}, {"X": "\x7f"}, {"X Y": "a"}])
def test_headers_that_none_can_be(
    server: FaultyHttp, transport: Transport, header: dict[str, str]
) -> None:
    with pytest.raises(StorageError, match="/object: a header") as caught:
        transport.ask("GET", server.url("/object"), headers={**header, "Y": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert not server.requests
    assert transport.send("GET", server.url("/object"), headers={"X": "\ta~"}).status == 404


def test_the_first_sentence_is_the_reason(server: FaultyHttp, transport: Transport) -> None:
    for told, reason in (
        ("Server failed to authenticate the request. Make sure", "Server failed to authenticate"),
        ("The specified blob does not exist.", "The specified blob does not exist"),
        ("HTTP/1.1 is not v1.0", "HTTP/1.1 is not v1.0"),
    ):
        server.answers["/object"] = lambda handler, told=told: (  # type: ignore[misc]
            handler.write(f"HTTP/1.1 403 {told}\r\nContent-Length: 0\r\n\r\n".encode())
        )
        answer = transport.send("GET", server.url("/object"))
        assert (answer.status, answer.reason[: len(reason)]) == (403, reason)
        assert "." not in answer.reason.replace("1.", "")


@pytest.mark.parametrize(
    "lines",
    [
        b"503 No\r\nRetry-After: Mon, 01 Jan 2020 00:00:00 +" + b"9" * 30,
        b"503 No\r\nRetry-After: " + b"9" * 5000,
        b"503 No\r\nHTTP/x y: z",
    ],
)
def test_answers_made_to_break_the_reader(
    server: FaultyHttp, transport: Transport, lines: bytes
) -> None:
    server.answers["/object"] = lambda handler: handler.write(
        b"HTTP/1.1 " + lines + b"\r\nContent-Length: 0\r\n\r\n"
    )
    with pytest.raises(Again, match="HTTP 503 No"):
        transport.send("GET", server.url("/object"))


def test_dots_in_a_path_stay(server: FaultyHttp, transport: Transport) -> None:
    transport.send("GET", server.url("/a/../b/./c//d"))
    assert server.requests[0][1] == "/a/../b/./c//d"


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
@pytest.mark.parametrize("kind", ["none", "empty", "bytes", "file"])
def test_bodies(
    server: FaultyHttp, transport: Transport, tmp_path: Path, method: str, kind: str
) -> None:
    got: list[bytes] = []

    def take(handler: Handler) -> None:
        got.append(handler.rfile.read(int(handler.headers.get("Content-Length", "0"))))
        handler.send_plain(201)

    server.answers["/object"] = take
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    moved: list[int] = []
    with (tmp_path / "file").open("rb") as file:
        body, expected = {
            "none": (None, b""),
            "empty": (b"", b""),
            "bytes": (content, content),
            "file": (FilePart(file.fileno(), 1000, 2_000_000), content[1000:2_001_000]),
        }[kind]
        answer = transport.send(method, server.url("/object"), body=body, progress=moved.append)
        assert file.tell() == 0
    assert answer.status == 201
    assert got == [expected]
    assert sum(moved) == len(expected)
    if not (method == "DELETE" and body is None):
        assert server.requests[0][2]["Content-Length"] == str(len(expected))


def test_a_body_is_sent_again_on_a_new_connection(server: FaultyHttp, transport: Transport) -> None:
    """The server closes a connection that is kept, just as the next request comes."""
    server.answers["/first"] = lambda handler: (
        handler.send_plain(200),
        setattr(handler, "close_connection", True),
    )[0]
    for _ in range(20):
        transport.send("GET", server.url("/first"))
        body = os.urandom(100_000)
        answer = transport.send("PUT", server.url("/object"), body=body)
        assert answer.status == 400  # without Content-MD5
    assert [method for method, _, _ in server.requests] == ["GET", "PUT"] * 20


def test_a_file_that_becomes_shorter_is_noticed(
    server: FaultyHttp, transport: Transport, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    with (tmp_path / "file").open("rb") as file, pytest.raises(StorageError, match="cut short"):
        transport.send("PUT", server.url("/object"), body=FilePart(file.fileno(), 0, 2000))


def test_a_sink_takes_bodies_of_success_only(server: FaultyHttp, transport: Transport) -> None:
    server.answers["/good"] = saying(b"x" * 2_000_000, X_Size="2")
    server.answers["/bad"] = saying(b"no", 404)
    for path, sunk, left in (("/good", 2_000_000, b""), ("/bad", 0, b"no")):
        seen: list[Answer] = []
        chunks: list[bytes] = []
        moved: list[int] = []

        def sink(
            answer: Answer, seen: list[Answer] = seen, chunks: list[bytes] = chunks
        ) -> Callable[[bytes], None]:
            seen.append(answer)
            return chunks.append

        answer = transport.send("GET", server.url(path), sink=sink, progress=moved.append)
        assert (sum(map(len, chunks)), answer.body) == (sunk, left)
        assert sum(moved) == sunk
        assert [a.headers["x-size"] for a in seen] == (["2"] if sunk else [])


@pytest.mark.parametrize("where", ["sink", "taker", "progress"])
def test_exceptions_of_callbacks_come_out(
    server: FaultyHttp, transport: Transport, capfd: pytest.CaptureFixture[str], where: str
) -> None:
    def sink(_: Answer) -> Callable[[bytes], None]:
        raise_if("sink")
        return lambda _: raise_if("taker")

    def raise_if(here: str) -> None:
        if here == where:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transport.send(
            "GET",
            server.add("/object", b"x"),
            sink=sink,
            progress=lambda _: raise_if("progress"),
        )
    assert capfd.readouterr().err == ""
    assert transport.send("GET", server.url("/object")).body == b"x"


def test_connections_are_kept(server: FaultyHttp, transport: Transport) -> None:
    ports: set[int] = set()
    server.answers["/object"] = lambda handler: (
        ports.add(handler.client_address[1]),
        handler.send_plain(404),
    )[1]
    with FaultyHttp() as other:
        for _ in range(5):
            transport.send("GET", server.url("/object"))
            transport.send("GET", other.url("/object"))
    assert len(ports) == 1
    transport.close()
    transport.close()
    transport.send("GET", server.url("/object"))
    assert len(ports) == 2


def test_connections_are_bounded(server: FaultyHttp) -> None:
    together = threading.Semaphore(0)
    most = [0, 0]

    def answer(handler: Handler) -> None:
        with server.lock:
            most[0] += 1
            most[1] = max(most)
        if most[1] == MOST_CONNECTIONS:
            for _ in range(50):
                together.release()
        together.acquire(timeout=20)
        with server.lock:
            most[0] -= 1
        handler.send_plain(200)

    server.answers["/object"] = answer
    ticks: list[int] = []
    with (
        contextlib.closing(Transport()) as transport,
        ThreadPoolExecutor(50) as pool,
    ):
        answers = pool.map(
            lambda _: transport.send("GET", server.url("/object"), progress=ticks.append),
            range(50),
            timeout=60,
        )
        assert {a.status for a in answers} == {200}
    assert most[1] == MOST_CONNECTIONS


def test_whoever_takes_long_for_what_came_has_no_stalled_connection(server: FaultyHttp) -> None:
    """As the parts of an object do, whose progress is told one after the other."""
    taken = threading.Event()

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.write(b"a")
        handler.wfile.flush()
        taken.wait(20)
        server.closing.wait(0.2)
        handler.write(b"b")

    def take_long(moved: int) -> None:
        if moved and not taken.is_set():
            time.sleep(2.2)
            taken.set()

    server.answers["/object"] = answer
    came: list[bytes] = []
    with contextlib.closing(Transport(patience=Patience(read_s=2))) as transport:
        url = server.url("/object")
        transport.send("GET", url, sink=lambda _: came.append, progress=take_long)
    assert came == [b"a", b"b"]


def test_a_stalled_upload_is_noticed(server: FaultyHttp, transport: Transport) -> None:
    server.rate, server.put_faults, server.in_a_row = 1, ("stall",), 10**6
    began = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"the connection stalled \(3 attempts\)"):
        transport.ask("PUT", server.url("/object?sig=hunter2"), body=b"x" * 50_000_000)
    assert time.monotonic() - began < 10


def test_headers_may_be_made_for_each_try(server: FaultyHttp, transport: Transport) -> None:
    times = iter(("one", "two", "three"))
    statuses = iter((503, 429, 200))
    server.answers["/object"] = lambda handler: handler.send_plain(next(statuses))
    transport.ask("GET", server.url("/object"), headers=lambda: {"X-Time": next(times)})
    assert [headers["X-Time"] for _, _, headers in server.requests] == ["one", "two", "three"]


def test_uploads_follow_no_redirects(server: FaultyHttp, transport: Transport) -> None:
    server.answers["/object"] = lambda handler: handler.send_plain(307, {"Location": "/other"})
    assert transport.send("POST", server.url("/object"), body=b"").status == 307
    assert len(server.requests) == 1


def test_a_long_refusal_is_cut(server: FaultyHttp, transport: Transport) -> None:
    server.answers["/object"] = saying(b"<Code>TooBad</Code>" + b"x" * 10_000_000, 400)
    answer = transport.send("GET", server.url("/object"))
    assert answer.status == 400
    assert service_code(answer) == "TooBad"
    assert len(answer.body) < 1_000_000


def test_what_makes_no_sense_is_tried_again(transport: Transport) -> None:
    with FaultyHttp() as server:
        server.answers["/object"] = lambda handler: handler.write(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n")
        with pytest.raises(Again, match="makes no sense"):
            transport.send("GET", server.url("/object?sig=hunter2"))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://h:99999/",
        "http://a\\b/",
        "http://[1/",
        "http://a b/",
        "http://\u2488/x",
        "http://\u212aube/",
        f"http://h:{'9' * 5000}/",
        "no",
    ],
)
def test_what_is_no_url(transport: Transport, url: str) -> None:
    with pytest.raises(UnsupportedUrl, match="not a"):
        transport.send("GET", f"{url}?sig=hunter2" if url != "no" else url)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(404, "", {"x-ms-error-code": "BlobNotFound"}, b"", ""), "BlobNotFound"),
        (Answer(404, "", {}, b"<?xml?><Error><Code>NoSuchKey</Code>", ""), "NoSuchKey"),
        (
            Answer(403, "", {}, b'{"error": {"code": 403, "errors": [{"reason": "denied"}]}}', ""),
            "denied",
        ),
        (
            Answer(403, "", {}, b'{"error": {"status": "PERMISSION_DENIED"}}', ""),
            "PERMISSION_DENIED",
        ),
        (Answer(400, "", {}, b'{"error": "invalid_grant"}', ""), "invalid_grant"),
        (Answer(400, "", {}, b'{"error": {"errors": "x"}}', ""), ""),
        (Answer(400, "", {}, b'{"error"', ""), ""),
        (Answer(400, "", {}, b"[]", ""), ""),
        (Answer(400, "", {}, b"<Code>a b: sig=hunter2</Code>", ""), ""),
    ],
)
def test_service_codes(answer: Answer, code: str) -> None:
    assert service_code(answer) == code


def test_require_sorts_refusals() -> None:
    def answer(status: int) -> Answer:
        return Answer(status, "Reason", {"x-ms-error-code": "Code"}, b"", "")

    require(answer(204), "what")
    for status, error in (
        (404, StorageNotFound),
        (410, StorageNotFound),
        (401, PermissionDenied),
        (403, PermissionDenied),
        (407, PermissionDenied),
        (302, StorageError),
        (409, StorageError),
    ):
        with pytest.raises(error) as caught:
            require(answer(status), "GET url", hint=lambda _: "do this")
        assert type(caught.value) is error
        assert str(caught.value) == f"GET url: HTTP {status} Reason Code; do this"


def test_a_signal_ends_a_transfer_of_the_main_thread(server: FaultyHttp) -> None:
    """An exception that a handler raises comes out, wherever libcurl was just then."""
    import signal

    class Ended(Exception):
        pass

    def handler(*_: object) -> None:
        raise Ended

    server.answers["/object"] = lambda handler: handler.wait_for_client()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with contextlib.closing(Transport()) as transport:
            sender = threading.Thread(
                target=lambda: server.asked.wait(10) and os.kill(os.getpid(), signal.SIGUSR1)
            )
            sender.start()
            began = time.monotonic()
            with pytest.raises(Ended):
                transport.send("GET", server.url("/object"))
            assert time.monotonic() - began < 5
            sender.join(10)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("header", [("X-A", "1\r\nX-B: 2"), ("X\n", "1"), ("X-A", "\0"), ("", "1")])
def test_no_header_becomes_two(
    server: FaultyHttp, transport: Transport, header: tuple[str, str]
) -> None:
    with pytest.raises(StorageError, match="a header holds a character"):
        transport.ask("GET", server.url("/x"), headers=dict([header]))
    assert server.requests == []


@pytest.mark.parametrize(
    "end", ["\\", "\0", " ", "\t", "%2f", "%00", ";", "\uff0f", "\x7f", "\r\n"]
)
def test_a_host_is_the_same_to_all_who_read_it(
    server: FaultyHttp, transport: Transport, end: str
) -> None:
    url = f"http://127.0.0.1{end}.example.org:{server.port}/x"
    for use in (transport.check, lambda url: transport.ask("GET", url)):
        with pytest.raises(UnsupportedUrl):
            use(url)
    assert server.requests == []
