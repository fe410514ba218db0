"""What the server grants, used against a real Azurite: the rights asked for and no others."""

from __future__ import annotations

import contextlib
import http.server
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from tesazure.access import Endpoints
from tesazure.azure_identity import Identity
from tesazure.errors import PermissionDenied, StorageError, StorageUnavailable
from tesazure.model import FileType
from tesazure.settings import Settings, load
from tesazure.storage.azure_files import AzureFilesStorage
from tesazure.storage.azure_signer import AzureConfig
from tesazure.storage.configured import grant_config_of
from tesazure.storage.grant import GrantConfig, Granter
from tesazure.storage.transport import Transport
from tesazure.storage.urls import join
from tests.conftest import shared
from tests.services import certificates
from tests.services.azure_files_server import ACCOUNT as FILES_ACCOUNT
from tests.services.azure_files_server import KEY as FILES_KEY
from tests.services.azure_files_server import AzureFilesServer, File
from tests.services.azurite import Azurite, AzuriteTls
from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer
from tests.unit.test_grant import plan_of

VERSION = {"x-ms-version": "2021-12-02"}
BLOCK = {"x-ms-blob-type": "BlockBlob"}
FOLDER = {**BLOCK, "x-ms-meta-hdi_isfolder": "true"}


class Client:
    """Plain HTTP with a URL that was granted, and other places under the same signature."""

    def __init__(self, url: str, ca: Path | None = None) -> None:
        self._base, _, self._query = url.partition("?")
        verify = ssl.create_default_context(cafile=str(ca)) if ca else True
        self._http = httpx.Client(verify=verify, trust_env=False, headers=VERSION)

    def do(self, method: str, name: str = "", more: str = "", **options: object) -> int:
        """The status of a request for the URL's blob, or for another `name` beside it."""
        base = f"{self._base.rpartition('/')[0]}/{name}" if name else self._base
        return self._send(method, f"{base}?{self._query}{more}", **options)

    def list(self) -> int:
        """The status of List Blobs in the URL's container."""
        parts = urlsplit(self._base)
        container = "/".join(parts.path.split("/")[:3])
        url = f"{parts.scheme}://{parts.netloc}{container}?restype=container&comp=list"
        return self._send("GET", f"{url}&{self._query}")

    def _send(self, method: str, url: str, **options: object) -> int:
        return self._http.request(method, url, **options).status_code  # type: ignore[arg-type]


@pytest.fixture
def azurite() -> Azurite:
    return shared(Azurite)


@pytest.fixture
def azurite_tls() -> AzuriteTls:
    return shared(AzuriteTls)


def settings_of(service: Azurite, **given: object) -> Settings:
    environ = {
        "STORAGE_ACCOUNT_NAME": service.account,
        "STORAGE_BLOB_ENDPOINT": service.endpoint,
        **{name.upper(): str(value) for name, value in given.items()},
    }
    return load({f"APP_{name}": value for name, value in environ.items()}).settings


@contextmanager
def container_with(service: Azurite, *names: str) -> Iterator[str]:
    """A container with blobs of these names."""
    with service.container() as container, service.client() as client:
        for name in names:
            client.get_blob_client(container, name).upload_blob(b"text")
        yield container


def check_rights(granter: Granter, container: str, ca: Path | None = None) -> None:
    """The granted URLs of a plan let through what they are for, and nothing else."""
    url = f"az://{container}"
    plan = plan_of(
        (f"{url}/in/one", FileType.FILE),
        (f"{url}/in", FileType.DIRECTORY),
        outputs=(
            ("/out/x", f"{url}/out/one", FileType.FILE),
            ("/out/d", f"{url}/out/dir", FileType.DIRECTORY),
        ),
    )
    granted = granter.access(plan, {})
    assert granted.notes == ()

    file = Client(granted.inputs[0], ca)
    assert [file.do("GET"), file.do("HEAD")] == [200, 200]
    assert file.do("GET", "two") == 403
    assert file.do("PUT", headers=BLOCK, content=b"x") == 403
    assert file.do("DELETE") == 403
    assert file.list() == 403

    directory = Client(granted.inputs[1], ca)
    assert [directory.list(), directory.do("GET", "in/two")] == [200, 200]
    assert directory.do("PUT", "in/two", headers=BLOCK, content=b"x") == 403
    assert directory.do("DELETE", "in/two") == 403

    output = Client(granted.outputs[0], ca)
    assert output.do("PUT", headers=BLOCK, content=b"x") == 201
    assert output.do("PUT", headers=BLOCK, content=b"replaced") == 201
    assert output.do("PUT", more="&comp=block&blockid=MQ==", content=b"x") == 201
    assert output.do("PUT", "other", headers=BLOCK, content=b"x") == 403
    assert [output.do("GET"), output.do("DELETE"), output.list()] == [403, 403, 403]

    below = Client(granted.outputs[1], ca)
    assert below.do("PUT", "dir/a", headers=BLOCK, content=b"x") == 201
    assert below.do("PUT", "dir/empty", headers={**FOLDER, "If-None-Match": "*"}) == 201
    assert [below.do("GET", "dir/a"), below.list()] == [403, 403]


