"""Write what of docs/ follows from the code: settings, command line, licences, states, formula.

    python -m scripts.generate_docs [--check]

With --check nothing is written; exit code 1 and the names of the pages that are out of date.
"""

from __future__ import annotations

import re
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer.main import get_command

from scripts import licences
from tesazure import settings
from tesazure.backends.azure_batch.autoscale import Scale, formula
from tesazure.cli.exits import MEANINGS
from tesazure.cli.main import app
from tesazure.lifecycle import TRANSITIONS
from tesazure.model import TERMINAL, State

DOCS = Path(__file__).parents[1] / "docs"
NOTICE = "<!-- Written by `python -m scripts.generate_docs`; change the code instead. -->\n\n"
WIDTH = 96


def pages() -> dict[Path, str]:
    """Each page and what it must hold."""
    return {
        DOCS / "settings.md": settings_page(),
        DOCS / "cli.md": cli_page(),
        DOCS / "licences.md": licences.page(NOTICE),
        DOCS / "design.md": with_block("design.md", "states", diagram()),
        DOCS / "batch.md": with_block("batch.md", "formula", pool_formula()),
    }


def settings_page() -> str:
    """docs/settings.md."""
    parts = [
        NOTICE,
        "# Settings\n\n",
        paragraph(
            "Sources, later ones win: the default; a TOML file named by `--config`; a secret of"
            " the [Key Vault](configuration.md#key-vault), `TESAZURE-` and the setting's name"
            " with dashes for underscores; an environment variable, which is the setting's name"
            " after `APP_`; the command line, either a flag of `tesazure serve` or `--set"
            " NAME=VALUE`. What is empty in the environment or the vault counts as not given."
            " Lists of directories are separated by `:` in texts, other lists by commas; in TOML"
            " they are arrays. A setting that does not exist stops the server with the nearest"
            " one that does. `tesazure config` shows every value and where it comes from. What"
            " is **live** changes a [running server](configuration.md#while-the-server-runs)"
            " when it changes in the file or the vault; on Azure Batch some of it does not."
        ),
        "| name | type | default | meaning |\n|---|---|---|---|\n",
    ]
    for name in settings.FIELDS:
        default = getattr(settings.Settings(), name)
        said = settings.help_of(name)
        secret = " Never shown or logged." if said.secret else ""
        live = " **Live.**" if said.live else ""
        meaning = f"{said.text}{secret}{live}".replace("|", "\\|")
        shown = type_name(settings.FIELDS[name].__origin__)
        parts.append(f"| `{name.upper()}` | {shown} | {default_text(default)} | {meaning} |\n")
    aliases = [
        f"`{variable}` for `APP_{name.upper()}`" for name, variable in settings.ALIASES.items()
    ]
    parts.append("\n" + paragraph(f"Also read from the environment: {', '.join(aliases)}."))
    parts += clouds_table()
    parts.append("## Of the command line as a client\n\n")
    parts.append("| variable | default | meaning |\n|---|---|---|\n")
    for name, kind in settings.CLIENT_FIELDS.items():
        said = kind.__metadata__[0]
        default = default_text(getattr(settings.Client(), name))
        variable = f"{settings.CLIENT_PREFIX}{name.upper()}"
        parts.append(f"| `{variable}` | {default} | {said.text} |\n")
    return "".join(parts)


def clouds_table() -> list[str]:
    """What follows from CLOUD."""
    names = list(settings.CLOUDS["AzurePublic"])
    parts = ["## What follows from CLOUD\n\n"]
    parts.append(f"| default of | {' | '.join(settings.CLOUDS)} |\n|---{'|---' * 3}|\n")
    for name in names:
        values = " | ".join(f"`{cloud[name]}`" for cloud in settings.CLOUDS.values())
        parts.append(f"| `{name.upper()}` | {values} |\n")
    return [*parts, "\n"]


def type_name(kind: Any) -> str:
    """A setting's type in words."""
    if get_origin(kind) is Literal:
        return " \\| ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is tuple:
        return {Path: "directories", str: "texts"}[get_args(kind)[0]]
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
    return names[kind]


def default_text(value: Any) -> str:
    """A default for a table cell."""
    if value in ((), ""):
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def paragraph(text: str) -> str:
    """Text in lines, and an empty one."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False) + "\n\n"


def cli_page() -> str:
    """docs/cli.md: the help of each verb."""
    group: Any = get_command(app)
    parts = [
        NOTICE,
        "# The command line\n\n",
        paragraph(
            "`tesazure VERB --help` shows the same. Tables and colours are for terminals. Elsewhere"
            " output is plain: one task a line, fields separated by tabs, or JSON with `--json`."
            " Remarks and errors go to standard error. `tesazure --install-completion` teaches the"
            " shell to complete verbs and flags."
        ),
        "## Exit codes\n\n| code | meaning |\n|---|---|\n",
        *(f"| {code:d} | {meaning} |\n" for code, meaning in MEANINGS.items()),
        "\n## tesazure\n\n",
        help_block(group, "tesazure"),
    ]
    for name, command in group.commands.items():
        parts += [f"## tesazure {name}\n\n", help_block(command, f"tesazure {name}")]
        for below, verb in getattr(command, "commands", {}).items():
            title = f"tesazure {name} {below}"
            parts += [f"### {title}\n\n", help_block(verb, title)]
    return "".join(parts).rstrip("\n") + "\n"


def help_block(command: Any, name: str) -> str:
    """A verb's help as a code block."""
    context = typer.Context(
        command,
        info_name=name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    # The exit codes have a table of their own.
    end = lines.index("  Exit codes:") if "  Exit codes:" in lines else len(lines)
    return "```text\n" + "\n".join(lines[:end]).rstrip() + "\n```\n\n"


def with_block(page: str, name: str, block: str) -> str:
    """A page of docs/ with the block between its marks."""
    begin, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text = (DOCS / page).read_text(encoding="utf-8")
    if not pattern.search(text):
        raise SystemExit(f"docs/{page} has no {begin} … {end}")
    return pattern.sub(lambda _: f"{begin}\n{block}{end}", text)


def diagram() -> str:
    """The transitions as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.QUEUED}"]
    for old in State:
        lines += [f"    {old} --> {new}" for new in State if new in TRANSITIONS.get(old, ())]
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "```mermaid\n" + "\n".join(lines) + "\n```\n"


def pool_formula() -> str:
    """By which Azure Batch scales a pool."""
    until = datetime(2026, 12, 1, 12, tzinfo=UTC)
    scale = Scale(minimum=0, maximum=5, slots=4, floor=2, floor_until=until)
    return f"```text\n{formula(scale)}\n```\n"


def main(arguments: list[str]) -> int:
    """Write or check; the exit code."""
    if arguments not in ([], ["--check"]):
        raise SystemExit(__doc__)
    stale = [
        (path, text)
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        if arguments:
            print(f"docs/{path.name} is out of date: python -m scripts.generate_docs")
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if arguments and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
