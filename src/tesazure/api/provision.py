"""/provision: from an empty Azure subscription to a backend, as the requirements' section 3 has it.

A request holds a secret, the service principal's: it is neither logged nor stored nor shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request

from tesazure import provisioning
from tesazure.api import errors
from tesazure.api.audit import Audit
from tesazure.api.bodies import BodyReader
from tesazure.api.errors import HttpError
from tesazure.api.parts import Provisioner
from tesazure.api.replies import Handler, Headers, Reply, Route
from tesazure.api.views import timestamp
from tesazure.errors import FieldError, InvalidInput
from tesazure.provisioning import DryRun, ProvisionFailed, StepRecord, StoredRun
from tesazure.signin.gate import Gate

PATH = "/provision"
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UNPROCESSABLE = "status=422"
"""The Prefer header (RFC 7240) of clients that know the original service's status."""

_encode = msgspec.json.Encoder().encode
_HEADERS: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class Provision:
    """The handlers."""

    def __init__(
        self,
        provisioner: Provisioner,
        gate: Gate,
        audit: Audit,
        bodies: BodyReader,
        demand: Callable[[Request], None],
    ) -> None:
        """`demand` raises NotAllowed for a request that it does not take where nobody signs in."""
        self._provisioner = provisioner
        self._gate = gate
        self._audit = audit
        self._bodies = bodies
        self._demand = demand

    def routes(self) -> list[Route]:
        """All of them need the role admin, and where nobody signs in, what `demand`
        says."""
        table: dict[str, dict[str, Handler]] = {
            PATH: {"GET": self.list_runs},
            f"{PATH}/initialize": {"POST": self.initialize},
            f"{PATH}/query/{{id}}": {"GET": self.query},
            f"{PATH}/{{id}}": {"DELETE": self.delete},
        }
        return [
            Route(
                path, {method: self._guarded(handler) for method, handler in of.items()}, roles={}
            )
            for path, of in table.items()
        ]

    async def initialize(self, request: Request) -> Reply:
        """Begin, continue or join a run; or say what it would do."""
        with await self._bodies.read(request) as body:
            try:
                wanted = provisioning.request_of(body)
                if wanted.dry_run:
                    return _reply(200, _found(await self._provisioner.dry_run(wanted)))
                stored = await self._provisioner.begin(wanted)
            except InvalidInput as error:
                return _refused(error, request)
        self._audit.note_provision("provision.initialize", stored.run.id, request)
        location = f"{PATH}/query/{stored.run.id}".encode()
        return _reply(202, _brief(stored), [(b"location", location)])

    async def query(self, request: Request) -> Reply:
        """How far a run is."""
        run_id = _run_id(request)
        stored = await self._provisioner.run(run_id) if _GUID.fullmatch(run_id) else None
        return _unknown(request) if stored is None else _reply(200, shown(stored))

    async def list_runs(self, _: Request) -> Reply:
        """All runs, the newest first."""
        runs = await self._provisioner.runs()
        return _reply(200, {"runs": [shown(stored) for stored in runs]})

    async def delete(self, request: Request) -> Reply:
        """Begin to remove what a run made."""
        with await self._bodies.read(request) as body:
            principal = provisioning.principal_of(body)
        if request.query_params.get("confirm") != "true":
            text = "must be true: this deletes what the run made, with all the files in it"
            raise InvalidInput([FieldError("confirm", text)])
        run_id = _run_id(request)
        stored = None
        if _GUID.fullmatch(run_id):
            stored = await self._provisioner.remove(run_id, principal)
        if stored is None:
            return _unknown(request)
        self._audit.note_provision("provision.delete", run_id, request)
        return _reply(202 if stored.run.state == "DELETING" else 200, _brief(stored))

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Any:
            if self._gate.open:
                self._demand(request)
            try:
                return await handler(request)
            except ProvisionFailed as error:
                remedy = f"; {error.failure.remedy}" if error.failure.remedy else ""
                raise HttpError(502, "azure_failed", f"{error}{remedy}") from error

        return guarded


def shown(stored: StoredRun) -> dict[str, Any]:
    """A run as the status has it."""
    run = stored.run
    return {
        **_brief(stored),
        "note": run.note,
        "created": timestamp(run.created),
        "updated": timestamp(run.updated),
        "request": _request(run.request),
        "steps": [_step(record) for record in run.steps],
    }


def _brief(stored: StoredRun) -> dict[str, Any]:
    return {"guid": stored.run.id, "status": stored.status}


def _step(record: StepRecord) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(record)
    for name in ("started", "ended"):
        told[name] = None if told[name] is None else timestamp(told[name])
    return told


def _found(seen: DryRun) -> dict[str, Any]:
    known = [line.usd_a_month for line in seen.idle_cost if line.usd_a_month is not None]
    return {
        "guid": seen.id,
        "dry_run": True,
        "request": _request(seen.request),
        "steps": msgspec.to_builtins(seen.steps),
        "idle_cost": msgspec.to_builtins(seen.idle_cost),
        "idle_usd_a_month": round(sum(known), 2),
    }


def _request(request: provisioning.Request) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(request)
    if told["service_principal"] is not None:
        del told["service_principal"]["secret"]
    del told["dry_run"]
    return told


def _refused(error: InvalidInput, request: Request) -> Reply:
    """400; or 422, as of the service that the requirements describe, to those who prefer that."""
    preferred = request.headers.get("prefer", "").replace(" ", "").lower().split(",")
    if _UNPROCESSABLE not in preferred:
        raise error
    made = errors.reply_to(error, request.scope["request_id"])
    if made.status == 400:
        made.headers.append((b"preference-applied", _UNPROCESSABLE.encode()))
        document = msgspec.json.decode(made.body)
        document["error"]["status"] = made.status = 422
        made.body = _encode(document)
    return made


def _unknown(request: Request) -> Reply:
    """As HttpError 404, with the word of the status."""
    run_id = _run_id(request)[:100]
    text = f"there is no provisioning run {run_id}"
    document = msgspec.json.decode(errors.body(404, "not_found", text, request.scope["request_id"]))
    return _reply(404, {"guid": run_id, "status": "NOTFOUND", **document})


def _run_id(request: Request) -> str:
    run_id: str = request.scope["path_params"]["id"]
    return run_id.lower()


def _reply(status: int, document: dict[str, Any], headers: Headers | None = None) -> Reply:
    return Reply(status, _encode(document), [*_HEADERS, *(headers or ())])
