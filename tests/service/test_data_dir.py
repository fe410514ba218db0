"""The server's data directory: closed to other users of the machine, and to every task."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.service.server import TES, create, ended, start_server, task
from tests.service.test_api_operation import fails


def test_an_allowed_directory_above_it_does_not_open_it(tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to("data")
    (tmp_path / "in").write_text("x")
    with start_server(tmp_path, allow_dir=tmp_path) as server, server.client() as client:
        for name in ("data/tesazure.db", "alias/tesazure.db", "data", "data/attempts/x"):
            for role in ("inputs", "outputs"):
                item = {"url": f"file://{tmp_path}/{name}", "path": "/job/x"}
                reply = client.post(f"{TES}/tasks", json=task(**{role: [item]}))
                assert reply.status_code == 400, (name, role)
                assert f"{tmp_path}/{name}" in reply.text
                assert "DATA_DIR" in reply.text
        beside = task(inputs=[{"url": f"file://{tmp_path}/in", "path": "/job/in"}])
        assert ended(client, create(client, beside))["state"] == "COMPLETE"


def test_the_runner_refuses_what_became_a_link_after_submission(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    with start_server(tmp_path, allow_dir=tmp_path) as server, server.client() as client:
        script = "until [ -e /tes-wd/shared-global/go ]; do sleep 0.02; done; echo x > /job/x"
        outputs = [{"url": f"{tmp_path}/to/x", "path": "/job/x"}]
        key = create(client, task("sh", "-c", script, outputs=outputs))
        (tmp_path / "to").rmdir()
        (tmp_path / "to").symlink_to(server.data)
        (server.data / "shared-global/go").touch()
        done = ended(client, key)
        assert done["state"] == "SYSTEM_ERROR"
        assert "DATA_DIR" in str(done["logs"][0]["system_logs"])
        assert not (server.data / "x").exists()


def test_it_cannot_be_allowed_itself(tmp_path: Path) -> None:
    (tmp_path / "data/files").mkdir(parents=True)
    (tmp_path / "data").chmod(0o700)
    for allowed in ("data", "data/files"):
        said = fails(tmp_path / "data", 2, allow_dir=tmp_path / allowed)
        assert "ALLOW_DIR: entry 1 is in the data directory" in said


@pytest.mark.parametrize("is_empty", [True, False])
def test_an_open_one_is_closed(tmp_path: Path, is_empty: bool) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    if not is_empty:
        with start_server(tmp_path):
            pass
        data.chmod(0o755)
    with start_server(tmp_path) as server, server.client() as client:
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert "was open to other users" in server.log.read_text()
        assert "setuid" not in server.log.read_text()
        script = "cp /bin/sh /tes-wd/shared-global/sh; chmod u+s /tes-wd/shared-global/sh"
        assert ended(client, create(client, task("sh", "-c", script)))["state"] == "COMPLETE"
        assert (data / "shared-global/sh").stat().st_mode & stat.S_ISUID


def test_a_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("x")
    data.chmod(0o755)
    assert "open to other users and holds other things" in fails(data, 2)
    assert stat.S_IMODE(data.stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of somebody else")
def test_one_of_somebody_else_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 65534, 65534)
    assert "belongs to user 65534" in fails(data, 2)


def test_private_addresses_can_be_refused(tmp_path: Path) -> None:
    document = task(inputs=[{"url": "http://127.0.0.1:9/x", "path": "/job/x"}])
    named = task(inputs=[{"url": "http://localhost:9/x", "path": "/job/x"}])
    settings = {"allow_private_addresses": "false", "max_retries": 0}
    with start_server(tmp_path, **settings) as server, server.client() as client:
        reply = client.post(f"{TES}/tasks", json=document)
        assert reply.status_code == 400
        assert "private address" in reply.text
        done = ended(client, create(client, named))
        assert "private address" in str(done["logs"][0]["system_logs"])


def test_a_shared_directory_open_to_others_is_warned_of(short_dir: Path) -> None:
    shared = short_dir / "shared"
    shared.mkdir()
    with start_server(short_dir, shared_global_dir=shared) as server:
        assert f'"level":"warning","event":"SHARED_GLOBAL_DIR {shared}' in server.log.read_text()
