"""FTP on a real server: logins, broken connections, servers that know less, refusals."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageFull,
    StorageNotFound,
    StorageUnavailable,
    UnsupportedUrl,
)
from tesazure.storage.base import Entry
from tesazure.storage.ftp import FtpStorage
from tesazure.storage.patience import Patience
from tesazure.storage.sockets import connect
from tests.service.ftp.conftest import QUICK, SIZE
from tests.services.ftp_server import WHO, FtpServer


def test_without_a_user_it_is_anonymous(
    server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path
) -> None:
    (root / "open").write_text("for all")
    storage.get(server.url("open"), tmp_path / "got")
    assert (tmp_path / "got").read_text() == "for all"
    assert "USER anonymous" in server.said
    (tmp_path / "file").write_text("x")
    with pytest.raises(PermissionDenied, match=r"/in: 550 Not enough privileges"):
        storage.put(tmp_path / "file", server.url("in"))


def test_a_wrong_password_is_told_and_not_repeated(server: FtpServer, storage: FtpStorage) -> None:
    with pytest.raises(PermissionDenied, match="does not let the user ann in: 530") as caught:
        storage.stat(server.url("x", "ann:guessed-it"))
    assert "guessed-it" not in str(caught.value)
    assert server.said.count("PASS") == 1


def test_a_password_that_the_server_repeats_is_not_shown() -> None:
    answer = {"PASS": "530 no PASS hunter2 here"}
    with (
        _scripted(lambda line: _polite(line, answer)) as url,
        pytest.raises(PermissionDenied) as caught,
    ):
        FtpStorage(patience=QUICK).stat(url)
    assert "hunter2" not in str(caught.value)
    assert "530 no PASS *** here" in str(caught.value)


def test_a_session_serves_many_files(
    server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path
) -> None:
    for n in range(20):
        (root / str(n)).write_text(str(n))
        storage.get(server.url(str(n), WHO), tmp_path / "got")
    with pytest.raises(StorageNotFound):
        storage.get(server.url("missing", WHO), tmp_path / "got")
    assert server.logins == 1


def test_paths_are_the_users_or_absolute(
    server: FtpServer, storage: FtpStorage, root: Path
) -> None:
    (root / "below").mkdir()
    (root / "below" / "file").write_text("x")
    for path in ("below/file", "/below/file", "%2Fbelow/file", "below%2Ffile"):
        assert storage.stat(server.url(path, WHO)).size == 1


@pytest.mark.parametrize("without", [(), ("MLST", "MLSD")])
def test_a_time_alone_is_no_firm_version_at_first(
    root: Path, storage: FtpStorage, without: tuple[str, ...]
) -> None:
    (root / "object").write_text("1")
    with FtpServer(root, without=without) as server:
        url = server.url("object", WHO)
        assert not storage.stat(url).is_firm
        os.utime(root / "object", (0, time.time() - 60))
        assert storage.stat(url).is_firm


def test_a_broken_download_goes_on_where_it_broke(
    server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path
) -> None:
    content = os.urandom(SIZE)
    (root / "object").write_bytes(content)
    server.cuts = [100_000, 1, 2_000_000, 500_000]
    moved: list[int] = []
    assert storage.get(server.url("object", WHO), tmp_path / "got", moved.append) == SIZE
    assert (tmp_path / "got").read_bytes() == content
    assert server.sent < SIZE + 500_000
    assert any(command.startswith("REST") for command in server.said)


def test_a_file_that_changed_meanwhile_starts_over(
    server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path
) -> None:
    (root / "object").write_bytes(os.urandom(SIZE))
    new = os.urandom(SIZE - 5)
    server.cuts = [SIZE // 2]

    def change(_: int) -> None:
        if not server.cuts and (root / "object").stat().st_size == SIZE:
            (root / "new").write_bytes(new)
            (root / "new").rename(root / "object")

    storage.get(server.url("object", WHO), tmp_path / "got", change)
    assert (tmp_path / "got").read_bytes() == new


def test_without_rest_it_starts_over(root: Path, storage: FtpStorage, tmp_path: Path) -> None:
    content = os.urandom(SIZE)
    (root / "object").write_bytes(content)
    with FtpServer(root, without=("REST",)) as server:
        server.cuts = [SIZE // 2]
        storage.get(server.url("object", WHO), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == content


def test_many_cuts_both_ways(
    server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path
) -> None:
    chance = random.Random(7)
    url = server.url("new/object", WHO)
    for _ in range(40):
        content = chance.randbytes(chance.randrange(1, 400_000))
        (tmp_path / "file").write_bytes(content)
        server.cuts = [chance.randrange(1, 500_000) for _ in range(chance.randrange(3))]
        storage.put(tmp_path / "file", url)
        assert (root / "new/object").read_bytes() == content
        server.cuts = [chance.randrange(1, 500_000) for _ in range(chance.randrange(4))]
        storage.get(url, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == content
    assert names(root / "new") == ["object"]


def test_patience_ends(server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path) -> None:
    (root / "object").write_bytes(os.urandom(SIZE))
    server.cuts = [1] * 50
    with pytest.raises(StorageUnavailable, match=r"RETR ftp://127.*/object: .* \(4 attempts\)"):
        storage.get(server.url("object", WHO), tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_a_stalled_transfer_is_noticed(server: FtpServer, root: Path, tmp_path: Path) -> None:
    (root / "object").write_bytes(os.urandom(SIZE))
    server.stalled = True
    storage = FtpStorage(patience=Patience(attempts=2, pause_s=0.01, read_s=0.3))
    with pytest.raises(StorageUnavailable, match="stalled"):
        storage.get(server.url("object", WHO), tmp_path / "got")


def test_a_progress_ends_a_stalled_transfer(
    server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path
) -> None:
    (root / "object").write_bytes(os.urandom(SIZE))
    server.stalled = True

    def stop(_: int) -> None:
        if "RETR" in server.said[-1]:
            raise StoppedByTest

    with pytest.raises(StoppedByTest):
        storage.get(server.url("object", WHO), tmp_path / "got", stop)
    assert not (tmp_path / "got").exists()


def test_data_connections_go_to_the_same_host(
    root: Path, storage: FtpStorage, tmp_path: Path
) -> None:
    (root / "object").write_text("x")
    with FtpServer(root, pasv_address="203.0.113.7") as server:
        storage.get(server.url("object", WHO), tmp_path / "got")
    assert (tmp_path / "got").read_text() == "x"


def test_connections_that_are_silent_for_long_are_kept_alive(server: FtpServer) -> None:
    with connect("127.0.0.1", server.port, allow_private=True, timeout_s=5) as connected:
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_a_file_does_not_replace_a_directory(
    server: FtpServer, storage: FtpStorage, root: Path, tmp_path: Path
) -> None:
    (root / "top").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="/top: is a directory"):
        storage.put(tmp_path / "file", server.url("top", WHO))
    assert names(root) == ["top"]
    with pytest.raises(StorageError, match="/file: a file is already there"):
        (root / "file").touch()
        storage.make_directory(server.url("file", WHO))


def test_what_may_not_be_read_is_told_from_what_is_missing(
    storage: FtpStorage, tmp_path: Path
) -> None:
    """As vsftpd words it: the same for both."""
    lies = {"MLST": "500 ?", "CWD": "550 no", "RETR": "550 Failed to open file."}

    def there(line: str) -> str:
        return "213 5" if line.startswith(("SIZE", "MDTM")) else _polite(line, lies)

    with _scripted(there) as url, pytest.raises(PermissionDenied, match="Failed to open file"):
        storage.get(url, tmp_path / "got")
    lies["SIZE"] = "550 Could not get file size."
    with (
        _scripted(lambda line: _polite(line, lies)) as url,
        pytest.raises(StorageNotFound, match="/object: no such file"),
    ):
        storage.get(url, tmp_path / "got")


def test_a_full_server_is_told(storage: FtpStorage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    full = {"STOR": "452 Insufficient storage space"}
    with (
        _scripted(lambda line: _polite(line, full)) as url,
        pytest.raises(StorageFull, match="no space left: 452"),
    ):
        storage.put(tmp_path / "file", url)


@pytest.mark.parametrize("without", [(), ("MLST", "MLSD")])
def test_links_in_directories(root: Path, storage: FtpStorage, without: tuple[str, ...]) -> None:
    (root / "top" / "real").mkdir(parents=True)
    (root / "top" / "real" / "file").write_text("x")
    (root / "top" / "link").symlink_to("real")
    with FtpServer(root, without=without) as server:
        url = server.url("top", WHO)
        assert set(storage.list(url)) == {Entry("real/file", 1), Entry("link/file", 1)}
        (root / "top" / "real" / "loop").symlink_to("..")
        with pytest.raises(StorageError, match="leads to its own parents"):
            list(storage.list(url))


@pytest.mark.parametrize(
    "listed", ["type=file;size=1; ../../etc/cron.d/x", "type=dir; ..x/..", "type=file; a\x01b"]
)
def test_names_that_are_none_are_refused(storage: FtpStorage, listed: str) -> None:
    """A server must not make a runner write outside the task's directory."""
    with (
        _scripted(_polite, listing=listed) as url,
        pytest.raises(StorageError, match="no name of a file"),
    ):
        list(storage.list(url))