def test_an_account_key_grants_just_what_a_plan_needs(azurite: Azurite) -> None:
    granter = Granter(grant_config_of(settings_of(azurite, storage_account_key=azurite.key)))
    with container_with(azurite, "in/one", "in/two") as container:
        check_rights(granter, container)


def test_an_account_key_grants_just_what_a_plan_needs_of_a_share(tmp_path: Path) -> None:
    with AzureFilesServer() as server, contextlib.closing(Transport()) as transport:
        server.make_share("share")
        for path in ("in/one", "in/sub/two"):
            server.plant("share", path, b"text")
        environ = {
            "APP_STORAGE_ACCOUNT_NAME": FILES_ACCOUNT,
            "APP_STORAGE_ACCOUNT_KEY": FILES_KEY,
            "APP_STORAGE_FILE_ENDPOINT": server.endpoint,
        }
        url = f"{server.endpoint}/share"
        plan = plan_of(
            (f"{url}/in/one", FileType.FILE),
            (f"{url}/in", None),
            outputs=(("/out/x", f"{url}/new/out", FileType.FILE),),
        )
        granted = Granter(grant_config_of(load(environ).settings)).access(plan, {})
        storage = AzureFilesStorage(transport, server.endpoints)
        file, directory, output = granted.inputs[0], granted.inputs[1], granted.outputs[0]

        assert storage.get(file, tmp_path / "one") == 4
        assert storage.stat(directory).is_directory
        assert sorted(entry.path for entry in storage.list(directory)) == ["one", "sub/two"]
        assert storage.get(join(directory, "sub/two"), tmp_path / "two") == 4
        for _ in range(2):
            assert storage.put(tmp_path / "one", output) == 4
        storage.make_directory(join(output.replace("/out?", "?"), "empty"))
        assert isinstance(server.found("share", "new/out"), File)

        for act in (
            lambda: storage.put(tmp_path / "one", file),
            lambda: storage.put(tmp_path / "one", join(directory, "one")),
            lambda: storage.get(file.replace("/in/one?", "/in/sub/two?"), tmp_path / "x"),
            lambda: list(storage.list(output.replace("/new/out?", "/in?"))),
        ):
            with pytest.raises(PermissionDenied):
                act()


def test_a_signature_ends(azurite: Azurite) -> None:
    config = grant_config_of(settings_of(azurite, storage_account_key=azurite.key))
    plan_s, allowed_s = 3600, 12 * 3600
    with container_with(azurite, "x") as container:
        plan = plan_of((f"az://{container}/x", FileType.FILE), max_runtime_s=plan_s)
        now = Granter(config).access(plan, {}).inputs[0]
        assert Client(now).do("GET") == 200
        late = Granter(config, clock=lambda: time.time() - plan_s - allowed_s - 5)
        assert Client(late.access(plan, {}).inputs[0]).do("GET") == 403
        early = Granter(config, clock=lambda: time.time() + 14 * 60)
        assert Client(early.access(plan, {}).inputs[0]).do("GET") == 200


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[EntraServer]:
    with EntraServer(tmp_path / "issuer") as server:
        yield server


def bundle(directory: Path, *authorities: Path | str) -> Path:
    """One file of several certificates."""
    file = directory / "bundle.pem"
    file.write_text("".join(Path(authority).read_text() for authority in authorities))
    return file


def principal(service: Azurite, issuer: EntraServer, ca: Path, **given: object) -> Settings:
    """Settings of a service principal that storage knows, and no account key."""
    return settings_of(
        service,
        **{
            "azure_client_id": CLIENT,
            "azure_secret": SECRET,
            "azure_tenant": TENANT,
            "azure_authority_host": issuer.url,
            "ca_bundle": ca,
            **given,
        },
    )


def test_an_identity_grants_just_what_a_plan_needs(
    azurite_tls: AzuriteTls, issuer: EntraServer, tmp_path: Path
) -> None:
    ca = bundle(tmp_path, azurite_tls.ca, issuer.ca_bundle)
    config = grant_config_of(principal(azurite_tls, issuer, ca))
    granter = Granter(config)
    with container_with(azurite_tls, "in/one", "in/two") as container:
        check_rights(granter, container, azurite_tls.ca)
        assert issuer.issued == 1

        plan = plan_of((f"az://{container}/in/one", FileType.FILE), max_runtime_s=60)
        [first, second] = [granter.access(plan, {}).inputs[0] for _ in range(2)]
        fields = dict(parse_qsl(urlsplit(first).query))
        assert (fields["sp"], fields["sr"], fields["spr"]) == ("r", "b", "https")
        assert fields["sktid"] == TENANT
        # The same key for all that fits into its life, which is a week.
        assert fields["skt"] == dict(parse_qsl(urlsplit(second).query))["skt"]
        assert fields["ske"] > fields["se"]


