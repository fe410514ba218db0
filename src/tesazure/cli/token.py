"""`tesazure token` and its flags: API tokens, on the server's own machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make, list and revoke API tokens, in the database of a server on this machine.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings.", exists=True, dir_okay=False)
]
DataDir = Annotated[Path | None, typer.Option(help="Setting DATA_DIR, as of `serve`.")]
Pairs = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting, as of `serve`. Repeatable."),
]


@app.command()
def create(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose tasks it submits.")],
    role: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE", help="read, write or admin. Repeatable. Default: write."),
    ] = None,
    expires: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="Days that it is good for; 0: no end.")
    ] = 365,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
    set_: Pairs = None,
) -> None:
    """Make a token for USER and print it: the only time that anybody sees it.

    A client sends it as a bearer token, or as the password of USER by HTTP Basic. The server takes
    it at once, also while it runs, where the setting API_TOKENS is true.
    """
    from tesazure.cli import ledger

    settings = _settings(config, data_dir, set_)
    ledger.create(settings, user, role or ["write"], expires, as_json)


@app.command("list")
def list_(
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
    set_: Pairs = None,
) -> None:
    """List the tokens: whose, what they may do, until when, when last used; never themselves."""
    from tesazure.cli import ledger

    ledger.show_all(_settings(config, data_dir, set_), as_json)


@app.command()
def revoke(
    token_ids: Annotated[
        list[str], typer.Argument(metavar="ID", help="As `list` shows them; or whole tokens.")
    ],
    data_dir: DataDir = None,
    config: Config = None,
    set_: Pairs = None,
) -> None:
    """Revoke tokens: a server that runs refuses them within 5 s."""
    from tesazure.cli import ledger

    ledger.revoke(_settings(config, data_dir, set_), token_ids)


def _settings(config: Path | None, data_dir: Path | None, pairs: list[str] | None) -> Any:
    from tesazure.cli import server

    return server.whole(config, data_dir, None, pairs).settings
