"""Provisioning from the command line: requests, the live list of steps, summaries."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tesazure.cli import show
from tesazure.cli.client import TesClient
from tesazure.cli.exits import Code, Failure
from tesazure.settings import Client

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]

POLL_S = 1.0
PATIENCE_S = 120.0
"""How long the server may be away while a run is followed."""
_COLOURS = {
    "waiting": "dim",
    "skipped": "dim",
    "running": "blue",
    "done": "green",
    "failed": "bold red",
    "CREATED": "green",
    "ERROR": "bold red",
    "INPROGRESS": "blue",
    "UNKNOWN": "yellow",
}
_UNENDED = ("INPROGRESS", "DELETING", "UNKNOWN")


@dataclass(frozen=True, slots=True)
class Removal:
    """What to remove, and whether somebody has to agree first."""

    guid: str
    secret_file: Path | None
    is_agreed: bool


def tags_of(pairs: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE, each. Raises Failure."""
    tags: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise Failure(Code.USAGE, f"--tag {pair}: give it as NAME=VALUE")
        tags[name] = value
    return tags


def principal_of(
    settings: Client, client_id: str, tenant: str, secret_file: Path | None
) -> dict[str, str] | None:
    """The service principal, its secret never from the command line; None if none is named.
    Raises Failure."""
    if not client_id and not tenant and secret_file is None:
        return None
    if not client_id or not tenant:
        raise Failure(Code.USAGE, "a service principal needs --client-id and --tenant")
    secret = _secret(settings, client_id, secret_file)
    return {"client_id": client_id, "secret": secret, "tenant": tenant}


def dry_run(client: TesClient, request: Json, as_json: bool) -> None:
    """Print what a run would find, make and cost."""
    told = _asked(client, "POST", "/initialize", request)
    if as_json:
        show.as_json(told)
        return
    if not show.is_terminal():
        for step in told["steps"]:
            print(show.tabbed([step["name"], step["found"], step["title"], step["detail"]]))
        for line in told["idle_cost"]:
            print(show.tabbed(["idle-cost", _dollars(line), line["what"], line["note"]]))
        return
    steps = show.table(["STEP", "THERE", "DETAIL"])
    for step in told["steps"]:
        steps.add_row(step["title"], step["found"], step["detail"])
    costs = show.table(["WHILE NO TASK RUNS", "USD A MONTH", ""])
    for line in told["idle_cost"]:
        costs.add_row(line["what"], _dollars(line), line["note"])
    costs.add_row("together", f"{told['idle_usd_a_month']:.2f}", "")
    out = show.console()
    out.print(steps)
    out.print(costs)


def make(client: TesClient, request: Json, *, detach: bool, as_json: bool) -> Code:
    """Begin a run and, unless detached, follow it to its end."""
    begun = _asked(client, "POST", "/initialize", request)
    return _go_on(client, begun, detach, as_json)


def status(client: TesClient, guid: str, *, wait: bool, as_json: bool) -> Code:
    """Print how far a run is; with `wait`, once it has ended."""
    if wait:
        return _go_on(client, _run(client, guid), False, as_json)
    run = _run(client, guid)
    _report(run, as_json, steps=True)
    return Code.NOT_COMPLETE if run["status"] == "ERROR" else Code.OK


def list_runs(client: TesClient, as_json: bool) -> None:
    """Print all runs."""
    runs = client.provision("GET", "")["runs"]
    if as_json:
        show.json_list(runs)
    elif not show.is_terminal():
        for run in runs:
            print(show.tabbed([run["guid"], run["status"], run["created"], *_where(run)]))
    else:
        headings = ["GUID", "STATUS", "CREATED", "BATCH ACCOUNT"]
        drawn = show.table(headings, headings[:3])
        for run in runs:
            created, account = show.local_time(run["created"]), _where(run)[1]
            drawn.add_row(run["guid"], _coloured(run["status"]), created, account)
        show.console().print(drawn)


def remove(
    client: TesClient, settings: Client, removal: Removal, *, detach: bool, as_json: bool
) -> Code:
    """Delete what a run made, once somebody has agreed. Raises Failure."""
    run = _run(client, removal.guid)
    made = [step for step in run["steps"] if step["made"]]
    principal = run["request"]["service_principal"]
    if not removal.is_agreed:
        _ask(run, made)
    body = {}
    if principal is not None:
        secret = _secret(settings, principal["client_id"], removal.secret_file)
        body = {"service_principal": {**principal, "secret": secret}}
    path = f"/{quote(removal.guid, safe='')}?confirm=true"
    begun = _asked(client, "DELETE", path, body)
    return _go_on(client, begun, detach, as_json)


