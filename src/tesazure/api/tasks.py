"""The standard's task operations: create, list, get, cancel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request

from tesazure.api import pages, views
from tesazure.api.admission import caller_of, visibility_of
from tesazure.api.bodies import BodyReader
from tesazure.api.budget_check import BudgetCheck
from tesazure.api.flavour import Flavour
from tesazure.api.ids import is_task_id
from tesazure.api.pages import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from tesazure.api.parts import Parts
from tesazure.api.replies import Reply, Route, tasks_json
from tesazure.api.submission import Submission
from tesazure.api.tails import LIVE, Tails
from tesazure.errors import FieldError, InvalidInput, NotFound
from tesazure.model import State, View
from tesazure.store.records import ListQuery, TaskRecord

T = TypeVar("T")

_VIEWS = {f"view={view}".encode(): view for view in View} | {b"": View.MINIMAL}


class Tasks:
    """The handlers of one flavour."""

    def __init__(
        self,
        parts: Parts,
        flavour: Flavour,
        bodies: BodyReader,
        submission: Submission,
    ) -> None:
        self._store = parts.store
        self._pulse = parts.pulse
        self._identity = parts.identity
        self._flavour = flavour
        self._bodies = bodies
        self._submission = submission
        self._audit = parts.audit
        self._budgets = BudgetCheck(parts)
        self._tails = Tails(parts.stations, parts.settings.log_tail_bytes)

    def routes(self) -> list[Route]:
        """The task routes below the flavour's prefix."""
        tasks = f"{self._flavour.prefix}/tasks"
        return [
            Route(tasks, {"GET": self.list_tasks, "POST": self.create_task}),
            Route(f"{tasks}/{{id}}", {"GET": self.get_task}),
            Route(f"{tasks}/{{id}}:cancel", {"POST": self.cancel_task}),
        ]

    async def create_task(self, request: Request) -> Reply:
        """CreateTask. Answers once the task is on disk. Any content type is taken as JSON."""
        with await self._bodies.read(request) as body:
            trace = request.scope.get("trace")
            task = await self._submission.accept(body, caller_of(request), trace)
            await self._budgets.demand(task)
            await self._store.create(task)
        request.scope["task_id"] = task.id
        self._audit.note("task.create", task.id, request)
        if self._pulse:
            self._pulse.wake()
        return tasks_json(b'{"id":"%b"}' % task.id.encode("ascii"))

    async def get_task(self, request: Request) -> Reply:
        """GetTask."""
        task_id, visibility = known_id(request), visibility_of(request)
        query = request.scope["query_string"]
        view = _VIEWS.get(query) or _view(dict(parameters(query)))
        if view is View.MINIMAL:
            brief = await self._store.get_brief(task_id, visibility)
            if brief is None:
                raise unknown(task_id)
            return tasks_json(views.minimal(task_id, self._flavour.word(brief.state)))
        record = await self._store.get(task_id, visibility)
        if record is None:
            raise unknown(task_id)
        if view is View.FULL and record.state not in LIVE:
            return tasks_json(self._full(record, {}, await self._budgets.holds([record])))
        return tasks_json((await self._shown([record], view))[0])

    async def list_tasks(self, request: Request) -> Reply:
        """ListTasks."""
        asked = parameters(request.scope["query_string"])
        single = dict(asked)
        errors = _Collected()
        size = errors.of(lambda: page_size(single), 0)
        view = errors.of(lambda: _view(single), View.MINIMAL)
        filters = pages.Filters(
            states=errors.of(lambda: self._states(single), ()),
            name_prefix=errors.of(lambda: _text("name_prefix", single.get("name_prefix", "")), ""),
            tags=errors.of(lambda: tags_asked(asked), ()),
        )
        errors.check()
        visibility = visibility_of(request)
        audience = (self._flavour.version, visibility.audience)
        place = pages.Place(0, audience, filters)
        if single.get("page_token"):
            place = pages.decode(single["page_token"], self._identity, audience, filters)
        filters = place.filters
        query = ListQuery(
            limit=size,
            before=place.before or None,
            states=filters.states,
            name_prefix=filters.name_prefix,
            tags=filters.tags,
            visibility=visibility,
        )
        shown, before = await (
            self._briefs(query) if view is View.MINIMAL else self._records(query, view)
        )
        token = None
        if before is not None:
            token = pages.encode(pages.Place(before, audience, filters), self._identity)
        return tasks_json(views.page(shown, token))

    async def cancel_task(self, request: Request) -> Reply:
        """CancelTask: a request; the task is CANCELED once nothing of it runs any more."""
        task_id = known_id(request)
        changed = await self._store.request_cancel(task_id, visibility_of(request))
        if changed is None:
            raise unknown(task_id)
        if changed:
            self._audit.note("task.cancel", task_id, request)
            if self._pulse:
                self._pulse.wake()
        return tasks_json(b"{}")

    def _states(self, parameters: dict[str, str]) -> tuple[State, ...]:
        word = parameters.get("state")
        return self._flavour.states(word) if word else ()

    async def _briefs(self, query: ListQuery) -> tuple[list[bytes], int | None]:
        page = await self._store.list_briefs(query)
        word = self._flavour.word
        return [views.minimal(t.id, word(t.state)) for t in page.items], page.next_before

    async def _records(self, query: ListQuery, view: View) -> tuple[list[bytes], int | None]:
        page = await self._store.list_records(query)
        return await self._shown(page.items, view), page.next_before

    async def _shown(self, records: Sequence[TaskRecord], view: View) -> list[bytes]:
        if view is View.BASIC:
            return [self._basic(record) for record in records]
        tails = await self._tails.read(records)
        held = await self._budgets.holds(records)
        return [self._full(record, tails.get(record.id, {}), held) for record in records]

    def _basic(self, record: TaskRecord) -> bytes:
        return views.full(
            record.id,
            self._flavour.word(record.state),
            record.created,
            views.without_contents(record.document),
            [views.without_texts(attempt.log) for attempt in record.attempts],
        )

    def _full(
        self, record: TaskRecord, tails: dict[tuple[int, str], str], held: Mapping[str, str]
    ) -> bytes:
        logs = [attempt.log for attempt in record.attempts]
        waiting = held.get(record.id)
        if logs:
            logs[-1] = views.with_tails(logs[-1], tails)
            logs += views.waiting_log((), record.created, waiting)
        else:
            if not waiting and self._pulse and record.state is State.QUEUED:
                waiting = self._pulse.waiting_for(record.id)
            logs = views.waiting_log(record.notes, record.created, waiting)
        state = self._flavour.word(record.state)
        return views.full(record.id, state, record.created, record.document, logs)


