"""A provisioning server of the real store, Conductor and routes, on a cloud of files.

The cloud is a directory: each resource a file that names the run that made it, with a journal of
what was made and removed. A file in `faults/` makes the server fail, wait or die at that point.
Azure's own rules are for the tests against the stand-in of Resource Manager; here it is about what
is recorded, when, and who goes on. `python -m tests.service.provision_site DIRECTORY` serves it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from tesazure.api.access_log import AccessLog
from tesazure.api.audit import Audit
from tesazure.api.bodies import BodyReader
from tesazure.api.edge import Edge
from tesazure.api.lines import Lines
from tesazure.api.metrics import Latencies
from tesazure.api.provision import Provision
from tesazure.api.provision_access import demand
from tesazure.api.routing import Routes
from tesazure.errors import FieldError
from tesazure.provision.base import Found, Ground, GroundOf, Outcome, Step, Tell
from tesazure.provision.conductor import Conductor, Place
from tesazure.provisioning import (
    Failure,
    IdleCost,
    ProvisionFailed,
    Request,
    Run,
    ServicePrincipal,
)
from tesazure.signin.gate import Gate, SignIn
from tesazure.signin.tokens import TokenSource
from tesazure.store.sql_store import SqlStore, open_store

SECRET = "the~principals.secret_9f2c"
SUBSCRIPTION = "0b1f6471-1bf0-4dda-aec3-111122223333"
PRINCIPAL = ServicePrincipal("0b1f6471-1bf0-4dda-aec3-cccccccccccc", SECRET, "contoso.example")
OWN = Request(subscription_id=SUBSCRIPTION)
BY_PRINCIPAL = msgspec.structs.replace(OWN, service_principal=PRINCIPAL)
BATCH_KEY = "a2V5LW9mLXRoZS1iYXRjaC1hY2NvdW50"
TOKEN = "a-token-for-provisioning"
HELD_S = 60.0
STEPS = ("group", "storage", "container", "batch")
MADE = [*(f"make {step}" for step in STEPS), "test", "publish"]
"""The journal of a whole run."""
PLAIN = "container"
"""Carries no tags, and is made in one go."""
POINTS = tuple(
    [
        f"{step}.{point}"
        for step in STEPS
        for point in ("look", "begin", "half", "made")
        if (step, point) != (PLAIN, "made")
    ]
    + ["test", "publish", "published"]
)
"""Where a fault may lie, in the order in which a run comes to them."""


class Cloud:
    """What there is. Used from any thread and process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings = directory / "settings.json"
        self._faults = directory / "faults"
        self._faults.mkdir(parents=True, exist_ok=True)

    def fault(self, point: str, kind: str, times: int = 1) -> None:
        """Whoever comes to a point next will `die` by SIGKILL, `fail`, `crash` by an unforeseen
        exception, or is on `hold` until `release`; so often."""
        (self._faults / point).write_text(f"{kind} {times}")

    def release(self, point: str) -> None:
        """Let whoever is held there go on."""
        (self._faults / f"{point}.reached").unlink()

    def reached(self, point: str) -> bool:
        """Whether somebody is held there."""
        return (self._faults / f"{point}.reached").exists()

    def pass_by(self, point: str) -> None:
        """Come to a point. Raises ProvisionFailed."""
        file = self._faults / point
        if not file.exists():
            return
        kind, times = file.read_text().split()
        if int(times) <= 1:
            file.unlink()
        else:
            file.write_text(f"{kind} {int(times) - 1}")
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hold":
            reached = self._faults / f"{point}.reached"
            reached.touch()
            deadline = time.monotonic() + HELD_S
            while reached.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        if kind == "crash":
            raise RuntimeError(f"unforeseen, with {SECRET}")
        if kind == "fail":
            text = f"quota of 0 at {point}, asked with {SECRET}"
            raise ProvisionFailed(Failure("QuotaExceeded", text, "ask for more"))

    def read(self, name: str) -> dict[str, Any] | None:
        """A resource."""
        file = self.directory / f"{name}.json"
        return dict(json.loads(file.read_text())) if file.exists() else None

    def write(self, name: str, run: str, **more: object) -> None:
        """Make or complete a resource."""
        file = self.directory / f"{name}.json"
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps({"run": run, **more}))
        fresh.replace(file)

    def note(self, what: str) -> None:
        """A line of the journal."""
        with (self.directory / "journal").open("a") as file:
            file.write(f"{what}\n")

    def journal(self) -> list[str]:
        """What was made, published and removed, in order."""
        file = self.directory / "journal"
        return file.read_text().splitlines() if file.exists() else []


