"""Tasks whose files lie in Azure Blob Storage: a real server, Azurite, and no secret left."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import shared
from tests.service.server import TES, RunningServer, contents, create, ended, start_server, task
from tests.services.azurite import Azurite, AzuriteTls
from tests.services.entra_server import CLIENT, IDENTITY_HEADER, SECRET, TENANT, EntraServer

SIGNATURE = re.compile(rb"[?&;\"' ]sig=(?!\*\*\*)")


class CommandLines:
    """Looks at the command lines of all processes for as long as it is open."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(0.01):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(file.read_bytes())
                except OSError:
                    continue  # it has ended


@pytest.fixture
def azurite() -> Azurite:
    return shared(Azurite)


@pytest.fixture
def server(azurite: Azurite, tmp_path: Path) -> Iterator[RunningServer]:
    settings = {
        "storage_account_name": azurite.account,
        "storage_account_key": azurite.key,
        "storage_blob_endpoint": azurite.endpoint,
        "input_cache_gb": 1,
        "log_level": "debug",
    }
    with start_server(tmp_path / "server", **settings) as running:
        yield running


def task_of(container: str, endpoint: str) -> dict[str, Any]:
    """Every kind of input and output, by both kinds of URL."""
    script = (
        "set -e; cat /in/a.txt /in/dir/one /in/dir/sub/two /in/untyped/one > /out/joined;"
        " mkdir -p /out/tree/sub /out/tree/empty; cp /in/a.txt /out/tree/sub/a;"
        " echo 1 > /out/r1.tsv; echo 2 > /out/r2.tsv"
    )
    az, https = f"az://{container}", f"{endpoint}/{container}"
    return {
        "executors": [{"image": "busybox", "command": ["sh", "-c", script]}],
        "inputs": [
            {"path": "/in/a.txt", "url": f"{az}/in/a b.txt", "type": "FILE"},
            {"path": "/in/dir", "url": f"{https}/in/dir", "type": "DIRECTORY"},
            {"path": "/in/untyped", "url": f"{az}/in/dir"},
        ],
        "outputs": [
            {"path": "/out/joined", "url": f"{https}/out/joined%20file", "type": "FILE"},
            {"path": "/out/tree", "url": f"{az}/out/tree", "type": "DIRECTORY"},
            {"path": "/out/*.tsv", "path_prefix": "/out/", "url": f"{https}/out/tables/"},
        ],
        "volumes": ["/out"],
    }


def check_moves(service: Azurite, server: RunningServer, *secrets: str) -> None:
    """A task with all kinds of files completes, and nothing that is secret is left."""
    with service.container() as container, service.client() as blobs, CommandLines() as lines:
        files = {"in/a b.txt": b"A", "in/dir/one": b"1", "in/dir/sub/two": b"2"}
        for name, content in files.items():
            blobs.get_blob_client(container, name).upload_blob(content)
        with server.client() as client:
            task_id = create(client, task_of(container, service.endpoint))
            found = ended(client, task_id)
            replies = everything(client, task_id)
        assert found["state"] == "COMPLETE", found["logs"]
        written = {
            blob.name: blobs.get_blob_client(container, blob.name).download_blob().readall()
            for blob in blobs.get_container_client(container).list_blobs(name_starts_with="out/")
        }
        assert written == {
            "out/joined file": b"A121",
            "out/tree/sub/a": b"A",
            "out/tree/empty": b"",
            "out/tables/r1.tsv": b"1\n",
            "out/tables/r2.tsv": b"2\n",
        }
        marker = blobs.get_blob_client(container, "out/tree/empty").get_blob_properties()
        assert marker.metadata == {"hdi_isfolder": "true"}
        sizes = {item["url"]: item["size_bytes"] for item in found["logs"][0]["outputs"]}
        assert sizes == {
            f"{service.endpoint}/{container}/out/joined%20file": "4",
            f"az://{container}/out/tree/sub/a": "1",
            f"{service.endpoint}/{container}/out/tables/r1.tsv": "2",
            f"{service.endpoint}/{container}/out/tables/r2.tsv": "2",
        }
    told = [line for line in lines.seen if b"sig=" in line and container.encode() in line]
    assert told == []
    check_no_secret(server, [*replies, *lines.seen], replies, [service.key, *secrets])


def test_a_task_moves_blobs_by_the_accounts_key(azurite: Azurite, server: RunningServer) -> None:
    check_moves(azurite, server)


def identity(storage: AzuriteTls, issuer: EntraServer, directory: Path) -> dict[str, object]:
    """Settings of a server that signs by a service principal."""
    bundle = directory / "bundle.pem"
    bundle.write_text(storage.ca.read_text() + Path(issuer.ca_bundle).read_text())
    return {
        "storage_account_name": storage.account,
        "storage_blob_endpoint": storage.endpoint,
        "azure_client_id": CLIENT,
        "azure_secret": SECRET,
        "azure_tenant": TENANT,
        "azure_authority_host": issuer.url,
        "ca_bundle": bundle,
        "log_level": "debug",
    }


