"""Which engine a node has: what is tried, in which order, and what is said when there is none."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.errors import ConfigurationError
from tesazure.runner.engines import choose
from tesazure.runner.engines.choose import find_engine, make_engine, ping
from tests.services.base import nobodys_port

REPLY = b"HTTP/1.1 200 OK\r\nServer: Docker/29.0 (linux)\r\nContent-Length: 2\r\n\r\nOK"


class Api:
    """Answers every connection to a Unix socket with the same bytes."""

    def __init__(self, path: Path, reply: bytes) -> None:
        self.host = f"unix://{path}"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._reply = reply
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(self._reply)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def api(short_dir: Path) -> Iterator[Api]:
    api = Api(short_dir / "api.sock", REPLY)
    yield api
    api.close()


def test_the_first_that_answers_is_taken(api: Api, short_dir: Path) -> None:
    none = f"unix://{short_dir}/none.sock"
    assert find_engine("auto", api.host, none) == choose.EngineChoice(
        "docker", api.host, "Docker/29.0 (linux)"
    )
    assert find_engine("auto", none, api.host).name == "podman"
    assert find_engine("podman", api.host, api.host).name == "podman"


def test_a_users_podman_has_its_socket_in_the_runtime_directory(short_dir: Path) -> None:
    (short_dir / "podman").mkdir()
    api = Api(short_dir / "podman/podman.sock", REPLY)
    found = find_engine("podman", "", "", str(short_dir))
    assert found.host in (api.host, choose.PODMAN_SOCKET)
    api.close()


def test_refusals_say_what_was_tried_and_the_remedy(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = f"unix://{short_dir}/none.sock"
    monkeypatch.setenv("PATH", str(short_dir))
    with pytest.raises(ConfigurationError) as caught:
        find_engine("auto", none, none)
    first, *tried = caught.value.problems
    assert first == "no engine to run containers with:"
    assert [line.split()[0] for line in tried] == ["docker", "podman", "sandbox:"]
    assert none in tried[0]
    assert "No such file" in tried[0]
    assert "APP_DOCKER_HOST" in tried[0]
    assert "apt install bubblewrap" in tried[2]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "answered 500"),
        (b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
        (b"", "closed connection without response"),
    ],
)
def test_what_is_no_engine_is_refused(short_dir: Path, reply: bytes, words: str) -> None:
    api = Api(short_dir / "api.sock", reply)
    with pytest.raises(ConfigurationError, match=words):
        find_engine("docker", api.host, "")
    api.close()


def test_an_engine_that_hangs_is_given_up(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(short_dir / "silent"))
        silent.listen()
        with pytest.raises(ConfigurationError, match="timed out"):
            find_engine("docker", f"unix://{short_dir}/silent", "")


def test_hosts_of_other_kinds() -> None:
    with pytest.raises(ValueError, match="neither unix://PATH nor tcp://HOST:PORT"):
        ping("ssh://somewhere")
    with nobodys_port() as port, pytest.raises(ConnectionRefusedError):
        ping(f"tcp://127.0.0.1:{port}")


def test_engines_are_made_by_name() -> None:
    assert make_engine("sandbox", "").name == "sandbox"


def test_a_sandbox_runner_starts_without_what_it_does_not_need() -> None:
    """Its start is part of every task's time."""
    heavy = ["asyncio", "docker", "httpx", "http.client", "sqlalchemy", "starlette", "ssl"]
    program = (
        "import sys; import tesazure.runner.run, tesazure.runner.engines.sandbox;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"[]\n"