class FileStep:
    """A resource that carries tags, unless `is_plain`."""

    def __init__(self, cloud: Cloud, name: str, run: str, is_plain: bool = False) -> None:
        self.name = name
        self.title = f"The {name}"
        self._cloud = cloud
        self._run = run
        self._is_plain = is_plain
        self._id = f"/subscriptions/s/{name}"

    def look(self) -> Found:
        self._cloud.pass_by(f"{self.name}.look")
        there = self._cloud.read(self.name)
        if there is None:
            return Found(state="missing")
        if there["run"] == self._run and not self._is_plain:
            return Found(state="ours", resource_id=self._id)
        if there["run"] == "stranger":
            problem = FieldError(f"{self.name}_name", "is taken by another subscription")
            return Found(state="foreign", resource_id=self._id, problem=problem)
        return Found(state="right", resource_id=self._id, detail="was there")

    def make(self, tell: Tell, is_ours: bool) -> Outcome:
        self._cloud.pass_by(f"{self.name}.begin")
        there = self._cloud.read(self.name)
        assert there is None or is_ours
        if there is None:
            self._cloud.write(self.name, self._run, whole=self._is_plain)
            self._cloud.note(f"make {self.name}")
        tell(f"Azure makes the {self.name}")
        self._cloud.pass_by(f"{self.name}.half")
        if not self._is_plain and not (there and there["whole"]):
            self._cloud.write(self.name, self._run, whole=True)
        self._cloud.pass_by(f"{self.name}.made")
        return Outcome(resource_id=self._id, made=there is None, detail="is there")

    def remove(self) -> str:
        self._cloud.pass_by(f"{self.name}.remove")
        there = self._cloud.read(self.name)
        if there is None:
            return ""
        assert there["run"] == self._run, "somebody else's was to be removed"
        if self.name == "group" and self._cloud.read("stranger") is not None:
            return "stranger is in it, which this run did not make"
        (self._cloud.directory / f"{self.name}.json").unlink()
        self._cloud.note(f"remove {self.name}")
        return ""


class FileGround:
    """A subscription. Knows its principal's secret."""

    def __init__(self, cloud: Cloud, request: Request, run: str) -> None:
        self._cloud = cloud
        self._request = request
        self._run = run

    def problems(self) -> list[FieldError]:
        principal = self._request.service_principal
        problems = []
        if principal is not None and principal.secret != SECRET:
            problems.append(FieldError("service_principal.secret", "is not this principal's"))
        if self._request.location != "eastus":
            problems.append(FieldError("location", "is no region of this subscription"))
        is_new = self._cloud.read("storage") is None
        self._cloud.pass_by("problems")
        if is_new and self._cloud.read("storage") is not None:
            # What Azure says of a name that somebody took between two questions.
            problems.append(FieldError("storage_account_name", "is taken"))
        return problems

    def idle_cost(self) -> Sequence[IdleCost]:
        return [IdleCost("storage", 1.5, "by use"), IdleCost("batch", None)]

    def steps(self) -> Sequence[Step]:
        return [FileStep(self._cloud, n, self._run, n == PLAIN) for n in STEPS]

    def values(self) -> Mapping[str, str]:
        return {
            "compute_backend": "batch",
            "batch_account_name": self._request.batch_account_name,
            "batch_account_key": BATCH_KEY,
        }

    def close(self) -> None:
        pass


