"""The OpenAPI document: the standard's paths under both prefixes, and ours."""

from __future__ import annotations

from typing import Any

from tesazure import __version__
from tesazure.api import provision_openapi
from tesazure.api.flavour import V1_0, V1_1, Flavour
from tesazure.api.pages import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from tesazure.api.provision import PATH as PROVISION
from tesazure.api.schemas import Schema, flag, ref, schemas, text, whole
from tesazure.api.workflows import MOST
from tesazure.callers import Role

_ERRORS = {
    400: "Something in the request is wrong; every error is listed.",
    401: "Nobody is signed in, or the token is not good; `WWW-Authenticate` says how and why.",
    403: "Who calls lacks the role that the reply names; or the budget that it names is spent.",
    404: "There is no such thing, or it is not yours to see.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    416: "The range lies outside the stream.",
    503: "The server cannot do this now; try again after `Retry-After` seconds.",
}


def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tesazure",
            "version": __version__,
            "summary": "A GA4GH Task Execution Service",
            "description": "Tasks go in over HTTP, run in containers, and leave their files where"
            " they were told to. `/ga4gh/tes/v1` speaks TES 1.1, `/v1` TES 1.0; what is ours alone"
            " lies under `/api/v1`. Where a server asks for a sign-in, `/api/v1/sign-in` says how;"
            " operations then need a role, and the tasks of others may not be there for you.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [
            {"name": "TES 1.1", "description": "The standard."},
            {"name": "TES 1.0", "description": "The same tasks, for older clients."},
            {"name": "Workflows", "description": "Tasks by the workflow they are part of."},
            {"name": "Streams", "description": "Whole logs and events as they happen."},
            {"name": "Operation", "description": "For those who run the server."},
            {"name": "Provisioning", "description": "A backend in an Azure subscription."},
        ],
        "paths": _secured(
            {
                **_standard(V1_1),
                **_standard(V1_0),
                **_workflows(),
                **_costs(),
                **_streams(),
                **_operation(),
                **provision_openapi.paths(),
            }
        ),
        "components": {
            "schemas": {**schemas(), **provision_openapi.schemas()},
            "securitySchemes": _SCHEMES,
        },
    }


_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of the server's OpenID provider (Entra ID), or an API token.",
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "A user, and an API token of theirs as the password.",
    },
}
_OPEN = {
    *(f"{flavour.prefix}/service-info" for flavour in (V1_1, V1_0)),
    *(f"{flavour.prefix}/tasks/service-info" for flavour in (V1_1, V1_0)),
    *("/api/v1/sign-in", "/healthz", "/readyz", "/openapi.json", "/docs", "/"),
}
"""Paths that nobody needs to sign in for."""


def _secured(paths: dict[str, Any]) -> dict[str, Any]:
    """The paths, each operation with the role that it needs. The
    last alternative is that of a server which asks nobody."""
    for path, operations in paths.items():
        for method, operation in operations.items():
            if path in _OPEN:
                operation["security"] = []
                continue
            role = (Role.READ if method == "get" else Role.WRITE).value
            if path.startswith(PROVISION):
                role = Role.ADMIN.value
            # OpenAPI 3.1, Security Requirement Object: the list names the roles that are required.
            operation["security"] = [{"bearer": [role]}, {"basic": [role]}, {}]
            replies = {**operation["responses"], **_errors(401, 403, 503)}
            operation["responses"] = {status: replies[status] for status in sorted(replies)}
    return paths


def _standard(flavour: Flavour) -> dict[str, Any]:
    tag = "TES 1.1" if flavour is V1_1 else "TES 1.0"
    suffix = "" if flavour is V1_1 else "V1"

    def name(words: str) -> dict[str, Any]:
        return {"operationId": words + suffix, "tags": [tag]}

    tasks = f"{flavour.prefix}/tasks"
    body = {"required": True, "content": _json("tesTask")}
    return {
        f"{flavour.prefix}/service-info": {
            "get": {
                **name("GetServiceInfo"),
                "summary": "What this server is",
                "responses": {"200": _reply("This server.", "tesServiceInfo")},
            }
        },
        f"{tasks}/service-info": {
            "get": {
                **name("GetServiceInfoLegacy"),
                "summary": "What this server is, in the form of 2019",
                "deprecated": True,
                "responses": {"200": _reply("This server.", "tesServiceInfoLegacy")},
            }
        },
        tasks: {
            "get": {
                **name("ListTasks"),
                "summary": "List tasks, the newest first",
                "description": "Filters are ANDed. Nobody sees a task twice or misses one because"
                " others are added meanwhile.",
                "parameters": _list_parameters(flavour),
                "responses": {
                    "200": _reply("A page.", "tesListTasksResponse"),
                    **_errors(400, 503),
                },
            },
            "post": {
                **name("CreateTask"),
                "summary": "Submit a task",
                "description": "The reply comes once the task is on disk.",
                "requestBody": body,
                "responses": {
                    "200": _reply("Accepted.", "tesCreateTaskResponse"),
                    **_errors(400, 408, 413, 503),
                },
            },
        },
        f"{tasks}/{{id}}": {
            "get": {
                **name("GetTask"),
                "summary": "Look at a task",
                "parameters": [_task_id(), _view()],
                "responses": {"200": _reply("The task.", "tesTaskShown"), **_errors(400, 404, 503)},
            }
        },
        f"{tasks}/{{id}}:cancel": {
            "post": {
                **name("CancelTask"),
                "summary": "End a task",
                "description": "A request: the task is CANCELED once nothing of it runs any more."
                " Does nothing to a task that has ended.",
                "parameters": [_task_id()],
                "responses": {
                    "200": _reply("Understood.", "tesCancelTaskResponse"),
                    **_errors(404, 503),
                },
            }
        },
    }


