"""`run`: submit one task, watch it, and say how it ended."""

from __future__ import annotations

import threading
from typing import NamedTuple

from tesazure.cli import show, streams, watch
from tesazure.cli.build import is_local
from tesazure.cli.client import Json, TesClient
from tesazure.cli.exits import Code, Failure
from tesazure.model import State, Task


class Options(NamedTuple):
    """What to do after submitting."""

    wait: bool
    follow: bool
    as_json: bool


def encode(task: Task) -> bytes:
    """The task as the body of a request."""
    return show.compact(task).encode()


def show_document(task: Task) -> None:
    """Print the task's JSON."""
    show.as_json(task)


def run(client: TesClient, task: Task, options: Options) -> int:
    """Submit and, if so wished, wait. The id is the only line on standard output, unless the
    command's own output or JSON was asked for."""
    _mind_local_paths(client, task)
    task_id = client.create(encode(task))
    if not options.wait:
        print(show.compact({"id": task_id}) if options.as_json else task_id)
        return Code.OK
    try:
        state = _watch(client, task_id, options)
    except KeyboardInterrupt:
        show.say(f"\n{task_id} goes on without you. To wait: tesazure wait {task_id}")
        show.say(f"To stop it: tesazure cancel {task_id}")
        return Code.INTERRUPTED
    task_now = client.get(task_id, "FULL")
    if options.as_json:
        show.as_json(task_now)
    else:
        if not options.follow:
            print(task_id)
        report(task_now, with_stderr=not options.follow)
    return Code.OK if state is State.COMPLETE else Code.NOT_COMPLETE


def _watch(client: TesClient, task_id: str, options: Options) -> State:
    out = show.console(stderr=True)
    follower = None
    if options.follow:
        choice = streams.Choice(None, ("stdout", "stderr"), None)
        follower = threading.Thread(
            target=_follow, args=(client, task_id, choice), daemon=True, name="follow"
        )
        follower.start()
    end = State.UNKNOWN
    for _, state in watch.changes(client, [task_id], None):
        line = show.state_text(state)
        out.print(show.clock(), task_id, line)
        end = state
    if follower:
        follower.join(timeout=30)
    return end


def _follow(client: TesClient, task_id: str, choice: streams.Choice) -> None:
    try:
        streams.show(client, task_id, choice, follow=True)
    except Failure as failure:
        show.say(f"tesazure: the output cannot be followed: {failure}")


def report(task: Json, *, with_stderr: bool) -> None:
    """How a task ended, on standard error: its files, or why it failed."""
    out = show.console(stderr=True)
    attempt = show.last_attempt(task)
    for i, log in enumerate(attempt.get("logs") or []):
        if log.get("exit_code"):
            out.print(f"executor {i} ended with exit code {log['exit_code']}")
            shown = (log.get("stderr") or "") if with_stderr else ""
            for line in shown.splitlines()[-10:]:
                out.print(f"  {line}")
    if task["state"] != State.COMPLETE:
        for line in attempt.get("system_logs") or []:
            out.print(f"  {line}")
    elif attempt.get("outputs"):
        out.print(show.outputs(attempt["outputs"]))


def _mind_local_paths(client: TesClient, task: Task) -> None:
    urls = [item.url for item in task.inputs or [] if item.url]
    urls += [item.url for item in task.outputs or []]
    if not client.is_local and any(is_local(url) for url in urls):
        show.say(f"note: local paths are those of the server's machine, {client.root}")