def test_an_identitys_signature_lives_for_a_week_at_most(
    azurite_tls: AzuriteTls, issuer: EntraServer, tmp_path: Path
) -> None:
    ca = bundle(tmp_path, azurite_tls.ca, issuer.ca_bundle)
    granter = Granter(grant_config_of(principal(azurite_tls, issuer, ca)))
    with container_with(azurite_tls, "x") as container:
        plan = plan_of((f"az://{container}/x", FileType.FILE), max_runtime_s=30 * 86400)
        url = granter.access(plan, {}).inputs[0]
        fields = dict(parse_qsl(urlsplit(url).query))
        assert fields["se"] == fields["ske"]
        assert Client(url, azurite_tls.ca).do("GET") == 200


def test_an_identity_that_is_refused_says_so(
    azurite_tls: AzuriteTls, issuer: EntraServer, tmp_path: Path
) -> None:
    ca = bundle(tmp_path, azurite_tls.ca, issuer.ca_bundle)
    plan = plan_of(("az://data/x", FileType.FILE))
    wrong = principal(azurite_tls, issuer, ca, azure_secret="not-the-secret")
    with pytest.raises(StorageError, match=r"identity is refused: .*AADSTS7000215") as refused:
        Granter(grant_config_of(wrong)).access(plan, {})
    assert not refused.value.retryable
    assert "not-the-secret" not in str(refused.value)

    untrusted = principal(azurite_tls, issuer, azurite_tls.ca)
    with pytest.raises(StorageUnavailable, match="cannot be asked for a token now"):
        Granter(grant_config_of(untrusted)).access(plan, {})


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A storage account that gives no key to a token that it can read."""

    def do_POST(self) -> None:
        """Get User Delegation Key, as Azure answers without the role."""
        server = self.server
        assert isinstance(server, _RefusingServer)
        assert self.headers["Authorization"].startswith("Bearer ey")
        server.asked += 1
        said = "<Code>AuthorizationPermissionMismatch</Code><Message>No.</Message>"
        body = f"<?xml version='1.0'?><Error>{said}</Error>".encode()
        self.send_response(403)
        self.send_header("x-ms-error-code", "AuthorizationPermissionMismatch")
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing."""


class _RefusingServer(http.server.ThreadingHTTPServer):
    asked = 0


@contextmanager
def refusing(directory: Path) -> Iterator[tuple[_RefusingServer, Path]]:
    directory.mkdir()
    made = certificates.make(directory, "127.0.0.1")
    with _RefusingServer(("127.0.0.1", 0), _Refusing) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.certificate, made.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server, made.authority
        server.shutdown()


def test_another_account_that_refuses_our_identity_is_asked_anonymously(
    issuer: EntraServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with refusing(tmp_path / "account") as (account, authority):
        url = f"https://127.0.0.1:{account.server_port}/data/x"
        azure = AzureConfig(
            cloud=(".0.0.1",),
            identity=Identity(
                tenant=TENANT,
                client_id=CLIENT,
                secret=SECRET,
                authority=issuer.url,
                ca_bundle=str(bundle(tmp_path, authority, issuer.ca_bundle)),
            ),
        )
        endpoints = Endpoints(blob_suffixes=(".0.0.1",))
        granter = Granter(GrantConfig(endpoints=endpoints, azure=azure))
        plan = plan_of((url, FileType.FILE), (url, FileType.FILE))
        with caplog.at_level(logging.WARNING, "tesazure"):
            granted = [granter.access(plan, {}) for _ in range(3)]
        assert [access.inputs for access in granted] == [{}, {}, {}]
        for access in granted:
            [note] = access.notes
            assert "HTTP 403 AuthorizationPermissionMismatch" in note
            assert "asked for anonymously" in note
        assert account.asked == 1
        assert len([r for r in caplog.records if r.name.startswith("tesazure")]) == 1

        # The configured account must not refuse us: that is an error, and says what is missing.
        own = AzureConfig(
            account="acct",
            services=(f"https://127.0.0.1:{account.server_port}",),
            identity=Identity(
                tenant=TENANT,
                client_id=CLIENT,
                secret=SECRET,
                authority=issuer.url,
                ca_bundle=azure.identity.ca_bundle,
            ),
        )
        with pytest.raises(PermissionDenied, match="Storage Blob Delegator"):
            Granter(GrantConfig(endpoints=endpoints, azure=own)).access(plan, {})
