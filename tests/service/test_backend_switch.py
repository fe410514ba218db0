"""A running server whose backend changes: what runs there ends there, what comes goes elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tesazure.database_settings import DatabaseSettings
from tesazure.sealing import find_seal
from tesazure.store.sql_store import open_store
from tests.conftest import need_sandbox, shared
from tests.service.server import (
    TES,
    RunningServer,
    _url,
    command,
    create,
    end_runners,
    ended,
    environment,
    get,
    task,
    until,
)
from tests.services.azurite import Azurite
from tests.services.batch_lab import SHARE, BatchLab, batch_lab
from tests.services.postgresql import PostgreSQL

LONG_S = 120.0
"""For an attempt on Batch: its pool is made, its node starts, passes come around."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[BatchLab]:
    need_sandbox()
    with batch_lab(tmp_path / "batch", shared(Azurite)) as running:
        yield running


def batch_settings(lab: BatchLab, **more: object) -> dict[str, object]:
    """With which tasks run in the account."""
    return {
        "batch_account_name": lab.batch.account,
        "batch_account_url": lab.batch.url,
        "batch_account_key": lab.batch.key,
        "batch_region": "westeurope",
        "batch_storage_container": lab.container,
        "batch_file_share": SHARE,
        "storage_account_name": lab.azurite.account,
        "storage_account_key": lab.azurite.key,
        "storage_blob_endpoint": lab.azurite.endpoint,
        "filetransfer_container_image": "runner:1",
        "retail_prices_url": "",
        **more,
    }


class Operated:
    """A server with a file of settings, and directories that its tasks and the test share."""

    def __init__(self, directory: Path, marks: Path, **settings: object) -> None:
        self.directory, self.marks = directory, marks
        directory.mkdir()
        self.config, self.log, self.data = (directory / n for n in ("c.toml", "log", "data"))
        self._settings = {
            "local_engine": "sandbox",
            "task_network": "false",
            "shared_global_dir": marks,
            "retry_delay_s": 0.05,
            "lease_s": 3,
            **settings,
        }
        self.write()

    def write(self, **settings: object) -> None:
        """What the file says from now on."""
        self.config.write_text("".join(f"{k} = {v!r}\n" for k, v in settings.items()))

    @contextlib.contextmanager
    def running(self) -> Iterator[RunningServer]:
        """The server, killed on leaving; tasks go on."""
        with self.log.open("ab") as output:
            before = self.log.stat().st_size
            process = subprocess.Popen(
                command(self.data, "--config", str(self.config)),
                stdout=output,
                stderr=output,
                env=environment(**self._settings),
            )
        try:
            until(lambda: b"listening" in self.log.read_bytes()[before:] or process.poll())
            yield RunningServer(_url(process, self.log), process, self.log, self.data)
        finally:
            process.kill()
            process.wait()

    def says(self, text: str, times: int = 1) -> None:
        """Wait until the server has logged it so often."""
        until(lambda: self.log.read_text().count(text) >= times, 60)

    def mark(self, name: str) -> Path:
        """A file of the shared directory."""
        return self.marks / name


@pytest.fixture
def operated(tmp_path: Path, lab: BatchLab) -> Iterator[Operated]:
    made = Operated(tmp_path / "server", lab.marks)
    yield made
    end_runners(made.data)


def waiting(name: str) -> dict[str, Any]:
    """A task that says so and waits until the test makes its file `name`.go."""
    here = "/tes-wd/shared-global"
    script = f"echo begun; touch {here}/{name}; while [ ! -e {here}/{name}.go ]; do sleep 0.1; done"
    return task("sh", "-c", f"{script}; echo done")


def hang_up(server: RunningServer) -> None:
    server.process.send_signal(signal.SIGHUP)


def ran_on(document: dict[str, Any]) -> str:
    """The backend of its newest attempt."""
    return "batch" if "batch_job" in document["logs"][-1]["metadata"] else "local"


def stdout(client: httpx.Client, task_id: str) -> str:
    """What is there of it; nothing while its attempt has not begun to tell."""
    reply = client.get(f"/api/v1/tasks/{task_id}/logs/0/stdout")
    return reply.text if reply.status_code == 200 else ""


def described(client: httpx.Client) -> str:
    return str(client.get(f"{TES}/service-info").json()["description"])


