"""Every statement finds its rows by an index, however many tasks there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tesazure.callers import Visibility
from tesazure.model import State
from tesazure.store import (
    changing,
    filters,
    placing,
    reading,
    retention,
    schema,
    spending,
    transaction,
)
from tesazure.store.engine import Database, Link, Prepared
from tesazure.store.records import ListQuery

MODULES = (changing, placing, reading, retention, spending, transaction)
SMALL = {"sealing_key", "servers", "state_counts", "identity"}
"""Tables that are read whole."""


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    file = tmp_path / "tesazure.db"
    schema.prepare_file(file)
    database = Database(str(file))
    schema.bring_up_to_date(database)
    opened = database.open_reader()
    yield opened
    opened.close()


def _statements(module: ModuleType) -> dict[str, Prepared]:
    found = {name: value for name, value in vars(module).items() if isinstance(value, Prepared)}
    for name, value in vars(module).items():
        several = dict(enumerate(value)) if isinstance(value, tuple) else value
        if isinstance(several, dict):
            kinds = {f"{name}[{k}]": v for k, v in several.items() if isinstance(v, Prepared)}
            found |= kinds
    return found


def _steps(link: Link, statement: Prepared) -> list[str]:
    text, names, constants = statement.on(link.core.dialect)
    bound = [constants.get(name) for name in names]
    rows = link.driver.execute(f"EXPLAIN QUERY PLAN {text}", bound).fetchall()
    return [str(row[3]) for row in rows]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_no_table_is_read_whole(link: Link, module: ModuleType) -> None:
    statements = _statements(module)
    assert statements
    for name, statement in statements.items():
        if name == "_NOW":  # PostgreSQL's alone
            continue
        scans = [step for step in _steps(link, statement) if step.startswith("SCAN")]
        assert not [scan for scan in scans if scan.split()[1] not in SMALL], (name, scans)


def test_what_lives_is_found_among_all_that_ever_lived(link: Link) -> None:
    assert "ix_attempts_live" in str(_steps(link, placing._RESERVED))
    assert "ix_attempts_live" in str(_steps(link, placing._TAKE_FROM_NOBODY))
    assert "ix_attempts_kept" in str(_steps(link, retention._DISCARDABLE))
    assert "ix_tasks_server" in str(_steps(link, reading._WATCHED_ALL))
    assert "ix_tasks_retry" in str(_steps(link, reading._NEXT_RETRY))


def test_a_callers_events_are_found_among_everybodys(link: Link) -> None:
    for whose, statement in reading._EVENTS_OF.items():
        [step] = _steps(link, statement)
        wanted = {f"USING INDEX ix_events_{name} ({name}=? AND number>?)" for name in whose}
        assert step.removeprefix("SEARCH events ") in wanted
    [step] = _steps(link, reading._EVENTS)
    assert "PRIMARY KEY" in step


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (ListQuery(limit=9), "PRIMARY KEY"),
        (ListQuery(limit=9, states=(State.RUNNING,)), "ix_tasks_state"),
        (ListQuery(limit=9, tags=(("a", "b"),)), "PRIMARY KEY (key=? AND value=?"),
        (ListQuery(limit=9, tags=(("a", ""),)), "ix_tags_key"),
        (ListQuery(limit=9, visibility=Visibility(everyone=False, owner="a")), "ix_tasks_owner"),
        (ListQuery(limit=9, visibility=Visibility(everyone=False, tenant="a")), "ix_tasks_tenant"),
    ],
)
def test_lists_walk_an_index_in_its_order(link: Link, query: ListQuery, index: str) -> None:
    found, _ = filters.filters(query)
    stream = found[0] if found else filters.Stream()
    assert isinstance(stream, filters.Stream)
    everything = ListQuery(
        limit=9,
        states=(State.QUEUED,),
        name_prefix="n",
        tags=(("c", "d"), ("e", "")),
        visibility=Visibility(everyone=False, owner="b", tenant="c"),
    )
    others = [f for f in filters.filters(everything)[0] if type(f) is not type(stream)]
    walks = filters.walk(stream, ()), filters.walk(stream, tuple(others))
    for statement in (*walks, filters.probe(stream)):
        steps = _steps(link, statement)
        assert index in steps[1], steps
        assert not [step for step in steps if "B-TREE" in step], steps


def test_budgets_are_compared_with_single_rows(link: Link) -> None:
    kinds = [(kind, one) for kind in ("owner", "tag") for one in (True, False)]
    steps = _steps(link, placing._queue((("all", False), *kinds)))
    assert steps[0] == "SEARCH tasks USING INDEX ix_tasks_state (state=?)"
    for number in range(5):
        [found] = [step for step in steps if f"SEARCH spending{number} " in step]
        assert "PRIMARY KEY (kind=? AND key=? AND period=? AND value=?)" in found
    assert not [step for step in steps if step.startswith("SCAN") and "CONSTANT" not in step]


def test_costs_are_read_beside_the_logs(link: Link) -> None:
    query = ListQuery(limit=9, tags=(("a", "b"),), visibility=Visibility(everyone=False, owner="a"))
    owner, tag = filters.filters(query)[0]
    assert isinstance(tag, filters.Stream)
    steps = _steps(link, filters.costs(tag, (owner,)))
    assert [step for step in steps if "attempts USING COVERING INDEX ix_attempts_cost" in step]


def test_names_are_read_by_their_index(link: Link) -> None:
    [name], _ = filters.filters(ListQuery(limit=9, name_prefix="n"))
    assert isinstance(name, filters.Name)
    for statement in (filters.count(name), filters.sift(name, ())):
        assert "INDEX ix_tasks_name" in str(_steps(link, statement))
