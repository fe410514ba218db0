"""A request body -> the task to be made durable."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from tesazure.api.errors import RETRY_AFTER_S, HttpError
from tesazure.api.ids import new_task_id
from tesazure.api.parts import Parts, Station, UrlCheck
from tesazure.callers import Caller
from tesazure.daemon_threads import DaemonThreads
from tesazure.errors import FieldError, InvalidInput, StorageError
from tesazure.model import FileType, Input, Output, Task
from tesazure.plan import limits, normalise, runtime_limit
from tesazure.secrecy import HIDDEN, cut, is_hidden, may_hold_secrets
from tesazure.settings import LONGEST_RUNTIME_S
from tesazure.store.records import NewTask, Reservation, WorkflowName
from tesazure.submitters import (
    NAME,
    WORKFLOW_ID,
    WORKFLOW_NAME,
    Submitter,
    recognise,
    tags_of,
)
from tesazure.submitters.cromwell_paths import mapped
from tesazure.trace import TAG, Context, submission
from tesazure.validate import parse_task

_BOM = b"\xef\xbb\xbf"
_LARGE = 128 * 1024
"""Bodies from this size on (bytes) are checked in a thread: the others must not wait for them."""
MAX_NOTES = 50
"""Warnings kept of one submission; a hostile body could have millions."""
_MAX_NOTE = 300
_MAX_SHOWN = 512
"""Bytes of the names that a workflow and its engine are shown by; a longer id is none."""
_LOOKING = 4
"""URLs of so many tasks are looked at on the file system at once."""
_LOOK_S = 5.0

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a body says: the task as it was sent, and with the URLs that its paths mean."""

    task: Task
    meant: Task
    submitter: Submitter
    notes: list[str]
    station: Station
    """What it is checked against."""


class Submission:
    """Checks submissions against this server's backend and storages."""

    def __init__(self, parts: Parts) -> None:
        self._stations = parts.stations
        self._defaults = parts.defaults
        self._clock = parts.clock
        self._seal = parts.seal
        # Decoding a large body takes many times its size in memory: one at a time.
        self._large = asyncio.Semaphore(1)
        self._looks = DaemonThreads("urls", _LOOKING, _LOOK_S)

    async def accept(self, body: bytes, caller: Caller, trace: Context | None = None) -> NewTask:
        """The task in `body`, its caller's. `trace`: where in whose trace its request stands, if it
        came with that. Raises InvalidInput with every error found, HttpError 503 when the file
        system that its URLs name does not answer."""
        if len(body) < _LARGE:
            sent = self._read(body)
            urls = sent.station.urls
            if urls.checks_at_once(_urls(sent.meant)):
                return self._new(sent, _look(sent.meant, urls), caller, trace)
            return self._new(sent, await self._look_patiently(sent.meant, urls), caller, trace)
        async with self._large:
            sent = await asyncio.to_thread(self._read, body)
        errors = await self._look_patiently(sent.meant, sent.station.urls)
        async with self._large:
            return await asyncio.to_thread(self._new, sent, errors, caller, trace)

    def _read(self, body: bytes) -> _Sent:
        task, notes = parse_task(body.removeprefix(_BOM))
        submitter, station = recognise(task), self._stations.current
        meant = mapped(task, submitter, station.cromwell)
        return _Sent(task, meant, submitter, notes, station)

    def _new(
        self, sent: _Sent, errors: list[FieldError], caller: Caller, trace: Context | None
    ) -> NewTask:
        task, notes, now = sent.task, sent.notes, self._clock()
        errors += _take_parameters(task, notes, sent.station)
        whole: dict[str, str] = {}
        if may_hold_secrets(task):
            errors += _hidden_errors(task)
            whole = cut(task)
        if errors:
            raise InvalidInput(errors)
        if told := tags_of(sent.submitter):
            task.tags = {**told, **(task.tags or {})}
        asked = limits(task, self._defaults)
        task_id = new_task_id(now)
        if trace:
            task.tags = {TAG: str(trace.at(submission(task_id))), **(task.tags or {})}
        return NewTask(
            id=task_id,
            document=_encode(task),
            name=task.name or "",
            owner=caller.owner,
            tenant=caller.tenant,
            tags=task.tags or {},
            reservation=Reservation(
                asked.reserved_cpu_cores, asked.reserved_ram_bytes, asked.reserved_disk_bytes
            ),
            max_runtime_s=runtime_limit(task, self._defaults),
            notes=_bounded(notes),
            created=now,
            sealed=self._seal.close(task_id, whole) if whole else None,
            workflow=_workflow(task.tags) if task.tags else None,
        )

    async def _look_patiently(self, task: Task, urls: UrlCheck) -> list[FieldError]:
        """What is wrong with the URLs. Whether links lead out of the allowed directories only the
        file system can tell; one of a network may hang, and is never asked in the event loop."""
        try:
            return await self._looks.run(lambda: _look(task, urls))
        except TimeoutError:
            text = f"a file system that the task names did not answer within {_LOOK_S:g} s"
            retry = ((b"retry-after", b"%d" % RETRY_AFTER_S),)
            raise HttpError(503, "unavailable", text, retry) from None


