"""`doctor`: a verdict on each part of this machine and of the server, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tesazure.cli import show
from tesazure.cli.client import Json, TesClient
from tesazure.cli.exits import Code, Failure
from tesazure.errors import ConfigurationError, StoreUnavailable
from tesazure.settings import Effective, Settings

if TYPE_CHECKING:
    from tesazure.compose import EngineName

ENOUGH_DISK_BYTES = 2 * 10**9
SKEW_S = 5.0


class Finding(msgspec.Struct, frozen=True):
    """One verdict. `ok` None: a remark, neither good nor bad."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def doctor(client: TesClient, effective: Effective, as_json: bool) -> int:
    """Print all findings; NOT_COMPLETE if one of them is bad."""
    settings = effective.settings
    warned = [Finding("settings", None, warning) for warning in effective.warnings]
    findings = [*local(settings), *warned, *server(client, settings)]
    if as_json:
        show.as_json(findings)
    else:
        _print(findings)
    return Code.NOT_COMPLETE if any(finding.ok is False for finding in findings) else Code.OK


def local(settings: Settings) -> Iterator[Finding]:
    """What this machine offers a server with these settings."""
    yield _python()
    yield _database(settings)
    yield from _engines(settings)
    yield _directory("data directory", settings.data_dir)
    yield _disk(settings.data_dir)
    for directory in settings.allow_dir:
        yield _directory(f"allowed directory {directory}", directory)
    if not settings.allow_dir:
        yield Finding(
            "allowed directories",
            None,
            "none: tasks cannot use file:// and bare paths",
            "tesazure serve --allow-dir DIRECTORY",
        )
    yield from _storage(settings)


def server(client: TesClient, settings: Settings) -> Iterator[Finding]:
    """What the server says of itself; without one, whether its port is free."""
    try:
        ready, body, date = client.readiness()
    except Failure as failure:
        yield Finding("server", None, str(failure), "; ".join(failure.details))
        if client.is_local:
            yield _port(settings)
        return
    yield Finding(
        "server",
        ready,
        f"{client.root} is {'ready' if ready else 'not ready'}",
        "" if ready else "see the server's checks below and its log",
    )
    yield from _server_checks(body)
    ahead = clock_difference(date)
    agree = abs(ahead) <= SKEW_S
    said = "agrees with the server's" if agree else f"the server's is ahead by {ahead:.0f} s"
    yield Finding("clock", agree, said, "" if agree else "run an NTP service on both machines")


def _server_checks(body: Json) -> Iterator[Finding]:
    """What the server found, which it tells in full to those who may read its tasks."""
    for check in body.get("checks") or []:
        ok = bool(check.get("ok"))
        remedy = "" if ok or "detail" in check else "sign in to see why: tesazure login, or --token"
        yield Finding(
            f"server: {check.get('name', '')}",
            ok,
            str(check.get("detail", "well" if ok else "not well")),
            str(check.get("remedy", remedy)),
        )


def _python() -> Finding:
    return Finding("python", True, f"{platform.python_version()} on {platform.platform()}")


def _database(settings: Settings) -> Finding:
    from tesazure.compose import database_of

    try:
        return Finding("database", True, database_of(settings))
    except (ConfigurationError, StoreUnavailable) as error:
        detail, _, remedy = str(error).rpartition("; ")
        return Finding("database", False, detail or remedy, remedy if detail else "")


def _engines(settings: Settings) -> Iterator[Finding]:
    """Each engine, found as the server finds it; bad only if the server could not run any task."""
    from tesazure.compose import engine_of

    names: tuple[EngineName, ...] = ("docker", "podman", "sandbox")
    found = {name: _engine(name, settings) for name in names}
    wanted = settings.local_engine
    usable = [name for name in names if found[name].ok]
    for name, finding in found.items():
        matters = wanted == name or (wanted == "auto" and not usable)
        yield finding if finding.ok or matters else msgspec.structs.replace(finding, ok=None)
    try:
        chosen = engine_of(settings).name
    except ConfigurationError:
        return
    if chosen == "sandbox":
        yield Finding(
            "engine",
            None,
            "sandbox: tasks run this machine's own programs, a task's image is not used",
            "start Docker or Podman for real containers",
        )
    else:
        yield Finding("engine", True, f"{chosen} will run the containers")


def _engine(name: EngineName, settings: Settings) -> Finding:
    from tesazure.compose import engine_of

    try:
        choice = engine_of(settings, name)
    except ConfigurationError as error:
        tried = [problem.rpartition("; ") for problem in error.problems[1:]]
        return Finding(name, False, "; ".join(what for what, _, _ in tried), tried[-1][2])
    return Finding(name, True, f"{choice.detail}{choice.host and f' at {choice.host}'}")


def _directory(name: str, directory: Path) -> Finding:
    """Whether files can be made in a directory, or in what is to be its nearest parent."""
    directory = directory.absolute()
    place = _existing(directory)
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        remedy = f"let {_user()} write to {place}, or choose another directory"
        return Finding(name, False, f"{directory}: {error.strerror}", remedy)
    return Finding(name, True, f"{directory}{'' if place == directory else ' (new)'}")


def _storage(settings: Settings) -> Iterator[Finding]:
    """The storage systems with credentials; whether these are good, only using them tells."""
    from tesazure.compose import storage_accounts_of

    accounts = storage_accounts_of(settings)
    if not accounts:
        yield Finding("storage", None, "no credentials: URLs bring their own, or anybody may read")
    for system, detail, remedy in accounts:
        said = f"{detail}, but a package is missing" if remedy else detail
        yield Finding(f"storage: {system}", not remedy, said, remedy)


def _disk(directory: Path) -> Finding:
    free = shutil.disk_usage(_existing(directory.absolute())).free
    ok = free >= ENOUGH_DISK_BYTES
    remedy = "" if ok else "make room, or set DATA_DIR to a larger disk"
    return Finding("disk", ok, f"{show.size(free)} free for the data directory", remedy)


def _existing(directory: Path) -> Path:
    """The path itself or the nearest one above it that exists."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _port(settings: Settings) -> Finding:
    name = f"port {settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            remedy = "stop what uses it, or choose another: tesazure serve --port N"
            return Finding(name, False, f"{settings.host}: {error.strerror}", remedy)
    return Finding(name, True, f"free on {settings.host}")


def clock_difference(date: str | None) -> float:
    """Seconds by which a Date header is ahead of this machine's clock; 0 without one."""
    if not date:
        return 0.0
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return 0.0


def _print(findings: list[Finding]) -> None:
    words = {True: "ok", False: "BAD", None: "note"}
    if not show.is_terminal():
        for finding in findings:
            row = [words[finding.ok], finding.name, finding.detail, finding.remedy]
            print(show.tabbed(row))
        return
    from rich.text import Text

    colours = {True: "green", False: "bold red", None: "cyan"}
    drawn = show.table(["", "WHAT", "FOUND"])
    for finding in findings:
        found = Text(finding.detail)
        if finding.remedy:
            found.append(f"\n→ {finding.remedy}", style="yellow" if finding.ok is False else "dim")
        verdict = Text(words[finding.ok], style=colours[finding.ok])
        drawn.add_row(verdict, finding.name, found)
    show.console().print(drawn)