def test_names_that_are_none_are_refused_before_they_are_asked_about(storage: FtpStorage) -> None:
    """A server without MLST is asked about each name that it lists."""
    known = {"FEAT": "502 no", "CWD": "250 in"}
    with (
        _scripted(lambda line: _polite(line, known), listing="a\x01b") as url,
        pytest.raises(StorageError, match="no name of a file"),
    ):
        list(storage.list(url))


def test_a_list_without_end_is_given_up(storage: FtpStorage) -> None:
    line = f"type=file;size=1; {'x' * 200}\r\n"
    with (
        _scripted(_polite, listing=line * (65 * 2**20 // len(line))) as url,
        pytest.raises(StorageError, match="longer than 64 MiB"),
    ):
        list(storage.list(url))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/a%0D%0ADELE%20b",
        "ftp://ho\x00st/a",
        "ftp://ho\\st/a",
        "ftp://host/a%00",
        "ftp://us%0Aer:x@host/a",
        "ftp://user:p%0D@host/a",
        "ftp://host/a\nb",
        "ftp://host/a?b",
        "ftp:///a",
        "ftp://host:99999/a",
    ],
)
def test_urls_that_are_none_are_refused(storage: FtpStorage, url: str, tmp_path: Path) -> None:
    for act in (
        lambda: storage.check(url, writing=False),
        lambda: storage.stat(url),
        lambda: storage.get(url, tmp_path / "got"),
    ):
        with pytest.raises(UnsupportedUrl):
            act()


