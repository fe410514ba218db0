"""What the OpenAPI document says of /provision."""

from __future__ import annotations

from typing import Any

from tesazure.api.provision import PATH
from tesazure.api.provision_access import HEADER
from tesazure.api.schemas import (
    Schema,
    amount,
    document,
    flag,
    items,
    mapping,
    moment,
    ref,
    text,
)
from tesazure.provisioning import DEFAULT_GROUP, DEFAULT_LOCATION, DEFAULT_SKU, MODES, SKUS

_GUID = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
_ERRORS = {
    "400": "Something in the request, or in what Azure says of it, is in the way; all is listed.",
    "404": "There is no such run.",
    "409": "A run that is under way is in the way; the message names it.",
    "413": "The body is too large.",
    "422": "As 400, to a client that sent `Prefer: status=422`.",
    "502": "Azure cannot be asked; the message has its code and a remedy.",
}


def paths() -> dict[str, Any]:
    """All operations."""
    tag = {"tags": ["Provisioning"]}
    token = {
        "name": HEADER,
        "in": "header",
        "schema": text(
            "The setting PROVISION_TOKEN, on a server without sign-in, from another machine."
        ),
    }
    which = {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": text("The run's GUID.", pattern=_GUID),
    }
    confirm = {
        "name": "confirm",
        "in": "query",
        "required": True,
        "schema": text("Say that everything is to go.", enum=["true"]),
    }
    prefer = {
        "name": "Prefer",
        "in": "header",
        "schema": text("`status=422`: that status in place of 400."),
    }
    return {
        f"{PATH}/initialize": {
            "post": {
                **tag,
                "operationId": "BeginProvisioning",
                "summary": "Make a backend in an Azure subscription",
                "description": "The reply comes once Azure has been asked whether anything is in"
                " the way, and before anything is made. The same request means the same run: it"
                " joins one that is under way, and continues one that has ended, whatever its end"
                " was; what is right is left as it is. With `dry_run`, it is only said what would"
                " be made.",
                "parameters": [token, prefer],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": ref("ProvisionRequest")}},
                },
                "responses": {
                    "200": _reply("What a run would do.", "ProvisionDryRun"),
                    "202": _reply("It is under way.", "ProvisionAccepted"),
                    **_errors("400", "409", "413", "422", "502"),
                },
            }
        },
        f"{PATH}/query/{{id}}": {
            "get": {
                **tag,
                "operationId": "GetProvisioningRun",
                "summary": "How far a run is",
                "parameters": [token, which],
                "responses": {
                    "200": _reply("The run.", "ProvisionRun"),
                    "404": _reply(_ERRORS["404"], "ProvisionUnknown"),
                },
            }
        },
        PATH: {
            "get": {
                **tag,
                "operationId": "ListProvisioningRuns",
                "summary": "All runs, the newest first",
                "parameters": [token],
                "responses": {"200": _reply("The runs.", "ListProvisionRunsResponse")},
            }
        },
        f"{PATH}/{{id}}": {
            "delete": {
                **tag,
                "operationId": "RemoveProvisioned",
                "summary": "Delete what a run made",
                "description": "All of that and nothing else, found by its tags and the run's"
                " record, the files in it included; the servers' settings go back first. What"
                " others have put something into stays, and the run's note names it.",
                "parameters": [token, which, confirm],
                "requestBody": {
                    "content": {"application/json": {"schema": ref("ProvisionRemoval")}}
                },
                "responses": {
                    "200": _reply("It is gone already.", "ProvisionAccepted"),
                    "202": _reply("The removal is under way.", "ProvisionAccepted"),
                    "404": _reply(_ERRORS["404"], "ProvisionUnknown"),
                    **_errors("400", "409", "413", "502"),
                },
            }
        },
    }


def schemas() -> dict[str, Schema]:
    """Those that only these operations use."""
    status = text(
        "`INPROGRESS`; `CREATED`: all is there and in use; `ERROR`: a step failed, and the same"
        " request continues; `DELETING`, `DELETED`; `UNKNOWN`: no server works on it just now, one"
        " that runs takes it up soon.",
        enum=["INPROGRESS", "CREATED", "ERROR", "DELETING", "DELETED", "UNKNOWN"],
    )
    guid = text("The run's GUID.")
    fields = _request()
    chosen = {name: schema for name, schema in fields.items() if name != "dry_run"}
    return {
        "ServicePrincipal": document(
            "In whose name Azure is asked. Its secret is kept in memory alone, while the run is"
            " under way.",
            {
                "client_id": text("Its application's id, a GUID.", pattern=_GUID),
                "secret": text("Its secret.", writeOnly=True, minLength=1),
                "tenant": text("Its tenant: a GUID or a domain."),
            },
            ("client_id", "secret", "tenant"),
        ),
        "ProvisionRequest": {
            **document("What to make.", fields, ("subscription_id",)),
            "additionalProperties": False,
        },
        "ProvisionRemoval": document(
            "In whose name to delete: needed where a service principal made the run.",
            {"service_principal": ref("ServicePrincipal")},
        ),
        "ProvisionAccepted": document(
            "Which run it is.", {"guid": guid, "status": status}, ("guid", "status")
        ),
        "ProvisionRun": document(
            "A run, and how far it is.",
            {
                "guid": guid,
                "status": status,
                "note": text("What is in effect, or what to do next."),
                "created": moment("When it was first asked for."),
                "updated": moment("When something was last noted."),
                "request": _told(chosen),
                "steps": items(_step(), "In order."),
            },
            ("guid", "status", "note", "created", "updated", "request", "steps"),
        ),
        "ListProvisionRunsResponse": document(
            "All runs.", {"runs": items(ref("ProvisionRun"), "The runs.")}, ("runs",)
        ),
        "ProvisionUnknown": {
            "allOf": [
                ref("Error"),
                document(
                    "There is no such run.",
                    {"guid": guid, "status": text("NOTFOUND", enum=["NOTFOUND"])},
                    ("guid", "status"),
                ),
            ]
        },
        "ProvisionDryRun": _dry_run(guid, _told(chosen)),
    }