def _ask(run: Json, made: list[Json]) -> None:
    if not sys.stdin.isatty():
        raise Failure(Code.USAGE, "nobody is here to be asked: add --yes")
    show.say(f"run {run['guid']} made, and this deletes with all files in it:")
    for step in made:
        show.say(f"  {step['title']}")
    if not made:
        show.say("  (nothing that is noted)")
    print("Delete it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failure(Code.NOT_COMPLETE, "nothing was deleted")


def _secret(settings: Client, client_id: str, file: Path | None) -> str:
    """Of a service principal: from a file, the environment, or whoever sits there."""
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(Code.USAGE, f"--secret-file {file} cannot be read: {error}") from error
        secret = text.strip()
    elif settings.principal_secret:
        secret = settings.principal_secret
    elif sys.stdin.isatty():
        secret = getpass.getpass(f"Secret of {client_id} (not shown): ").strip()
    else:
        said = "the service principal's secret is needed"
        raise Failure(Code.USAGE, said, "give it by TESAZURE_PRINCIPAL_SECRET or --secret-file")
    if not secret:
        raise Failure(Code.USAGE, "the service principal's secret is empty")
    return secret


def _asked(client: TesClient, method: str, path: str, body: Json) -> Json:
    """The reply to a request that may hold a secret, which is good for a whole subscription."""
    if "service_principal" in body and client.root.startswith("http://") and not client.is_local:
        said = f"{client.root} is not https: whoever sits between could read the principal's secret"
        raise Failure(Code.USAGE, said, "give its https URL, or go through a tunnel (ssh -L)")
    return client.provision(method, path, json=body)


def _run(client: TesClient, guid: str) -> Json:
    return client.provision("GET", f"/query/{quote(guid, safe='')}")


def _go_on(client: TesClient, begun: Json, detach: bool, as_json: bool) -> Code:
    """After a run was begun: print its GUID, or follow it and print its end."""
    guid = begun["guid"]
    if detach:
        if as_json:
            show.as_json(begun)
        else:
            print(guid)
        return Code.OK
    try:
        run = _followed(client, guid, quiet=as_json)
    except KeyboardInterrupt:
        show.say(f"\nit goes on without you. To look: tesazure provision status {guid}")
        return Code.INTERRUPTED
    _report(run, as_json, steps=False)
    return Code.OK if run["status"] in ("CREATED", "DELETED") else Code.NOT_COMPLETE


def _followed(client: TesClient, guid: str, *, quiet: bool) -> Json:
    """The run, once it has ended; its steps are shown as they go on."""
    with _shown(quiet) as tell:
        silent_since = time.monotonic()
        while True:
            try:
                run = _run(client, guid)
            except Failure as failure:
                if failure.code != Code.UNREACHABLE:
                    raise
                # The server restarts, perhaps, and takes the run up again.
                if time.monotonic() - silent_since > PATIENCE_S:
                    raise
            else:
                silent_since = time.monotonic()
                tell(run)
                if run["status"] not in _UNENDED:
                    return run
            time.sleep(POLL_S)


@contextmanager
def _shown(quiet: bool) -> Iterator[Callable[[Json], None]]:
    """Called with a run, shows its steps: a list that is drawn again on a terminal, elsewhere a
    line for each change."""
    if quiet:
        yield lambda run: None
    elif show.is_terminal():
        from rich.live import Live

        with Live(console=show.console(), auto_refresh=False) as live:
            yield lambda run: live.update(_steps(run), refresh=True)
    else:
        yield _Lines().show


class _Lines:
    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def show(self, run: Json) -> None:
        for step in run["steps"]:
            state = step["state"]
            if state != self._known.get(step["name"], "waiting"):
                print(show.tabbed([step["name"], state, step["title"]]), flush=True)
            self._known[step["name"]] = state


def _report(run: Json, as_json: bool, *, steps: bool) -> None:
    """How a run stands: its steps, names, note, and what failed with its remedy."""
    if as_json:
        show.as_json(run)
        return
    if show.is_terminal():
        out = show.console()
        if steps:
            out.print(_steps(run))
        out.print(_summary(run))
    else:
        if steps:
            for step in run["steps"]:
                row = [step["name"], step["state"], step["title"], step["detail"]]
                print(show.tabbed(row))
        print(show.tabbed([run["guid"], run["status"], run["note"]]))
    for step in run["steps"]:
        if step["failure"]:
            failure = step["failure"]
            show.say(f"{step['title']}: {failure['code']}: {failure['message']}")
            if failure["remedy"]:
                show.say(f"  remedy: {failure['remedy']}")


def _steps(run: Json) -> Table:
    drawn = show.table(["STEP", "STATE", "TOOK", "DETAIL"], ["STATE", "TOOK"])
    for step in run["steps"]:
        took = show.duration(step["started"], step["ended"]) if step["started"] else ""
        drawn.add_row(step["title"], _coloured(step["state"]), took, step["detail"])
    return drawn


def _summary(run: Json) -> Table:
    request = run["request"]
    drawn = show.table(["", ""])
    drawn.show_header = False
    drawn.add_row("run", run["guid"])
    drawn.add_row("status", _coloured(run["status"]))
    for label, name in (
        ("subscription", "subscription_id"),
        ("resource group", "resource_group"),
        ("region", "location"),
        ("storage account", "storage_account_name"),
        ("Batch account", "batch_account_name"),
        ("registry", "registry"),
        ("Key Vault", "key_vault"),
    ):
        if request[name]:
            drawn.add_row(label, request[name])
    if run["note"]:
        drawn.add_row("note", run["note"])
    return drawn


def _where(run: Json) -> tuple[str, str]:
    return run["request"]["resource_group"], run["request"]["batch_account_name"]


def _coloured(word: str) -> Any:
    from rich.text import Text

    return Text(word, style=_COLOURS.get(word, ""))


def _dollars(line: Json) -> str:
    return "" if line["usd_a_month"] is None else f"{line['usd_a_month']:.2f}"