def test_what_runs_is_ended_where_it_runs(operated: Operated, lab: BatchLab) -> None:
    with operated.running() as server, server.client() as client:
        old, canceled = (create(client, waiting(name)) for name in ("old", "canceled"))
        until(lambda: operated.mark("old").exists() and operated.mark("canceled").exists())
        operated.write(**batch_settings(lab))
        hang_up(server)
        operated.says("tasks run on batch by batch from now on")
        assert "Tasks run on batch" in described(client)
        new = create(client, waiting("new"))
        until(operated.mark("new").exists, LONG_S)

        # Both live: each is read, followed and canceled where it is.
        assert stdout(client, old) == "begun\n"
        until(lambda: stdout(client, new) == "begun\n", LONG_S)
        until(lambda: get(client, old)["logs"][0]["logs"][0]["stdout"] == "begun\n")
        assert client.post(f"{TES}/tasks/{canceled}:cancel").status_code == 200
        assert ended(client, canceled)["state"] == "CANCELED"
        for name in ("old.go", "new.go"):
            operated.mark(name).touch()
        with client.stream("GET", f"/api/v1/tasks/{old}/logs/0/stdout?follow=1") as reply:
            assert "".join(reply.iter_text()) == "begun\ndone\n"
        first, second = ended(client, old), ended(client, new, LONG_S)
        assert (first["state"], ran_on(first)) == ("COMPLETE", "local")
        assert (second["state"], ran_on(second)) == ("COMPLETE", "batch")
        assert len(first["logs"]) == len(second["logs"]) == 1
        # Also afterwards.
        assert stdout(client, old) == stdout(client, new) == "begun\ndone\n"
        assert client.get("/readyz").json()["ready"]


def test_what_was_left_here_is_taken_up_after_a_crash(operated: Operated, lab: BatchLab) -> None:
    """Killed after the switch, with attempts of both backends; and before it, with settings that
    lead elsewhere when it starts again."""
    with operated.running() as server, server.client() as client:
        first = create(client, waiting("first"))
        until(operated.mark("first").exists)
        operated.write(**batch_settings(lab))
        hang_up(server)
        operated.says("tasks run on batch by batch from now on")
        second = create(client, waiting("second"))
        until(operated.mark("second").exists, LONG_S)
    with operated.running() as server, server.client() as client:
        operated.says("own machine is looked after; new tasks run elsewhere")
        assert "Tasks run on batch" in described(client)
        assert stdout(client, first) == "begun\n"
        for name in ("first.go", "second.go"):
            operated.mark(name).touch()
        assert (ended(client, first)["state"], ended(client, second, LONG_S)["state"]) == (
            "COMPLETE",
            "COMPLETE",
        )
        assert all(len(get(client, each)["logs"]) == 1 for each in (first, second))
        operated.write()
        hang_up(server)
        operated.says("tasks run on local by sandbox from now on")
        third = create(client, waiting("third"))
        until(operated.mark("third").exists)
        operated.write(**batch_settings(lab))
    with operated.running() as server, server.client() as client:
        operated.says("own machine is looked after; new tasks run elsewhere", 2)
        assert client.post(f"{TES}/tasks/{third}:cancel").status_code == 200
        assert ended(client, third)["state"] == "CANCELED"


def test_settings_of_a_backend_that_is_not_ready_change_nothing(
    operated: Operated, lab: BatchLab
) -> None:
    wrong = "d3Jvbmcta2V5"
    with operated.running() as server, server.client() as client:
        before = described(client)
        operated.write(**batch_settings(lab, batch_account_key=wrong))
        hang_up(server)
        operated.says("new settings are not used, nothing has changed: batch account: ")
        operated.write(**batch_settings(lab, storage_account_key=wrong))
        hang_up(server)
        operated.says("check the storage account's key")
        operated.write(**batch_settings(lab, batch_max_nodes=0))
        hang_up(server)
        operated.says("nothing has changed: BATCH_MAX_NODES")
        assert described(client) == before
        assert ran_on(ended(client, create(client))) == "local"
        assert wrong not in operated.log.read_text()

        # What failed left nothing behind that is in the way.
        operated.write(**batch_settings(lab))
        hang_up(server)
        operated.says("tasks run on batch by batch from now on")
        task_id = create(client)
        assert ran_on(ended(client, task_id, LONG_S)) == "batch"


