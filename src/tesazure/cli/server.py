"""`serve` and `config`: the settings of a server on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tesazure import settings
from tesazure.cli import show
from tesazure.cli.exits import Code, Failure


def load(
    config: Path | None,
    data_dir: Path | None,
    allow_dir: list[Path] | None,
    pairs: list[str] | None,
    **flags: Any,
) -> settings.Effective:
    """The settings from all sources. Directories on the command line may be relative.

    Raises ConfigurationError, and Failure for a NAME=VALUE pair that is not one.
    """
    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        key = name.removeprefix(settings.PREFIX).lower()
        if not equals or key not in settings.FIELDS:
            raise Failure(Code.USAGE, f"--set {name}: no setting; see `tesazure config`")
        if settings.help_of(key).secret:
            variable = f"{settings.PREFIX}{key.upper()}"
            text = f"a secret, which other users would see on a command line; set {variable}"
            raise Failure(Code.USAGE, f"--set {name}: {text} in the environment")
        values[key] = value
    values |= {name: value for name, value in flags.items() if value is not None}
    if data_dir:
        values["data_dir"] = data_dir.absolute()
    if allow_dir:
        values["allow_dir"] = [directory.absolute() for directory in allow_dir]
    return settings.load(command_line=values, config=config)


def serve(effective: settings.Effective) -> int:
    """Run the server; its exit code."""
    from tesazure.compose import serve as run_server

    return run_server(effective)


def show_config(effective: settings.Effective, as_json: bool) -> None:
    """Print every setting with its value and source."""
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
