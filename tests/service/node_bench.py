"""For tests of the runner on a node: real processes, their blobs in a real Azurite."""

from __future__ import annotations

import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tesazure import report
from tesazure.access import Access, Endpoints
from tesazure.azure_identity import Identity
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.files import AttemptFiles
from tesazure.backends.base import Stream
from tesazure.model import Executor, Task
from tesazure.plan import Defaults, Plan, make_plan
from tesazure.report import AnyEvent, Report
from tesazure.runner.node import NodeAttempt
from tests.conftest import shared
from tests.services import base
from tests.services.azurite import Azurite
from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer

DEFAULTS = Defaults(cpu_cores=1, ram_gb=1, disk_gb=1, max_runtime_s=0)
DEADLINE_S = 60.0


def config_of(azurite: Azurite, **given: Any) -> BatchConfig:
    """Of a new installation on Azurite's account."""
    fields: dict[str, Any] = {
        "installation": secrets.token_hex(4),
        "account": "batchaccount",
        "url": "http://127.0.0.1:1",
        "storage_url": azurite.endpoint,
        "storage_account": azurite.account,
        "storage_key": azurite.key,
        "runner_image": "tesazure-runner:1",
        **given,
    }
    return BatchConfig(**fields)


def plan_of(*scripts: str, **fields: Any) -> Plan:
    """One executor for each shell script."""
    executors = [Executor(image="an/image:1", command=["sh", "-c", script]) for script in scripts]
    return make_plan("a-task", Task(executors=executors, **fields), DEFAULTS, [])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < deadline, "it did not come to pass"


class NodeBench:
    """A node's directories, and attempts there."""

    def __init__(self, files: AttemptFiles, path: Path, ca: str = "") -> None:
        self.files = files
        self.ca = ca
        self.path = path
        self.mounts = path / "mounts"
        self.mounts.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []

    def wd(self, key: str) -> Path:
        """The attempt's working directory, as Batch makes it."""
        directory = self.path / "workitems" / "job" / key / "wd"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    async def attempt(self, plan: Plan, **fields: Any) -> NodeAttempt:
        """A new attempt, with its channel."""
        key = f"a-task-{secrets.token_hex(4)}"
        channel = await self.files.channel(key, len(plan.steps), 3600)
        given = {"access": Access(), "engine": "sandbox", **fields}
        return NodeAttempt(key=key, plan=plan, channel=channel, **given)

    async def download(self, attempt: NodeAttempt, node: str = "") -> Path:
        """Put it, and have its file in a working directory, as Batch's resource file; that."""
        url = await self.files.put(attempt, "job", 3600) or attempt.channel.attempt
        directory = self.wd(f"{attempt.key}{node}")
        verify = ssl.create_default_context(cafile=self.ca) if self.ca else True
        version = {"x-ms-version": "2021-12-02"}
        async with httpx.AsyncClient(trust_env=False, verify=verify) as client:
            answer = (await client.get(url, headers=version)).raise_for_status()
        (directory / "attempt.json").write_bytes(answer.content)
        return directory

    def start(self, directory: Path, **more: str) -> subprocess.Popen[bytes]:
        """The runner's process, as Batch starts it; `more` of the environment."""
        environ = {
            **os.environ,
            "AZ_BATCH_NODE_ROOT_DIR": str(self.path),
            "AZ_BATCH_NODE_MOUNTS_DIR": str(self.mounts),
            "AZ_BATCH_NODE_SHARED_DIR": str(self.path / "shared"),
            "AZ_BATCH_TASK_WORKING_DIR": str(directory),
            **more,
        }
        command = [sys.executable, "-m", "tesazure.runner.node"]
        process = subprocess.Popen(
            command, env=environ, stderr=subprocess.PIPE, cwd="/", start_new_session=True
        )
        self.processes.append(process)
        return process

    async def run(self, plan: Plan, **fields: Any) -> tuple[int, str, NodeAttempt]:
        """Exit code, standard error, attempt."""
        attempt = await self.attempt(plan, **fields)
        process = self.start(await self.download(attempt))
        return *self.ended(process), attempt

    def ended(self, process: subprocess.Popen[bytes]) -> tuple[int, str]:
        """Exit code and standard error of a process that ends."""
        _, said = process.communicate(timeout=DEADLINE_S)
        return process.returncode, said.decode()

    async def events(self, key: str) -> list[AnyEvent]:
        """The report so far."""
        return report.decode(await self.files.read_report(key, 0))

    async def report(self, key: str) -> Report:
        """The same, folded."""
        return report.fold(await self.events(key))

    async def stream(self, key: str, executor: int = 0, stream: Stream = "stdout") -> bytes:
        """The whole of it."""
        part = await self.files.read_stream(key, executor, stream, 0, 2**26)
        assert (part.offset, part.size) == (0, len(part.data))
        return part.data

    async def begun(self, key: str) -> int:
        """Process id of the attempt, once its first executor runs."""

        async def runs() -> bool:
            return (await self.report(key)).executor_started

        await until(runs)
        [first, *_] = await self.events(key)
        assert isinstance(first, report.Started)
        return first.pid

    def close(self) -> None:
        """End what a failed test left."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


@asynccontextmanager
async def node_bench(path: Path) -> AsyncIterator[NodeBench]:
    """A node below `path`, which reports to Azurite."""
    files = AttemptFiles(config_of(shared(Azurite)))
    await files.start()
    bench = NodeBench(files, path)
    yield bench
    bench.close()
    await files.stop()


def identity_of(issuer: EntraServer) -> Identity:
    """Of the stand-in's service principal."""
    return Identity(
        tenant=TENANT,
        client_id=CLIENT,
        secret=SECRET,
        authority=issuer.authority,
        ca_bundle="",
    )


def bundle_of(directory: Path, ca: Path, issuer: EntraServer) -> Path:
    """A file of the authorities of both."""
    bundle = directory / "bundle.pem"
    bundle.write_text(ca.read_text() + Path(issuer.ca_bundle).read_text())
    return bundle


def endpoints_of(azurite: Azurite) -> Endpoints:
    """As the server has them: with a file that no node has."""
    return msgspec.structs.replace(azurite.endpoints, ca_bundle="/no/node/has/this.pem")


def is_running(token: str) -> bool:
    """Whether a process of the machine has this among its arguments."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if token.encode() in command.split(b"\0") and base.is_alive(int(entry.name)):
                return True
    return False
