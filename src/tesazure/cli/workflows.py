"""The verbs about workflows, and those of tasks that can mean a whole workflow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tesazure.cli import show
from tesazure.cli.client import TesClient

Json = dict[str, Any]


def list_workflows(
    client: TesClient, *, page_token: str | None, all_pages: bool, as_json: bool
) -> None:
    """Print a page of workflows, or all of them as they arrive."""
    found = _workflows(client, page_token, all_pages)
    if as_json:
        show.json_list(found)
    else:
        _print(found)


def get(client: TesClient, workflow_id: str, as_json: bool) -> None:
    """Print a workflow."""
    workflow = client.workflow(workflow_id)
    if as_json or not show.is_terminal():
        show.as_json(workflow)
    else:
        _print([workflow])


def cancel(client: TesClient, workflow_id: str, as_json: bool) -> None:
    """Cancel a workflow's tasks, however many requests that takes, and print how many."""
    changed = 0
    while True:
        told = client.cancel_workflow(workflow_id)
        changed += told["changed"]
        if not told["more"]:
            break
    total = {**told, "changed": changed}
    if as_json:
        print(show.compact(total))
    else:
        print(show.tabbed([workflow_id, f"{changed} canceled", _counts(total)]))


def _workflows(client: TesClient, token: str | None, all_pages: bool) -> Iterator[Json]:
    while True:
        page = client.workflows(token)
        yield from page["workflows"]
        token = page.get("next_page_token")
        if not token:
            return
        if not all_pages:
            show.say(f"there are more: --all, or --page-token {token}")
            return


def _print(workflows: Iterable[Json]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    if not show.is_terminal():
        for workflow in workflows:
            print(show.tabbed([*_row(workflow, workflow["last_activity"])]))
        return
    headings = ["ID", "ENGINE", "TASKS", "LAST ACTIVITY", "COST", "NAME"]
    drawn = show.table(headings, ["ID", "ENGINE", "LAST ACTIVITY", "COST"])
    for workflow in workflows:
        drawn.add_row(*_row(workflow, show.local_time(workflow["last_activity"])))
    show.console().print(drawn)


def _row(workflow: Json, last: str) -> tuple[str, ...]:
    cost = workflow["estimated_cost_usd"]
    return (
        *(workflow["id"], workflow["submitter"], _counts(workflow), last),
        *("" if cost is None else f"{cost} USD", workflow["name"]),
    )


def _counts(workflow: Json) -> str:
    """How many tasks are in each state: `3 COMPLETE, 1 RUNNING`."""
    return ", ".join(f"{count} {state}" for state, count in workflow["states"].items())
