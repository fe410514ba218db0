"""`tesazure transfer` with every system that needs credentials, which it has from its settings."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from tesazure.cli.exits import Code
from tests.conftest import shared
from tests.service.tool import Tool
from tests.services import azure_files_server
from tests.services.azure_files_server import AzureFilesServer
from tests.services.azurite import Azurite
from tests.services.ftp_server import PASSWORD, USER, FtpServer
from tests.services.s3_server import S3Server
from tests.services.sftp_server import SftpServer


class Reached(NamedTuple):
    """Where a directory can be made, and the settings with which it is reached."""

    url: str
    settings: dict[str, str]


def account(azurite: Azurite) -> dict[str, str]:
    return {
        "APP_STORAGE_ACCOUNT_NAME": azurite.account,
        "APP_STORAGE_ACCOUNT_KEY": azurite.key,
        "APP_STORAGE_BLOB_ENDPOINT": azurite.endpoint,
    }


def without_key(azurite: Azurite) -> dict[str, str]:
    settings = account(azurite)
    del settings["APP_STORAGE_ACCOUNT_KEY"]
    return settings


@contextlib.contextmanager
def az(directory: Path) -> Iterator[Reached]:
    azurite = shared(Azurite)
    with azurite.container() as container:
        yield Reached(f"az://{container}/top", account(azurite))


@contextlib.contextmanager
def blob(directory: Path) -> Iterator[Reached]:
    azurite = shared(Azurite)
    with azurite.container() as container:
        yield Reached(f"{azurite.endpoint}/{container}/top", account(azurite))


@contextlib.contextmanager
def blob_with_sas(directory: Path) -> Iterator[Reached]:
    azurite = shared(Azurite)
    with azurite.container() as container:
        url = f"{azurite.endpoint}/{container}/top?{azurite.container_sas(container)}"
        yield Reached(url, without_key(azurite))


@contextlib.contextmanager
def azure_files(directory: Path) -> Iterator[Reached]:
    with AzureFilesServer() as server:
        server.make_share("share")
        settings = {
            "APP_STORAGE_ACCOUNT_NAME": azure_files_server.ACCOUNT,
            "APP_STORAGE_ACCOUNT_KEY": azure_files_server.KEY,
            "APP_STORAGE_FILE_ENDPOINT": server.endpoint,
        }
        yield Reached(f"{server.endpoint}/share/top", settings)


@contextlib.contextmanager
def s3(directory: Path) -> Iterator[Reached]:
    server = shared(S3Server)
    settings = {
        "APP_S3_ENDPOINT_URL": server.endpoints.s3,
        "APP_S3_ACCESS_KEY_ID": server.key.key_id,
        "APP_S3_SECRET_ACCESS_KEY": server.key.secret,
        "APP_S3_SESSION_TOKEN": server.key.session_token,
    }
    yield Reached(f"s3://{server.bucket()}/top", settings)


@contextlib.contextmanager
def ftp(directory: Path) -> Iterator[Reached]:
    (directory / "served").mkdir()
    with FtpServer(directory / "served") as server:
        yield Reached(server.url("top", f"{USER}:{quote(PASSWORD, safe='')}"), {})


@contextlib.contextmanager
def sftp(directory: Path) -> Iterator[Reached]:
    server = shared(SftpServer)
    (directory / "served").mkdir()
    (directory / "key").write_text(server.key)
    (directory / "key").chmod(0o600)
    (directory / "known").write_text(server.known_hosts())
    settings = {
        "APP_SFTP_KEY_FILE": str(directory / "key"),
        "APP_SFTP_KNOWN_HOSTS": str(directory / "known"),
    }
    top = (directory / "served/top").as_uri().removeprefix("file://")
    yield Reached(f"sftp://{server.user}@127.0.0.1:{server.port}{top}", settings)


Reach = Callable[[Path], AbstractContextManager[Reached]]


@pytest.fixture(params=[az, blob, blob_with_sas, azure_files, s3, ftp, sftp])
def reached(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reached]:
    reach: Reach = request.param
    with reach(tmp_path) as reached:
        yield reached


def test_a_directory_there_and_back(reached: Reached, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for name, content in {
        "a.txt": b"text",
        "sub/two words %25 ☃.txt": b"",
        "sub/deeper/x.bin": os.urandom(9 * 2**20),
    }.items():
        (here / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "tree" / name).write_bytes(content)
    (here / "tree/empty").mkdir()
    tool = Tool("http://127.0.0.1:9", here, reached.settings)
    said = [tool("transfer", "put", "tree", reached.url)]
    said.append(tool("transfer", "ls", reached.url, "--json"))
    listed = {
        (entry["path"], entry["type"], entry["size"])
        for entry in map(json.loads, said[-1].stdout.splitlines())
    }
    assert listed == {
        ("a.txt", "FILE", 4),
        ("empty", "DIRECTORY", 0),
        ("sub/two words %25 ☃.txt", "FILE", 0),
        ("sub/deeper/x.bin", "FILE", 9 * 2**20),
    }
    said.append(tool("transfer", "get", reached.url, "back"))
    assert contents(here / "back") == contents(here / "tree")
    head, mark, query = reached.url.partition("?")
    said.append(tool("transfer", "get", f"{head}/s*/d*{mark}{query}", "some"))
    assert list(contents(here / "some")) == ["sub/deeper/x.bin"]
    said.append(tool("transfer", "get", f"{head}/*[bt]*{mark}{query}", "level"))
    kept = {"a.txt", "sub/two words %25 ☃.txt", "sub/deeper/x.bin", "empty"}
    assert set(contents(here / "level")) == kept
    said.append(tool("transfer", "get", f"{head}/*.txt{mark}{query}", "texts"))
    assert list(contents(here / "texts")) == ["a.txt"]
    said.append(tool("transfer", "stat", f"{head}/a.txt{mark}{query}", "--json"))
    assert json.loads(said[-1].stdout)["size"] == 4
    said.append(tool("transfer", "get", f"{head}/none{mark}{query}", "x", code=Code.NOT_FOUND))
    shown = "".join(done.stdout + done.stderr for done in said)
    secrets = [
        value for name, value in reached.settings.items() if "KEY" in name and "ID" not in name
    ]
    for secret in [*secrets, PASSWORD, "sig="]:
        assert secret.startswith("/") or secret not in shown


def contents(directory: Path) -> dict[str, bytes | None]:
    """What lies below a directory: files, and empty directories."""
    return {
        str(place.relative_to(directory)): None if place.is_dir() else place.read_bytes()
        for place in directory.rglob("*")
        if not place.is_dir() or not any(place.iterdir())
    }


def test_without_credentials_it_is_denied(tmp_path: Path) -> None:
    azurite = shared(Azurite)
    with azurite.container() as container:
        url = f"{azurite.endpoint}/{container}/x"
        tool = Tool("http://127.0.0.1:9", tmp_path, without_key(azurite))
        expired = azurite.container_sas(container, minutes=-5)
        reading = azurite.container_sas(container, "r")
        (tmp_path / "x").touch()
        for arguments in (("get", f"{url}?{expired}", "y"), ("put", "x", f"{url}?{reading}")):
            told = tool("transfer", *arguments, code=Code.DENIED).stderr
            assert "HTTP 403" in told
            assert "Authori" in told or "Authentication" in told
            assert "sig=" not in told
        told = tool("transfer", "get", url, "y", code=Code.DENIED).stderr
        assert "anonymous access is not allowed" in told
