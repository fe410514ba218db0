"""Who made and ended which task, when, and from where, and which API tokens came and went: one JSON
line each, at every log level."""

from __future__ import annotations

import time
from typing import Literal

import msgspec
from starlette.requests import Request

from tesazure.api.admission import caller_of
from tesazure.api.lines import Lines
from tesazure.api.views import timestamp

_encode = msgspec.json.Encoder().encode


class Audit:
    """Writes once what was asked for is durable; a server that is killed may lose the lines of its
    last moment (the owner and the time of each task are in the database as well)."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def note_token(self, action: str, token_id: str, user: str) -> None:
        """Note what became of an API token: done on the server's machine, found in its database."""
        self._lines.add(
            b'{"time":"%b","level":"info","event":"audit","action":"%b","token":%b,"user":%b}'
            % (
                timestamp(time.time()).encode("ascii"),
                action.encode("ascii"),
                _encode(token_id),
                _encode(user),
            )
        )

    def note(
        self, action: Literal["task.create", "task.cancel"], task_id: str, by: Request
    ) -> None:
        """Note what a request has done to a task."""
        self._note(action, b'"task":"%b"' % task_id.encode("ascii"), by)

    def note_workflow(self, workflow_id: str, tasks: int, by: Request) -> None:
        """Note that a request has canceled so many tasks of a workflow, beside a line for each."""
        what = b'"workflow":%b,"tasks":%d' % (_encode(workflow_id), tasks)
        self._note("workflow.cancel", what, by)

    def note_provision(self, action: str, run_id: str, by: Request) -> None:
        """Note that a request has begun, continued or joined a provisioning run, or its removal."""
        self._note(action, b'"run":"%b"' % run_id.encode("ascii"), by)

    def _note(self, action: str, what: bytes, by: Request) -> None:
        caller = caller_of(by)
        client = by.scope.get("client")
        self._lines.add(
            b'{"time":"%b","level":"info","event":"audit","action":"%b",%b,"owner":%b,'
            b'"caller":%b,"by":"%b","client":%b,"request_id":"%b"}'
            % (
                timestamp(time.time()).encode("ascii"),
                action.encode("ascii"),
                what,
                _encode(caller.owner),
                _encode(caller.name),
                caller.how.encode("ascii"),
                _encode(client and client[0]),
                by.scope["request_id"],
            )
        )
