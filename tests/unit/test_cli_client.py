"""The client against small HTTP servers: what it asks, and what it makes of strange answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message

import pytest

from tesazure.cli import show, streams, watch
from tesazure.cli.client import TesClient, root_of
from tesazure.cli.exits import Code, Failure
from tesazure.cli.tasks import split
from tesazure.model import State
from tesazure.settings import Client
from tests.services.loopback_http import LoopbackHttp, QuietHandler

Answer = tuple[int, str, bytes]
"""Status, content type, body."""


@contextmanager
def answering(answer: Callable[[str, Message], Answer]) -> Iterator[TesClient]:
    """A client of a server that answers each GET by a function of its path and headers."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            status, kind, body = answer(self.path, self.headers)
            self.reply(status, body, {"Content-Type": kind})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

    with LoopbackHttp(Handler) as server:
        client = TesClient(Client(server=server.host, token="sesame"))
        try:
            yield client
        finally:
            client.close()


def refused(client: TesClient) -> Failure:
    """The Failure of a submission."""
    with pytest.raises(Failure) as caught:
        client.create(b"{}")
    return caught.value


@pytest.mark.parametrize(
    "given",
    [
        "http://host:1",
        "http://host:1/",
        "host:1",
        "http://host:1/ga4gh/tes/v1",
        "http://host:1/ga4gh/tes/",
        "http://host:1/v1",
    ],
)
def test_a_server_is_found_by_any_of_its_urls(given: str) -> None:
    assert root_of(given) == "http://host:1"


def test_a_path_in_front_of_the_api_stays() -> None:
    assert root_of("https://host/tools/ga4gh/tes/v1") == "https://host/tools"


@pytest.mark.parametrize("given", ["ftp://host", "http://", ""])
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(Failure) as caught:
        root_of(given)
    assert caught.value.code == Code.USAGE


def test_the_token_is_sent() -> None:
    seen: list[str] = []

    def answer(_path: str, headers: Message) -> Answer:
        seen.append(headers["Authorization"])
        return 200, "application/json", b'{"state": "QUEUED"}'

    with answering(answer) as client:
        assert client.state("a/b") == "QUEUED"
    assert seen == ["Bearer sesame"]


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (404, {"message": "there is no task x"}, Code.NOT_FOUND, "there is no task x"),
        (400, {"message": "m"}, Code.REFUSED, "the server refused this: m"),
        (401, {"message": "m"}, Code.SIGN_IN, "TESAZURE_TOKEN"),
        (403, {"message": "this needs the role x"}, Code.DENIED, "this needs the role x"),
        (503, {"message": "full"}, Code.UNREACHABLE, "cannot do this now: full"),
        (500, "<html>", Code.UNREACHABLE, "HTTP 500 Internal Server Error"),
        (
            400,
            {
                "message": "m",
                "error": {"fields": [{"field": "executors[0].image", "message": "x"}]},
            },
            Code.REFUSED,
            "executors[0].image: x",
        ),
        (200, "<html>", Code.UNREACHABLE, "is this the URL of a TES server?"),
    ],
)
def test_answers_become_one_clear_failure(status: int, body: object, code: Code, said: str) -> None:
    kind = "text/html" if isinstance(body, str) else "application/json"
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    with answering(lambda _path, _headers: (status, kind, raw)) as client:
        failure = refused(client)
    assert failure.code == code
    assert said in "\n".join([str(failure), *failure.details])


@pytest.mark.parametrize(
    ("attempt", "end"),
    [
        (None, {"logs": [{"logs": [{"exit_code": 0}]}]}),
        (1, {"logs": [{"logs": [{"exit_code": 0}]}]}),
        (1, {"logs": [{"logs": [{}]}, {}]}),
        (None, {"state": "CANCELED"}),
        (1, {"state": "CANCELED"}),
    ],
)
def test_a_log_that_the_server_cuts_short_is_read_on(
    capsysbinary: pytest.CaptureFixture[bytes], attempt: int | None, end: dict[str, object]
) -> None:
    """As when the token ends that a stream was begun with."""
    words = {"": b"one", "bytes=3-": b"two", "bytes=6-": b"three"}
    task = {"state": "RUNNING", "executors": [{}]}
    documents = iter([{}, {}, {"logs": [{"logs": []}]}, end])

    def answer(path: str, headers: Message) -> Answer:
        if path.startswith("/api/"):
            assert ("attempt=1" in path) is (attempt is not None)
            return 200, "text/plain", words.pop(headers["Range"] or "")
        return 200, "application/json", json.dumps(task | next(documents)).encode()

    with answering(answer) as client:
        streams.show(client, "t", streams.Choice(0, ("stdout",), attempt), follow=True)
    assert capsysbinary.readouterr().out == b"onetwothree"


