"""The verbs of `tesazure` and their flags. What a verb does is imported when it runs: --help is
quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tesazure.cli import provision, token, transfer
from tesazure.cli.exits import MEANINGS, Code, Failure
from tesazure.errors import ConfigurationError, TesazureError

EPILOG = "\n".join(["\b", "Exit codes:", *(f"  {c:<4d}{said}" for c, said in MEANINGS.items())])

app = typer.Typer(
    name="tesazure",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Tasks, by id.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="A task's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Pairs = list[str] | None
Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings.", exists=True, dir_okay=False)
]
DataDir = Annotated[Path | None, typer.Option(help="Setting DATA_DIR.")]
AllowDir = Annotated[
    list[Path] | None,
    typer.Option(help="Setting ALLOW_DIR: tasks may use files in it. Repeatable."),
]

Set = Annotated[
    Pairs, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting. Repeatable.")
]


def main() -> None:
    """The program: runs the command line; its failures become a few lines and an exit code."""
    try:
        app()
    except Failure as failure:
        _complain(str(failure), failure.details)
        sys.exit(failure.code)
    except ConfigurationError as error:
        _complain("these settings cannot work:", error.problems)
        sys.exit(Code.USAGE)
    except TesazureError as error:
        _complain(str(error))
        sys.exit(Code.NOT_COMPLETE)


def _complain(message: str, details: tuple[str, ...] = ()) -> None:
    print(f"tesazure: {message}", file=sys.stderr)
    for detail in details:
        print(f"  {detail}", file=sys.stderr)


def _client(context: typer.Context) -> Any:
    from tesazure.cli.client import TesClient

    return TesClient(context.obj, _logins())


def _logins() -> Any:
    from tesazure.cli.logins import Logins
    from tesazure.settings import state_dir

    return Logins(state_dir() / "logins")


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            "-S",
            help="URL of the server, with or without /ga4gh/tes/v1."
            " Default: TESAZURE_SERVER, else http://127.0.0.1:8000.",
        ),
    ] = None,
    bearer: Annotated[
        str | None,
        typer.Option(
            "--token",
            help="Token to send; better in TESAZURE_TOKEN: `ps` shows flags. Default: that, else"
            " user:password of the server's URL, else what `login` got.",
        ),
    ] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="As `version`."),
    ] = False,
) -> None:
    """A GA4GH Task Execution Service (TES): the server, and a client for any TES server."""
    from tesazure.settings import load_client

    context.obj = load_client(server=server, token=bearer)


@app.command()
def serve(  # noqa: PLR0913 - each parameter is a flag
    *,
    host: Annotated[str | None, typer.Option(help="Setting HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Setting PORT; 0: any free one.")] = None,
    data_dir: DataDir = None,
    allow_dir: AllowDir = None,
    engine: Annotated[str | None, typer.Option(help="Setting LOCAL_ENGINE.")] = None,
    database_url: Annotated[
        str | None,
        typer.Option(help="Setting DATABASE_URL; better in APP_DATABASE_URL: `ps` shows flags."),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="Setting LOG_LEVEL.")] = None,
    set_: Set = None,
    config: Config = None,
) -> None:
    """Run the server until Ctrl-C. Tasks that run go on; the next server adopts them."""
    from tesazure.cli import server

    flags = {
        "host": host,
        "port": port,
        "local_engine": engine,
        "database_url": database_url,
        "log_level": log_level,
    }
    raise typer.Exit(server.serve(server.sources(config, data_dir, allow_dir, set_, **flags)))


@app.command()
def run(  # noqa: PLR0913 - each parameter is a flag
    context: typer.Context,
    *,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Container image.")],
    command: Annotated[
        list[str], typer.Argument(metavar="CMD", help="The program and its arguments.")
    ],
    inputs: Annotated[
        Pairs, typer.Option("-i", "--input", metavar="/PATH=SOURCE", help="A file to bring in.")
    ] = None,
    input_dirs: Annotated[
        Pairs, typer.Option("-I", "--input-dir", metavar="/PATH=SOURCE", help="A directory.")
    ] = None,
    outputs: Annotated[
        Pairs,
        typer.Option(
            "-o", "--output", metavar="/PATH=TARGET", help="A file to keep; /PATH may have * ? [ ]."
        ),
    ] = None,
    output_dirs: Annotated[
        Pairs, typer.Option("-O", "--output-dir", metavar="/PATH=TARGET", help="A directory.")
    ] = None,
    env: Annotated[
        Pairs, typer.Option("-e", "--env", metavar="NAME=VALUE", help="A variable to set.")
    ] = None,
    workdir: Annotated[
        str | None, typer.Option("-w", "--workdir", help="Directory to start the program in.")
    ] = None,
    stdin: Annotated[str | None, typer.Option(help="File in the container to read from.")] = None,
    stdout: Annotated[str | None, typer.Option(help="File in the container to write to.")] = None,
    stderr: Annotated[str | None, typer.Option(help="File in the container to write to.")] = None,
    cpu: Annotated[float | None, typer.Option(help="Cores.")] = None,
    ram: Annotated[float | None, typer.Option(help="Memory in GB.")] = None,
    disk: Annotated[float | None, typer.Option(help="Disk in GB.")] = None,
    preemptible: Annotated[bool, typer.Option("--preemptible", help="May be preempted.")] = False,
    volumes: Annotated[
        Pairs, typer.Option("--volume", metavar="/PATH", help="An empty directory.")
    ] = None,
    parameters: Annotated[
        Pairs, typer.Option("--backend-parameter", metavar="KEY=VALUE", help="See service-info.")
    ] = None,
    tags: Annotated[Pairs, typer.Option("--tag", metavar="KEY=VALUE", help="A label.")] = None,
    name: Annotated[str | None, typer.Option(help="The task's name.")] = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until it ends; the exit code tells how.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show its output as it runs; implies --wait.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the task's JSON, submit nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit one command as a task.

    Options come before or after IMAGE; everything after -- belongs to the command. SOURCE and
    TARGET are URLs or local paths, which the server must be allowed to use (serve --allow-dir).

    Example: tesazure run -i /in=words.txt -o /out=sorted.txt --wait debian -- sort -o /out /in
    """
    from tesazure.cli import build
    from tesazure.cli import run as running

    flags = build.Flags(
        image=image,
        command=command,
        inputs=inputs or [],
        outputs=outputs or [],
        input_dirs=input_dirs or [],
        output_dirs=output_dirs or [],
        env=env or [],
        tags=tags or [],
        volumes=volumes or [],
        parameters=parameters or [],
        workdir=workdir,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cpu=cpu,
        ram=ram,
        disk=disk,
        preemptible=preemptible,
        name=name,
        description=description,
    )
    task = build.build(flags, Path.cwd())
    if dry_run:
        running.show_document(task)
        return
    options = running.Options(wait=wait or follow, follow=follow, as_json=as_json)
    raise typer.Exit(running.run(_client(context), task, options))