def _workflows() -> dict[str, Any]:
    tag = {"tags": ["Workflows"]}
    which = {
        "name": "workflow",
        "in": "path",
        "required": True,
        "schema": text("The workflow's id, percent-encoded."),
    }
    return {
        "/api/v1/workflows": {
            "get": {
                **tag,
                "operationId": "ListWorkflows",
                "summary": "List workflows, the last begun first",
                "description": "Those with a task that the caller sees.",
                "parameters": [
                    _page_size("Workflows"),
                    _parameter("page_token", text("`next_page_token` of the page before.")),
                ],
                "responses": {
                    "200": _reply("A page.", "ListWorkflowsResponse"),
                    **_errors(400, 503),
                },
            }
        },
        "/api/v1/workflows/{workflow}": {
            "get": {
                **tag,
                "operationId": "GetWorkflow",
                "summary": "Look at a workflow",
                "parameters": [which],
                "responses": {"200": _reply("The workflow.", "Workflow"), **_errors(404, 503)},
            }
        },
        "/api/v1/workflows/{workflow}:cancel": {
            "post": {
                **tag,
                "operationId": "CancelWorkflow",
                "summary": "End a workflow's tasks",
                "description": "A request to cancel each of its tasks that has not ended and that"
                f" the caller sees; the newest {MOST:,}, if there are more. What has ended stays."
                " An engine that still runs may submit others.",
                "parameters": [which],
                "responses": {
                    "200": _reply("Understood.", "CancelWorkflowResponse"),
                    **_errors(404, 503),
                },
            }
        },
    }


def _costs() -> dict[str, Any]:
    since = "Only tasks created then or later: a date, or a time; in UTC if it names no zone."
    return {
        "/api/v1/costs": {
            "get": {
                "operationId": "SumCosts",
                "tags": ["Workflows"],
                "summary": "What tasks are estimated to cost together",
                "description": "Of the tasks that the caller sees and whose records are there."
                " Filters are ANDed.",
                "parameters": [
                    *_tag_parameters(),
                    _parameter("owner", text("Only tasks of this owner.")),
                    _parameter("since", text(since)),
                ],
                "responses": {"200": _reply("The sum.", "Costs"), **_errors(400, 503)},
            }
        }
    }


def _streams() -> dict[str, Any]:
    logs = "/api/v1/tasks/{id}/logs/{executor}"
    last = [
        _parameter("last_event_id", whole("Go on after this event.", minimum=0)),
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": whole("As `last_event_id`.", minimum=0),
        },
    ]
    task_ids = {"type": "array", "items": {"type": "string"}, "description": "Only these tasks."}
    resumed = (
        " Each event is named `state`, its id grows, and its data is a `StateChange`; a comment"
        " comes every 15 s when nothing else does. A client that comes back with the id of the last"
        " event it saw misses nothing for 7 days, as long as events are kept. Later a comment says"
        " what is missing, and the stream goes on with the present states of the tasks named. Where"
        " callers sign in, a comment says why the stream ends once its caller may not begin it."
    )
    return {
        f"{logs}/stdout": {"get": _log_operation("stdout", "ReadStdout")},
        f"{logs}/stderr": {"get": _log_operation("stderr", "ReadStderr")},
        "/api/v1/events": {
            "get": {
                "operationId": "StreamEvents",
                "tags": ["Streams"],
                "summary": "State changes as they happen",
                "description": "Server-sent events of all tasks, or of those named, which end when"
                " all of these have ended." + resumed,
                "parameters": [_parameter("task_id", task_ids), *last],
                "responses": {**_events(), **_errors(400, 404, 503)},
            }
        },
        "/api/v1/tasks/{id}/events": {
            "get": {
                "operationId": "StreamTaskEvents",
                "tags": ["Streams"],
                "summary": "A task's state, and its changes as they happen",
                "description": "Server-sent events: the present state first; ends with the task."
                + resumed,
                "parameters": [_task_id(), *last],
                "responses": {**_events(), **_errors(400, 404, 503)},
            }
        },
    }