def test_a_task_moves_blobs_by_an_identity(tmp_path: Path) -> None:
    storage = shared(AzuriteTls)
    with EntraServer(tmp_path / "issuer") as issuer:
        settings = identity(storage, issuer, tmp_path)
        with start_server(tmp_path / "server", **settings) as server:
            check_moves(storage, server, SECRET)
        assert issuer.issued == 1


def test_a_task_moves_blobs_by_the_hosts_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = shared(AzuriteTls)
    with EntraServer(tmp_path / "issuer") as issuer:
        settings = identity(storage, issuer, tmp_path)
        for name in ("azure_client_id", "azure_secret", "azure_tenant"):
            del settings[name]
        monkeypatch.setenv("IDENTITY_ENDPOINT", issuer.msi_endpoint)
        monkeypatch.setenv("IDENTITY_HEADER", IDENTITY_HEADER)
        settings["azure_identity"] = "default"
        with start_server(tmp_path / "server", **settings) as server:
            check_moves(storage, server, IDENTITY_HEADER)
        assert issuer.issued == 1


def test_an_identity_that_is_refused_ends_the_task_with_the_reason(tmp_path: Path) -> None:
    storage = shared(AzuriteTls)
    wrong = "not-the-principals-secret"
    with EntraServer(tmp_path / "issuer") as issuer:
        settings = identity(storage, issuer, tmp_path) | {"azure_secret": wrong}
        with start_server(tmp_path / "server", **settings) as server, server.client() as client:
            document = task()
            document["inputs"] = [{"path": "/in/a", "url": "az://data/x", "type": "FILE"}]
            found = ended(client, create(client, document))
            said = "\n".join(found["logs"][0]["system_logs"])
            assert found["state"] == "SYSTEM_ERROR"
            assert "this server's Azure identity is refused" in said
            assert "AADSTS7000215" in said
            kept = [content for _, content in contents(server.data)]
            for content in [*kept, server.log.read_bytes(), said.encode()]:
                assert wrong.encode() not in content


def test_a_missing_blob_is_named(azurite: Azurite, server: RunningServer) -> None:
    with azurite.container() as container, server.client() as client:
        document = task()
        url = f"az://{container}/no such blob"
        document["inputs"] = [{"path": "/in/a", "url": url, "type": "FILE"}]
        found = ended(client, create(client, document))
    assert found["state"] == "SYSTEM_ERROR"
    said = "\n".join(found["logs"][0]["system_logs"])
    assert "inputs[0] (/in/a)" in said
    assert f"{container}/no%20such%20blob" in said
    assert "HTTP 404" in said
    assert "BlobNotFound" in said
    check_no_secret(server, [], [said.encode()], [azurite.key])


def test_a_file_that_turns_out_a_directory_is_told_how_to_be_one(
    azurite: Azurite, server: RunningServer
) -> None:
    with azurite.container() as container, server.client() as client:
        document = task("sh", "-c", "mkdir -p /out/x/y; echo > /out/x/y/z")
        url = f"az://{container}/x"
        document["outputs"] = [{"path": "/out/x", "url": url, "type": "FILE"}]
        found = ended(client, create(client, document))
    assert found["state"] == "SYSTEM_ERROR"
    said = "\n".join(found["logs"][0]["system_logs"])
    assert "outputs[0] (/out/x)" in said
    assert "DIRECTORY" in said


def everything(client: httpx.Client, task_id: str) -> list[bytes]:
    """What the API says of a task, and of itself."""
    paths = [f"{TES}/tasks/{task_id}?view={view}" for view in ("MINIMAL", "BASIC", "FULL")]
    paths += [f"{TES}/tasks?view=FULL", f"{TES}/service-info", f"/v1/tasks/{task_id}?view=FULL"]
    replies = [client.get(path) for path in paths]
    assert all(reply.status_code == 200 for reply in replies)
    assert "az://" in client.get(f"{TES}/service-info").json()["storage"]
    return [reply.content for reply in replies]


def check_no_secret(
    server: RunningServer, seen: list[bytes], replies: list[bytes], secrets: list[str]
) -> None:
    """None of the secrets is in the data directory (database, its journal, plans, reports, logs of
    runners), the server's log, replies, or what was `seen`; and no signature in the first three."""
    kept = dict(contents(server.data))
    assert any(path.name == "report.jsonl" for path in kept)
    places = [*kept.values(), server.log.read_bytes(), *replies]
    for number, content in enumerate(places):
        found = SIGNATURE.search(content)
        assert not found, (number, content[max(found.start() - 200, 0) : found.end()])
    for content in [*places, *seen]:
        assert not [secret for secret in secrets if secret.encode() in content]
