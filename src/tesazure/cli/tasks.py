"""The verbs on tasks: create, get, list, wait, cancel; and service-info."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from tesazure.cli import show, watch
from tesazure.cli.client import Json, TesClient
from tesazure.cli.exits import Code, Failure
from tesazure.model import TERMINAL, State, View

_WORKFLOW = "ms-submitter-workflow-id"
"""The tag by which a task is part of a workflow."""


class Query(NamedTuple):
    """Filters of `list`, as given."""

    state: str | None
    name_prefix: str | None
    tags: tuple[str, ...]
    workflow: str | None
    page_size: int | None
    view: str

    def parameters(self) -> list[tuple[str, str]]:
        """The query parameters of the standard's list. Raises Failure for an unknown state."""
        found = [("view", view_of(self.view))]
        if self.state is not None:
            found.append(("state", _member("--state", self.state, [s.value for s in State])))
        if self.workflow:
            found += [("tag_key", _WORKFLOW), ("tag_value", self.workflow)]
        if self.name_prefix:
            found.append(("name_prefix", self.name_prefix))
        if self.page_size:
            found.append(("page_size", str(self.page_size)))
        return found + tag_parameters(self.tags)


def tag_parameters(tags: Iterable[str]) -> list[tuple[str, str]]:
    """The query parameters for tags given as KEY or KEY=VALUE."""
    pairs = [tag.partition("=") for tag in tags]
    return [found for key, _, value in pairs for found in (("tag_key", key), ("tag_value", value))]


def view_of(text: str) -> str:
    """A view's name, in any case. Raises Failure for another word."""
    return _member("--view", text, [view.value for view in View])


def _member(flag: str, text: str, allowed: list[str]) -> str:
    if text.upper() not in allowed:
        raise Failure(Code.USAGE, f"{flag} {text}: must be one of {', '.join(allowed)}")
    return text.upper()


def create(client: TesClient, file: str, as_json: bool) -> None:
    """Submit the tasks of a file; ids appear one a line, as each is accepted."""
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise Failure(Code.USAGE, f"{file}: {error.strerror}") from error
    documents = split(body, file)
    created: list[str] = []
    for number, document in enumerate(documents, 1):
        try:
            created.append(client.create(document))
        except Failure as failure:
            if len(documents) == 1:
                raise
            said = f"task {number} of {len(documents)}: {failure}; {len(created)} created before it"
            raise Failure(failure.code, said, *failure.details) from failure
        print(show.compact({"id": created[-1]}) if as_json else created[-1], flush=True)


def split(body: bytes, file: str) -> list[bytes]:
    """The documents in a file: one JSON object, a JSON array of them, or one a line."""
    try:
        whole = msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        lines = [line for line in body.splitlines() if line.strip()]
        if len(lines) > 1 and all(_is_json(line) for line in lines):
            return lines
        raise Failure(Code.USAGE, f"{file} is not JSON: {error}") from error
    if bytes(whole).lstrip().startswith(b"["):
        return [bytes(item) for item in msgspec.json.decode(whole, type=list[msgspec.Raw])]
    return [bytes(whole)]


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def get(client: TesClient, task_id: str, view: str, as_json: bool) -> None:
    """Print a task."""
    task = client.get(task_id, view_of(view))
    if as_json or not show.is_terminal():
        show.as_json(task)
    else:
        show.task_summary(task)


def list_tasks(
    client: TesClient, query: Query, *, page_token: str | None, all_pages: bool, as_json: bool
) -> None:
    """Print a page of tasks, or all of them as they arrive."""
    pages = _pages(client, query.parameters(), page_token, all_pages)
    tasks = (task for page in pages for task in page.get("tasks") or [])
    if not as_json:
        show.task_list(tasks)
        return
    show.json_list(tasks)


def _pages(
    client: TesClient, parameters: list[tuple[str, str]], token: str | None, all_pages: bool
) -> Iterator[Json]:
    while True:
        page = client.page(parameters, token)
        yield page
        token = page.get("next_page_token")
        if not token:
            return
        if not all_pages and page.get("tasks"):
            show.say(f"there are more: --all, or --page-token {token}")
            return


def wait(client: TesClient, task_ids: list[str], timeout_s: float | None, as_json: bool) -> int:
    """Print each task's end as it comes; NOT_COMPLETE unless all are COMPLETE."""
    ends: list[State] = []
    try:
        for task_id, state in watch.changes(client, task_ids, timeout_s):
            if state in TERMINAL:
                ends.append(state)
                line = show.compact({"id": task_id, "state": state})
                print(line if as_json else f"{task_id}\t{state}", flush=True)
    except KeyboardInterrupt:
        show.say("\nno longer waiting; the tasks go on")
        return Code.INTERRUPTED
    return Code.OK if all(end is State.COMPLETE for end in ends) else Code.NOT_COMPLETE


def cancel(client: TesClient, task_ids: list[str], as_json: bool) -> None:
    """Cancel tasks and print how each stands; an unknown one fails after all others were tried."""
    failures = []
    for task_id in task_ids:
        try:
            client.cancel(task_id)
            state = client.state(task_id)
        except Failure as failure:
            if failure.code != Code.NOT_FOUND:
                raise
            failures.append(failure)
            continue
        line = show.compact({"id": task_id, "state": state})
        print(line if as_json else f"{task_id}\t{state}", flush=True)
    if failures:
        raise Failure(Code.NOT_FOUND, "; ".join(map(str, failures)))


def service_info(client: TesClient, as_json: bool) -> None:
    """Print the service-info document."""
    info = client.service_info()
    if as_json or not show.is_terminal():
        show.as_json(info)
        return
    drawn = show.table(["", ""])
    drawn.show_header = False
    for key, value in info.items():
        lines = value if isinstance(value, list) else [value]
        texts = [line if isinstance(line, str) else show.compact(line) for line in lines]
        drawn.add_row(key, "\n".join(texts))
    show.console().print(drawn)