def _look(task: Task, urls: UrlCheck) -> list[FieldError]:
    errors: list[FieldError] = []
    for i, item in enumerate(task.inputs or ()):
        if item.url and not item.content:
            try:
                urls.check_input(item.url)
            except StorageError as error:
                errors.append(FieldError(f"inputs[{i}].url", str(error)))
    directories = [
        (i, item.url, normalise(item.path))
        for i, item in enumerate(task.inputs or ())
        if item.type is FileType.DIRECTORY and item.url and not item.content
    ]
    for i, refused in urls.refused_mounts(directories).items():
        errors.append(FieldError(f"inputs[{i}]", str(refused)))
    for i, output in enumerate(task.outputs or ()):
        try:
            urls.check_output(output.url)
        except StorageError as error:
            errors.append(FieldError(f"outputs[{i}].url", str(error)))
    return errors


def _take_parameters(task: Task, notes: list[str], station: Station) -> list[FieldError]:
    """Keeps the supported backend_parameters under their own spelling, and only those: an
    unsupported key is neither stored nor returned (TES 1.1.0, tesResources)."""
    resources = task.resources
    if resources is None or resources.backend_parameters is None:
        return []
    known = {key.lower(): key for key in station.backend.capabilities.backend_parameters}
    errors: list[FieldError] = []
    kept: dict[str, str] = {}
    for key, value in resources.backend_parameters.items():
        if value is None:  # what Cromwell sends of an optional runtime attribute without a value
            continue
        here = f"resources.backend_parameters.{key}"
        name = known.get(key.lower())
        if name is None:
            if resources.backend_parameters_strict:
                errors.append(FieldError(here, f"is not supported; {_supported(known.values())}"))
            else:
                notes.append(f"backend parameter {key} is not supported and was ignored")
        elif name in kept:
            errors.append(FieldError(here, f"is given twice: case does not matter in {name}"))
        else:
            kept[name] = value
            errors += _value_errors(here, name, value)
    resources.backend_parameters = kept or None
    return errors


def _supported(parameters: Iterable[str]) -> str:
    names = ", ".join(parameters)
    return f"this server knows {names}" if names else "this server knows none"


def _workflow(tags: dict[str, str | None]) -> WorkflowName | None:
    """The workflow that a task's tags name, whether by the client or by what was recognised."""
    named = tags.get(WORKFLOW_ID)
    if not named:
        return None
    name, submitter = (_bounded_text(tags.get(key) or "") for key in (WORKFLOW_NAME, NAME))
    return WorkflowName(named, name, submitter)


def _bounded_text(text: str) -> str:
    """What a list of workflows shows of a text: lists stay small, whatever clients send."""
    return text.encode()[:_MAX_SHOWN].decode(errors="ignore")


def _urls(task: Task) -> Iterator[str]:
    """The URLs that a runner will use."""
    for item in task.inputs or ():
        if item.url and not item.content:
            yield item.url
    for output in task.outputs or ():
        yield output.url


def _hidden_errors(task: Task) -> Iterator[FieldError]:
    """A task as it was shown, sent again, lacks the secrets that were cut out of its URLs."""
    urls: list[tuple[str, Sequence[Input | Output]]]
    urls = [("inputs", task.inputs or ()), ("outputs", task.outputs or ())]
    for field, items in urls:
        for index, item in enumerate(items):
            if item.url and is_hidden(item.url):
                text = f"has {HIDDEN} where a secret was cut out; give the whole URL"
                yield FieldError(f"{field}[{index}].url", text)


def _value_errors(here: str, name: str, value: str) -> list[FieldError]:
    if name == "max_runtime_s":
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= LONGEST_RUNTIME_S:
            text = f"must be a positive number of seconds, at most {LONGEST_RUNTIME_S} (10 years)"
            return [FieldError(here, text)]
    return []


def _bounded(notes: list[str]) -> list[str]:
    """What is kept of the warnings, without characters that a database may refuse."""
    kept = [note[:_MAX_NOTE].replace("\0", "\ufffd") for note in notes[:MAX_NOTES]]
    if len(notes) > MAX_NOTES:
        kept.append(f"and {len(notes) - MAX_NOTES} more warnings")
    return kept
