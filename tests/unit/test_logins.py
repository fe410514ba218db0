"""The files of `tesazure login`: for one user, one server each, whole or not at all."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from tesazure import settings
from tesazure.cli.client import TesClient, root_of
from tesazure.cli.exits import Code, Failure
from tesazure.cli.logins import Login, Logins
from tesazure.settings import Client

SERVER = "https://tes.example.org"


@pytest.fixture
def logins(tmp_path: Path) -> Logins:
    return Logins(tmp_path / "state" / "logins")


def login(server: str = SERVER, token: str = "hidden") -> Login:
    return Login(server=server, token=token, name="ann", expires=1.5, refresh_token="more")


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "state" / "logins").glob("*.json"))


def test_a_login_comes_back(logins: Logins) -> None:
    assert logins.of(SERVER) is None
    logins.keep(login())
    logins.keep(login("http://other:1", "another"))
    assert logins.of(SERVER) == login()
    assert logins.forget(SERVER)
    assert not logins.forget(SERVER)
    assert logins.of(SERVER) is None
    assert logins.of("http://other:1") is not None


def test_nobody_else_can_read_it(logins: Logins, tmp_path: Path) -> None:
    logins.keep(login())
    logins.keep(login(token="again"))
    (file,) = files(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert not list(file.parent.glob(".fresh-*"))
    assert "hidden" not in repr(login())


def test_one_that_others_can_read_is_refused(logins: Logins, tmp_path: Path) -> None:
    logins.keep(login())
    (file,) = files(tmp_path)
    file.chmod(0o640)
    with pytest.raises(Failure, match="can be read by other users") as caught:
        logins.of(SERVER)
    assert caught.value.code == Code.USAGE
    logins.keep(login())
    assert logins.of(SERVER) == login()


@pytest.mark.parametrize("content", [b"", b"{", b'{"server": 1}', b"\xff\xfe"])
def test_a_damaged_one_is_said_so(logins: Logins, tmp_path: Path, content: bytes) -> None:
    logins.keep(login())
    (file,) = files(tmp_path)
    file.write_bytes(content)
    with pytest.raises(Failure, match="is damaged"):
        logins.of(SERVER)


def test_one_of_another_server_is_none(logins: Logins, tmp_path: Path) -> None:
    """A file that was copied over another does not send a token to the wrong server."""
    logins.keep(login())
    logins.keep(login("http://evil:1", "bait"))
    ours, theirs = sorted(files(tmp_path), key=lambda file: b"evil" in file.read_bytes())
    theirs.write_bytes(ours.read_bytes())
    assert logins.of("http://evil:1") is None


def test_a_directory_that_cannot_be_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match="Not a directory") as caught:
        Logins(tmp_path / "file" / "logins").keep(login())
    assert "XDG_STATE_HOME" in caught.value.details[0]


def test_changes_wait_for_each_other(logins: Logins) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait(10)
        with logins.alone():
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with logins.alone():
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_where_they_lie(tmp_path: Path) -> None:
    assert settings.state_dir({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "tesazure"
    usual = Path.home() / ".local/state/tesazure"
    assert settings.state_dir({}) == settings.state_dir({"XDG_STATE_HOME": "state"}) == usual


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://ann:pw@host:1/ga4gh/tes/v1", "http://host:1"),
        ("ann:p%40w@host:1", "http://host:1"),
        ("https://ann@[::1]:1", "https://[::1]:1"),
    ],
)
def test_user_and_password_are_no_part_of_a_root(given: str, root: str) -> None:
    assert root_of(given) == root


def test_a_wrong_url_is_shown_without_its_password() -> None:
    with pytest.raises(Failure) as caught:
        TesClient(Client(server="ftp://ann:sesame@host"))
    assert "sesame" not in str(caught.value)
    assert "ftp://host" in str(caught.value)
