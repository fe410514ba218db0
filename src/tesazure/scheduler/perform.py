"""Action -> effect: what `lifecycle.decide` said, done on the backend and committed to the store.

Every effect may be cut short by a crash at any point and be done again from what the store holds.
"""

from __future__ import annotations

import heapq
import logging
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from tesazure import report as reports
from tesazure.backends.base import Backend
from tesazure.callers import EVERYTHING
from tesazure.errors import StaleVersion, Unplaceable
from tesazure.lifecycle import (
    MOST_TOLD,
    Action,
    Advance,
    Cancel,
    Reclaim,
    Release,
    Retry,
    Submit,
)
from tesazure.lifecycle import check as check_transition
from tesazure.model import TERMINAL, State, Task, TaskLog
from tesazure.plan import Defaults, Plan, make_plan
from tesazure.report import Report
from tesazure.scheduler.ends import UNPLACEABLE, Ends, reason_of
from tesazure.scheduler.granting import Granting
from tesazure.store.base import Store
from tesazure.store.records import AttemptRecord, Change, TaskRecord, Watched
from tesazure.submitters import recognise

log = logging.getLogger(__name__)


class _Said(msgspec.Struct):
    """The lines alone of a TaskLog, which may have thousands of outputs."""

    system_logs: list[str] = []


_log_decoder = msgspec.json.Decoder(TaskLog)
_said_decoder = msgspec.json.Decoder(_Said)
_task_decoder = msgspec.json.Decoder(Task)
_encoder = msgspec.json.Encoder()


def new_key(task_id: str) -> str:
    """A key for a new attempt of a task, never used before."""
    return f"{task_id}-{secrets.token_hex(4)}"


