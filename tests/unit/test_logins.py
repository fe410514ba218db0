"""The files of `tesazure login`: for one user, one server each, whole or not at all."""

from __future__ import annotations

import errno
import platform
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tesazure import settings
from tesazure.cli.client import TesClient, root_of
from tesazure.cli.exits import Code, Failure
from tesazure.cli.logins import Login, Logins
from tesazure.settings import Client

SERVER = "https://tes.example.org"


WITHOUT_LOCKS = """
import ctypes, struct, sys
from pathlib import Path
from tesazure.cli.logins import Login, Logins

# seccomp: load the number of the call; if it is flock's it fails so, any other is allowed.
number, answer = map(int, sys.argv[2:])
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50000 | answer), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HP", len(rules), ctypes.addressof(code)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 4]
assert prctl(38, 1, None, None, None) == 0  # PR_SET_NO_NEW_PRIVS
assert prctl(22, 2, ctypes.addressof(program), None, None) == 0  # PR_SET_SECCOMP, a filter
logins = Logins(Path(sys.argv[1]))
with logins.alone("s"):
    logins.keep(Login(server="s", token="hidden", name="ann"))
print(logins.of("s").token)
"""
"""Keeps a login while each flock fails with one errno."""


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
        with logins.alone(SERVER):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with logins.alone(SERVER):
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_another_servers_login_is_not_waited_for(logins: Logins) -> None:
    with logins.alone(SERVER), logins.alone("http://other:1"):
        logins.keep(login())


def test_one_that_is_never_let_go_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "logins"
    with Logins(directory).alone(SERVER):
        (lock,) = directory.glob("*.lock")
        with (
            pytest.raises(Failure, match="another process has held") as caught,
            Logins(directory, patience_s=0.1).alone(SERVER),
        ):
            pass
    assert str(lock) in str(caught.value)
    with Logins(directory, patience_s=0.1).alone(SERVER):
        pass


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_used_all_the_same(tmp_path: Path, answer: int) -> None:
    number = {"x86_64": 73, "aarch64": 32}.get(platform.machine())
    if number is None:
        pytest.skip("the number of flock is not known here")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS, str(tmp_path), str(number), str(answer)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if answer == errno.EIO:
        assert done.stderr.splitlines()[-1].endswith(".lock: Input/output error")
    else:
        assert (done.stdout, done.stderr) == ("hidden\n", "")


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
