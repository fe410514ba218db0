"""`tesazure transfer` and its flags. What moves the files is imported when a verb runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Move files between this machine and storage, as the runner does for tasks.",
)


def _url(value: str) -> str:
    """An argument that is a URL."""
    if not value:
        raise typer.BadParameter("is empty")
    return value


def _target(value: str) -> str:
    """An argument of `get` that is a path."""
    _require_path(value, "put")
    return value


def _sources(values: list[str]) -> list[str]:
    """Arguments of `put` that are paths."""
    for value in values:
        _require_path(value, "get")
    return values


def _require_path(value: str, other: str) -> None:
    from tesazure import transfer

    if mistake := transfer.mistake_in_path(value):
        hint = f"; use {other}" if value else ""
        raise typer.BadParameter(f"{mistake}{hint}")


AsJson = Annotated[
    bool, typer.Option("--json", help="JSON lines on standard output, also on a terminal.")
]
Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings.", exists=True, dir_okay=False)
]
Pairs = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting, as of `serve`. Repeatable."),
]


@app.command()
def get(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A file or directory; * ? [ ] choose after a *.", callback=_url
        ),
    ],
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="Where it goes on this machine.", callback=_target),
    ],
    as_json: AsJson = False,
    config: Config = None,
    set_: Pairs = None,
) -> None:
    """Bring a file, or all of a directory, from storage to this machine.

    A file goes to PATH, or into it where that is a directory or ends with a slash. What a
    directory holds, or a pattern matches, goes into PATH. Directories are made as needed. A file
    or a symbolic link that has the name already is replaced; a device or pipe never is.

    Example: tesazure transfer get 'az://reads/run-7/*.fq.gz' reads
    """
    from tesazure import transfer
    from tesazure.cli import moving, server

    settings = server.load(config, None, None, set_).settings
    raise typer.Exit(moving.move(settings, transfer.download(url, path), as_json))


@app.command()
def put(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="Files, directories, or quoted patterns.", callback=_sources
        ),
    ],
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Where it goes in storage.", callback=_url)
    ],
    as_json: AsJson = False,
    config: Config = None,
    set_: Pairs = None,
) -> None:
    """Bring files and directories from this machine to storage.

    One file goes to URL, or below it if that ends with a slash. What one directory holds goes below
    URL. Several, or what a pattern matches, go below URL by their names.

    Example: tesazure transfer put results az://runs/7/results
    """
    from tesazure import transfer
    from tesazure.cli import moving, server

    settings = server.load(config, None, None, set_).settings
    raise typer.Exit(moving.move(settings, transfer.upload(paths, url), as_json))


@app.command()
def ls(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A file or directory; * ? [ ] choose after a *.", callback=_url
        ),
    ],
    as_json: AsJson = False,
    config: Config = None,
    set_: Pairs = None,
) -> None:
    """List what is below a URL, all levels, in the order in which it is found.

    Off a terminal: size in bytes, a tab, the path relative to URL (of a pattern, to what precedes
    the component with the first *). Empty directories end with a slash.
    """
    from tesazure.cli import moving, server

    moving.list_entries(server.load(config, None, None, set_).settings, url, as_json)


@app.command()
def stat(
    url: Annotated[str, typer.Argument(metavar="URL", help="A file or directory.", callback=_url)],
    as_json: AsJson = False,
    config: Config = None,
    set_: Pairs = None,
) -> None:
    """Show what is at a URL: type, size in bytes; checksum and version where there are any."""
    from tesazure.cli import moving, server

    moving.show_stat(server.load(config, None, None, set_).settings, url, as_json)


@app.command()
def run(
    plan: Annotated[
        str, typer.Argument(metavar="PLAN.json", help="What to move; - for standard input.")
    ],
    as_json: AsJson = False,
    config: Config = None,
    set_: Pairs = None,
) -> None:
    """Move what a JSON document lists, all of it side by side.

    {"downloads": [{"url": URL, "path": PATH}, …], "uploads": [{"path": PATH, "url": URL}, …]}

    What URL and PATH mean is as with `get` and `put`, unless an item has a "type", FILE or
    DIRECTORY: then nothing is a wildcard. An item that fails does not stop the others. Secrets in
    URLs are safer here than on a command line, which others can see.
    """
    from tesazure.cli import moving, server

    settings = server.load(config, None, None, set_).settings
    raise typer.Exit(moving.move(settings, moving.read_plan(plan), as_json))
