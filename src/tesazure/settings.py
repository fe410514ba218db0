"""Every setting once: name, type, default, help. The only place that reads the environment.

Sources, later ones win: default < configuration file < environment (`APP_<NAME>`) < command line.
An empty environment variable counts as not given.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from tesazure.errors import ConfigurationError

PREFIX = "APP_"
LONGEST_RUNTIME_S = 10 * 365 * 86400
"""No time limit may be longer: ten years. Far larger numbers are beyond what clocks can add."""
Source = Literal["default", "file", "environment", "command line"]


class Help(msgspec.Struct, frozen=True):
    """What a setting means, in a sentence. A secret's value is never shown."""

    text: str
    secret: bool = False


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, validated together. Sizes named `_gb` are in units of 10^9 bytes."""

    host: Annotated[str, Help("Address the server listens on.")] = "127.0.0.1"
    port: Annotated[int, Help("Port the server listens on; 0 lets the system choose one.")] = 8000
    data_dir: Annotated[
        Path, Help("Directory for the embedded database, the tasks' work files and streams.")
    ] = Path("tesazure-data")
    allow_dir: Annotated[
        tuple[Path, ...],
        Help("Directories whose files tasks may read and write by file:// and bare paths."),
    ] = ()
    database_url: Annotated[
        str,
        Help(
            "PostgreSQL as postgresql://user:password@host/name; empty: SQLite in the data"
            " directory.",
            secret=True,
        ),
    ] = ""
    compute_backend: Annotated[Literal["local"], Help("Where tasks run.")] = "local"
    local_engine: Annotated[
        Literal["auto", "docker", "podman", "sandbox"],
        Help("What runs the containers; auto takes the first of docker, podman, sandbox."),
    ] = "auto"
    docker_host: Annotated[
        str, Help("Docker's API, as DOCKER_HOST; empty: DOCKER_HOST, else the usual socket.")
    ] = ""
    podman_host: Annotated[
        str, Help("Podman's Docker-compatible API socket; empty: CONTAINER_HOST, else the usual.")
    ] = ""
    local_cpu_cores: Annotated[
        float, Help("Cores that tasks may use together; 0: all of the machine's.")
    ] = 0
    local_ram_gb: Annotated[float, Help("Memory that tasks may use together; 0: all.")] = 0
    local_disk_gb: Annotated[
        float,
        Help("Disk that tasks may use together, as far as it is free; 0: the whole file system."),
    ] = 0
    shared_global_dir: Annotated[
        str, Help("Host directory seen as /tes-wd/shared-global; empty: one in the data directory.")
    ] = ""
    task_network: Annotated[bool, Help("Whether tasks have a network.")] = True
    allow_private_addresses: Annotated[
        bool,
        Help(
            "Whether URLs of inputs and outputs may lead to private addresses, this machine's own"
            " among them; metadata services of clouds are always refused."
        ),
    ] = True
    default_cpu_cores: Annotated[float, Help("Cores reserved for a task that names none.")] = 1
    default_ram_gb: Annotated[float, Help("Memory reserved for a task that names none.")] = 0.5
    default_disk_gb: Annotated[float, Help("Disk reserved for a task that names none.")] = 0.1
    max_runtime_s: Annotated[
        float,
        Help("Time limit of an attempt, unless backend_parameters has max_runtime_s; 0: none."),
    ] = 0
    max_retries: Annotated[
        int, Help("Further attempts after a failure of the backend, never of the task's command.")
    ] = 2
    retry_delay_s: Annotated[float, Help("Seconds before another attempt.")] = 1
    backfill_s: Annotated[
        float,
        Help("Seconds for which smaller tasks may overtake the oldest one that does not fit yet."),
    ] = 30
    scheduler: Annotated[
        bool, Help("Whether this process places and watches tasks; false: it only answers HTTP.")
    ] = True
    lease_s: Annotated[
        float, Help("Seconds after which another server takes over a silent server's tasks.")
    ] = 30
    log_tail_bytes: Annotated[
        int, Help("How much of an executor's stdout and stderr a FULL view shows.")
    ] = 65536
    work_retention_hours: Annotated[
        float, Help("Hours that finished tasks' work files and streams are kept; 0: for ever.")
    ] = 24
    task_retention_days: Annotated[
        float, Help("Days that finished tasks' records are kept; 0: for ever.")
    ] = 0
    max_body_bytes: Annotated[int, Help("Largest request body.")] = 16 * 2**20
    request_timeout_s: Annotated[
        float, Help("Seconds that a client may take to send its request.")
    ] = 30
    max_connections: Annotated[int, Help("Connections served at once; more are refused.")] = 4096
    cors_origins: Annotated[
        tuple[str, ...], Help("Origins that browsers may call the API from; * for all.")
    ] = ()
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Help("What to log.")] = (
        "info"
    )
    service_id: Annotated[str, Help("service-info: id, in reverse domain notation.")] = (
        "org.tesazure.local"
    )
    service_name: Annotated[str, Help("service-info: name.")] = "tesazure"
    service_description: Annotated[str, Help("service-info: description.")] = (
        "A GA4GH Task Execution Service"
    )
    organization_name: Annotated[str, Help("service-info: name of who runs it.")] = "tesazure"
    organization_url: Annotated[str, Help("service-info: web site of who runs it.")] = (
        "https://github.com/tesazure/tesazure"
    )
    contact_url: Annotated[str, Help("service-info: where to ask, a URL or mailto:.")] = ""
    environment: Annotated[str, Help("service-info: production, test, …")] = "production"


FIELDS: dict[str, Any] = get_type_hints(Settings, include_extras=True)
"""Setting name (lower case) -> its annotated type."""

ALIASES = {"docker_host": "DOCKER_HOST", "podman_host": "CONTAINER_HOST"}
"""Setting name -> a variable of other programs that is read as well; `APP_` ones win."""


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line needs to reach a server; variables begin with `TESAZURE_`."""

    server: Annotated[
        str, Help("URL of the server, with or without /ga4gh/tes/v1; also --server.")
    ] = "http://127.0.0.1:8000"
    token: Annotated[
        str, Help("Bearer token sent with every request; also --token.", secret=True)
    ] = ""


