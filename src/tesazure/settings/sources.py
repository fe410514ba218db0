"""Where settings come from: the only place that reads the environment.

Sources, later ones win: default < configuration file < environment (`APP_<NAME>`) < command line.
An empty environment variable counts as not given.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from tesazure.errors import ConfigurationError
from tesazure.settings.checks import conflicts
from tesazure.settings.declarations import (
    ALIASES,
    CLIENT_FIELDS,
    CLIENT_PREFIX,
    FIELDS,
    PREFIX,
    Client,
    Settings,
    help_of,
)

Source = Literal["default", "file", "environment", "command line"]

_FLAGS = {
    **{name: f"--{name.replace('_', '-')}" for name in ("host", "port", "data_dir", "allow_dir")},
    **{name: f"--{name.replace('_', '-')}" for name in ("database_url", "log_level")},
    "local_engine": "--engine",
}
"""Settings with a flag of their own; the others come by --set."""

_KEPT_BACK = re.compile(
    rf"{PREFIX}|{CLIENT_PREFIX}TOKEN$|PGPASSWORD$|IDENTITY_HEADER$|MSI_SECRET$"
    r"|(AZURE|AWS|GOOGLE|GCLOUD)_.*(SECRET|PASSWORD|KEY|TOKEN|SAS|CREDENTIALS|CONNECTION_STRING)"
)


class Effective(msgspec.Struct, frozen=True):
    """The settings, and where each value came from."""

    settings: Settings
    sources: dict[str, Source]


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
    problems.extend(conflicts(settings))
    if problems:
        raise ConfigurationError(problems)
    return Effective(settings, sources)


def passed_on(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for programs that we start: without our settings, which hold secrets, and
    without what the clouds' SDKs would take for credentials: those are the server's own."""
    environ = os.environ if environ is None else environ
    return {name: value for name, value in environ.items() if not _KEPT_BACK.match(name)}


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
            yield "command line", _FLAGS.get(name, f"--set {PREFIX}{name.upper()}"), name, value


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