def test_another_key_of_the_same_account_takes_over(operated: Operated, lab: BatchLab) -> None:
    """Attempts go on under a backend that was made anew."""
    operated.write(**batch_settings(lab))
    with operated.running() as server, server.client() as client:
        task_id = create(client, waiting("on"))
        until(operated.mark("on").exists, LONG_S)
        operated.write(**batch_settings(lab, batch_max_nodes=3))
        hang_up(server)
        operated.says("in effect now: BATCH_MAX_NODES")
        assert "looked after there" not in operated.log.read_text()
        until(lambda: stdout(client, task_id) == "begun\n", LONG_S)
        operated.mark("on.go").touch()
        done = ended(client, task_id, LONG_S)
        assert (done["state"], len(done["logs"])) == ("COMPLETE", 1)
        assert stdout(client, task_id) == "begun\ndone\n"
    operated.write()
    with operated.running() as server, server.client() as client:
        reply = client.get(f"/api/v1/tasks/{task_id}/logs/0/stdout")
        assert reply.status_code == 404
        assert "it ran on Azure Batch, which this server does not reach now" in reply.text
        assert ran_on(get(client, task_id)) == "batch"


def test_storage_that_attempts_report_to_is_kept_until_they_are_over(
    operated: Operated, lab: BatchLab
) -> None:
    """A backend with another one would find no report, and take them for lost."""
    operated.write(**batch_settings(lab))
    with operated.running() as server, server.client() as client:
        task_id = create(client, waiting("on"))
        until(operated.mark("on").exists, LONG_S)
        operated.write(**batch_settings(lab, batch_storage_container="another"))
        hang_up(server)
        operated.says("attempts that are not over in the Batch account")
        operated.mark("on.go").touch()
        done = ended(client, task_id, LONG_S)
        assert (done["state"], len(done["logs"])) == ("COMPLETE", 1)
        assert stdout(client, task_id) == "begun\ndone\n"
        operated.says("in effect now: BATCH_STORAGE_CONTAINER")
        assert ended(client, create(client), LONG_S)["state"] == "COMPLETE"


def test_a_local_backend_follows_settings_of_storage(operated: Operated, lab: BatchLab) -> None:
    """With a task that runs meanwhile."""
    with lab.azurite.client() as client:
        client.get_container_client(lab.container).upload_blob("words", b"brought\n")
    document = task("cat", "/in", inputs=[{"url": f"az://{lab.container}/words", "path": "/in"}])
    with operated.running() as server, server.client() as client:
        running = create(client, waiting("running"))
        until(operated.mark("running").exists)
        assert client.post(f"{TES}/tasks", json=document).status_code == 400
        names = ("storage_account_name", "storage_account_key", "storage_blob_endpoint")
        operated.write(**{name: batch_settings(lab)[name] for name in names})
        hang_up(server)
        operated.says("in effect now: STORAGE_ACCOUNT_NAME, STORAGE_ACCOUNT_KEY")
        operated.mark("running.go").touch()
        brought = ended(client, create(client, document))
        assert (brought["state"], brought["logs"][0]["logs"][0]["stdout"]) == (
            "COMPLETE",
            "brought\n",
        )
        assert ended(client, running)["state"] == "COMPLETE"


def test_all_servers_on_a_database_switch(tmp_path: Path, lab: BatchLab) -> None:
    """By settings that one of them has kept there."""
    url, key = shared(PostgreSQL).create_database(), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    shares = {"database_url": url, "secrets_key": key, "work_retention_hours": 0.0001}
    servers = [Operated(tmp_path / name, lab.marks, **shares) for name in ("one", "two")]

    async def keep(values: dict[str, object]) -> None:
        store = await open_store(url)
        kept = DatabaseSettings(store, find_seal(key, tmp_path / "none"))
        try:
            await kept.keep({name: str(value) for name, value in values.items() if value != ""})
        finally:
            await store.close()

    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(each.running()) for each in servers)
        clients = [stack.enter_context(each.client()) for each in (one, two)]
        stack.callback(lambda: [end_runners(each.data) for each in servers])
        tasks = [create(client, waiting(f"w{i}")) for i, client in enumerate(clients)]
        until(lambda: all(lab.marks.joinpath(f"w{i}").exists() for i in range(2)))
        asyncio.run(keep(batch_settings(lab)))
        for each in servers:
            each.says("tasks run on batch by batch from now on")
        done = [ended(client, create(client), LONG_S) for client in clients]
        assert [(each["state"], ran_on(each)) for each in done] == [("COMPLETE", "batch")] * 2
        for i in range(2):
            lab.marks.joinpath(f"w{i}.go").touch()
        found = [ended(clients[0], each) for each in tasks]
        assert [(each["state"], ran_on(each)) for each in found] == [("COMPLETE", "local")] * 2
