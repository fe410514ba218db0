"""Server-side request forgery: which addresses are refused, whoever names them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tesazure.errors import PermissionDenied
from tesazure.storage.addresses import refusal
from tesazure.storage.http import HttpStorage
from tesazure.storage.transport import Patience, Transport
from tests.services.faulty_http import FaultyHttp, Handler

METADATA = (
    "169.254.169.254",
    "169.254.0.1",
    "168.63.129.16",
    "100.100.100.200",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:a9fe:a9:fe00::",
    "64:ff9b:1:ff:fea9:fe:a9fe:1",
    "::a9fe:a9fe",
    "fd20:ce::254",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
)

METADATA_NAMED = ("169.254.169.254", "fe80::1,169.254.169.254", "::ffff:169.254.169.254")


@pytest.fixture
def storage() -> Iterator[HttpStorage]:
    with opened() as transport:
        yield HttpStorage(transport)


@contextlib.contextmanager
def opened(
    *,
    allow_private: bool = True,
    trusted: tuple[str, ...] = (),
    names: dict[str, str] | None = None,
) -> Iterator[Transport]:
    patience = Patience(attempts=2, pause_s=0.01, connect_s=2)
    made = Transport(allow_private=allow_private, trusted=trusted, names=names, patience=patience)
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


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "data.example"])
def test_private_addresses_may_be_forbidden(server: FaultyHttp, tmp_path: Path, host: str) -> None:
    url = server.add("/object", b"x").replace("127.0.0.1", host)
    names = {f"data.example:{server.port}": "127.0.0.1"}
    with (
        opened(allow_private=False, names=names) as transport,
        pytest.raises(PermissionDenied, match="private"),
    ):
        HttpStorage(transport).get(url, tmp_path / "got")
    assert server.requests == []


def test_a_configured_endpoint_may_be_private(server: FaultyHttp, tmp_path: Path) -> None:
    """It alone: neither another port of the same host, nor where it redirects to."""
    with FaultyHttp() as other:
        server.answers["/there"] = redirect_to(other.add("/object", b"x"))
        with opened(allow_private=False, trusted=(f"127.0.0.1:{server.port}",)) as transport:
            storage = HttpStorage(transport)
            url = server.add("/object", b"x")
            storage.check(url, writing=False)
            assert storage.get(url, tmp_path / "got") == 1
            for denied in (server.url("/there"), other.url("/object")):
                with pytest.raises(PermissionDenied, match="private"):
                    storage.get(denied, tmp_path / "got")
        assert other.requests == []


def test_no_endpoint_may_be_a_metadata_service(tmp_path: Path) -> None:
    with (
        opened(trusted=("169.254.169.254:80",)) as transport,
        pytest.raises(PermissionDenied, match="metadata"),
    ):
        HttpStorage(transport).get("http://169.254.169.254/latest", tmp_path / "got")


@pytest.mark.parametrize("addresses", METADATA_NAMED)
def test_a_name_that_leads_to_a_refused_address(
    server: FaultyHttp, tmp_path: Path, addresses: str
) -> None:
    names = {f"data.example:{server.port}": addresses}
    with (
        opened(names=names) as transport,
        pytest.raises(PermissionDenied, match=r"data\.example: .* metadata"),
    ):
        HttpStorage(transport).get(f"http://data.example:{server.port}/object", tmp_path / "got")
    assert server.requests == []


def test_a_redirect_to_a_name_that_leads_to_a_refused_address(
    server: FaultyHttp, tmp_path: Path
) -> None:
    server.answers["/there"] = redirect_to("http://data.example/latest")
    with (
        opened(names={"data.example:80": "169.254.169.254"}) as transport,
        pytest.raises(PermissionDenied, match=r"/there: data\.example: 169\.254"),
    ):
        HttpStorage(transport).get(server.url("/there"), tmp_path / "got")


def test_the_next_address_is_tried(server: FaultyHttp, tmp_path: Path) -> None:
    server.add("/object", b"x")
    names = {f"data.example:{server.port}": "127.255.255.254,169.254.169.254,127.0.0.1"}
    with opened(names=names) as transport:
        url = f"http://data.example:{server.port}/object"
        assert HttpStorage(transport).get(url, tmp_path / "got") == 1
    (_, _, headers) = server.requests[0]
    assert headers["Host"] == f"data.example:{server.port}"


def test_secrets_are_not_sent_to_where_a_redirect_leads(server: FaultyHttp, tmp_path: Path) -> None:
    with FaultyHttp() as other, opened() as transport:
        for there in (other, server):
            server.answers["/there"] = redirect_to(there.add("/object", b"x"))
            sent = {"Authorization": "Bearer hunter2", "X-Token": "hunter3", "Range": "bytes=0-9"}
            url = server.url("/there").replace("://", "://user:hunter4@")
            transport.ask("GET", url, headers=sent)
            _, _, headers = there.requests[-1]
            assert headers["Range"] == "bytes=0-9"
            assert ("hunter" in str(headers)) is (there is server)


def redirect_to(location: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_plain(302, {"Location": location})

    return answer
