"""`tesazure provision` and its flags: a backend in an Azure subscription."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make what a Batch backend needs in an Azure subscription, and remove it again.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Detach = Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")]
Guid = Annotated[str, typer.Argument(metavar="GUID", help="The run.")]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the principal's secret; - is standard input. Default:"
        " TESAZURE_PRINCIPAL_SECRET, else it is asked for.",
        metavar="FILE",
    ),
]


@app.command()
def azure(  # noqa: PLR0913, PLR0917 - each is a flag
    context: typer.Context,
    subscription: Annotated[str, typer.Option(help="The subscription's id, a GUID.")],
    client_id: Annotated[
        str, typer.Option(help="Service principal to act as; default: the server's own identity.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="The principal's tenant.")] = "",
    secret_file: SecretFile = None,
    resource_group: Annotated[
        str, typer.Option(help="Resource group, made if it is not there. Default: tesazure.")
    ] = "",
    location: Annotated[str, typer.Option(help="Region. Default: eastus.")] = "",
    storage_account: Annotated[
        str, typer.Option(help="Name of the storage account; default: one is made up.")
    ] = "",
    storage_sku: Annotated[
        str, typer.Option(help="How files are replicated. Default: Standard_LRS.")
    ] = "",
    batch_account: Annotated[
        str, typer.Option(help="Name of the Batch account; default: one is made up.")
    ] = "",
    pool_allocation_mode: Annotated[
        str, typer.Option(help="BatchService or UserSubscription. Default: BatchService.")
    ] = "",
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A tag of all that is made. Repeatable."),
    ] = None,
    vnet: Annotated[
        str, typer.Option(help="Existing virtual network for nodes: its name or resource id.")
    ] = "",
    subnet: Annotated[str, typer.Option(help="The subnet of it.")] = "",
    key_vault: Annotated[
        str, typer.Option(help="Existing Key Vault for the settings: its name or URL.")
    ] = "",
    registry: Annotated[
        str, typer.Option(help="Container registry, made if it is not there. Default: none.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be made, and its idle cost.")
    ] = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Make a Batch backend, follow each step, and have the servers use it.

    The same command again continues what was interrupted, and changes nothing that is right.
    """
    from tesazure.cli import making

    request = {
        "subscription_id": subscription,
        "resource_group": resource_group,
        "location": location,
        "storage_account_name": storage_account,
        "storage_sku": storage_sku,
        "batch_account_name": batch_account,
        "pool_allocation_mode": pool_allocation_mode,
        "tags": making.tags_of(tag or []),
        "vnet": vnet,
        "subnet": subnet,
        "key_vault": key_vault,
        "registry": registry,
    }
    principal = making.principal_of(context.obj, client_id, tenant, secret_file)
    given: dict[str, Any] = {name: value for name, value in request.items() if value}
    if principal:
        given["service_principal"] = principal
    client = _client(context)
    if dry_run:
        making.dry_run(client, {**given, "dry_run": True}, as_json)
    else:
        raise typer.Exit(making.make(client, given, detach=detach, as_json=as_json))


@app.command()
def status(
    context: typer.Context,
    guid: Guid,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is: its steps, and what to do about one that failed."""
    from tesazure.cli import making

    raise typer.Exit(making.status(_client(context), guid, wait=wait, as_json=as_json))


@app.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List all runs, the newest first."""
    from tesazure.cli import making

    making.list_runs(_client(context), as_json)


@app.command()
def delete(
    context: typer.Context,
    guid: Guid,
    secret_file: SecretFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Delete what a run made, with all files in it, and nothing else."""
    from tesazure.cli import making

    removal = making.Removal(guid, secret_file, yes)
    code = making.remove(_client(context), context.obj, removal, detach=detach, as_json=as_json)
    raise typer.Exit(code)


def _client(context: typer.Context) -> Any:
    from tesazure.cli.client import TesClient
    from tesazure.cli.logins import Logins
    from tesazure.settings import state_dir

    return TesClient(context.obj, Logins(state_dir() / "logins"))