def _request() -> dict[str, Schema]:
    unique = "Default: `tesazure` and 12 digits of the run's GUID."
    return {
        "subscription_id": text("The subscription, a GUID.", pattern=_GUID),
        "service_principal": ref("ServicePrincipal"),
        "resource_group": text(f"Made if it is not there. Default: {DEFAULT_GROUP}."),
        "location": text(f"The region. Default: {DEFAULT_LOCATION}."),
        "storage_account_name": text(f"3 to 24 of a-z and 0-9. {unique}"),
        "storage_sku": text(f"Default: {DEFAULT_SKU}.", enum=list(SKUS)),
        "batch_account_name": text(f"3 to 24 of a-z and 0-9. {unique}"),
        "pool_allocation_mode": text(
            f"Whose quota nodes count against. Default: {MODES[0]}.", enum=list(MODES)
        ),
        "tags": mapping({"type": "string"}, "Tags of all that is made, beside ours."),
        "vnet": text("An existing virtual network for the nodes: its name, or its resource id."),
        "subnet": text("The subnet of it."),
        "key_vault": text("An existing Key Vault for the settings: its name or URL."),
        "registry": text("A container registry, made if it is not there. Default: none."),
        "dry_run": flag("Only say what would be made."),
    }


def _told(fields: dict[str, Schema]) -> Schema:
    """A request as replies have it: without the secret."""
    principal = document(
        "In whose name Azure was asked.",
        {"client_id": text("Its application's id."), "tenant": text("Its tenant.")},
        ("client_id", "tenant"),
    )
    own = {"type": "null", "description": "The server's own identity."}
    told = {**fields, "service_principal": {"anyOf": [principal, own]}}
    return document("The request, with the names that were chosen.", told, tuple(told))


def _step() -> Schema:
    return document(
        "One thing that is to be there.",
        {
            "name": text("Which."),
            "title": text("For people."),
            "state": text(
                "How far it is.", enum=["waiting", "running", "done", "failed", "skipped"]
            ),
            "started": _maybe(moment("When it began.")),
            "ended": _maybe(moment("When it ended.")),
            "resource_id": text("Azure's id of the resource."),
            "made": flag("This run made it, so removing the run removes it."),
            "detail": text("What it waits for, found or did."),
            "failure": {
                "anyOf": [
                    document(
                        "Why it failed.",
                        {
                            "code": text("Azure's code, or ours."),
                            "message": text("What it says."),
                            "remedy": text("What to do."),
                        },
                        ("code", "message", "remedy"),
                    ),
                    {"type": "null"},
                ]
            },
        },
        (
            *("name", "title", "state", "started", "ended"),
            *("resource_id", "made", "detail", "failure"),
        ),
    )


def _dry_run(guid: Schema, request: Schema) -> Schema:
    step = document(
        "One thing that would be looked at, and made if need be.",
        {
            "name": text("Which."),
            "title": text("For people."),
            "found": text(
                "What is there: nothing; what an earlier pass of this run made; what others have"
                " and cannot be used; what is right as it is.",
                enum=["missing", "ours", "foreign", "right"],
            ),
            "resource_id": text("Azure's id of the resource."),
            "detail": text("More of it."),
        },
        ("name", "title", "found", "resource_id", "detail"),
    )
    cost = document(
        "One resource, while no task runs.",
        {
            "what": text("Which."),
            "usd_a_month": _maybe(amount("US dollars a month; null: not known, or by use.")),
            "note": text("More of it."),
        },
        ("what", "usd_a_month", "note"),
    )
    return document(
        "What a run would find, make and cost.",
        {
            "guid": guid,
            "dry_run": flag("true."),
            "request": request,
            "steps": items(step, "In order."),
            "idle_cost": items(cost, "What it costs while no task runs."),
            "idle_usd_a_month": amount("What is known of that, together."),
        },
        ("guid", "dry_run", "request", "steps", "idle_cost", "idle_usd_a_month"),
    )


def _maybe(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _reply(description: str, name: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": ref(name)}}}


def _errors(*statuses: str) -> dict[str, Schema]:
    return {status: _reply(_ERRORS[status], "Error") for status in statuses}
