"""Estimated costs as whole numbers."""

from __future__ import annotations

import msgspec
import pytest

from tesazure.model import ExecutorLog, TaskLog
from tesazure.money import dollars, estimate
from tesazure.store.costs import cost_of


def log(**metadata: str) -> bytes:
    return msgspec.json.encode(TaskLog(metadata=metadata))


@pytest.mark.parametrize(
    ("said", "cost", "shown"),
    [
        ("0", 0, "0"),
        ("0.10", 100_000_000, "0.1"),
        ("12", 12_000_000_000, "12"),
        ("0.000000001", 1, "0.000000001"),
        ("1.23456789049", 1_234_567_890, "1.23456789"),
        ("1000000", 10**15, "1000000"),
    ],
)
def test_a_cost_is_kept_to_the_billionth(said: str, cost: int, shown: str) -> None:
    assert cost_of(log(estimated_cost_usd=said)) == cost
    assert dollars(cost) == shown


def test_what_takes_milliseconds_costs_something() -> None:
    assert estimate(0.01, 0.05) == "0.000000139"
    assert estimate(1800, 0.1) == "0.05"
    assert estimate(0, 5) == "0"


@pytest.mark.parametrize(
    ("amount", "shown"), [(-1, "-0.000000001"), (-1_500_000_000, "-1.5"), (-(10**9), "-1")]
)
def test_a_correction_has_its_sign(amount: int, shown: str) -> None:
    assert dollars(amount) == shown


@pytest.mark.parametrize(
    "said", ["", "free", "NaN", "-1", "inf", "1e9", "1e99999", "1_0", "1000000.1"]
)
def test_what_is_no_amount_is_unknown(said: str) -> None:
    assert cost_of(log(estimated_cost_usd=said)) is None


def test_only_metadata_counts() -> None:
    assert cost_of(log(host="a")) is None
    printed = TaskLog(logs=[ExecutorLog(stdout='"estimated_cost_usd": "1"')])
    assert cost_of(msgspec.json.encode(printed)) is None