CLIENT_PREFIX = "TESAZURE_"
CLIENT_FIELDS: dict[str, Any] = get_type_hints(Client, include_extras=True)


class Effective(msgspec.Struct, frozen=True):
    """The settings, and where each value came from."""

    settings: Settings
    sources: dict[str, Source]


def help_of(name: str) -> Help:
    """The help of a setting."""
    found: Help = FIELDS[name].__metadata__[0]
    return found


def load_client(
    environ: Mapping[str, str] | None = None, server: str | None = None, token: str | None = None
) -> Client:
    """The client's settings: arguments that are given win over the environment."""
    environ = os.environ if environ is None else environ
    given = {name: environ.get(CLIENT_PREFIX + name.upper(), "") for name in CLIENT_FIELDS}
    given |= {"server": server or given["server"], "token": token or given["token"]}
    return Client(**{name: value for name, value in given.items() if value})


def load(
    environ: Mapping[str, str] | None = None,
    command_line: Mapping[str, Any] | None = None,
    config: Path | None = None,
) -> Effective:
    """Settings from all sources. Raises ConfigurationError with every problem at once.

    `command_line` maps setting names (lower case) to values; None means not given.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, Source] = dict.fromkeys(FIELDS, "default")
    candidates = [
        *_from_file(config, problems),
        *_from_environment(environ, problems),
        *_from_command_line(command_line or {}),
    ]
    for source, place, name, value in candidates:
        try:
            values[name] = _convert(name, value)
            sources[name] = source
        except (ValueError, TypeError) as error:
            given = "***" if help_of(name).secret else repr(value)
            problems.append(f"{place}: {error} (given: {given})")
    settings = Settings(**values)
    problems.extend(_conflicts(settings))
    if problems:
        raise ConfigurationError(problems)
    return Effective(settings, sources)


def passed_on(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for programs that we start: without our settings, which hold secrets."""
    environ = os.environ if environ is None else environ
    return {name: value for name, value in environ.items() if not name.startswith(PREFIX)}


