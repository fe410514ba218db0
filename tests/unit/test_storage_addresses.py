"""Server-side request forgery: which addresses are refused, whoever names them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpcore
import httpx
import pytest

from tesazure.errors import PermissionDenied
from tesazure.storage.addresses import refusal
from tesazure.storage.guard import GuardedTransport
from tesazure.storage.http import HttpStorage, Patience
from tests.services.faulty_http import FaultyHttp, Handler

METADATA = (
    "169.254.169.254",
    "169.254.0.1",
    "168.63.129.16",
    "100.100.100.200",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "fd20:ce::254",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
)


@pytest.fixture
def server() -> Iterator[FaultyHttp]:
    with FaultyHttp() as running:
        yield running


@pytest.fixture
def storage() -> Iterator[HttpStorage]:
    made = HttpStorage(patience=Patience(attempts=2, pause_s=0.01, connect_s=2))
    with contextlib.closing(made):
        yield made


@pytest.mark.parametrize("address", METADATA)
def test_metadata_addresses_are_always_refused(address: str) -> None:
    assert "never" in refusal(address, allow_private=True)
    assert refusal(address, allow_private=False)


@pytest.mark.parametrize("address", ["10.1.2.3", "127.0.0.1", "192.168.0.1", "::1", "fd00::1"])
def test_private_addresses_are_refused_by_setting(address: str) -> None:
    assert refusal(address, allow_private=True) == ""
    assert "private" in refusal(address, allow_private=False)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert refusal(address, allow_private=False) == ""


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "2852039166", "0xa9fea9fe", "[::ffff:a9fe:a9fe]"],
)
def test_every_spelling_is_refused_before_connecting(
    storage: HttpStorage, tmp_path: Path, host: str
) -> None:
    with pytest.raises(PermissionDenied, match="metadata"):
        storage.get(f"http://{host}/latest?token=hunter2", tmp_path / "got")
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_is_checked_too(
    server: FaultyHttp, storage: HttpStorage, tmp_path: Path
) -> None:
    server.answers["/there"] = redirect_to("http://169.254.169.254/latest/meta-data?x=hunter2")
    with pytest.raises(PermissionDenied, match=r"/there: 169\.254\.169\.254 is a link-local"):
        storage.get(server.url("/there"), tmp_path / "got")
    assert len(server.requests) == 1


def test_private_addresses_may_be_forbidden(server: FaultyHttp, tmp_path: Path) -> None:
    storage = HttpStorage(allow_private=False)
    with contextlib.closing(storage), pytest.raises(PermissionDenied, match="private"):
        storage.get(server.add("/object", b"x"), tmp_path / "got")
    assert server.requests == []


class Names:
    """A name server whose answers change, as in DNS rebinding."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        if not self.answers:
            raise httpcore.ConnectError(f"cannot resolve {host}")
        return self.answers.pop(0)


def client_with(names: Names) -> httpx.Client:
    return httpx.Client(
        transport=GuardedTransport(allow_private=True, resolve=names), trust_env=False
    )


def test_a_name_that_leads_to_a_refused_address(server: FaultyHttp) -> None:
    names = Names(["127.0.0.1", "169.254.169.254"])
    with client_with(names) as client, pytest.raises(PermissionDenied, match=r"data\.example"):
        client.get(f"http://data.example:{server.port}/object")
    assert server.requests == []


def test_the_checked_address_is_the_one_connected_to(server: FaultyHttp) -> None:
    server.add("/object", b"x")
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    with client_with(names) as client:
        assert client.get(f"http://data.example:{server.port}/object").content == b"x"
    assert names.asked == 1
    (_, _, headers) = server.requests[0]
    assert headers["Host"] == f"data.example:{server.port}"


def test_the_next_address_is_tried(server: FaultyHttp) -> None:
    server.add("/object", b"x")
    with client_with(Names(["127.255.255.254", "::1", "127.0.0.1"])) as client:
        assert client.get(f"http://data.example:{server.port}/object").content == b"x"


def redirect_to(location: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_plain(302, {"Location": location})

    return answer
