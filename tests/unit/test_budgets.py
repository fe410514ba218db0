"""Budgets: how they are written, what they are for, and in which time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tesazure.budgets import Budget, Budgets, Purse, parse, purses
from tesazure.settings import Settings
from tesazure.settings.checks import conflicts

USD = 10**9
NOW = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("entry", "budget"),
    [
        ("all=5000/month", Budget("all", "", None, 5000 * USD, "month")),
        ("owner=50", Budget("owner", "", None, 50 * USD, "")),
        ("owner:local/ann=0.5/day", Budget("owner", "", "local/ann", USD // 2, "day")),
        ("owner:https://a.b/x=y=1", Budget("owner", "", "https://a.b/x=y", USD, "")),
        (" tag:project=1000 ", Budget("tag", "project", None, 1000 * USD, "")),
        ("tag:project:covid=200/month", Budget("tag", "project", "covid", 200 * USD, "month")),
        ("tag:project:a:b c=1", Budget("tag", "project", "a:b c", USD, "")),
    ],
)
def test_a_budget_is_read(entry: str, budget: Budget) -> None:
    assert parse(entry) == budget


@pytest.mark.parametrize(
    "entry",
    [
        *("", "all", "all=", "all=x", "all=0", "all=-1", "all=1.2.3", "all=1e3", "all=1000000000"),
        *("all:x=1", "team=1", "owner:=1", "tag=1", "tag:=1", "tag:a:=1", "tag:project=covid=1"),
        *("all=1/week", "all=1/", "all=5 USD"),
    ],
)
def test_what_is_no_budget_is_refused_by_its_place(entry: str) -> None:
    [problem] = conflicts(Settings(budgets=("all=1", entry)))
    assert problem.startswith("BUDGETS: entry 2 must be all=AMOUNT, ")
    with pytest.raises(ValueError, match="must be"):
        Budgets([entry])


def test_a_budget_is_for_some_tasks() -> None:
    tags = {"project": "covid", "empty": None}
    month = "2026-11"

    def of(entry: str, owner: str | None = "ann") -> Purse | None:
        return parse(entry).purse(owner, tags, NOW)

    assert of("all=1") == Purse("all", "", "", "")
    assert of("owner=1/month") == of("owner:ann=1/month") == Purse("owner", "", "ann", month)
    assert of("owner=1", None) is of("owner:bob=1") is None
    assert of("tag:project=1/day") == Purse("tag", "project", "covid", "2026-11-30")
    assert of("tag:empty=1") == Purse("tag", "empty", "", "")
    assert of("tag:project:flu=1") is of("tag:other=1") is None


def test_costs_count_under_every_purse_that_a_budget_can_be_for() -> None:
    counted = list(purses("ann", {"project": "covid"}, NOW))
    assert len(counted) == len(set(counted)) == 9
    for entry in ("all=1", "owner=1", "tag:project=1"):
        for period in ("", "/month", "/day"):
            assert parse(entry + period).purse("ann", {"project": "covid"}, NOW) in counted


@pytest.mark.parametrize(
    ("entry", "spent", "waits"),
    [
        (
            "tag:project=200/month",
            "budget tag:project=covid is spent: 203.1 of 200 USD this month",
            "the next month or a higher budget",
        ),
        (
            "owner=0.5/day",
            "budget owner=ann is spent: 203.1 of 0.5 USD today",
            "the next day or a higher budget",
        ),
        ("all=1", "budget all is spent: 203.1 of 1 USD", "a higher budget"),
    ],
)
def test_who_waits_is_told_for_what(entry: str, spent: str, waits: str) -> None:
    budget = parse(entry)
    purse = budget.purse("ann", {"project": "covid"}, NOW)
    assert purse is not None
    assert budget.spent(purse, 203_100_000_000) == spent
    assert budget.waits(purse, 203_100_000_000) == f"{spent}; waits for {waits}"