def _log_operation(stream: str, operation: str) -> dict[str, Any]:
    executor = whole("Number of the executor, from 0.", minimum=0)
    span = {"name": "Range", "in": "header", "schema": text("One range of bytes.")}
    plain = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": operation,
        "tags": ["Streams"],
        "summary": f"An executor's whole {stream}",
        "description": "With `follow`, what is written is sent as it comes, until the executor has"
        " ended, or the caller may no longer read it; a `Range` of `bytes=N-` then says where to"
        " begin (RFC 8673).",
        "parameters": [
            _task_id(),
            {"name": "executor", "in": "path", "required": True, "schema": executor},
            _parameter("attempt", whole("Which attempt, from 1; the newest if absent.", minimum=1)),
            _parameter("follow", flag("Go on until the executor has ended; `1` is true.")),
            span,
        ],
        "responses": {
            "200": {"description": "The stream.", "content": plain},
            "206": {"description": "The part asked for.", "content": plain},
            **_errors(400, 404, 416, 503),
        },
    }


def _operation() -> dict[str, Any]:
    tag = {"tags": ["Operation"]}
    page = {"text/html": {"schema": {"type": "string"}}}
    plain = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/api/v1/sign-in": {
            "get": {
                **tag,
                "operationId": "SignIn",
                "summary": "Whether to sign in, and how",
                "responses": {"200": _reply("How.", "SignIn")},
            }
        },
        "/healthz": {
            "get": {
                **tag,
                "operationId": "Health",
                "summary": "Whether the server has started, and answers",
                "responses": {
                    "200": _reply("It does.", "Health"),
                    "503": _reply("It is starting.", "Health"),
                },
            }
        },
        "/readyz": {
            "get": {
                **tag,
                "operationId": "Readiness",
                "summary": "Whether the server can do its work",
                "responses": {
                    "200": _reply("It can.", "Readiness"),
                    "503": _reply("It cannot.", "Readiness"),
                },
            }
        },
        "/metrics": {
            "get": {
                **tag,
                "operationId": "Metrics",
                "summary": "Metrics for Prometheus",
                "responses": {"200": {"description": "Metrics.", "content": plain}, **_errors(503)},
            }
        },
        "/openapi.json": {
            "get": {
                **tag,
                "operationId": "OpenApi",
                "summary": "This document",
                "responses": {
                    "200": {
                        "description": "OpenAPI 3.1.",
                        "content": {"application/json": {"schema": {"type": "object"}}},
                    }
                },
            }
        },
        "/docs": {
            "get": {
                **tag,
                "operationId": "Docs",
                "summary": "This document, for people",
                "responses": {"200": {"description": "A page.", "content": page}},
            }
        },
        "/": {
            "get": {
                **tag,
                "operationId": "Home",
                "summary": "Where to go from here",
                "responses": {"200": {"description": "A page.", "content": page}},
            }
        },
    }


def _list_parameters(flavour: Flavour) -> list[Schema]:
    words = [str(word) for word in flavour.known]
    return [
        _parameter("name_prefix", text("Tasks whose name begins so.")),
        _parameter("state", text("Tasks in this state.", enum=words)),
        *_tag_parameters(),
        _page_size("Tasks"),
        _parameter("page_token", text("`next_page_token` of the page before; keeps its filters.")),
        _view(),
    ]


def _tag_parameters() -> list[Schema]:
    strings = {"type": "array", "items": {"type": "string"}}
    return [
        _parameter("tag_key", {**strings, "description": "Tasks with this tag; may be repeated."}),
        _parameter(
            "tag_value",
            {**strings, "description": "The tag's value, for each `tag_key` in turn; empty: any."},
        ),
    ]


def _page_size(what: str) -> Schema:
    said = f"{what} per page; more than {MAX_PAGE_SIZE} mean {MAX_PAGE_SIZE}."
    return _parameter("page_size", whole(said, minimum=1) | {"default": DEFAULT_PAGE_SIZE})


def _view() -> Schema:
    what = (
        "How much to show. MINIMAL: `id` and `state`. BASIC: all but inline contents, system logs"
        " and the texts of stdout and stderr. FULL: all."
    )
    return _parameter("view", text(what, enum=["MINIMAL", "BASIC", "FULL"], default="MINIMAL"))


def _task_id() -> Schema:
    return {"name": "id", "in": "path", "required": True, "schema": text("The task's id.")}


def _parameter(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "schema": schema}


def _json(name: str) -> Schema:
    return {"application/json": {"schema": ref(name)}}


def _reply(description: str, name: str) -> Schema:
    return {"description": description, "content": _json(name)}


def _events() -> dict[str, Schema]:
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    return {
        "200": {"description": "Events.", "content": stream},
        "204": {"description": "Nothing more will come."},
    }


def _errors(*statuses: int) -> dict[str, Schema]:
    return {str(status): _reply(_ERRORS[status], "Error") for status in statuses}