@app.command()
def create(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="JSON: a task, a list, or one task a line; - stdin."),
    ],
    as_json: AsJson = False,
) -> None:
    """Submit tasks written as JSON; prints their ids."""
    from tesazure.cli import tasks

    tasks.create(_client(context), file, as_json)


@app.command()
def get(
    context: typer.Context,
    task_id: Id,
    view: Annotated[str, typer.Option(help="MINIMAL, BASIC or FULL.")] = "FULL",
    as_json: AsJson = False,
) -> None:
    """Show a task: a summary on a terminal, its JSON elsewhere."""
    from tesazure.cli import tasks

    tasks.get(_client(context), task_id, view, as_json)


@app.command("list")
def list_(  # noqa: PLR0913 - each parameter is a flag
    context: typer.Context,
    *,
    state: Annotated[str | None, typer.Option(help="Only tasks in this state.")] = None,
    name_prefix: Annotated[str | None, typer.Option(help="Only names that begin so.")] = None,
    tag: Annotated[
        Pairs,
        typer.Option(metavar="KEY[=VALUE]", help="Only tasks with this tag. Repeatable."),
    ] = None,
    workflow: Annotated[
        str | None, typer.Option(metavar="ID", help="Only tasks of this workflow.")
    ] = None,
    page_size: Annotated[int | None, typer.Option(min=1, max=2048, help="Tasks on a page.")] = None,
    page_token: Annotated[str | None, typer.Option(help="Go on after an earlier page.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All pages.")] = False,
    view: Annotated[str, typer.Option(help="MINIMAL, BASIC or FULL.")] = "BASIC",
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first: a table, tab-separated lines off a terminal, or JSON."""
    from tesazure.cli import tasks

    query = tasks.Query(state, name_prefix, tuple(tag or ()), workflow, page_size, view)
    tasks.list_tasks(
        _client(context), query, page_token=page_token, all_pages=all_, as_json=as_json
    )


@app.command()
def wait(
    context: typer.Context,
    task_ids: Ids,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait at most; exit code 124 then.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Wait until tasks have ended; the exit code says whether all are COMPLETE."""
    from tesazure.cli import tasks

    raise typer.Exit(tasks.wait(_client(context), task_ids, timeout, as_json))


@app.command()
def cancel(
    context: typer.Context,
    task_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Tasks, by id.")
    ] = None,
    workflow: Annotated[
        str | None, typer.Option(metavar="ID", help="All tasks of this workflow, instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel tasks; those that have ended stay as they are."""
    from tesazure.cli import tasks, workflows

    if bool(task_ids) == (workflow is not None):
        raise Failure(Code.USAGE, "give ids of tasks, or --workflow")
    if workflow is not None:
        workflows.cancel(_client(context), workflow, as_json)
    else:
        tasks.cancel(_client(context), task_ids or [], as_json)


@app.command()
def workflows(
    context: typer.Context,
    workflow: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Only this workflow.")
    ] = None,
    page_token: Annotated[str | None, typer.Option(help="Go on after an earlier page.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All pages.")] = False,
    as_json: AsJson = False,
) -> None:
    """List workflows, the last begun first: how many tasks of each are in which state.

    The tasks of one: tesazure list --workflow ID. An end to them: tesazure cancel --workflow ID.
    """
    from tesazure.cli import workflows

    if workflow is not None:
        workflows.get(_client(context), workflow, as_json)
        return
    workflows.list_workflows(
        _client(context), page_token=page_token, all_pages=all_, as_json=as_json
    )


@app.command()
def costs(
    context: typer.Context,
    tag: Annotated[
        Pairs, typer.Option(metavar="KEY[=VALUE]", help="Of tasks with this tag. Repeatable.")
    ] = None,
    owner: Annotated[str | None, typer.Option(metavar="ID", help="Of this owner's tasks.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Of tasks created then or later (UTC).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add up what tasks are estimated to cost.

    Example: tesazure costs --tag project=covid --since 2026-11-01
    """
    from tesazure.cli import costs

    costs.show_sum(_client(context), tuple(tag or ()), owner, since, as_json)


@app.command()
def logs(  # noqa: PLR0913 - each parameter is a flag
    context: typer.Context,
    *,
    task_id: Id,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it ends.")] = False,
    executor: Annotated[
        int | None, typer.Option(min=0, help="Only this executor, from 0. Default: all.")
    ] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Only standard output.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="Only standard error.")] = False,
    system: Annotated[bool, typer.Option("--system", help="The system logs instead.")] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Of this attempt, from 1. Default: the newest.")
    ] = None,
) -> None:
    """Print what a task wrote: its standard output to ours, its standard error to ours."""
    from tesazure.cli import streams

    if system:
        streams.system(_client(context), task_id, attempt)
        return
    wanted = [name for name, on in (("stdout", stdout), ("stderr", stderr)) if on]
    choice = streams.Choice(executor, tuple(wanted or ("stdout", "stderr")), attempt)
    streams.show(_client(context), task_id, choice, follow)


@app.command("service-info")
def service_info(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what the server says of itself."""
    from tesazure.cli import tasks

    tasks.service_info(_client(context), as_json)


app.add_typer(transfer.app, name="transfer")
app.add_typer(token.app, name="token")
app.add_typer(provision.app, name="provision")


@app.command()
def login(
    context: typer.Context,
    device: Annotated[
        bool, typer.Option("--device", help="By a code that you enter in a browser anywhere.")
    ] = False,
    api_token: Annotated[
        bool, typer.Option("--api-token", help="By an API token, typed here or on standard input.")
    ] = False,
    audience: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="Application that the server is (its AAD_AUDIENCE), where you sign in by another.",
        ),
    ] = "",
) -> None:
    """Sign in at the server; later commands use that, and renew it, until `logout`.

    The server says how: by a code where it names an application to sign in with, else by an API
    token. What is got lies below XDG_STATE_HOME (~/.local/state), for your user alone.
    """
    from tesazure.cli import login as signing

    if device and api_token:
        raise Failure(Code.USAGE, "--device and --api-token: choose one")
    signing.login(context.obj, _logins(), device=device, api_token=api_token, audience=audience)


@app.command()
def logout(context: typer.Context) -> None:
    """Forget the login at the server."""
    from tesazure.cli import login as signing

    signing.logout(context.obj, _logins())


@app.command()
def doctor(
    context: typer.Context,
    data_dir: DataDir = None,
    allow_dir: AllowDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine and the server: a verdict for each part, and a remedy where one is due."""
    from tesazure.cli import doctor as examination
    from tesazure.cli import server

    effective = server.whole(config, data_dir, allow_dir, None)
    raise typer.Exit(examination.doctor(_client(context), effective, as_json))


@app.command()
def config(
    config: Config = None,
    data_dir: DataDir = None,
    allow_dir: AllowDir = None,
    set_: Set = None,
    forget: Annotated[
        Pairs, typer.Option(metavar="NAME", help="Take it out of the database first. Repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the settings that `serve` would use here and where each comes from; secrets as ***."""
    from tesazure.cli import server

    server.forget(config, data_dir, set_, forget or [])
    server.show_config(server.whole(config, data_dir, allow_dir, set_), as_json)


@app.command()
def version() -> None:
    """Print the version."""
    from tesazure import __version__

    print(f"tesazure {__version__}")


if __name__ == "__main__":
    main()
