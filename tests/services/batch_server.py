"""A stand-in for an Azure Batch account that really runs its tasks. See docs/batch-stand-in.md.

with BatchServer(directory) as batch:
    client = BatchClient(batch.url, AzureNamedKeyCredential(batch.account, batch.key))
"""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from tests.services.batch_auth import Doorkeeper
from tests.services.batch_definition import definition
from tests.services.batch_files import Failed, Transfers
from tests.services.batch_fleet import Fleet, NodeScript, Quotas, Shortage
from tests.services.batch_jobs import Jobs
from tests.services.batch_machines import RealMachine
from tests.services.batch_nodes import Machine, SimulatedMachine, Simulation
from tests.services.batch_pools import Evaluation, Pools
from tests.services.batch_routes import Call, Route, find_route, routes
from tests.services.batch_state import Node, Pool, Task
from tests.services.batch_tasks import Fault, Tasks
from tests.services.batch_wire import HttpServer, Refused, Reply, Request
from tests.services.batch_world import Timing, World
from tests.services.certificates import Certificate
from tests.services.entra_server import EntraServer

ACCOUNT = "labbatch"
KEY = base64.b64encode(hashlib.sha512(b"the stand-in's key").digest()).decode()
API_VERSIONS = ("2025-06-01", "2024-07-01.20.0")


@dataclass
class Trouble:
    """How requests fail. `cut`: the connection is cut, before anything was done or after all was.
    `slow_s`: that long before the answer, which is right if there is no other trouble."""

    operation: str
    status: int = 0
    code: str = ""
    retry_after_s: float | None = None
    cut: Literal["", "before", "after"] = ""
    slow_s: float = 0.0
    times: int = 1


