"""A stand-in for Azure Resource Manager that really makes what it is asked for. See
docs/azure-stand-in.md.

with EntraServer(a) as entra, AzureCloud(b, entra) as cloud:
    client = StorageManagementClient(credential, SUBSCRIPTION, base_url=cloud.url, …)
"""

from __future__ import annotations

import fnmatch
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jwt

from tests.services.azure_cloud_batch import BatchAccounts
from tests.services.azure_cloud_compute import Sizes
from tests.services.azure_cloud_definition import definitions
from tests.services.azure_cloud_groups import REGION, SUBSCRIPTION, Groups
from tests.services.azure_cloud_pools import Pools
from tests.services.azure_cloud_registries import Registries
from tests.services.azure_cloud_rights import Rights
from tests.services.azure_cloud_state import (
    Call,
    Operation,
    Pace,
    Refused,
    Reply,
    Resource,
    Route,
    State,
)
from tests.services.azure_cloud_storage import StorageAccounts
from tests.services.batch_machines import RealMachine
from tests.services.batch_server import BatchServer
from tests.services.entra_server import CLIENT, TENANT, EntraServer, object_id
from tests.services.storage_gate import StorageGate
from tests.services.tls_server import Cut, Refusal, Request, TlsServer

_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
_POLL = re.compile(r".*/([0-9a-f-]{36})")
_READ_ONLY = frozenset({"id", "name", "type", "etag"})
"""Of a resource."""


@dataclass
class Trouble:
    """How requests fail. `match`: an operation by Microsoft's name, with wildcards. `cut`: the
    connection is cut, before anything was done or after all was. `later`: it begins, and its
    long-running operation ends so. `slow_s`: that long before the answer."""

    match: str
    times: int = 1
    status: int = 0
    code: str = ""
    message: str = ""
    retry_after_s: float | None = None
    cut: Literal["", "before", "after"] = ""
    later: bool = False
    slow_s: float = 0.0

    def refusal(self) -> Refused:
        """As Azure's."""
        usual = {
            403: "AuthorizationFailed",
            409: "Conflict",
            429: "TooManyRequests",
            500: "InternalServerError",
            503: "ServerBusy",
        }
        status = self.status or 409
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = f"{self.retry_after_s:g}"
        code = self.code or usual.get(status, "OperationNotAllowed")
        said = self.message or "The server is currently unable to do this."
        return Refused(status, code, said, headers)


