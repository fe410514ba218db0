"""What the stand-in for Azure Resource Manager keeps, how it refuses, and what takes a while.

Sources: "Track asynchronous Azure operations", "Troubleshoot common Azure deployment errors",
"Common API details" of the Resource Manager's error responses.
"""

from __future__ import annotations

import copy
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.services.tls_server import Request

Style = Literal["location", "async"]
"""How a client follows an operation: `Location`, or `Azure-AsyncOperation`."""


class Refused(Exception):
    """An error as Azure's: status, code, message, headers. `details` as CloudError has them."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message
        self.headers, self.more = headers or {}, more

    @property
    def error(self) -> dict[str, Any]:
        """The ErrorDetail."""
        return {"code": self.code, "message": self.message} | self.more


@dataclass
class Reply:
    """Status, document (None: no body) and headers."""

    status: int
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """A request that is admitted: `ids` are the variables of its route, `caller` an object id."""

    request: Request
    ids: dict[str, str]
    body: Any
    caller: str
    operation: str

    def __getitem__(self, name: str) -> str:
        return self.ids[name]

    @property
    def group_path(self) -> str:
        """Id of the resource group."""
        return f"/subscriptions/{self['subscription']}/resourceGroups/{self['group']}"


@dataclass(frozen=True)
class Route:
    """One operation by Microsoft's name. `action` is what the caller must be allowed; empty: nobody
    needs a role for it."""

    method: str
    template: str
    operation: str
    action: str
    act: Callable[[Call], Reply]

    def matches(self, method: str, path: str) -> dict[str, str] | None:
        """The variables of a path; None for another operation's. Paths know no case."""
        if method != self.method:
            return None
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(self.template))
        pattern = pattern.replace("(?P<scope>[^/]+)", "(?P<scope>/.+)")
        found = re.fullmatch(pattern, path, re.IGNORECASE)
        return None if found is None else found.groupdict()


@dataclass
class Resource:
    """A resource or a resource group: its document as it is told."""

    id: str
    type: str
    body: dict[str, Any]
    made: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        """The last part of its id."""
        return self.id.rpartition("/")[2]

    @property
    def properties(self) -> dict[str, Any]:
        """Of the document."""
        found: dict[str, Any] = self.body.setdefault("properties", {})
        return found

    def told(self) -> dict[str, Any]:
        """The document with id, name and type."""
        head = {"id": self.id, "name": self.name, "type": self.type}
        return copy.deepcopy(head | self.body)


@dataclass
class Operation:
    """What takes a while. `finish` does what is left to do, and gives the final document. With a
    `failure` it is going to fail, or has."""

    due: float
    finish: Callable[[], Any]
    style: Style
    path: str
    undo: Callable[[], None] | None = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    outcome: Any = None
    failure: Refused | None = None
    done: bool = False


@dataclass
class Pace:
    """How long things take, in seconds; 0: they are done when the request is answered."""

    retry_after_s: int = 1
    """What clients are told to wait before they ask how far an operation is; Azure says 15 to 25.
    Microsoft's clients take whole seconds only, and 0 for their own default, which is 30."""
    creation_s: float = 0.05
    """Of an account; Azure needs 20 s to some minutes."""
    deletion_s: float = 0.05
    """Of an account or a resource group."""
    registration_s: float = 0.1
    """Of a provider; Azure needs minutes."""
    replication_s: float = 0.0
    """Until a new identity is known wherever roles are assigned to it without saying what it is."""
    assignment_s: float = 0.0
    """Until a role assignment counts; Azure needs up to ten minutes."""