class BatchServer:
    """One Batch account, as a context manager. All methods may be called from any thread.

    `entra`: whose tokens it takes; then it speaks TLS, as the SDK sends tokens over nothing else,
    and `ca_bundle` is to be trusted. `simulation`: plays the command lines; else they are run, see
    `RealMachine` for `docker` and `environment`. `trusts`: PEM file for the storage that resource
    files are downloaded from. `certificate`: of its TLS; None: one of its own.
    """

    def __init__(
        self,
        directory: Path,
        *,
        entra: EntraServer | None = None,
        simulation: Simulation | None = None,
        docker: str = "",
        environment: Mapping[str, str] | None = None,
        trusts: str = "",
        account: str = ACCOUNT,
        key: str = KEY,
        certificate: Certificate | None = None,
    ) -> None:
        self.account, self.key = account, key
        self.calls: Counter[str] = Counter()
        """Requests by operation, as the definition names them: Task_List, Pool_Add, …"""
        self.violations: list[str] = []
        """What requests or replies broke of Microsoft's definition; must be empty at the end."""
        self.before: Callable[[str, Request], None] = lambda _operation, _request: None
        """Called before each operation is done, without the lock: for changes between two pages."""
        self.world = World()
        transfers = Transfers(trusts)
        self.machine: Machine = (
            SimulatedMachine(simulation, transfers)
            if simulation is not None
            else RealMachine(directory, transfers, docker, environment)
        )
        self.tasks = Tasks(self.world, self.machine)
        self.fleet = Fleet(self.world, self.machine, self.tasks.schedule)
        self.fleet.requeue, self.tasks.settle = self.tasks.requeue, self.fleet.settle
        self.jobs = Jobs(self.world, self.tasks, self.fleet.quotas)
        self.pools = Pools(self.world, self.fleet, self.tasks)
        self.doorkeeper = Doorkeeper(self.account, self.key, self.world.clock, entra)
        self.routes = routes(self.pools, self.jobs, self.tasks)
        self._troubles: list[Trouble] = []
        self._definition = definition()
        tls = certificate or (directory / "tls" if entra is not None else None)
        self._http = HttpServer(self.answer, tls)
        self.url = self.world.url = self._http.url
        self.ca_bundle = self._http.ca_bundle

    def __enter__(self) -> Self:
        self.world.start()
        self._http.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._http.stop()
        self.world.wait_for(self._ends_all, 10)
        self.world.stop()
        for node in self._nodes():
            if node.root is not None:
                self.machine.discard(node.root)
        assert kind is not None or not self.violations, self.violations

    def _ends_all(self) -> bool:
        """Whether nothing runs any more. What does is killed; others that wait may begin then."""
        running = [execution for node in self._nodes() for execution in node.running]
        for execution in running:
            if not execution.deleted:
                execution.deleted = True
                execution.kill()
        return not running

    # ------------------------------------------------------------------ scripts

    @property
    def timing(self) -> Timing:
        """How long things take."""
        return self.world.timing

    @property
    def quotas(self) -> Quotas:
        """What the account may have."""
        return self.fleet.quotas

    def evaluate(self, evaluation: Evaluation) -> None:
        """How pools are scaled automatically from now on."""
        self.pools.evaluation = evaluation

    def page(self, size: int) -> None:
        """The length of pages; 1000 at first."""
        self.tasks.page_size = size

    def skew(self, seconds: float) -> None:
        """Move the service's clock away from this machine's."""
        self.world.clock.skew_s = seconds

    def trouble(self, operation: str, **how: Any) -> Trouble:
        """Let the next requests of an operation (`*`: of any) fail, see Trouble."""
        trouble = Trouble(operation, **how)
        with self.world.lock:
            self._troubles.append(trouble)
        return trouble

    def shortage(self, **how: Any) -> Shortage:
        """Azure lacks nodes, see Shortage; `plenty` ends it."""
        shortage = Shortage(**how)
        with self.world.lock:
            self.fleet.shortages.append(shortage)
        return shortage

    def plenty(self) -> None:
        """No shortage any more."""
        with self.world.lock:
            self.fleet.shortages.clear()

    def script_nodes(self, *scripts: NodeScript) -> None:
        """What becomes of the nodes that come next; of those after them, nothing special."""
        with self.world.lock:
            self.fleet.scripts = deque(scripts)

    def fail_tasks(
        self,
        ends: Failed | int,
        matches: Callable[[Task], bool] = lambda _: True,
        times: int = 1,
    ) -> None:
        """The next tasks that are placed and match do not run: they fail with Batch's code, or
        their program exits so."""
        with self.world.lock:
            self.tasks.faults.append(Fault(ends, matches, times))

    def nodes(self, pool: str, *states: str) -> list[str]:
        """Ids of a pool's nodes, in these states; in all without."""
        with self.world.lock:
            found = self.world.pools.get(pool)
            nodes = [] if found is None else list(found.nodes)
            return [node.id for node in nodes if not states or node.state in states]

    def node_of(self, job: str, task: str) -> str:
        """Id of the node that a task is on; empty while it waits."""
        with self.world.lock:
            found = self.task(job, task)
            execution = found.execution if found is not None else None
            return execution.node.id if execution is not None else ""

    def task(self, job: str, task: str) -> Task | None:
        """A task as it is kept, to look at."""
        with self.world.lock:
            found = self.world.jobs.get(job)
            return None if found is None else found.tasks.get(task)

    def share(self, url: str) -> Path:
        """The directory that stands for an Azure Files share, where command lines really run."""
        assert isinstance(self.machine, RealMachine)
        return self.machine.share(url)

    def preempt(self, node: str) -> None:
        """Azure takes a Spot node back; its tasks are requeued."""
        with self.world.lock:
            self.fleet.preempt(self._node(node))
            self.world.changed.notify_all()

    def restore(self, node: str) -> None:
        """A node comes back: a preempted one, empty, or an unusable one."""
        with self.world.lock:
            self.fleet.restore(self._node(node))

    def fail_node(
        self,
        node: str,
        state: str = "unusable",
        code: str = "",
        said: str = "",
        *,
        keeps: bool = False,
    ) -> None:
        """A node becomes unusable, unknown, offline, …; its tasks are requeued, unless it `keeps`
        them."""
        errors = [{"code": code, "message": said, "errorDetails": []}] if code else []
        with self.world.lock:
            self.fleet.fail(self._node(node), state, errors, keeps=keeps)
            self.world.changed.notify_all()

    def reboot(self, node: str) -> None:
        """A node reboots by itself; its tasks are requeued."""
        with self.world.lock:
            self.fleet.fail(self._node(node), "rebooting", [])
            self.fleet.restore(self._node(node))

    def wait_for(self, condition: Callable[[Self], bool], timeout_s: float = 60) -> None:
        """Returns when it holds. Raises AssertionError after the timeout."""
        held = self.world.wait_for(lambda: condition(self), timeout_s)
        assert held, f"not within {timeout_s} s"

    def _nodes(self) -> list[Node]:
        return [node for pool in self.world.pools for node in pool.nodes]

    def _node(self, id_: str) -> Node:
        return next(node for node in self._nodes() if node.id == id_)

    # ------------------------------------------------------------------ requests

    def answer(self, request: Request) -> Reply | None:
        route, ids = find_route(self.routes, request)
        operation = "?" if route is None else route.operation
        with self.world.lock:
            self.calls[operation] += 1
            trouble = self._trouble_for(operation)
        if trouble is not None:
            time.sleep(trouble.slow_s)
            if trouble.cut == "before":
                return None
        reply = self._reply(route, Call(request, ids), trouble)
        if trouble is not None and trouble.cut == "after":
            return None
        return reply

    def _reply(self, route: Route | None, call: Call, trouble: Trouble | None) -> Reply:
        request = call.request
        try:
            if trouble is not None and trouble.status:
                raise _refusal_of(trouble)
            self.doorkeeper.admit(request)
            if request.query.get("api-version") not in API_VERSIONS:
                said = "The specified request version is not supported."
                raise Refused(400, "UnsupportedRequestVersion", said)
            if route is None:
                said = "The requested URI does not represent any resource on the server."
                raise Refused(400, "InvalidUri", said)
            call.body = request.document
            self._check_request(request, call.body)
            self.before(route.operation, request)
            with self.world.lock:
                reply = route.act(call)
                self.world.changed.notify_all()
        except Refused as refusal:
            document = None if request.method == "HEAD" else refusal.document(self.world.clock)
            reply = Reply(refusal.status, document, refusal.headers)
        except Exception as error:
            self.violations.append(f"the stand-in at {request.path}: {error!r}")
            said = "The server encountered an internal error. Please retry the request."
            reply = Reply(500, Refused(500, "InternalError", said).document(self.world.clock))
        client = request.headers.get("client-request-id", str(uuid.uuid4()))
        reply.headers |= {"request-id": str(uuid.uuid4()), "client-request-id": client}
        if reply.status < 400:
            reply.headers.setdefault("DataServiceId", f"{self.url}{request.path}")
        return self._finished(request, reply)

    def _finished(self, request: Request, reply: Reply) -> Reply:
        """With what the service adds to what is defined, as recordings of it show."""
        if self._definition is not None and (wrong := self._definition.reply(request, reply)):
            self.violations.append(f"reply to {request.method} {request.path}: {wrong}")
        if isinstance(reply.document, dict):
            kind = "Entities.Container.errors/@Element" if reply.status >= 400 else request.parts[0]
            where = {"odata.metadata": f"{self.url}/$metadata#{kind}"}
            reply.document = where | reply.document
            for item in reply.document.get("value", []):
                if isinstance(item, dict) and "contentLength" in item.get("properties", {}):
                    item["properties"]["contentLength"] = str(item["properties"]["contentLength"])
        return reply

    def _check_request(self, request: Request, document: Any) -> None:
        for name in ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since"):
            if name in request.headers:
                said = "One of the HTTP headers specified in the request is not supported."
                raise Refused(400, "UnsupportedHeader", said, {"HeaderName": name})
        if self._definition is None:
            return
        wrong = self._definition.request(request, document)
        if wrong:
            self.violations.append(f"{request.method} {request.path}: {wrong}")
            said = "The specified Request Body is not syntactically valid."
            raise Refused(400, "InvalidRequestBody", said, {"Reason": "; ".join(wrong)})

    def _trouble_for(self, operation: str) -> Trouble | None:
        for trouble in self._troubles:
            if trouble.times > 0 and trouble.operation in ("*", operation):
                trouble.times -= 1
                return trouble
        return None


def _refusal_of(trouble: Trouble) -> Refused:
    codes = {429: "TooManyRequests", 503: "ServerBusy", 500: "InternalError"}
    code = trouble.code or codes.get(trouble.status, "OperationTimedOut")
    headers = {}
    if trouble.retry_after_s is not None:
        headers["Retry-After"] = f"{trouble.retry_after_s:g}"
    return Refused(
        trouble.status, code, "The server is currently unable to do this.", None, headers
    )


__all__ = ["BatchServer", "Failed", "NodeScript", "Pool", "Shortage", "Trouble"]
