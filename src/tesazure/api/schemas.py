"""JSON Schemas of all documents, under the standard's names. The words are ours."""

from __future__ import annotations

from typing import Any

from tesazure.api.flavour import V1_0, V1_1

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A reference to a schema below."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str, **more: Any) -> Schema:
    """A string."""
    return {"type": "string", "description": description, **more}


def flag(description: str) -> Schema:
    """A boolean."""
    return {"type": "boolean", "description": description}


def amount(description: str, **more: Any) -> Schema:
    """A number that is not negative."""
    return {"type": "number", "minimum": 0, "description": description, **more}


def whole(description: str, **more: Any) -> Schema:
    """An integer."""
    return {"type": "integer", "description": description, **more}


def moment(description: str) -> Schema:
    """A time as RFC 3339 has it."""
    return text(description, format="date-time")


def items(of: Schema, description: str, **more: Any) -> Schema:
    """An array."""
    return {"type": "array", "items": of, "description": description, **more}


def mapping(of: Schema, description: str) -> Schema:
    """An object with any keys."""
    return {"type": "object", "additionalProperties": of, "description": description}


def document(description: str, properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    """An object. Clients must bear with further fields."""
    made: Schema = {"type": "object", "description": description, "properties": properties}
    if required:
        made["required"] = list(required)
    return made


_STRING = {"type": "string"}
_PATH = "Absolute path inside the container, without `..`."

_STATES = {
    "UNKNOWN": "nothing is known about the task's state; this server never says so",
    "QUEUED": "accepted, and waiting for room to run",
    "INITIALIZING": "placed; inputs and images are being fetched",
    "RUNNING": "all inputs are there and the first executor has been started",
    "PAUSED": "held; this server never pauses tasks",
    "COMPLETE": "all executors ended well and every output has been written",
    "EXECUTOR_ERROR": "an executor ended with a code other than 0",
    "SYSTEM_ERROR": "something other than an executor failed; `system_logs` says what",
    "CANCELED": "ended on request; nothing of it runs any more",
    "CANCELING": "to be ended on request; something of it may still run",
    "PREEMPTED": "ended because the machine under it was taken away",
}


def state(version: str) -> Schema:
    """tesState, with the words that a version of the standard has."""
    known = (V1_1 if version == V1_1.version else V1_0).known
    lines = [f"- `{word}`: {_STATES[word]}" for word in known]
    return text(
        "How the task stands.\n\n" + "\n".join(lines),
        enum=[str(word) for word in known],
        readOnly=True,
    )


def _input() -> Schema:
    return document(
        "A file or directory that the task reads. One of `url` and `content` is needed; a"
        " `content` that is not empty wins.",
        {
            "name": text("A name, for people."),
            "description": text("A description, for people."),
            "url": text("Where it comes from.", examples=["file:///data/reads.fastq"]),
            "path": text(_PATH, examples=["/inputs/reads.fastq"]),
            "type": ref("tesFileType"),
            "content": text("The file's text, instead of a URL."),
            "streamable": flag("A hint that the file may be read in place. Has no effect here."),
        },
        ("path",),
    )


def _output() -> Schema:
    return document(
        "A file or directory that the task leaves, and where it goes.",
        {
            "name": text("A name, for people."),
            "description": text("A description, for people."),
            "url": text("Where it goes; for a pattern, the directory that the matches go to."),
            "path": text(_PATH + " May be a POSIX pattern with `*`, `?` and `[…]`."),
            "path_prefix": text(
                "For patterns: what is cut from the front of each match; the rest is put behind"
                " `url`."
            ),
            "type": ref("tesFileType"),
        },
        ("path", "url"),
    )


def _executor() -> Schema:
    return document(
        "One command in one image.",
        {
            "image": text("The container image.", examples=["docker.io/library/alpine:3.20"]),
            "command": items(
                _STRING,
                "The program and its arguments. No shell takes part, and the image's entry point"
                " is not used.",
                minItems=1,
                examples=[["md5sum", "/inputs/reads.fastq"]],
            ),
            "workdir": text("Where the command starts; the image's own directory if absent."),
            "stdin": text("File that the command reads as its standard input. " + _PATH),
            "stdout": text("File that gets a copy of its standard output. " + _PATH),
            "stderr": text("File that gets a copy of its standard error. " + _PATH),
            "env": mapping(_STRING, "Environment variables."),
            "ignore_error": flag("Go on with the next executor even if this one fails."),
        },
        ("image", "command"),
    )


def _resources() -> Schema:
    return document(
        "What the task needs. Limits are enforced. GB are 10^9 bytes.",
        {
            "cpu_cores": amount("Cores; fractions are possible."),
            "ram_gb": amount("Memory in GB. A task that takes more is killed."),
            "disk_gb": amount("Disk in GB."),
            "preemptible": flag("Whether the machine may be one that can be taken away."),
            "zones": items(_STRING, "Where to run, in the backend's words."),
            "backend_parameters": mapping(
                _STRING,
                "What only this backend knows. Case does not matter in keys; those supported are"
                " listed in service-info, the others are dropped with a warning.",
            ),
            "backend_parameters_strict": flag("Refuse the task if a key is not supported."),
        },
    )


def _task() -> Schema:
    return document(
        "A task. The server alone sets `id`, `state`, `logs` and `creation_time`.",
        {
            "id": text("The task's id.", readOnly=True),
            "state": ref("tesState"),
            "name": text("A name, for people and for `name_prefix`."),
            "description": text("A description, for people."),
            "inputs": items(ref("tesInput"), "What the task reads."),
            "outputs": items(ref("tesOutput"), "What the task leaves."),
            "resources": ref("tesResources"),
            "executors": items(
                ref("tesExecutor"), "Commands, run one after the other.", minItems=1
            ),
            "volumes": items(
                _STRING, "Directories that all executors share, empty at the beginning."
            ),
            "tags": mapping({"type": ["string", "null"]}, "Keys and values to find tasks by."),
            "logs": items(ref("tesTaskLog"), "One entry for each attempt.", readOnly=True),
            "creation_time": {**moment("When the task was accepted."), "readOnly": True},
        },
        ("executors",),
    )


def _shown_task() -> Schema:
    """As tesTask in a reply: what the view leaves out is not there."""
    made = _task()
    made["description"] = "A task as far as the view shows it: MINIMAL has `id` and `state` alone."
    made["required"] = ["id", "state"]
    return made


def _logs() -> dict[str, Schema]:
    return {
        "tesTaskLog": document(
            "One attempt to run the task.",
            {
                "logs": items(ref("tesExecutorLog"), "One entry for each executor begun."),
                "metadata": mapping(_STRING, "Facts about the attempt."),
                "start_time": moment("When the attempt began."),
                "end_time": moment("When it ended."),
                "outputs": items(ref("tesOutputFileLog"), "One entry for each file written."),
                "system_logs": items(
                    _STRING, "What the server has to say, a line each: time, level, text."
                ),
            },
            ("logs", "outputs"),
        ),
        "tesExecutorLog": document(
            "How one executor went. While it runs there is no `exit_code`.",
            {
                "start_time": moment("When it was started."),
                "end_time": moment("When it ended."),
                "stdout": text("The end of its standard output, also while it runs."),
                "stderr": text("The end of its standard error, also while it runs."),
                "exit_code": whole("Its exit code."),
            },
        ),
        "tesOutputFileLog": document(
            "One file that was written.",
            {
                "url": text("Where it lies."),
                "path": text("Where it lay in the container."),
                "size_bytes": text("Its size in bytes, as a string.", pattern="^[0-9]+$"),
            },
            ("url", "path", "size_bytes"),
        ),
    }


def _service() -> dict[str, Schema]:
    organization = document(
        "Who runs the service.",
        {"name": text("The name."), "url": text("The web site.")},
        ("name", "url"),
    )
    return {
        "tesServiceType": document(
            "Which interface this is.",
            {
                "group": text("Who defines it.", const="org.ga4gh"),
                "artifact": text("Its name.", const="tes"),
                "version": text("Its version.", enum=[V1_1.version, V1_0.version]),
            },
            ("group", "artifact", "version"),
        ),
        "tesServiceInfo": document(
            "What this service is.",
            {
                "id": text("A name for machines, in reverse domain order."),
                "name": text("A name for people."),
                "type": ref("tesServiceType"),
                "description": text("What it does, and what to beware of."),
                "organization": organization,
                "contactUrl": text("Whom to ask."),
                "documentationUrl": text("What to read."),
                "createdAt": moment("When it was installed."),
                "updatedAt": moment("When it was started."),
                "environment": text("What it is for: production, test."),
                "version": text("The server's own version."),
                "storage": items(_STRING, "Where inputs and outputs may lie."),
                "tesResources_backend_parameters": items(
                    _STRING, "Supported keys of `resources.backend_parameters`."
                ),
            },
            ("id", "name", "type", "organization", "version"),
        ),
        "tesServiceInfoLegacy": document(
            "What this service is, in the form of 2019.",
            {
                "name": text("A name for people."),
                "doc": text("What it does."),
                "storage": items(_STRING, "Where inputs and outputs may lie."),
            },
            ("name", "doc", "storage"),
        ),
    }


def _ours() -> dict[str, Schema]:
    field = document(
        "One thing that is wrong.",
        {"field": text("Path of the field; empty for the whole."), "message": text("What to do.")},
        ("field", "message"),
    )
    error = document(
        "What happened.",
        {
            "code": text("A word for programs."),
            "status": whole("The HTTP status."),
            "message": text("A sentence for people."),
            "fields": items(field, "Everything that is wrong with the request."),
            "request_id": text("To be found in the server's log."),
        },
        ("code", "status", "message"),
    )
    check = document(
        "One thing that was looked at.",
        {
            "name": text("What."),
            "ok": flag("Whether it is well."),
            "detail": text("What was seen; for those who may read tasks, as is the remedy."),
            "remedy": text("What to do if it is not."),
        },
        ("name", "ok"),
    )
    return {
        "Error": document(
            "Every reply that is not a success.",
            {"message": text("A sentence for people."), "error": error},
            ("message", "error"),
        ),
        "Readiness": document(
            "Whether the server can do its work.",
            {"ready": flag("All is well."), "checks": items(check, "Each thing looked at.")},
            ("ready", "checks"),
        ),
        "SignIn": document(
            "How to sign in.",
            {
                "required": flag("Whether anybody has to."),
                "api_tokens": flag("API tokens are taken, also as the password of HTTP Basic."),
                "issuer": text("An OpenID provider whose tokens are taken.", format="uri"),
                "client_id": text("For its device code flow (RFC 8628): the program's id there."),
                "scope": text("For the same: what to ask for."),
            },
            ("required", "api_tokens"),
        ),
        **_workflows(),
        "Health": document(
            "The process answers.", {"status": text("ok, or starting.")}, ("status",)
        ),
        "StateChange": document(
            "The data of an event.",
            {"id": text("The task's id."), "state": ref("tesState"), "time": moment("When.")},
            ("id", "state", "time"),
        ),
    }


def _workflows() -> dict[str, Schema]:
    counts = mapping(whole("How many."), "Tasks in each state that there are any in.")
    return {
        "Workflow": document(
            "The tasks of a workflow that the caller sees, together.",
            {
                "id": text("Its id: the tag `ms-submitter-workflow-id` of its tasks."),
                "name": text("Its name; empty if unknown."),
                "submitter": text("The engine that sent it; empty if unknown."),
                "states": counts,
                "first_activity": moment("When its first task was created."),
                "last_activity": moment("When one of its tasks last changed its state."),
                "estimated_cost_usd": _cost(
                    "What all attempts are estimated to cost, also those of tasks whose records are"
                    " gone; null where that is known of none."
                ),
            },
            (
                *("id", "name", "submitter", "states"),
                *("first_activity", "last_activity", "estimated_cost_usd"),
            ),
        ),
        "Costs": document(
            "Tasks, and what they cost together.",
            {
                "tasks": whole("How many."),
                "estimated_cost_usd": _cost(
                    "What all their attempts are estimated to cost; null where that is known of"
                    " none. One that runs may count later."
                ),
            },
            ("tasks", "estimated_cost_usd"),
        ),
        "ListWorkflowsResponse": document(
            "A page of workflows, the last begun first.",
            {
                "workflows": items(ref("Workflow"), "The workflows."),
                "next_page_token": text("For the next page; absent on the last one."),
            },
            ("workflows",),
        ),
        "CancelWorkflowResponse": document(
            "The tasks are to end.",
            {
                "id": text("The workflow's id."),
                "changed": whole("Tasks that this request canceled."),
                "more": flag("Whether tasks are left that it did not come to: ask again."),
                "states": counts,
            },
            ("id", "changed", "more", "states"),
        ),
    }


def _cost(description: str) -> Schema:
    pattern = "^[0-9]+(\\.[0-9]+)?$"
    return {"type": ["string", "null"], "pattern": pattern, "description": description}


def schemas() -> dict[str, Schema]:
    """All schemas by name."""
    return {
        "tesTask": _task(),
        "tesTaskShown": _shown_task(),
        "tesInput": _input(),
        "tesOutput": _output(),
        "tesExecutor": _executor(),
        "tesResources": _resources(),
        "tesState": state(V1_1.version),
        "tesFileType": text(
            "What it is. The server fills it in when it is seen.", enum=["FILE", "DIRECTORY"]
        ),
        **_logs(),
        "tesCreateTaskResponse": document(
            "The task has been accepted.", {"id": text("The task's id.")}, ("id",)
        ),
        "tesCancelTaskResponse": document("The task is to end.", {}),
        "tesListTasksResponse": document(
            "A page of tasks, the newest first.",
            {
                "tasks": items(ref("tesTaskShown"), "The tasks."),
                "next_page_token": text("For the next page; absent on the last one."),
            },
            ("tasks",),
        ),
        **_service(),
        **_ours(),
    }
