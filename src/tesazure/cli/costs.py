"""The verb about costs."""

from __future__ import annotations

from collections.abc import Sequence

from tesazure.cli import show
from tesazure.cli.client import TesClient
from tesazure.cli.tasks import tag_parameters


def show_sum(
    client: TesClient, tags: Sequence[str], owner: str | None, since: str | None, as_json: bool
) -> None:
    """Print what tasks cost together."""
    query = tag_parameters(tags)
    query += [(name, text) for name, text in (("owner", owner), ("since", since)) if text]
    found = client.costs(query)
    if as_json:
        print(show.compact(found))
        return
    cost, tasks = found["estimated_cost_usd"], found["tasks"]
    known = "no known cost" if cost is None else f"{cost} USD"
    print(show.tabbed([known, f"{tasks} task{'s' * (tasks != 1)}"]))