class Performer:
    """Carries out actions on one store and one backend. `defaults` complete a task's Plan."""

    def __init__(
        self, store: Store, backend: Backend, granting: Granting, defaults: Defaults
    ) -> None:
        self._store = store
        self._backend = backend
        self._granting = granting
        self._defaults = defaults
        self.ends = Ends()
        self._placed: dict[str, TaskRecord] = {}

    def placed(self, record: TaskRecord) -> Watched:
        """A task that was just placed, as the scheduler watches it; its record spares a read."""
        self._placed[record.id] = record
        return Watched(
            seq=record.seq,
            id=record.id,
            state=record.state,
            version=record.version,
            max_runtime_s=record.max_runtime_s,
            attempt=record.attempts[-1],
        )

    def forget(self, task_id: str) -> None:
        """Nothing more is done about a task, which may never have been submitted."""
        self._placed.pop(task_id, None)

    async def perform(self, task: Watched, actions: Sequence[Action]) -> Watched:
        """Do the actions in order; returns the task as committed by the last of them.

        Raises StaleVersion when somebody else wrote the task first, StoreUnavailable and
        BackendUnavailable; what was done by then stays done.
        """
        released: bool | None = None
        via: State | None = None
        for place, action in enumerate(actions):
            match action:
                case Advance(state=state, report=None, said=()) if _leads_on(actions[place + 1 :]):
                    via = state  # both states are one write
                case Submit():
                    task = await self._submit(task, action.key)
                case Reclaim():
                    task = await self._reclaim(task, action.key)
                case Cancel():
                    await self._backend.cancel(action.handle)
                case Release():
                    await self._backend.release(action.handle)
                    released = True
                case Advance():
                    task = await self._advance(task, action, released, via)
                    released = via = None
                case Retry():
                    task = await self._retry(task, action, released)
                    released = None
        if released:
            task = await self._commit(task, released=True)
        return task

    async def say(self, task_id: str, line: str) -> None:
        """Add a warning to the log of a live task's newest attempt. Raises StaleVersion,
        StoreUnavailable."""
        task = await self._store.get(task_id, EVERYTHING)
        if task is None or task.state in TERMINAL or not task.attempts:
            return
        said = _log_decoder.decode(task.attempts[-1].log)
        said.system_logs.append(reports.system_line(_now(), "warning", line))
        await self._store.apply(
            Change(task_id=task.id, version=task.version, log=_encoder.encode(said))
        )

    async def _submit(self, task: Watched, key: str) -> Watched:
        """Start the attempt; a task that can never run here ends with the reason."""
        try:
            plan = await self._plan(task)
            self._backend.admit(plan)
            access = await self._granting.access(plan)
            handle = await self._backend.submit(plan, key, access)
        except Unplaceable as error:
            # Not released: a submit that was cut short before may have left something.
            ended = _ended_log(task.attempt, None, [str(error)])
            done = await self._commit(task, state=State.SYSTEM_ERROR, log=ended)
            self.ends.count(State.SYSTEM_ERROR, UNPLACEABLE)
            return done
        state = State.INITIALIZING if task.state is State.QUEUED else None
        return await self._commit(task, state=state, handle=handle)

    async def _plan(self, task: Watched) -> Plan:
        """The Plan of a stored task. Raises Unplaceable; StaleVersion if its record is gone."""
        record = self._placed.pop(task.id, None) or await self._store.get(task.id, EVERYTHING)
        if record is None:
            raise StaleVersion(f"task {task.id} is no longer there")
        try:
            document = _task_decoder.decode(record.document)
            submitter = recognise(document)
            document, said = await self._granting.adapted(task.id, document, submitter)
            return make_plan(
                task.id,
                document,
                self._defaults,
                [*record.notes, *said],
                outputs_required=not submitter.optional_outputs,
                max_runtime_s=record.max_runtime_s,
            )
        except (msgspec.MsgspecError, ValueError) as error:
            raise Unplaceable(f"the task cannot be carried out: {error}") from error

    async def _reclaim(self, task: Watched, key: str) -> Watched:
        handle = await self._backend.find(key)
        if handle is None:
            return await self._commit(task, released=True)
        return await self._commit(task, handle=handle)

    async def _advance(
        self, task: Watched, action: Advance, released: bool | None, via: State | None
    ) -> Watched:
        changes: dict[str, Any] = {"state": action.state, "released": released, "via": via}
        report = action.report
        if action.state in TERMINAL:
            changes["log"] = _ended_log(task.attempt, report, action.said, action.bill)
            if report is not None and (report.input_types or report.output_types):
                changes["document"] = await self._typed(task.id, report)
        else:
            changes["log"] = _live_log(task.attempt, report, action.waits)
        if report is not None and _tells_more(task.attempt, report):
            changes["seen_events"] = report.events
        if not any(change is not None for change in changes.values()):
            return task  # the log says it already
        done = await self._commit(task, **changes)
        if action.state in TERMINAL:
            was_submitted = bool(task.attempt and task.attempt.handle)
            self.ends.count(done.state, reason_of(done.state, report, was_submitted=was_submitted))
        return done

    async def _retry(self, task: Watched, action: Retry, released: bool | None) -> Watched:
        handle = None
        if task.attempt is not None and task.attempt.handle is None:
            # An interrupted submit may have left something all the same.
            handle = await self._backend.find(task.attempt.key)
            if handle is not None:
                await self._backend.release(handle)
            released = True
        said = f"{action.reason}; another attempt follows"
        changes: dict[str, Any] = {
            "state": State.QUEUED,
            "via": State.INITIALIZING if task.state is State.QUEUED else None,
            "handle": handle,
            "log": _ended_log(task.attempt, action.report, [said], action.bill),
            "released": released,
            "retry_at": time.time() + action.delay_s,
        }
        if _is_news(task.attempt, action.report):
            changes["seen_events"] = action.report.events
        return await self._commit(task, **changes)

    async def _typed(self, task_id: str, report: Report) -> bytes | None:
        """The document with the types of inputs and outputs that the client left open."""
        record = await self._store.get(task_id, EVERYTHING)
        if record is None:
            return None
        document = _task_decoder.decode(record.document)
        for items, types in (
            (document.inputs or [], report.input_types),
            (document.outputs or [], report.output_types),
        ):
            for index, kind in types.items():
                if index < len(items) and items[index].type is None:
                    items[index].type = kind
        return _encoder.encode(document)

    async def _commit(self, task: Watched, **changes: Any) -> Watched:
        """One compare-and-set write; the task as it then is."""
        state, via = changes.get("state"), changes.get("via")
        for old, new in ((task.state, via), (via or task.state, state)):
            if new is not None:
                check_transition(old, new)
        version = await self._store.apply(Change(task_id=task.id, version=task.version, **changes))
        attempt = task.attempt
        if attempt is not None:
            fields = ("handle", "released", "log", "seen_events")
            new = {name: changes[name] for name in fields if changes.get(name) is not None}
            attempt = msgspec.structs.replace(attempt, **new)
        if state is not None:
            ids = {"task": task.id, "attempt": attempt and attempt.key}
            passed = f"{task.state} -> {via}" if via else task.state
            log.info("%s -> %s", passed, state, extra=ids)
        return msgspec.structs.replace(
            task, version=version, state=state or task.state, attempt=attempt
        )