class FileSettling:
    """Servers whose settings are a file."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    async def problems(self, request: Request) -> list[FieldError]:
        return []

    async def test(self, values: Mapping[str, str], tell: Tell) -> str:
        await asyncio.to_thread(self._cloud.pass_by, "test")
        assert values["batch_account_key"] == BATCH_KEY
        self._cloud.note("test")
        tell(f"with {BATCH_KEY}")
        return f"a task ran on {values['batch_account_name']} with {BATCH_KEY}"

    async def publish(self, values: Mapping[str, str], request: Request) -> str:
        await asyncio.to_thread(self._cloud.pass_by, "publish")
        self._cloud.settings.write_text(json.dumps(dict(values)))
        self._cloud.note("publish")
        await asyncio.to_thread(self._cloud.pass_by, "published")
        return "in effect: COMPUTE_BACKEND=batch"

    async def withdraw(self, request: Request) -> str:
        await asyncio.to_thread(self._cloud.pass_by, "withdraw")
        self._cloud.settings.unlink(missing_ok=True)
        self._cloud.note("withdraw")
        return "in effect: COMPUTE_BACKEND=local"


class Site:
    """One server of an installation."""

    def __init__(self, store: SqlStore, cloud: Cloud, server: str, lease_s: float = 30) -> None:
        def ground(request: Request, run: str) -> Ground:
            return FileGround(cloud, request, run)

        ground_of: GroundOf = ground
        self.store = store
        place = Place(server, "an-installation", lease_s)
        self.conductor = Conductor(store, ground_of, FileSettling(cloud), place)


async def until(is_so: Callable[[], Any], what: str = "", timeout_s: float = 60) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"timed out: {what}"
        await asyncio.sleep(0.01)


class Installation:
    """Servers on one database and one cloud."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.cloud = Cloud(directory / "cloud")
        self._url = url
        self._open: list[Site] = []

    async def server(self, name: str = "one", lease_s: float = 30) -> Site:
        """Start one."""
        store = await open_store(self._url, self.directory / "tesazure.db")
        site = Site(store, self.cloud, name, lease_s)
        self._open.append(site)
        await site.conductor.start()
        return site

    async def stop(self, site: Site) -> None:
        """Stop one, as SIGTERM does."""
        self._open.remove(site)
        await site.conductor.stop()
        await site.store.close()

    async def close(self) -> None:
        """Stop all."""
        for site in list(self._open):
            await self.stop(site)


async def ended(site: Site, run_id: str) -> Run:
    """The run, once nobody works on it."""
    async with asyncio.timeout(60):
        while True:
            stored = await site.conductor.run(run_id)
            assert stored is not None
            if stored.run.state in ("CREATED", "ERROR", "DELETED"):
                return stored.run
            await asyncio.sleep(0.01)


async def made(site: Site, request: Request = OWN) -> Run:
    """The run of a request, at its end."""
    return await ended(site, (await site.conductor.begin(request)).run.id)


async def _serve(directory: Path, name: str) -> None:
    store = await open_store(os.environ.get("SITE_DATABASE", ""), directory / "tesazure.db")
    site = Site(store, Cloud(directory / "cloud"), name, lease_s=3)
    await site.conductor.start()
    gate = Gate(SignIn(), TokenSource(store))
    lines = Lines(sys.stderr.fileno())
    audit = Audit(lines)
    allowed = functools.partial(demand, token=TOKEN)
    routes = Routes(Provision(site.conductor, gate, audit, BodyReader(2**20), allowed).routes())
    edge = Edge(routes, gate, Latencies(), AccessLog(lines, True))
    config = uvicorn.Config(edge, port=0, lifespan="off", log_config=None, proxy_headers=False)
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    (directory / f"{name}.port").write_text(str(listener.getsockname()[1]))
    await server.serve([listener])
    await site.conductor.stop()
    lines.flush()
    await store.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))