class State:
    """Resources and operations of all subscriptions, under one lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.pace = Pace()
        self.resources: dict[str, Resource] = {}
        self.operations: dict[str, Operation] = {}
        self.fail_later: Refused | None = None
        """How the next operation that begins will end."""

    def get(self, id_: str) -> Resource | None:
        """By id, in any case."""
        return self.resources.get(id_.lower())

    def put(self, resource: Resource) -> None:
        """Keep it."""
        self.resources[resource.id.lower()] = resource

    def below(self, id_: str) -> Iterator[Resource]:
        """What is in a group, of a resource, or in a subscription."""
        start = f"{id_.lower()}/"
        for key, resource in list(self.resources.items()):
            if key.startswith(start):
                yield resource

    def of_type(self, kind: str) -> list[Resource]:
        """All of a type, wherever they are."""
        # Of a copy: some are asked for without the lock, while accounts come and go.
        return [each for each in list(self.resources.values()) if each.type == kind]

    def listed(self, call: Call, kind: str) -> Reply:
        """All of a type in the group or the subscription that a request names."""
        top = call.group_path if "group" in call.ids else f"/subscriptions/{call['subscription']}"
        return Reply(200, {"value": [e.told() for e in self.below(top) if e.type == kind]})

    def remove(self, id_: str) -> None:
        """With what is below it."""
        for resource in [*self.below(id_)]:
            self.resources.pop(resource.id.lower(), None)
        self.resources.pop(id_.lower(), None)

    def begin(
        self,
        seconds: float,
        path: str,
        where: str,
        finish: Callable[[], Any],
        undo: Callable[[], None] | None = None,
    ) -> Reply:
        """An operation on the resource `path` that is done in so many seconds; clients ask at
        `where` how far it is, by Location. One that fails is undone, or leaves a resource that has
        Failed."""
        if seconds == 0 and self.fail_later is None:
            return Reply(200, finish())
        due = time.monotonic() + seconds
        operation = self._keep(Operation(due, finish, "location", path, undo))
        headers = {"Location": f"{where}/{operation.id}"}
        return Reply(202, None, headers | self.retry_after)

    def begin_creation(
        self,
        made: Resource,
        where: str,
        undo: Callable[[], None] | None = None,
        style: Style = "location",
    ) -> Reply:
        """Keep a resource that is Creating at first, see `begin` and `begin_async`."""
        made.properties["provisioningState"] = "Creating"
        self.put(made)

        def finish() -> dict[str, Any]:
            made.properties["provisioningState"] = "Succeeded"
            return made.told()

        if style == "async":
            return self.begin_async(self.pace.creation_s, made, where, finish)
        return self.begin(self.pace.creation_s, made.id, where, finish, undo)

    def begin_async(
        self, seconds: float, resource: Resource, where: str, finish: Callable[[], Any]
    ) -> Reply:
        """The same by Azure-AsyncOperation; the answer is the resource as it is meanwhile."""
        if seconds == 0 and self.fail_later is None:
            return Reply(201, finish())
        due = time.monotonic() + seconds
        operation = self._keep(Operation(due, finish, "async", resource.id))
        headers = {"Azure-AsyncOperation": f"{where}/{operation.id}"}
        return Reply(201, resource.told(), headers | self.retry_after)

    @property
    def retry_after(self) -> dict[str, str]:
        """The header."""
        return {"Retry-After": str(self.pace.retry_after_s)}

    def _keep(self, operation: Operation) -> Operation:
        operation.failure, self.fail_later = self.fail_later, None
        self.operations[operation.id] = operation
        return operation

    def hurry(self) -> None:
        """What is under way is done now."""
        with self.lock:
            for operation in self.operations.values():
                operation.due = 0.0

    def settle(self) -> None:
        """Finish what is due."""
        now = time.monotonic()
        for operation in list(self.operations.values()):
            if operation.done or operation.due > now:
                continue
            operation.done = True
            if operation.failure is None:
                operation.outcome = operation.finish()
            elif operation.undo is not None:
                operation.undo()
            elif (found := self.get(operation.path)) is not None:
                found.properties["provisioningState"] = "Failed"


def not_found(kind: str, name: str, group: str) -> Refused:
    """A resource that is not there."""
    said = (
        f"The Resource '{kind}/{name}' under resource group '{group}' was not found. For more"
        " details please go to https://aka.ms/ARMResourceNotFoundFix"
    )
    return Refused(404, "ResourceNotFound", said)


def no_group(name: str) -> Refused:
    """A resource group that is not there."""
    return Refused(404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found.")
