"""Azure Blob Storage, against Azurite."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from azure.core.credentials import AccessToken
from azure.storage.blob import BlobServiceClient, ContentSettings

from tesazure.access import Endpoints
from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.storage.base import Entry
from tesazure.storage.blob import BlobStorage
from tesazure.storage.parts import CONNECTIONS, PART
from tesazure.storage.sas import DelegationKey, Grant, Place, delegation_sas
from tesazure.storage.transport import Patience, Transport
from tests.conftest import shared
from tests.service.acts import do
from tests.services.azurite import ACCOUNT, Azurite, AzuriteTls

HASTY = Patience(attempts=2, pause_s=0.01)


@pytest.fixture
def azurite() -> Azurite:
    return shared(Azurite)


@pytest.fixture
def container(azurite: Azurite) -> Iterator[str]:
    with azurite.container() as name:
        yield name


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(patience=HASTY)) as transport:
        yield transport


@pytest.fixture
def storage(azurite: Azurite, transport: Transport) -> BlobStorage:
    return BlobStorage(transport, azurite.endpoints)


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


REASONS = [
    # what is done, the SAS, what it is done to, the error, what its text says
    ("get", "expired", "blob", PermissionDenied, "HTTP 403 .*; the SAS expired at 20.*Z: make a"),
    ("stat", "expired", "blob", PermissionDenied, "the SAS expired at"),
    ("put", "expired", "blob", PermissionDenied, "the SAS expired at"),
    ("get", "cut short", "blob", PermissionDenied, "HTTP 403 .*; the SAS does not fit"),
    ("get", "of another blob", "blob", PermissionDenied, "the SAS does not fit"),
    ("put", "read-only", "blob", PermissionDenied, "AuthorizationPermissionMismatch.*sp=r"),
    ("list", "read-only", "", PermissionDenied, "AuthorizationPermissionMismatch.*sp=r"),
    ("get", "write-only", "blob", PermissionDenied, "AuthorizationPermissionMismatch.*sp=cw"),
    ("get", "none", "blob", PermissionDenied, "has no SAS"),
    ("get", "good", "missing", StorageNotFound, "HTTP 404 .*BlobNotFound; the container has no bl"),
    ("stat", "good", "missing", StorageNotFound, "HTTP 404 .*BlobNotFound"),
    ("stat", "read-only", "missing", StorageNotFound, "BlobNotFound.*cannot be asked"),
    ("list", "good", "missing", StorageNotFound, "HTTP 404 .*BlobNotFound"),
    ("list", "good", "blob", StorageError, "is a blob, not a directory"),
    ("get", "good", "archived", StorageError, "BlobArchived.*rehydrate"),
    ("put", "good", "leased", StorageError, "HTTP 412 .*LeaseIdMissing.*holds a lease"),
    ("put", "good", "page", StorageError, "HTTP 409 .*InvalidBlobType.*delete it"),
]


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: " ".join(reason[:3]))
def test_reasons_are_told_apart(
    reason: tuple[str, str, str, type[StorageError], str],
    azurite: Azurite,
    container: str,
    storage: BlobStorage,
    tmp_path: Path,
) -> None:
    act, signature, name, error, text = reason
    with azurite.client() as client:
        blobs = client.get_container_client(container)
        blobs.upload_blob("blob", b"x")
        if name == "archived":
            blobs.upload_blob(name, b"x").set_standard_blob_tier("Archive")
        if name == "leased":
            blobs.upload_blob(name, b"x").acquire_lease()
        if name == "page":
            blobs.get_blob_client(name).create_page_blob(512)
    made = {
        "expired": lambda: azurite.container_sas(container, minutes=-1),
        "cut short": lambda: re.sub("sig=[^&]*", "sig=AAAA", azurite.container_sas(container)),
        "of another blob": lambda: azurite.blob_sas(container, "another"),
        "read-only": lambda: azurite.container_sas(container, "r"),
        "write-only": lambda: azurite.container_sas(container, "cw"),
        "good": lambda: azurite.container_sas(container),
        "none": lambda: "",
    }
    sas = made[signature]()
    plain = f"{azurite.endpoint}/{container}/{name}"
    url = f"{plain}?{sas}"
    # Large enough for blocks where an upload is refused at the block, not at the blob.
    (tmp_path / "file").write_bytes(bytes(PART + 1) if name == "page" else b"x")
    with pytest.raises(error, match=text) as caught:
        do(storage, act, url, tmp_path / "file")
    assert type(caught.value) is error
    assert plain in str(caught.value)
    assert "sig=" not in str(caught.value)
    assert not (tmp_path / "got").exists()


def test_wrong_places_are_told_apart(
    azurite: Azurite, storage: BlobStorage, transport: Transport, tmp_path: Path
) -> None:
    sas = azurite.container_sas("nothing-here")
    with pytest.raises(StorageNotFound, match=r"ContainerNotFound; the account has no such cont"):
        storage.stat(f"{azurite.endpoint}/nothing-here/x?{sas}")
    with pytest.raises(StorageNotFound, match=r"ContainerNotFound"):
        list(storage.list(f"{azurite.endpoint}/nothing-here?{sas}"))
    elsewhere = Endpoints(blob_suffixes=(".blob.invalid",))
    hasty = BlobStorage(Transport(patience=Patience(attempts=1, connect_s=5)), elsewhere)
    with pytest.raises(StorageUnavailable, match=r"nobody\.blob\.invalid.*no storage account"):
        hasty.get("https://nobody.blob.invalid/container/x", tmp_path / "got")


def test_a_useless_sas_is_noticed_before_anything_is_asked(storage: BlobStorage) -> None:
    url = "https://account.blob.core.windows.net/container/x"
    storage.check(f"{url}?sp=r&se=2999-01-01T00:00:00Z&sig=x", writing=False)
    storage.check(f"{url}?si=policy&sig=x", writing=True)
    for sas, writing, text in (
        ("sp=r&se=2020-01-01T00:00:00Z&sig=x", False, "expired at 2020-01-01T00:00:00Z"),
        ("sp=r&st=2999-01-01&se=2999-01-02&sig=x", False, "not valid before 2999-01-01"),
        ("sp=rl&se=2999-01-01&sig=x", True, "permits sp=rl, but this needs c or w"),
        ("sp=cw&se=2999-01-01&sig=x", False, "permits sp=cw, but this needs r"),
    ):
        with pytest.raises(PermissionDenied, match=text) as caught:
            storage.check(f"{url}?{sas}", writing=writing)
        assert "sig=" not in str(caught.value)


def test_public_blobs_need_no_sas(azurite: Azurite, storage: BlobStorage, tmp_path: Path) -> None:
    with azurite.container(public_access="container") as container:
        azurite.client().get_blob_client(container, "top/a").upload_blob(b"abc")
        for top in (f"{azurite.endpoint}/{container}/top", f"az://{container}/top"):
            assert list(storage.list(top)) == [Entry("a", 3)]
            assert storage.stat(top).is_directory
            assert storage.get(f"{top}/a", tmp_path / "got") == 3


def test_a_user_delegation_sas_over_tls(tmp_path: Path, file: Path) -> None:
    azurite = shared(AzuriteTls)
    storage = BlobStorage(Transport(ca_bundle=str(azurite.ca)), azurite.endpoints)
    now = dt.datetime.now(dt.UTC)
    start, expiry = now - dt.timedelta(minutes=5), now + dt.timedelta(minutes=30)
    with BlobServiceClient(
        azurite.endpoint, credential=Identity(), connection_verify=str(azurite.ca)
    ) as client:
        client.create_container("delegated")
        key = client.get_user_delegation_key(start, expiry)
    names = ("oid", "tid", "start", "expiry", "service", "version")
    signed = [getattr(key, f"signed_{name}") for name in names]
    sas = delegation_sas(
        Place("blob", ACCOUNT, "delegated"),
        Grant("rcwl", start, expiry),
        DelegationKey(*signed, value=key.value),
    )
    url = f"{azurite.endpoint}/delegated/x?{sas}"
    assert storage.put(file, url) == 7
    assert storage.get(url, tmp_path / "got") == 7
    distrusting = BlobStorage(Transport(patience=HASTY), azurite.endpoints)
    with pytest.raises(StorageError, match="certificate is not valid"):
        distrusting.stat(url)


class Identity:
    """A credential with a token as Entra ID makes them, but for the signature."""

    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        """A token for storage, good for an hour."""
        assert scopes == ("https://storage.azure.com/.default",)
        now = int(time.time())
        claims = {
            "aud": "https://storage.azure.com",
            "iss": "https://sts.windows.net/00000000-0000-0000-0000-000000000001/",
            "iat": now - 60,
            "nbf": now - 60,
            "exp": now + 3600,
            "oid": "00000000-0000-0000-0000-000000000002",
            "tid": "00000000-0000-0000-0000-000000000001",
        }
        parts = ({"alg": "RS256", "typ": "JWT"}, claims)
        encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts]
        token = b".".join(part.rstrip(b"=") for part in [*encoded, b"signature"])
        return AccessToken(token.decode(), now + 3600)


@pytest.mark.parametrize(
    "size",
    [
        PART,
        3 * PART + 5,
        pytest.param(40 * 2**20, marks=pytest.mark.slow),
    ],
)
def test_blobs_go_up_and_come_down_in_parallel(
    size: int, azurite: Azurite, container: str, storage: BlobStorage, tmp_path: Path
) -> None:
    path = tmp_path / "reads.vcf.gz"
    with path.open("wb") as target:
        for start in range(0, size, PART):
            target.write(os.urandom(min(PART, size - start)))
    url = f"{azurite.endpoint}/{container}/reads.vcf.gz?{azurite.container_sas(container)}"
    sent: list[int] = []
    assert storage.put(path, url, sent.append) == sum(sent) == size
    md5 = hashlib.md5(path.read_bytes()).digest()
    found = storage.stat(url)
    assert (found.size, found.checksum) == (size, f"md5:{md5.hex()}")
    with azurite.client().get_blob_client(container, path.name) as blob:
        settings = blob.get_blob_properties().content_settings
        assert bytes(settings.content_md5) == md5
        assert settings.content_type == "application/gzip"
        assert settings.content_encoding is None
        committed, uncommitted = blob.get_block_list("all")
        assert [len(committed), uncommitted] == [0 if size <= PART else -(-size // PART), []]
    assert storage.get(url, tmp_path / "got") == size
    assert hashlib.md5((tmp_path / "got").read_bytes()).digest() == md5


def test_a_wrong_checksum_is_not_accepted(
    azurite: Azurite, container: str, storage: BlobStorage, tmp_path: Path
) -> None:
    with azurite.client().get_blob_client(container, "blob") as blob:
        blob.upload_blob(b"content")
        settings = ContentSettings(content_md5=bytearray(16))
        blob.set_http_headers(settings)
    url = f"{azurite.endpoint}/{container}/blob?{azurite.container_sas(container)}"
    with pytest.raises(StorageError, match=r"md5 0{32}\) does not fit"):
        storage.get(url, tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_a_blob_replaced_meanwhile_comes_as_one_version(
    azurite: Azurite, container: str, storage: BlobStorage, tmp_path: Path
) -> None:
    # More parts than are asked for before the first byte comes.
    old, new = os.urandom((CONNECTIONS + 4) * PART), os.urandom(PART + 99)
    url = f"{azurite.endpoint}/{container}/blob?{azurite.container_sas(container)}"
    replaced = threading.Event()
    with azurite.client().get_blob_client(container, "blob") as blob:
        blob.upload_blob(old)

        def replace(moved: int) -> None:
            if moved and not replaced.is_set():
                replaced.set()
                blob.upload_blob(new, overwrite=True)

        storage.get(url, tmp_path / "got", replace)
    assert sha256(tmp_path / "got") == hashlib.sha256(new).hexdigest()


def test_uploads_to_the_same_blob_never_mix(
    azurite: Azurite, container: str, storage: BlobStorage, tmp_path: Path
) -> None:
    url = f"{azurite.endpoint}/{container}/blob?{azurite.container_sas(container)}"
    paths = [tmp_path / str(n) for n in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (2 * PART + 1))

    def send(path: Path) -> bool:
        try:
            storage.put(path, url)
        except StorageError as error:
            # Another upload was committed first, which discards the blocks of this one.
            assert "InvalidBlockList" in str(error)
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        assert any(pool.map(send, paths))
    storage.get(url, tmp_path / "got")
    assert len(set((tmp_path / "got").read_bytes())) == 1


def test_long_lists_come_in_pages(
    azurite: Azurite, container: str, transport: Transport, file: Path
) -> None:
    storage = BlobStorage(transport, azurite.endpoints, page=50)
    sas = azurite.container_sas(container)
    names = [f"{n % 3}/{n:04}" for n in range(260)]
    with ThreadPoolExecutor(8) as pool:
        urls = (f"{azurite.endpoint}/{container}/top/{name}?{sas}" for name in names)
        assert all(size == 7 for size in pool.map(lambda url: storage.put(file, url), urls))
    top = f"{azurite.endpoint}/{container}/top/?{sas}"
    assert [entry.path for entry in storage.list(top)] == sorted(names)
    below = f"{azurite.endpoint}/{container}/top/1?{sas}"
    assert len(list(storage.list(below))) == 87


def test_both_ways_to_mark_an_empty_directory(
    azurite: Azurite, container: str, storage: BlobStorage, tmp_path: Path
) -> None:
    with azurite.client().get_container_client(container) as blobs:
        blobs.upload_blob("top/marked", b"", metadata={"hdi_isfolder": "true"})
        blobs.upload_blob("top/slash/", b"")
        blobs.upload_blob("top/full", b"", metadata={"Hdi_isfolder": "True"})
        blobs.upload_blob("top/full!", b"1")
        blobs.upload_blob("top/full/file", b"12")
    top = f"{azurite.endpoint}/{container}/top?{azurite.container_sas(container)}"
    marked = top.replace("/top?", "/top/marked?")
    assert set(storage.list(top)) == {
        Entry("marked", 0, is_directory=True),
        Entry("slash", 0, is_directory=True),
        Entry("full!", 1),
        Entry("full/file", 2),
    }
    assert storage.stat(marked).is_directory
    assert storage.stat(top.replace("/top?", "/top/slash/?")).is_directory
    assert list(storage.list(marked)) == []
    (tmp_path / "kept").write_text("as it was")
    for name in ("got", "kept"):
        with pytest.raises(StorageError, match="is a directory"):
            storage.get(marked, tmp_path / name)
    assert not (tmp_path / "got").exists()
    assert (tmp_path / "kept").read_text() == "as it was"
    with pytest.raises(StorageError, match="cannot become a directory"):
        storage.make_directory(top.replace("/top?", "/top/full!?"))


@pytest.mark.parametrize("name", ["top//blob", "top/a/"])
def test_names_that_are_no_paths(
    name: str, azurite: Azurite, container: str, storage: BlobStorage, file: Path
) -> None:
    sas = azurite.container_sas(container)
    azurite.client().get_blob_client(container, name).upload_blob(b"x")
    with pytest.raises(StorageError, match="cannot become a file"):
        list(storage.list(f"{azurite.endpoint}/{container}/top?{sas}"))
    url = f"{azurite.endpoint}/{container}/top/../x?{sas}"
    for act in (lambda: storage.check(url, writing=True), lambda: storage.put(file, url)):
        with pytest.raises(UnsupportedUrl, match=r"is \. or \.\."):
            act()
    with pytest.raises(UnsupportedUrl, match="names a directory"):
        storage.put(file, f"{azurite.endpoint}/{container}/a/?{sas}")