def _leads_on(following: Sequence[Action]) -> bool:
    """Whether the next action commits a further state."""
    return bool(following) and isinstance(following[0], Advance) and bool(following[0].state)


def _is_news(attempt: AttemptRecord | None, report: Report) -> bool:
    """Whether a report tells at least what was committed: one of an attempt whose files are gone
    tells nothing, and must not wipe out what was known."""
    return report.events > 0 and (attempt is None or report.events >= attempt.seen_events)


def _live_log(attempt: AttemptRecord | None, report: Report | None, waits: str) -> bytes | None:
    """The log of an attempt that lives on, None where nothing changes; `waits` is what its backend
    says that it waits for."""
    if attempt is None or report is None:
        return None
    is_news = _tells_more(attempt, report)
    is_new = bool(waits) and _is_unsaid(waits, _ours(attempt, report))
    if not is_news and not is_new:
        return None
    live = _with_ours(attempt, report) if is_news else _committed(attempt)
    if is_new:
        live.system_logs.append(reports.system_line(_now(), "info", waits))
    return _encoder.encode(live)


def _tells_more(attempt: AttemptRecord | None, report: Report) -> bool:
    """Whether a report has events that the committed log has not."""
    return report.events > (attempt.seen_events if attempt is not None else 0)


def _is_unsaid(words: str, ours: Sequence[str]) -> bool:
    """Whether to add this to lines of ours: they do not say so, nor too much as it is."""
    words = " ".join(words.split())
    return len(ours) < MOST_TOLD and all(line.split(" ", 2)[-1] != words for line in ours)


def _ours(attempt: AttemptRecord | None, report: Report) -> list[str]:
    """The lines of the committed log that the server added to those of the report."""
    if attempt is None or not attempt.log:
        return []
    theirs = set(report.log.system_logs)
    return [line for line in _said_decoder.decode(attempt.log).system_logs if line not in theirs]


def _committed(attempt: AttemptRecord) -> TaskLog:
    return _log_decoder.decode(attempt.log) if attempt.log else TaskLog()


def _with_ours(attempt: AttemptRecord | None, report: Report) -> TaskLog:
    """The log of a report, with the lines among it that the server added to the one committed
    before. All but these lines is the report's own: to be encoded, not to be changed."""
    ours = _ours(attempt, report)
    # By their times, which lines begin with; neither's own order changes.
    lines = list(heapq.merge(report.log.system_logs, ours, key=_time_of))
    return msgspec.structs.replace(report.log, system_logs=lines)


def _time_of(line: str) -> str:
    return line.partition(" ")[0]


def _ended_log(
    attempt: AttemptRecord | None,
    report: Report | None,
    said: Sequence[str],
    bill: dict[str, str] | None = None,
) -> bytes | None:
    """The log of an attempt that is over: it has an end, and `said` among its system_logs. `bill`
    says what it cost, unless it has said that itself."""
    if attempt is None:
        return None
    if report is not None and _is_news(attempt, report):
        ended = _with_ours(attempt, report)
    else:
        ended = _committed(attempt)
    now = _now()
    ended.system_logs.extend(reports.system_line(now, "error", line) for line in said)
    if "estimated_cost_usd" not in ended.metadata:
        ended.metadata = {**(bill or {}), **ended.metadata}
    if ended.end_time is msgspec.UNSET:
        ended.end_time = now
    return _encoder.encode(ended)


def _now() -> str:
    """This moment as RFC 3339 in UTC with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
