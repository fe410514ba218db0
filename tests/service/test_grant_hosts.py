"""Whom the server shows its identity's token: accounts of its cloud, whatever a URL looks like, and
what happens where there is no such account."""

from __future__ import annotations

import contextlib
import http.server
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.access import Endpoints
from tesazure.azure_identity import Identity
from tesazure.errors import StorageError, StorageUnavailable, UnsupportedUrl
from tesazure.model import FileType
from tesazure.storage.azure_files import AzureFilesStorage
from tesazure.storage.azure_signer import AzureConfig
from tesazure.storage.grant import GrantConfig, Granter
from tesazure.storage.transport import Transport
from tests.service.test_grant_azure import bundle
from tests.services import certificates
from tests.services.azure_files_server import ACCOUNT, AzureFilesServer, File
from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer
from tests.unit.test_grant import plan_of

CLOUD = (".blob.core.windows.net", ".file.core.windows.net")


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[EntraServer]:
    with EntraServer(tmp_path / "issuer") as server:
        yield server


def granter(issuer: EntraServer, ca: Path | str, **given: object) -> Granter:
    """With an identity, of which storage at `endpoints` may be shown a token."""
    endpoints = given.pop("endpoints", Endpoints())
    assert isinstance(endpoints, Endpoints)
    identity = Identity(
        tenant=str(given.pop("tenant", TENANT)),
        client_id=CLIENT,
        secret=SECRET,
        authority=issuer.url,
        ca_bundle=str(ca),
    )
    fields = {"cloud": CLOUD, "identity": identity, **given}
    azure = AzureConfig(**fields)  # type: ignore[arg-type]
    return Granter(GrantConfig(endpoints=endpoints, azure=azure))


class _Listener(http.server.ThreadingHTTPServer):
    """At the port of https, where URLs lead that name none."""

    daemon_threads = True
    heard: list[str]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """As any."""
        self.do_POST()

    def do_POST(self) -> None:
        """Take note of the request's secret."""
        assert isinstance(self.server, _Listener)
        self.server.heard.append(self.headers["Authorization"])
        self.send_error(403)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing."""


@contextlib.contextmanager
def listening(directory: Path) -> Iterator[tuple[_Listener, str, Path]]:
    """The listener, its address, and the authority that vouches for it."""
    host = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"
    directory.mkdir()
    made = certificates.make(directory, host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    try:
        server = _Listener((host, 443), _Handler)
    except PermissionError:
        pytest.skip("only root may listen at port 443")
    with server:
        server.heard = []
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server, host, made.authority
        server.shutdown()


@pytest.mark.parametrize("end", ["\\", "%2f", "/", "?", "#", ";", "\uff0f", " ", "\\@x"])
def test_a_token_goes_to_nobody_who_only_looks_like_an_account(
    issuer: EntraServer, tmp_path: Path, end: str
) -> None:
    with listening(tmp_path / "listener") as (listener, host, authority):
        signs = granter(issuer, bundle(tmp_path, authority, issuer.ca_bundle))
        for kind in ("blob", "file"):
            url = f"https://{host}{end}.{kind}.core.windows.net/data/x"
            with contextlib.suppress(UnsupportedUrl):
                assert signs.access(plan_of((url, FileType.FILE)), {}).inputs == {}
        assert listener.heard == []


def test_an_account_that_cannot_be_reached_is_asked_anonymously(
    issuer: EntraServer, tmp_path: Path
) -> None:
    """Somebody may have mistyped its name. Of the own account it may be a failure that passes."""
    with socket.socket() as nobody:  # has the port, and does not listen
        nobody.bind(("127.0.0.1", 0))
        service = f"https://127.0.0.1:{nobody.getsockname()[1]}"
        plan = plan_of((f"{service}/data/x", FileType.FILE))
        endpoints = Endpoints(blob_suffixes=(".0.0.1",))
        signs = granter(issuer, issuer.ca_bundle, cloud=(".0.0.1",), endpoints=endpoints)
        granted = signs.access(plan, {})
        assert granted.inputs == {}
        [note] = granted.notes
        assert "cannot be reached" in note
        assert "asked for anonymously" in note
        own = granter(
            issuer, issuer.ca_bundle, account="acct", services=(service,), endpoints=endpoints
        )
        with pytest.raises(StorageUnavailable, match="cannot be reached"):
            own.access(plan, {})
        # It is known for a while, and not asked again.
        nobody.listen()
        nobody.setblocking(False)
        assert signs.access(plan, {}) == granted
        with pytest.raises(BlockingIOError):
            nobody.accept()


def test_an_identity_that_makes_no_sense_is_an_error(issuer: EntraServer) -> None:
    """The SDK raises ValueError for it."""
    endpoints = Endpoints(blob="https://127.0.0.1/acct")
    signs = granter(
        issuer,
        issuer.ca_bundle,
        tenant="no tenant",
        services=(endpoints.blob,),
        endpoints=endpoints,
    )
    with pytest.raises(StorageError, match="SDK failed: ValueError: Invalid tenant"):
        signs.access(plan_of(("az://data/x", FileType.FILE)), {})


def test_an_identity_signs_for_azure_files(
    issuer: EntraServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever proxies the environment names."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    directory = tmp_path / "files"
    directory.mkdir()
    certificate = certificates.make(directory, "127.0.0.1")
    with AzureFilesServer(certificate) as server:
        server.make_share("share")
        server.plant("share", "in/one", b"text")
        ca = bundle(tmp_path, certificate.authority, issuer.ca_bundle)
        endpoints = Endpoints(file=server.endpoint, ca_bundle=str(ca))
        own = {"account": ACCOUNT, "services": (server.endpoint,)}
        signs = granter(issuer, ca, endpoints=endpoints, **own)
        url = f"{server.endpoint}/share"
        plan = plan_of(
            (f"{url}/in/one", FileType.FILE), outputs=(("/out/x", f"{url}/out", FileType.FILE),)
        )
        granted = signs.access(plan, {})
        assert granted.notes == ()
        assert signs.access(plan, {}).inputs.keys() == {0}
        assert server.keys_given == 1
        with contextlib.closing(Transport(ca_bundle=str(ca))) as transport:
            storage = AzureFilesStorage(transport, endpoints)
            assert storage.get(granted.inputs[0], tmp_path / "one") == 4
            assert storage.put(tmp_path / "one", granted.outputs[0]) == 4
            assert isinstance(server.found("share", "out"), File)
            with pytest.raises(StorageError, match="403"):
                storage.get(granted.inputs[0].replace("/one?", "/two?"), tmp_path / "two")
