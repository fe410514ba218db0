"""`serve` and `config`: the settings of a server on this machine."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tesazure import settings
from tesazure.cli import show
from tesazure.cli.exits import Code, Failure
from tesazure.errors import ConfigurationError, StoreUnavailable, VaultUnavailable
from tesazure.key_vault import START_S

PATIENCE_S = 3.0
"""The same of other verbs, which somebody waits for."""


def sources(
    config: Path | None,
    data_dir: Path | None,
    allow_dir: list[Path] | None,
    pairs: list[str] | None,
    **flags: Any,
) -> settings.Sources:
    """Where the settings come from. Directories on the command line may be relative.

    Raises Failure for a NAME=VALUE pair that is not one.
    """
    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        key = name.removeprefix(settings.PREFIX).lower()
        if not equals or key not in settings.FIELDS:
            raise Failure(Code.USAGE, f"--set {name}: no setting; see `tesazure config`")
        if value and settings.help_of(key).secret:
            variable = f"{settings.PREFIX}{key.upper()}"
            text = f"a secret, which other users would see on a command line; set {variable}"
            raise Failure(Code.USAGE, f"--set {name}: {text} in the environment")
        values[key] = value
    values |= {name: value for name, value in flags.items() if value is not None}
    if data_dir:
        values["data_dir"] = data_dir.absolute()
    if allow_dir:
        values["allow_dir"] = [directory.absolute() for directory in allow_dir]
    return settings.Sources(command_line=values, config=config)


def load(
    config: Path | None,
    data_dir: Path | None,
    allow_dir: list[Path] | None,
    pairs: list[str] | None,
) -> settings.Effective:
    """The settings from all sources but the database. Raises ConfigurationError, and Failure as
    above or when the Key Vault cannot be read."""
    return _read(sources(config, data_dir, allow_dir, pairs).load, PATIENCE_S)


def whole(
    config: Path | None,
    data_dir: Path | None,
    allow_dir: list[Path] | None,
    pairs: list[str] | None,
) -> settings.Effective:
    """The settings from all sources, as of a server. That what the database holds cannot be read is
    a warning, unless the others cannot do without it. Raises as `load`."""
    given = sources(config, data_dir, allow_dir, pairs)
    effective = _read(given.begin, PATIENCE_S)
    from tesazure.compose import database_settings_of

    try:
        kept = database_settings_of(effective.settings)
    except (StoreUnavailable, ConfigurationError) as error:
        if effective.problems:
            raise ConfigurationError([*effective.problems, str(error)]) from error
        warning = f"settings in the database are left out here: {error}"
        return msgspec.structs.replace(effective, warnings=(*effective.warnings, warning))
    if not kept and not effective.problems:
        return effective
    return _read(functools.partial(given.again, kept), PATIENCE_S)


def forget(
    config: Path | None, data_dir: Path | None, pairs: list[str] | None, names: list[str]
) -> None:
    """Have the database hold these settings no more. Raises as `load`."""
    if not names:
        return
    effective = _read(sources(config, data_dir, None, pairs).begin, PATIENCE_S)
    import asyncio

    from tesazure.compose import forget_settings

    plain = [name.removeprefix(settings.PREFIX).lower() for name in names]
    try:
        asyncio.run(forget_settings(effective.settings, plain))
    except StoreUnavailable as error:
        raise Failure(Code.UNREACHABLE, str(error)) from error


def serve(given: settings.Sources) -> int:
    """Run the server; its exit code. Raises as `load`."""
    # Until the server has handlers of its own: process 1 of a container would not hear of it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(Code.OK))
    effective = _read(given.begin, START_S)
    from tesazure.compose import serve as run_server

    return run_server(effective, given.again)


def _read(
    load: Callable[[float, Callable[[str], None]], settings.Effective], patience_s: float
) -> settings.Effective:
    def say(text: str) -> None:
        print(f"tesazure: {text}", file=sys.stderr, flush=True)

    try:
        return load(patience_s, say)
    except VaultUnavailable as error:
        raise Failure(Code.UNREACHABLE, str(error)) from error


def show_config(effective: settings.Effective, as_json: bool) -> None:
    """Print every setting with its value and source."""
    for warning in effective.warnings:
        print(f"tesazure: {warning}", file=sys.stderr)
    rows = settings.shown(effective)
    if as_json:
        show.as_json({name: {"value": value, "source": source} for name, value, source in rows})
    elif show.is_terminal():
        drawn = show.table(["SETTING", "VALUE", "FROM"])
        for name, value, source in rows:
            drawn.add_row(name, value, source, style="dim" if source == "default" else "bold")
        show.console().print(drawn)
    else:
        for row in rows:
            print(show.tabbed(row))
