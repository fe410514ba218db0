"""SFTP on real servers: host keys, logins, broken connections, refusals."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import paramiko
import pytest
from paramiko.sftp import SFTP_FAILURE, SFTP_PERMISSION_DENIED

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.storage.base import Entry
from tesazure.storage.patience import Patience
from tesazure.storage.sftp import SftpStorage
from tests.conftest import shared
from tests.services.cutting_proxy import CuttingProxy
from tests.services.sftp_password_server import PASSWORD, USER, PasswordServer
from tests.services.sftp_server import SftpServer

QUICK = Patience(attempts=5, pause_s=0.001, read_s=10, progress_bytes=10_000)
WHO = f"{USER}:{quote(PASSWORD, safe='')}"
SIZE = 5_000_000


@pytest.fixture(scope="module")
def server() -> SftpServer:
    return shared(SftpServer)


@pytest.fixture
def storage(server: SftpServer) -> Iterator[SftpStorage]:
    storage = SftpStorage(server.key, server.known_hosts(), patience=QUICK)
    yield storage
    storage.close()


@pytest.fixture
def proxy(server: SftpServer) -> Iterator[CuttingProxy]:
    with CuttingProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(server: SftpServer, proxy: CuttingProxy) -> Iterator[SftpStorage]:
    """A storage that knows the server behind the proxy."""
    storage = SftpStorage(server.key, server.known_hosts(proxy.port), patience=QUICK)
    yield storage
    storage.close()


def url_of(server: SftpServer, place: Path, port: int | None = None) -> str:
    """URL of a file of this machine."""
    return f"sftp://{server.user}@127.0.0.1:{port or server.port}{place.as_uri()[7:]}"


@pytest.mark.parametrize("lines", ["plain", "hashed", "pattern", "several"])
def test_known_servers_are_talked_to(server: SftpServer, tmp_path: Path, lines: str) -> None:
    name, key = f"[127.0.0.1]:{server.port}", server.host_key
    known = {
        "plain": f"# a remark\n\n{name} {key} root@node\n",
        "hashed": f"{paramiko.HostKeys.hash_host(name)} {key}\n",
        "pattern": f"!other,[127.0.0.?]:* {key}\n",
        "several": f"other {_other_key()}\n{name} {_other_key()}\n{name} {key}\n",
    }[lines]
    storage = SftpStorage(server.key, known, patience=QUICK)
    assert storage.stat(url_of(server, tmp_path)).is_directory
    storage.close()


def test_unknown_servers_are_not(server: SftpServer, tmp_path: Path) -> None:
    name = f"[127.0.0.1]:{server.port}"
    for known in ("", f"!{name},* {server.host_key}\n", f"other {server.host_key}\n"):
        with pytest.raises(PermissionDenied) as caught:
            SftpStorage(server.key, known, patience=QUICK).stat(url_of(server, tmp_path))
        text = str(caught.value)
        assert "SFTP_KNOWN_HOSTS" in text
        line = text.rpartition("names: ")[2]
        assert SftpStorage(server.key, line, patience=QUICK).stat(url_of(server, tmp_path))


def test_a_server_with_another_key_is_not_trusted(server: SftpServer, tmp_path: Path) -> None:
    name = f"[127.0.0.1]:{server.port}"
    with pytest.raises(PermissionDenied, match=r"another host key .*in between"):
        SftpStorage(server.key, f"{name} {_other_key()}\n", patience=QUICK).stat(
            url_of(server, tmp_path)
        )
    revoked = f"{name} {server.host_key}\n@revoked * {server.host_key}\n"
    with pytest.raises(PermissionDenied, match="revoked"):
        SftpStorage(server.key, revoked, patience=QUICK).stat(url_of(server, tmp_path))


def test_logins_that_are_refused(server: SftpServer, tmp_path: Path) -> None:
    known, url = server.known_hosts(), url_of(server, tmp_path)
    other = subprocess.run(
        ["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(tmp_path / "other")], check=False
    )
    assert other.returncode == 0
    for key, reason in (
        ("", "neither a password in the URL nor a private key"),
        ((tmp_path / "other").read_text(), "in with this private key"),
        ("no key at all", "is none of"),
    ):
        with pytest.raises(PermissionDenied, match=reason) as caught:
            SftpStorage(key, known, patience=QUICK).stat(url)
        assert f"{tmp_path}: " in str(caught.value)
    with pytest.raises(PermissionDenied, match="by a password, but by publickey") as caught:
        SftpStorage(server.key, known, patience=QUICK).stat(url.replace("@", ":hunter2@"))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UnsupportedUrl, match="names no user"):
        SftpStorage(server.key, known).stat(f"sftp://127.0.0.1:{server.port}/x")


def test_passwords(tmp_path: Path) -> None:
    root = tmp_path / "served"
    root.mkdir()
    (root / "file").write_text("x")
    with PasswordServer(root) as server:
        storage = SftpStorage("", server.known_hosts, patience=QUICK)
        base = f"127.0.0.1:{server.port}/file"
        assert storage.get(f"sftp://{WHO}@{base}", tmp_path / "got") == 1
        with pytest.raises(PermissionDenied, match="ann in with this password") as caught:
            storage.get(f"sftp://ann:guessed-it@{base}", tmp_path / "got")
        assert "guessed-it" not in str(caught.value)
        assert server.tries == 1
        storage.close()


def test_a_server_without_extensions(tmp_path: Path) -> None:
    root = tmp_path / "served"
    root.mkdir()
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    with PasswordServer(root) as server:
        storage = SftpStorage("", server.known_hosts, patience=QUICK)
        url = f"sftp://{WHO}@127.0.0.1:{server.port}/new/deeper/object"
        for _ in range(2):
            assert storage.put(tmp_path / "file", url) == SIZE
        assert names(root / "new/deeper") == ["object"]
        assert (root / "new/deeper/object").read_bytes() == content
        storage.get(url, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == content
        storage.close()


@pytest.mark.parametrize("status", [SFTP_PERMISSION_DENIED, SFTP_FAILURE])
def test_a_refused_rename_loses_nothing(tmp_path: Path, status: int) -> None:
    root = tmp_path / "served"
    root.mkdir()
    (root / "object").write_text("old")
    (tmp_path / "file").write_text("new")
    moved: list[str] = []

    def refuse(old: str, new: str) -> int | None:
        moved.append(new)
        return status if old.endswith(".part") else None

    with PasswordServer(root) as server:
        storage = SftpStorage("", server.known_hosts, patience=QUICK)
        server.refuse = refuse
        kind = PermissionDenied if status == SFTP_PERMISSION_DENIED else StorageError
        with pytest.raises(kind, match="/object: "):
            storage.put(tmp_path / "file", f"sftp://{WHO}@127.0.0.1:{server.port}/object")
        storage.close()
    assert {place.name: place.read_text() for place in root.iterdir()} == {"object": "old"}
    assert any(name.endswith(".old") for name in moved) == (status == SFTP_FAILURE)


@pytest.mark.parametrize("losses", [1, 99])
def test_a_connection_lost_while_a_file_is_replaced(tmp_path: Path, losses: int) -> None:
    """The old file has another name then."""
    root = tmp_path / "served"
    root.mkdir()
    (root / "object").write_text("old")
    (tmp_path / "file").write_text("new")
    lost: list[str] = []

    def refuse(old: str, new: str) -> int | None:
        if old.endswith(".part") and not (root / "object").exists() and len(lost) < losses:
            lost.append(new)
            server.cut()
            return SFTP_FAILURE
        return None

    with PasswordServer(root) as server:
        storage = SftpStorage("", server.known_hosts, patience=QUICK)
        server.refuse = refuse
        url = f"sftp://{WHO}@127.0.0.1:{server.port}/object"
        if losses == 1:
            storage.put(tmp_path / "file", url)
        else:
            with pytest.raises(StorageUnavailable):
                storage.put(tmp_path / "file", url)
        storage.close()
    assert lost
    expected = "new" if losses == 1 else "old"
    assert {place.name: place.read_text() for place in root.iterdir()} == {"object": expected}


def test_an_upload_that_failed_leaves_nothing(
    server: SftpServer, proxied: SftpStorage, proxy: CuttingProxy, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(SIZE))
    (tmp_path / "to").mkdir()
    proxy.cuts = [12_000] * QUICK.attempts  # the login takes some 3 KB
    with pytest.raises(StorageUnavailable):
        proxied.put(tmp_path / "file", url_of(server, tmp_path / "to/object", proxy.port))
    assert names(tmp_path / "to") == []
    assert proxy.cuts == []


def test_a_time_alone_is_no_firm_version_at_first(
    server: SftpServer, storage: SftpStorage, tmp_path: Path
) -> None:
    (tmp_path / "object").write_text("1")
    url = url_of(server, tmp_path / "object")
    assert not storage.stat(url).is_firm
    os.utime(tmp_path / "object", (0, time.time() - 60))
    assert storage.stat(url).is_firm


def test_what_a_killed_writer_left_is_not_listed(
    server: SftpServer, storage: SftpStorage, tmp_path: Path
) -> None:
    for name in ("file", ".tesazure-0123456789abcdef.part", ".tesazure-0123456789abcdef.old"):
        (tmp_path / name).touch()
    assert list(storage.list(url_of(server, tmp_path))) == [Entry("file", 0)]


def test_a_broken_download_goes_on_where_it_broke(
    server: SftpServer, proxied: SftpStorage, proxy: CuttingProxy, tmp_path: Path
) -> None:
    content = os.urandom(SIZE)
    (tmp_path / "object").write_bytes(content)
    proxy.cuts = [100_000, 10, 3_000_000, 1_000_000]
    moved: list[int] = []
    url = url_of(server, tmp_path / "object", proxy.port)
    assert proxied.get(url, tmp_path / "got", moved.append) == SIZE
    assert (tmp_path / "got").read_bytes() == content
    assert proxy.connections == 5
    # What was under way when a connection broke came again, and no more than that.
    assert proxy.passed < 2 * SIZE
    assert SIZE <= sum(moved) < SIZE + 3 * 2**21


def test_a_broken_upload_goes_on_where_it_broke(
    server: SftpServer, proxied: SftpStorage, proxy: CuttingProxy, tmp_path: Path
) -> None:
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    proxy.cuts = [100_000, 10, 3_000_000, 1_000_000]
    url = url_of(server, tmp_path / "new" / "object", proxy.port)
    assert proxied.put(tmp_path / "file", url) == SIZE
    assert (tmp_path / "new" / "object").read_bytes() == content
    assert names(tmp_path / "new") == ["object"]
    assert proxy.passed < 2 * SIZE + 2**21


def test_many_cuts_both_ways(
    server: SftpServer, proxied: SftpStorage, proxy: CuttingProxy, tmp_path: Path
) -> None:
    chance = random.Random(7)
    url = url_of(server, tmp_path / "new" / "object", proxy.port)
    for _ in range(8):
        content = chance.randbytes(chance.randrange(1, 1_000_000))
        (tmp_path / "file").write_bytes(content)
        for act in ("put", "get"):
            proxied.close()
            proxy.cuts = [chance.randrange(1, 500_000) for _ in range(chance.randrange(4))]
            if act == "put":
                proxied.put(tmp_path / "file", url)
                assert (tmp_path / "new" / "object").read_bytes() == content
            else:
                proxied.get(url, tmp_path / "got")
                assert (tmp_path / "got").read_bytes() == content
    assert names(tmp_path / "new") == ["object"]


def test_a_file_that_changed_meanwhile_starts_over(
    server: SftpServer, proxied: SftpStorage, proxy: CuttingProxy, tmp_path: Path
) -> None:
    place = tmp_path / "object"
    place.write_bytes(os.urandom(SIZE))
    new = os.urandom(SIZE - 5)
    proxy.cuts = [SIZE // 2]

    def change(_: int) -> None:
        if place.stat().st_size == SIZE:
            (tmp_path / "new").write_bytes(new)
            (tmp_path / "new").rename(place)

    proxied.get(url_of(server, place, proxy.port), tmp_path / "got", change)
    assert (tmp_path / "got").read_bytes() == new


def test_patience_ends(
    server: SftpServer, proxied: SftpStorage, proxy: CuttingProxy, tmp_path: Path
) -> None:
    (tmp_path / "object").write_bytes(b"x")
    proxy.cuts = [2000] * 50
    with pytest.raises(StorageUnavailable, match=r"get sftp://127.*/object: .* \(5 attempts\)"):
        proxied.get(url_of(server, tmp_path / "object", proxy.port), tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_a_stalled_transfer_is_noticed(
    server: SftpServer, proxy: CuttingProxy, tmp_path: Path
) -> None:
    (tmp_path / "object").write_bytes(os.urandom(SIZE))
    patience = Patience(attempts=2, pause_s=0.01, connect_s=0.5, read_s=0.5)
    storage = SftpStorage(server.key, server.known_hosts(proxy.port), patience=patience)
    with pytest.raises(StorageUnavailable, match="2 attempts"):
        storage.get(
            url_of(server, tmp_path / "object", proxy.port),
            tmp_path / "got",
            lambda size: proxy.hold() if size else None,
        )
    assert not (tmp_path / "got").exists()


def test_a_progress_ends_a_stalled_transfer(
    server: SftpServer, proxied: SftpStorage, proxy: CuttingProxy, tmp_path: Path
) -> None:
    (tmp_path / "object").write_bytes(os.urandom(SIZE))
    before = threading.active_count()

    def stop(size: int) -> None:
        if size:
            proxy.hold()
        elif not proxy.flowing.is_set():
            raise StoppedByTest

    with pytest.raises(StoppedByTest):
        proxied.get(url_of(server, tmp_path / "object", proxy.port), tmp_path / "got", stop)
    assert not (tmp_path / "got").exists()
    assert threading.active_count() <= before + 3  # the proxy's own: nothing of the transfer's


def test_a_connection_serves_many_files(
    server: SftpServer, proxied: SftpStorage, proxy: CuttingProxy, tmp_path: Path
) -> None:
    for n in range(20):
        (tmp_path / str(n)).write_text(str(n))
        proxied.get(url_of(server, tmp_path / str(n), proxy.port), tmp_path / "got")
    assert proxy.connections == 1


def test_links_and_special_files(server: SftpServer, storage: SftpStorage, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "real").mkdir(parents=True)
    (top / "real" / "file").write_text("x")
    (top / "link").symlink_to("real")
    (top / "short").symlink_to("real/file")
    url = url_of(server, top)
    expected = {Entry("real/file", 1), Entry("link/file", 1), Entry("short", 1)}
    assert set(storage.list(url)) == expected
    for name, make, reason in (
        ("loop", lambda place: place.symlink_to(".."), "leads to its own parents"),
        ("lost", lambda place: place.symlink_to("nowhere"), "leads nowhere"),
        ("pipe", os.mkfifo, "a named pipe"),
    ):
        place = top / "real" / name
        make(place)
        with pytest.raises(StorageError, match=f"{name}: .*{reason}"):
            list(storage.list(url))
        place.unlink()
    os.mkfifo(top / "pipe")
    for act in (storage.stat, lambda url: storage.get(url, tmp_path / "got")):
        with pytest.raises(StorageError, match="is a named pipe"):
            act(f"{url}/pipe")


def test_homes(server: SftpServer, storage: SftpStorage) -> None:
    base = f"sftp://{server.user}@127.0.0.1:{server.port}"
    assert storage.stat(f"{base}/~").is_directory
    with pytest.raises(StorageNotFound, match="~/no such file"):
        storage.stat(f"{base}/~/no such file")


def test_a_file_does_not_replace_a_directory(
    server: SftpServer, storage: SftpStorage, tmp_path: Path
) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="/top: a directory is already there"):
        storage.put(tmp_path / "file", url_of(server, tmp_path / "top"))
    with pytest.raises(StorageError, match="/file: a file is already there"):
        storage.make_directory(url_of(server, tmp_path / "file"))
    assert sorted(names(tmp_path)) == ["file", "top"]


def test_addresses_that_are_refused(server: SftpServer, tmp_path: Path) -> None:
    with pytest.raises(PermissionDenied, match="private address"):
        SftpStorage(server.key, server.known_hosts(), allow_private=False, patience=QUICK).stat(
            url_of(server, tmp_path)
        )
    with pytest.raises(PermissionDenied, match="metadata"):
        SftpStorage().check("sftp://ann@169.254.169.254/x", writing=True)
    rebound = SftpStorage(patience=QUICK, resolve=lambda *_: ["169.254.169.254"])
    with pytest.raises(PermissionDenied, match=r"sftp://a.example/x: .*metadata"):
        rebound.stat("sftp://ann@a.example/x")


@pytest.mark.parametrize(
    "url", ["sftp://ann@host/a?b", "sftp://ann@host/a%00", "sftp://a%0Ann@host/a", "sftp:///a"]
)
def test_urls_that_are_none_are_refused(storage: SftpStorage, url: str) -> None:
    with pytest.raises(UnsupportedUrl):
        storage.check(url, writing=False)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(server: SftpServer, tmp_path: Path) -> None:
    """A sparse file of 256 MiB, in a process of its own."""
    place = tmp_path / "large"
    with place.open("wb") as file:
        file.truncate(2**28)
    program = (
        "import re, sys\nfrom pathlib import Path\n"
        "from tesazure.storage.sftp import SftpStorage\n"
        "key, known, url, place = sys.argv[1:]\n"
        "SftpStorage(Path(key).read_text(), known).get(url, Path(place))\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    key = str(server.root / "user_key")
    arguments = [key, server.known_hosts(), url_of(server, place), str(tmp_path / "got")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True
    )
    assert (tmp_path / "got").stat().st_size == 2**28
    assert int(done.stdout) < 120_000


class StoppedByTest(Exception):
    """Raised by a Progress."""


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return [place.name for place in directory.iterdir()]


def _other_key() -> str:
    key = paramiko.ECDSAKey.generate()
    return f"{key.get_name()} {key.get_base64()}"