def test_addresses_that_are_refused(server: FtpServer, root: Path) -> None:
    (root / "object").touch()
    with pytest.raises(PermissionDenied, match="private address"):
        FtpStorage(allow_private=False, patience=QUICK).stat(server.url("object"))
    for host in ("169.254.169.254", "[fd00:ec2::254]"):
        for act in (
            lambda: FtpStorage().check(f"ftp://{host}/x", writing=False),  # noqa: B023
            lambda: FtpStorage(patience=QUICK).stat(f"ftp://{host}/x"),  # noqa: B023
        ):
            with pytest.raises(PermissionDenied, match="metadata"):
                act()
    rebound = FtpStorage(patience=QUICK, resolve=lambda *_: ["169.254.169.254"])
    with pytest.raises(PermissionDenied, match=r"ftp://a.example/x: .*metadata"):
        rebound.stat("ftp://a.example/x")


def test_nobody_listens(storage: FtpStorage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(StorageUnavailable, match="Connection refused"):
        storage.stat(f"ftp://127.0.0.1:{port}/x")


class StoppedByTest(Exception):
    """Raised by a Progress."""


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return [place.name for place in directory.iterdir()]


def _polite(line: str, instead: dict[str, str] | None = None) -> str:
    """What a server says to a command."""
    replies = {
        "USER": "331 who",
        "PASS": "230 in",
        "TYPE": "200 ok",
        "PWD": '257 "/"',
        "FEAT": "211-Features\r\n MLST type*;size*;\r\n211 End",
        "MLST": "250-Listing\r\n type=dir; /top\r\n250 End",
        **(instead or {}),
    }
    return replies.get(line.split(maxsplit=1)[0], "200 ok")


class _scripted:  # noqa: N801 - used as a function
    """A server that says what it is told to, and lists one line."""

    def __init__(self, answer: Callable[[str], str], listing: str = "") -> None:
        self._answer = answer
        self._listing = listing
        self._server = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> str:
        threading.Thread(target=self._serve, daemon=True).start()
        return f"ftp://ann:hunter2@127.0.0.1:{self._server.getsockname()[1]}/object"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with (
                contextlib.suppress(OSError),
                client,
                client.makefile("rw", newline="", encoding="latin-1") as control,
            ):
                self._talk(control)

    def _talk(self, control) -> None:  # type: ignore[no-untyped-def]
        def say(text: str) -> None:
            control.write(text + "\r\n")
            control.flush()

        say("220 here")
        data = None
        while line := control.readline():
            if line.startswith("PASV"):
                data = socket.create_server(("127.0.0.1", 0))
                port = data.getsockname()[1]
                say(f"227 here (127,0,0,1,{port // 256},{port % 256})")
            elif line.startswith(("MLSD", "NLST")) and data:
                say("150 now")
                with data.accept()[0] as connected:
                    connected.sendall(self._listing.encode() + b"\r\n")
                data.close()
                say("226 done")
            else:
                say(self._answer(line.strip()))