class _Collected:
    """Gathers what is wrong with several parameters, to be said at once."""

    def __init__(self) -> None:
        self._errors: list[FieldError] = []

    def of(self, read: Callable[[], T], otherwise: T) -> T:
        """What `read` returns, or `otherwise` if that raises InvalidInput."""
        try:
            return read()
        except InvalidInput as error:
            self._errors += error.errors
            return otherwise

    def check(self) -> None:
        """Raises InvalidInput if anything was wrong."""
        if self._errors:
            raise InvalidInput(self._errors)


def known_id(request: Request) -> str:
    """The task id in the path. Raises NotFound for what cannot be one."""
    task_id: str = request.scope["path_params"]["id"]
    if not is_task_id(task_id):
        raise unknown(task_id)
    return task_id


def unknown(task_id: str) -> NotFound:
    """There is no such task, or it is not the caller's to see: the same words for both."""
    return NotFound(f"there is no task {task_id[:100]}")


def parameters(query: bytes) -> list[tuple[str, str]]:
    """Names and values of a query, as given."""
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else []


def _view(parameters: dict[str, str]) -> View:
    given = parameters.get("view")
    try:
        return View(given) if given else View.MINIMAL
    except ValueError:
        allowed = ", ".join(View)
        raise InvalidInput([FieldError("view", f"must be one of {allowed}")]) from None


def page_size(parameters: dict[str, str]) -> int:
    """How many items a page is to have. Raises InvalidInput."""
    given = parameters.get("page_size")
    if given is None:
        return DEFAULT_PAGE_SIZE
    digits = given.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or not digits.strip("0"):
        raise InvalidInput([FieldError("page_size", f"must be a number from 1 to {MAX_PAGE_SIZE}")])
    return MAX_PAGE_SIZE if len(digits.lstrip("0")) > 4 else min(int(digits), MAX_PAGE_SIZE)


def tags_asked(parameters: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """tag_key and tag_value zipped; a key without a value matches any value. Raises
    InvalidInput."""
    keys = [_text("tag_key", value) for name, value in parameters if name == "tag_key"]
    values = [_text("tag_value", value) for name, value in parameters if name == "tag_value"]
    if len(values) > len(keys):
        raise InvalidInput([FieldError("tag_value", "there are more of these than of tag_key")])
    values += [""] * (len(keys) - len(values))
    return tuple(zip(keys, values, strict=True))


def _text(name: str, value: str) -> str:
    if "\0" in value:
        raise InvalidInput([FieldError(name, "must not contain a NUL character")])
    return value