class AzureCloud(TlsServer):
    """Azure Resource Manager, and the accounts that are made through it, as a context manager.

    `owners` are client ids of `entra` that own the subscription. `batch_options` are BatchServer's,
    for each Batch account. `asked` as in TlsServer.
    """

    def __init__(
        self,
        directory: Path,
        entra: EntraServer,
        *,
        owners: Collection[str] = (CLIENT,),
        batch_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(directory)
        self._directory, self._entra = directory, entra
        bundle = directory / "authorities.pem"
        own = Path(self.ca_bundle).read_text()
        bundle.write_text(Path(entra.ca_bundle).read_text() + own)
        self.ca_bundle = str(bundle)
        """PEM file of the authorities of all: the directory's, and that of everything made here."""
        self.calls: Counter[str] = Counter()
        """Requests by operation, as Microsoft names them: StorageAccounts_Create, …"""
        self.violations: list[str] = []
        """What requests or replies broke of Microsoft's definitions; must be empty at the end."""
        self.before: Callable[[str, Request], None] = lambda _operation, _request: None
        """Called before each operation is done, without the lock."""
        self.after: Callable[[str, Request], None] = lambda _operation, _request: None
        """Called when an operation was done, and is not answered yet; without the lock."""
        self.state = State()
        self.rights = Rights(self.state, TENANT)
        self.groups = Groups(self.state, self.rights, self._end)
        self.storage = StorageAccounts(self.state, self.groups, self._open_gate)
        self.batch = BatchAccounts(self.state, self.groups, self.rights, TENANT, self._open_batch)
        self.registries = Registries(self.state, self.groups)
        self.sizes = Sizes(self.groups, self.url)
        self._batch_options = dict(batch_options or {})
        self._troubles: list[Trouble] = []
        self.definitions = definitions()
        """Microsoft's; None where they are not."""
        pools = Pools(self.state, self.rights, self.batch)
        parts = (self.groups, self.rights, self.storage, self.batch, pools, self.sizes)
        self._routes: list[Route] = [route for part in parts for route in part.routes()]
        self._routes += self.registries.routes()  # the last of which is for any resource
        for client in [*entra.secrets, entra.identity]:
            self.rights.principals[object_id(client)] = 0.0
        for client in owners:
            self.grant(client, "Owner")

    def __exit__(self, kind: object = None, *rest: object) -> None:
        with self.state.lock:
            for each in list(self.state.resources.values()):
                self._end(each)
        super().__exit__(kind, *rest)
        assert kind is not None or not self.violations, self.violations

    # ------------------------------------------------------------------ scripts

    @property
    def pace(self) -> Pace:
        """How long things take."""
        return self.state.pace

    def fail(self, match: str, times: int = 1, **how: Any) -> Trouble:
        """Let the next requests of operations that match fail, see Trouble."""
        trouble = Trouble(match, times, **how)
        with self.state.lock:
            self._troubles.append(trouble)
        return trouble

    def grant(self, client: str, role: str | Mapping[str, Any], scope: str = "") -> str:
        """A role for a client id, over the subscription if no scope is given: a built-in one, or a
        definition as the command line of Azure takes it. The assignment's id."""
        with self.state.lock:
            where = scope or f"/subscriptions/{SUBSCRIPTION}"
            return self.rights.grant(object_id(client), role, where)

    def revoke(self, client: str) -> None:
        """Take all roles of a client id away."""
        with self.state.lock:
            self.rights.revoke(object_id(client))

    def register(self, *namespaces: str) -> None:
        """The subscription uses these for long."""
        with self.state.lock:
            for each in namespaces:
                self.groups.register(each)

    def add_group(self, name: str, location: str = REGION, **tags: str) -> str:
        """A resource group that was there before; its id."""
        id_ = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{name}"
        body = {"location": location, "tags": tags}
        made = Resource(id_, "Microsoft.Resources/resourceGroups", body)
        made.properties["provisioningState"] = "Succeeded"
        with self.state.lock:
            self.state.put(made)
        return id_

    def add_batch_account(self, group: str, name: str) -> BatchServer:
        """A Batch account that was there before, in a group by name."""
        with self.state.lock:
            here = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}"
            self.batch.add(here, name, {"location": REGION})
            return self.batch.servers[name]

    def place(self, group: str, kind: str, name: str, **body: Any) -> str:
        """A resource of any type that was there before, in a group by name; its id."""
        with self.state.lock:
            here = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}"
            return self.registries.place(here, kind, name, {"location": REGION, **body})

    def found(self, id_: str) -> dict[str, Any] | None:
        """The document of a resource, as it is now."""
        with self.state.lock:
            self.state.settle()
            resource = self.state.get(id_)
            return None if resource is None else resource.told()

    def ids(self) -> list[str]:
        """Of all that is there but role assignments, sorted."""
        with self.state.lock:
            self.state.settle()
            kept = self.state.resources.values()
            return sorted(e.id for e in kept if "Microsoft.Authorization" not in e.type)

    # ------------------------------------------------------------------ what is really made

    def _open_gate(self, account: Resource, keys: list[str]) -> StorageGate:
        def may(principal: str, action: str, container: str, data: bool) -> bool:
            scope = f"{account.id}/blobServices/default/containers/{container}"
            return self.rights.may(principal, action, scope, data=data)

        return StorageGate(
            self._directory / "storage" / account.name,
            self.certificate,
            account.name,
            keys,
            self._entra,
            may,
            lambda: account.properties.get("allowSharedKeyAccess") is not False,
        )

    def _open_batch(self, name: str, keys: list[str], id_: str) -> BatchServer:
        options = {"trusts": self.ca_bundle, **self._batch_options}
        server = BatchServer(
            self._directory / "batch" / name,
            entra=self._entra,
            account=name,
            key=keys[0],
            certificate=self.certificate,
            **options,
        )
        server.doorkeeper.second_key = keys[1]
        server.doorkeeper.members = _Members(self, id_)
        if isinstance(server.machine, RealMachine):
            server.machine.mounted = lambda mount: self._share(self.storage.mount(mount))
        return server.__enter__()

    def _share(self, name: str) -> Path:
        directory = self._directory / "shares" / name
        directory.mkdir(parents=True, exist_ok=True)
        # Tasks that run as other users write there, too.
        directory.chmod(0o777)
        return directory

    def _end(self, resource: Resource) -> None:
        if resource.name in self.batch.servers:
            self.violations += self.batch.servers[resource.name].violations
            self.batch.servers[resource.name].violations.clear()
        if resource.type.endswith("/batchAccounts"):
            self.batch.end(resource)
        elif resource.type.endswith("/storageAccounts"):
            self.storage.end(resource)

    # ------------------------------------------------------------------ requests

    def answer(self, request: Request) -> Any:
        """See TlsServer."""
        route, ids = self._route(request)
        operation = "?" if route is None else route.operation
        with self.state.lock:
            self.calls[operation] += 1
            trouble = self._trouble_for(operation)
        if trouble is not None:
            time.sleep(trouble.slow_s)
            if trouble.cut == "before":
                raise Cut
        reply = self._reply(route, ids, request, trouble)
        self._check_reply(request, reply)
        self.after(operation, request)
        if trouble is not None and trouble.cut == "after":
            raise Cut
        headers = {"x-ms-request-id": str(uuid.uuid4())} | reply.headers
        for name in ("Location", "Azure-AsyncOperation"):
            if name in headers:
                version = request.query.get("api-version", "")
                headers[name] = f"{self.url}{headers[name]}?api-version={version}"
        # Every status goes this way, not only those of refusals.
        raise Refusal(reply.status, reply.document, headers)

    def _route(self, request: Request) -> tuple[Route | None, dict[str, str]]:
        poll = _POLL.fullmatch(request.path)
        if request.method == "GET" and poll and poll[1] in self.state.operations:
            route = Route("GET", request.path, "Operation_Get", "", self._poll)
            return route, {"id": poll[1]}
        for each in self._routes:
            ids = each.matches(request.method, request.path)
            if ids is not None:
                return each, ids
        return None, {}

    def _trouble_for(self, operation: str) -> Trouble | None:
        for each in self._troubles:
            if each.times > 0 and fnmatch.fnmatchcase(operation, each.match):
                each.times -= 1
                return each
        return None

    def _reply(
        self, route: Route | None, ids: dict[str, str], request: Request, trouble: Trouble | None
    ) -> Reply:
        try:
            fails = trouble is not None and not trouble.later and not trouble.cut
            if trouble is not None and fails and (trouble.status or trouble.code):
                raise trouble.refusal()
            caller = self._admit(request)
            version = request.query.get("api-version", "")
            if not version:
                said = (
                    "The api-version query parameter (?api-version=) is required for all requests."
                )
                raise Refused(400, "MissingApiVersionParameter", said)
            if not _VERSION.fullmatch(version):
                said = f"The api-version '{version}' is invalid."
                raise Refused(400, "InvalidApiVersionParameter", said)
            if route is None:
                self.violations.append(f"not in the stand-in: {request.method} {request.path}")
                said = f"The requested resource does not support http method '{request.method}'."
                raise Refused(405, "UnsupportedHttpMethod", said)
            call = Call(request, ids, _document(request), caller, route.operation)
            self._check_body(route, call)
            self.before(route.operation, request)
            with self.state.lock:
                self.state.settle()
                self._check(route, call)
                if trouble is not None and trouble.later:
                    self.state.fail_later = trouble.refusal()
                reply = route.act(call)
                self.state.fail_later = None
        except Refused as refused:
            document = None if request.method == "HEAD" else {"error": refused.error}
            reply = Reply(refused.status, document, refused.headers)
        except Exception as error:
            self.violations.append(f"the stand-in at {request.method} {request.path}: {error!r}")
            said = "The server encountered an internal error. Please retry the request."
            reply = Reply(500, {"error": {"code": "InternalServerError", "message": said}})
        return reply

    def _admit(self, request: Request) -> str:
        """The caller's object id. Raises Refused."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer":
            said = "Authentication failed. The 'Authorization' header is missing."
            raise Refused(401, "AuthenticationFailed", said, _challenge(self._entra))
        try:
            claims = self._entra.verify(token, self.url)
        except jwt.ExpiredSignatureError as error:
            said = "The access token expiry UTC time is earlier than current UTC time."
            raise Refused(
                401, "ExpiredAuthenticationToken", said, _challenge(self._entra)
            ) from error
        except jwt.PyJWTError as error:
            said = f"The access token is invalid. {error}"
            raise Refused(
                401, "InvalidAuthenticationToken", said, _challenge(self._entra)
            ) from error
        if claims["tid"] != TENANT:
            said = (
                f"The access token is from the wrong issuer '{claims['iss']}'. It must match the"
                f" tenant '{self._entra.issuer(1)}' associated with this subscription."
            )
            raise Refused(401, "InvalidAuthenticationTokenTenant", said, _challenge(self._entra))
        return str(claims["oid"])

    def _check(self, route: Route, call: Call) -> None:
        """What comes before any operation. Raises Refused."""
        subscription = re.match(r"/subscriptions/([^/]+)", call.request.path)
        if subscription and subscription[1] not in self.groups.subscriptions:
            said = f"The subscription '{subscription[1]}' could not be found."
            raise Refused(404, "SubscriptionNotFound", said)
        if route.action:
            action = route.action.format(**call.ids)
            self.rights.check(call.caller, action, _scope(route, call))
        namespace = re.search(r"/providers/([^/]+)/[^/]+", call.request.path)
        if route.act == self._poll or namespace is None or "namespace" in call.ids:
            return
        if "scope" in call.ids or "Authorization" in namespace[1] or "Resources" in namespace[1]:
            return
        if "group" not in call.ids:
            self._check_top(namespace[1], call)
            return
        self.groups.group(call)
        if call.request.method in ("PUT", "PATCH", "POST"):
            self.groups.check_alive(call)
            self.groups.check_registered(namespace[1], call["subscription"])

    def _check_top(self, namespace: str, call: Call) -> None:
        # Storage itself does not know the subscription before it is registered.
        state = self.groups.state_of(namespace, call["subscription"])
        if namespace == "Microsoft.Storage" and state != "Registered":
            said = f"Subscription {call['subscription']} was not found."
            raise Refused(404, "SubscriptionNotFound", said)
        self.groups.check_registered(namespace, call["subscription"])

    def _check_body(self, route: Route, call: Call) -> None:
        request, wrong = call.request, []
        if route.operation == "Operation_Get":
            return
        if call.body is not None and request.headers.get("content-type") != "application/json":
            wrong.append(f"the content type is {request.headers.get('content-type')}")
        if request.method in ("PUT", "PATCH") and call.body:
            wrong += [f"{name} is read only" for name in sorted(_READ_ONLY & call.body.keys())]
        if self.definitions is not None:
            wrong += self.definitions.request(
                request.method, request.path, request.query, call.body
            )
        if wrong:
            self.violations.append(f"{request.method} {request.path}: {wrong}")
            said = f"The request content was invalid: {'; '.join(wrong)}"
            raise Refused(400, "InvalidRequestContent", said)

    def _check_reply(self, request: Request, reply: Reply) -> None:
        if self.definitions is None:
            return
        document = json.loads(json.dumps(reply.document))
        wrong = self.definitions.reply(request.method, request.path, reply.status, document)
        if wrong:
            self.violations.append(f"reply to {request.method} {request.path}: {wrong}")

    def _poll(self, call: Call) -> Reply:
        operation = self.state.operations[call["id"]]
        if operation.style == "async":
            return self._poll_async(operation)
        if not operation.done:
            return Reply(202, None, self.state.retry_after | {"Location": call.request.path})
        if operation.failure is not None:
            raise operation.failure
        return Reply(200, operation.outcome)

    def _poll_async(self, operation: Operation) -> Reply:
        state = "Succeeded" if operation.done else "InProgress"
        told: dict[str, Any] = {"id": operation.id, "status": state}
        if operation.done and operation.failure is not None:
            told |= {"status": "Failed", "error": operation.failure.error}
        return Reply(200, told, {} if operation.done else self.state.retry_after)


class _Members(Collection[str]):
    """Who may use a Batch account with a token: a look at the roles each time."""

    def __init__(self, cloud: AzureCloud, account: str) -> None:
        self._cloud, self._account = cloud, account

    def __contains__(self, principal: object) -> bool:
        action, rights = "Microsoft.Batch/batchAccounts/jobs/write", self._cloud.rights
        # A role that may do everything with the account may also use it: Contributor, Owner.
        return any(
            rights.may(str(principal), action, self._account, data=data) for data in (True, False)
        )

    def __iter__(self) -> Any:
        return iter(self._cloud.rights.principals)

    def __len__(self) -> int:
        return len(self._cloud.rights.principals)


def _scope(route: Route, call: Call) -> str:
    """Over what the caller must have the right."""
    path = call.request.path
    if "scope" in call.ids:
        return path if call.request.method in ("PUT", "DELETE") else call["scope"]
    if "group" not in call.ids:
        return f"/subscriptions/{call['subscription']}" if "subscription" in call.ids else "/"
    return path.rpartition("/")[0] if call.request.method == "POST" else path


def _document(request: Request) -> Any:
    if not request.body:
        return None
    try:
        return json.loads(request.body)
    except ValueError as error:
        said = f"The request content was invalid and could not be deserialized: '{error}'."
        raise Refused(400, "InvalidRequestContent", said) from error


def _challenge(entra: EntraServer) -> dict[str, str]:
    return {
        "WWW-Authenticate": f'Bearer authorization_uri="{entra.url}/{TENANT}",'
        ' error="invalid_token"'
    }