def test_nobody_there_is_said_with_the_remedy() -> None:
    with answering(lambda _path, _headers: (200, "", b"")) as client:
        pass
    client = TesClient(Client(server=client.root))
    with pytest.raises(Failure, match="no server answers at") as caught:
        client.service_info()
    assert caught.value.code == Code.UNREACHABLE
    assert "tesazure serve" in caught.value.details[0]


def test_waiting_asks_where_there_are_no_events() -> None:
    states = iter(["QUEUED", "QUEUED", "RUNNING", "COMPLETE"])

    def answer(path: str, _headers: Message) -> Answer:
        if path.startswith("/api/"):
            return 404, "text/html", b"nothing here"
        return 200, "application/json", json.dumps({"state": next(states)}).encode()

    with answering(answer) as client:
        found = list(watch.changes(client, ["t"], 10, 0.01))
    assert found == [("t", "QUEUED"), ("t", "RUNNING"), ("t", "COMPLETE")]


def test_waiting_goes_on_after_the_stream_breaks() -> None:
    asked: list[str] = []
    streams = {
        "0": b'id: 7\ndata: {"id":"t","state":"QUEUED"}\n\n: still here\n\ndata: torn',
        "7": b'id: 9\ndata: {"id":"t","state":"RUNNING"}\n\n'
        b'id: 12\ndata: {"id":"t","state":"COMPLETE"}\n\n',
    }

    def answer(path: str, headers: Message) -> Answer:
        if path.startswith("/api/"):
            asked.append(headers["Last-Event-Id"])
            return 200, "text/event-stream", streams[asked[-1]]
        return 200, "application/json", b'{"state": "QUEUED"}'

    with answering(answer) as client:
        found = list(watch.changes(client, ["t"], 10, 0.01))
    assert found == [("t", "QUEUED"), ("t", "RUNNING"), ("t", "COMPLETE")]
    assert asked == ["0", "7"]


def test_waiting_ends_in_time() -> None:
    def answer(path: str, _headers: Message) -> Answer:
        if path.startswith("/api/"):
            return 404, "text/html", b""
        return 200, "application/json", b'{"state": "RUNNING"}'

    with answering(answer) as client, pytest.raises(Failure, match="still going on: t") as caught:
        list(watch.changes(client, ["t"], 0.2))
    assert caught.value.code == Code.TIMED_OUT


def test_events_are_read_as_the_standard_says() -> None:
    lines = ["retry: 1000", "", "event: state", "id: 1", 'data: {"id": "t",', 'data: "state":']
    lines += ['data:  "QUEUED", "time": "x"}', "", ": comment", "", "data: {}"]
    assert list(watch.parse_events(lines)) == [("1", watch.Changed("t", State.QUEUED))]


@pytest.mark.parametrize(
    ("text", "count"),
    [(b'{"a":1}', 1), (b' [{"a":1}, {"b":2}]', 2), (b'{"a":1}\n\n{"b":2}\n', 2), (b"[]", 0)],
)
def test_documents_in_a_file(text: bytes, count: int) -> None:
    assert len(split(text, "f")) == count


def test_a_file_that_is_not_json_is_refused() -> None:
    with pytest.raises(Failure, match="f is not JSON"):
        split(b"name: x\n", "f")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), ("999", "999 B"), (48502, "48.5 kB"), (999_999, "1 MB"), (3.21e12, "3.21 TB")],
)
def test_sizes(count: int | str, text: str) -> None:
    assert show.size(count) == text