def shown(effective: Effective) -> list[tuple[str, str, Source]]:
    """(NAME, value, source) of every setting, secrets as ***."""
    rows = []
    for name in FIELDS:
        value = getattr(effective.settings, name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        text = text.lower() if isinstance(value, bool) else text
        secret = help_of(name).secret and bool(value)
        rows.append((name.upper(), "***" if secret else text, effective.sources[name]))
    return rows


_Candidate = tuple[Source, str, str, Any]
"""Source, how to name the place to the user, setting name, value as given."""


def _from_file(config: Path | None, problems: list[str]) -> Iterator[_Candidate]:
    if config is None:
        return
    try:
        values = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"--config {config}: {error}")
        return
    for key, value in values.items():
        if key.lower() in FIELDS:
            yield "file", f"{config}: {key}", key.lower(), value
        else:
            problems.append(f"{config}: unknown setting {key}{_nearest(key.lower(), '')}")


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> Iterator[_Candidate]:
    given = {name: value for name, value in sorted(environ.items()) if value}
    for name, variable in ALIASES.items():
        if variable in given:
            yield "environment", variable, name, given[variable]
    for variable, value in given.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX):
            continue
        if name in FIELDS:
            yield "environment", variable, name, value
        else:
            problems.append(f"unknown setting {variable}{_nearest(name, PREFIX)}")


def _from_command_line(values: Mapping[str, Any]) -> Iterator[_Candidate]:
    for name, value in values.items():
        if value is not None:
            yield "command line", f"--{name.replace('_', '-')}", name, value


def _convert(name: str, value: Any) -> Any:
    """`value`, of whatever source, in the setting's type; ValueError says what it must be."""
    kind = FIELDS[name].__origin__
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        separator = os.pathsep if item is Path else ","
        parts = value.split(separator) if isinstance(value, str) else list(value)
        texts = [str(part).strip() for part in parts]
        return tuple(item(text) for text in texts if text)
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        if value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"must be one of {', '.join(allowed)}{hint}")
        return value
    if kind is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if kind is str and isinstance(value, str):
        return value
    return _number(kind, value)


def _number(kind: type, value: Any) -> bool | int | float:
    """A boolean, an integer or a number, also from text; numbers are finite and not negative."""
    must = {
        bool: "must be true or false",
        int: "must be a whole number",
        float: "must be a number",
        str: "must be a string",
        Path: "must be a path",
    }[kind]
    if kind not in (bool, int, float) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(must)
    try:
        converted: bool | int | float = msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        raise ValueError(must) from None
    if not math.isfinite(converted):
        raise ValueError(must)
    if converted < 0:
        raise ValueError("must not be negative")
    return converted


def _nearest(name: str, prefix: str) -> str:
    near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{near[0].upper()}?" if near else ""


_POSITIVE = ("lease_s", "max_body_bytes", "max_connections", "request_timeout_s")


def _conflicts(s: Settings) -> list[str]:
    problems = []
    if s.port > 65535:
        problems.append("PORT: must be at most 65535")
    if s.database_url:
        problems += _url_problems(s.database_url)
    if s.max_runtime_s > LONGEST_RUNTIME_S:
        problems.append(f"MAX_RUNTIME_S: must be at most {LONGEST_RUNTIME_S} (10 years; 0: none)")
    for directory in s.allow_dir:
        if not directory.is_absolute():
            problems.append(f"ALLOW_DIR: {directory} must be an absolute path")
        elif not directory.is_dir():
            problems.append(f"ALLOW_DIR: {directory} is not a directory; make it or leave it out")
    problems += [
        f"{name.upper()}: must be at least 1" for name in _POSITIVE if getattr(s, name) < 1
    ]
    return problems


def _url_problems(url: str) -> list[str]:
    """What is wrong with DATABASE_URL, in words that do not show it: it holds a password."""
    try:
        parsed = urlsplit(url)
        _ = parsed.port
    except ValueError:
        text = "is not a URL; write postgresql://user:password@host:port/name, with special"
        return [f"DATABASE_URL: {text} characters percent-encoded ([ as %5B, @ as %40, / as %2F)"]
    if parsed.scheme not in ("postgresql", "postgres"):
        return ["DATABASE_URL: must begin with postgresql:// (empty: SQLite)"]
    return []
