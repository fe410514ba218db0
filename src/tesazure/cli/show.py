"""What the command line prints: tables with rich on a terminal, plain lines or JSON elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from tesazure.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Json = dict[str, Any]

COLOURS = {
    "QUEUED": "white",
    "INITIALIZING": "cyan",
    "RUNNING": "blue",
    "COMPLETE": "green",
    "EXECUTOR_ERROR": "red",
    "SYSTEM_ERROR": "bold red",
    "PREEMPTED": "magenta",
    "CANCELING": "yellow",
    "CANCELED": "yellow",
}


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def say(message: str) -> None:
    """A line for the person at the keyboard, on standard error."""
    print(message, file=sys.stderr, flush=True)


def console(*, stderr: bool = False) -> Console:
    """A rich console without guesses: no markup in data, no highlighting; wide off a terminal."""
    from rich.console import Console  # costs 60 ms, and only where something is drawn

    target = sys.stderr if stderr else sys.stdout
    width = None if target.isatty() else 120
    return Console(
        file=target, width=width, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


def as_json(value: Any) -> None:
    """Indented JSON on standard output."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def compact(value: Any) -> str:
    """JSON on one line."""
    return msgspec.json.encode(value).decode()


def json_list(values: Iterable[Any]) -> None:
    """A JSON array on standard output, an item a line, as they arrive."""
    separator = "["
    for value in values:
        print(separator, compact(value), sep="\n", end="")
        separator = ","
    print("[]" if separator == "[" else "\n]")


def tabbed(row: Sequence[str]) -> str:
    """One line of fields separated by tabs; white space that would break it becomes spaces, other
    control characters are written out."""
    return "\t".join(field if field.isprintable() else _on_a_line(field) for field in row)


def _on_a_line(text: str) -> str:
    return printable(" ".join(text.split()))


def table(headings: Sequence[str], whole: Sequence[str] = ()) -> Table:
    """An empty table in the house's style. Columns in `whole` are never broken: one copies them."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        drawn.add_column(heading, overflow="fold", no_wrap=heading in whole)
    return drawn


def state_text(state: str) -> Any:
    """A state in its colour, for a rich table."""
    from rich.text import Text

    return Text(state, style=COLOURS.get(state, ""))


def parse_time(text: str | None) -> datetime | None:
    """An RFC 3339 time; None for none or nonsense."""
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None


def local_time(text: str | None) -> str:
    """An RFC 3339 time in the local zone, to the second."""
    time = parse_time(text)
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else ""


def clock(time: datetime | None = None) -> str:
    """Local time of day, to the second; now if none is given."""
    return (time or datetime.now(UTC)).astimezone().strftime("%H:%M:%S")


def size(count: int | str) -> str:
    """Bytes for people, in powers of 1000: 999 B, 48.5 kB, 1.2 GB."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError(unit)


def duration(start: str | None, end: str | None) -> str:
    """Time between two RFC 3339 times; from the start until now if there is no end."""
    begin, finish = parse_time(start), parse_time(end) or datetime.now(UTC)
    if begin is None:
        return ""
    seconds = max(0.0, (finish - begin).total_seconds())
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest} s"
    )


def last_attempt(task: Json) -> Json:
    """The newest entry of a task's logs, or an empty one."""
    logs = task.get("logs") or [{}]
    return dict(logs[-1] or {})


def list_row(task: Json) -> list[str]:
    """Columns of a list: id, state, created, duration, name."""
    attempt = last_attempt(task)
    took = duration(attempt.get("start_time"), attempt.get("end_time"))
    created = local_time(task.get("creation_time"))
    return [task["id"], task.get("state", ""), created, took, task.get("name") or ""]


def task_list(tasks: Iterable[Json]) -> None:
    """Tasks as a table on a terminal, as tab-separated lines elsewhere."""
    if not is_terminal():
        for task in tasks:
            row = list_row(task)
            row[2] = task.get("creation_time") or ""
            print(tabbed(row))
        return
    drawn = table(["ID", "STATE", "CREATED", "TOOK", "NAME"], ["ID", "STATE", "CREATED", "TOOK"])
    for task in tasks:
        task_id, state, *rest = list_row(task)
        drawn.add_row(task_id, state_text(state), *rest)
    console().print(drawn)


def task_summary(task: Json) -> None:
    """One task on a terminal: what it is, its executors, files and system logs."""
    out = console()
    attempt = last_attempt(task)
    facts = table(["", ""])
    facts.show_header = False
    facts.add_row("task", task["id"])
    facts.add_row("state", state_text(task.get("state", "")))
    for label, value in (
        ("name", task.get("name")),
        ("description", task.get("description")),
        ("created", local_time(task.get("creation_time"))),
        ("took", duration(attempt.get("start_time"), attempt.get("end_time"))),
        ("attempts", str(len(task.get("logs") or [])) if len(task.get("logs") or []) > 1 else ""),
        (
            "resources",
            ", ".join(f"{k} {compact(v)}" for k, v in (task.get("resources") or {}).items()),
        ),
        ("tags", ", ".join(f"{k}={v or ''}" for k, v in (task.get("tags") or {}).items())),
    ):
        if value:
            facts.add_row(label, str(value))
    out.print(facts)
    if task.get("executors"):
        out.print(executors(task["executors"], attempt.get("logs") or []))
    if task.get("inputs"):
        inputs = table(["INPUT", "FROM"])
        for item in task["inputs"]:
            inputs.add_row(item["path"], item.get("url") or "(inline content)")
        out.print(inputs)
    if attempt.get("outputs"):
        out.print(outputs(attempt["outputs"]))
    elif task.get("outputs"):
        wanted = table(["OUTPUT", "TO"])
        for item in task["outputs"]:
            wanted.add_row(item["path"], item["url"])
        out.print(wanted)
    if attempt.get("system_logs"):
        out.print("system logs")
        for line in attempt["system_logs"]:
            out.print(f"  {line}")


def executors(executors: list[Json], logs: list[Json]) -> Table:
    """The commands of a task and how each ended."""
    drawn = table(["EXECUTOR", "IMAGE", "COMMAND", "EXIT CODE", "TOOK"])
    for i, executor in enumerate(executors):
        log = logs[i] if i < len(logs) else {}
        drawn.add_row(
            str(i),
            executor["image"],
            command_line(executor["command"], 60),
            str(log.get("exit_code", "")),
            duration(log.get("start_time"), log.get("end_time")),
        )
    return drawn


def outputs(files: list[Json]) -> str:
    """The files that a task wrote, a line each: URLs in tables would be broken across lines."""
    return "\n".join(["outputs", *(f"{size(f['size_bytes']):>10}  {f['url']}" for f in files)])


def command_line(command: list[str], width: int) -> str:
    """An argv as one would type it, shortened."""
    import shlex

    text = " ".join(shlex.join(command).split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
