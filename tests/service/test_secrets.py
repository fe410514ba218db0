"""Secrets in the URLs of tasks work, and are found nowhere: planted, then looked for everywhere."""

from __future__ import annotations

import base64
import contextlib
import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.service.server import (
    TES,
    RunningServer,
    contents,
    create,
    ended,
    get,
    start_server,
    task,
    until,
)
from tests.services.locked_http import LockedHttp

SIGNATURE = "Pl4nted+Sig/0123456789="
PASSWORD = "Pl4nted-p%40ssword"
TOKEN = "Pl4nted.tOken.01234567"
BASIC = base64.b64encode(b"me:Pl4nted-p@ssword")
PLANTED = re.compile(rb"(?i:pl4nted)|" + re.escape(BASIC))
"""All of them hold this, whatever their case and coding."""


@pytest.fixture
def locked() -> Iterator[LockedHttp]:
    with LockedHttp() as server:
        yield server


class CommandLines:
    """Reads the command line and the environment of every process, over and over, as a context
    manager. `found` are those that hold a secret, `looks` is how often it looked."""

    def __init__(self) -> None:
        self.found: set[bytes] = set()
        self.looks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        said = (process / name).read_bytes()
                        if PLANTED.search(said):
                            self.found.add(said)
            self.looks += 1


def copying(inputs: list[str], outputs: list[str], wait: bool = False) -> dict[str, Any]:
    """A task that joins its inputs into each of its outputs."""
    script = "cat /in/* > /out/all; for f in $0; do cp /out/all /out/$f; done"
    if wait:
        script += "; while [ ! -e /tes-wd/shared-global/go ]; do sleep 0.02; done"
    names = [f"o{n}" for n in range(len(outputs))]
    return task(
        *("sh", "-c", script, " ".join(names)),
        inputs=[{"path": f"/in/{n}", "url": url} for n, url in enumerate(inputs)],
        outputs=[
            {"path": f"/out/{name}", "url": url} for name, url in zip(names, outputs, strict=True)
        ],
    )


def holders(top: Path) -> list[str]:
    """The files below a directory that hold a secret."""
    return [str(path) for path, content in contents(top) if PLANTED.search(content)]


def replies(client: httpx.Client, task_ids: list[str]) -> str:
    """All that the API says of these tasks, in every view, list and stream."""
    asked = [f"{TES}/tasks?view={view}" for view in ("MINIMAL", "BASIC", "FULL")]
    asked += [f"{TES}/service-info", "/healthz", "/readyz", "/metrics"]
    for task_id in task_ids:
        asked += [f"{TES}/tasks/{task_id}?view={view}" for view in ("MINIMAL", "BASIC", "FULL")]
        own = f"/api/v1/tasks/{task_id}"
        asked += [f"{own}/events", f"{own}/logs/0/stdout", f"{own}/logs/0/stderr"]
    return "\n".join(client.get(path).text for path in asked)


@pytest.mark.slow
def test_planted_secrets_are_found_nowhere(tmp_path: Path, locked: LockedHttp) -> None:
    locked.objects |= {"/signed": b"one ", "/closed": b"two ", "/other": b"x"}
    locked.signatures |= {"/signed": SIGNATURE, "/taken": SIGNATURE, "/gone": SIGNATURE}
    locked.signatures |= {"/other": "another"}
    locked.passwords |= {"/closed": "me:Pl4nted-p@ssword", "/kept": "me:Pl4nted-p@ssword"}
    signed = f"http://{locked.host}/signed?sv=1&sig={quote(SIGNATURE, safe='')}&se=2"
    closed = f"http://me:{PASSWORD}@{locked.host}/closed"
    taken, kept = signed.replace("/signed", "/taken"), closed.replace("/closed", "/kept")
    with (
        start_server(tmp_path, log_level="debug", max_retries=0) as server,
        server.client() as client,
        CommandLines() as lines,
    ):
        good = create(client, copying([signed, closed], [taken, kept], wait=True))
        until(lambda: get(client, good, "MINIMAL")["state"] == "RUNNING")
        assert holders(tmp_path) == []
        shown = get(client, good)
        assert [item["url"] for item in shown["inputs"]] == [
            f"http://{locked.host}/signed?sv=1&sig=***&se=2",
            f"http://***@{locked.host}/closed",
        ]
        again = client.post(f"{TES}/tasks", json={k: shown[k] for k in ("executors", "inputs")})
        assert again.status_code == 400
        assert "inputs[0].url: has *** where a secret was cut out" in again.text
        waiting = create(client, copying([signed], []) | {"resources": {"cpu_cores": 10_000}})
        (server.data / "shared-global" / "go").touch()
        task = ended(client, good)
        assert task["state"] == "COMPLETE", task
        assert locked.objects["/taken"] == locked.objects["/kept"] == b"one two "
        assert [output["url"] for output in task["logs"][0]["outputs"]] == [
            f"http://{locked.host}/taken?sv=1&sig=***&se=2",
            f"http://***@{locked.host}/kept",
        ]
        failing = failures(client, locked, signed, closed)
        refused = refusals(client)
        said = replies(client, [good, waiting, *failing])
        assert not PLANTED.search((said + again.text + refused).encode())
        assert holders(tmp_path) == []
        until(lambda: sealed_rows(server) == 0)
        assert server.stop() == 0
    assert holders(tmp_path) == []
    assert lines.looks > 20
    assert lines.found == set()


def failures(client: httpx.Client, locked: LockedHttp, signed: str, closed: str) -> list[str]:
    """Tasks that fail in all ways in which a server's answer may tell a secret; their ids."""
    cases = {
        "no such object": (signed.replace("/signed", "/gone"), "HTTP 404"),
        "wrong signature": (signed.replace("/signed", "/other"), "HTTP 403"),
        "wrong password": (closed.replace("me:", "you:"), "HTTP 401"),
        "no such server": (f"http://{TOKEN}@no-such-host.invalid/x?token={TOKEN}", "no-such-host"),
    }
    documents = [
        (copying([url], []) | {"name": name}, expected) for name, (url, expected) in cases.items()
    ]
    documents.append((copying([], [signed.replace("/signed", "/other")]), "HTTP 403"))
    ids = [create(client, document) for document, _ in documents]
    for task_id, (_, expected) in zip(ids, documents, strict=True):
        task = ended(client, task_id, timeout_s=90)
        assert task["state"] == "SYSTEM_ERROR", task
        assert expected in task["logs"][0]["system_logs"][-1], task
    assert set(locked.refused) == {"/other", "/closed"}
    return ids


def refusals(client: httpx.Client) -> str:
    """What is said of URLs that are refused at once."""
    said = ""
    for url in (
        f"gopher://h/x?sig={TOKEN}",
        f"https://me:{TOKEN}@h:99999/x",
        f"https://me:{TOKEN}@[h/x?token={TOKEN}",
        f"https://me:{TOKEN}/{TOKEN}@h/x",
        f"sftp://me:{TOKEN}/?{TOKEN}@h/x",
        f"http://169.254.169.254/x?token={TOKEN}",
        f"file://me:{TOKEN}@host/x",
    ):
        reply = client.post(f"{TES}/tasks", json=copying([url], [url]))
        assert reply.status_code == 400, reply.text
        said += reply.text
    return said


def sealed_rows(server: RunningServer) -> int:
    """How many tasks the database keeps secrets of."""
    with contextlib.closing(sqlite3.connect(server.data / "tesazure.db")) as link:
        return int(link.execute("SELECT count(*) FROM sealed").fetchone()[0])
