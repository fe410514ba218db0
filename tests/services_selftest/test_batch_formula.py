"""The language of autoscale formulas, as the Batch stand-in knows it."""

from __future__ import annotations

import pytest

from tests.services.batch_formula import FormulaError, Samples, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3 - 4 / 2", 5.0),
        ("(1 + 2) * -3", -9.0),
        ("1 < 2 && !(3 == 4) ? 1 < 0 ? 7 : 8 : 9", 8.0),
        ("max(1, min(5, 3), floor(2.9), ceil(0.1))", 3.0),
        ('time() < time("2030-01-01T00:00:00Z") ? 1 : 0', 1.0),
        ("time() - TimeInterval_Hour < time() ? 1 : 0", 1.0),
        ("avg($PendingTasks.GetSample(TimeInterval_Minute * 10, 70)) / 2", 1.5),
        ("$PendingTasks.GetSamplePercent(TimeInterval_Minute)", 80.0),
        ("val($PendingTasks.GetSample(1) * 2, 0)", 8.0),
    ],
)
def test_formulas(text: str, value: float) -> None:
    samples = {"$PendingTasks": Samples((2.0, 4.0), percent=80.0)}
    found = evaluate(f"$TargetDedicatedNodes = {text};", samples, now_s=1.8e9)
    assert found["$TargetDedicatedNodes"] == value


def test_samples_that_are_not_there() -> None:
    samples = {"$PendingTasks": Samples((), percent=0.0)}
    for text in ("max($PendingTasks.GetSample(1))", "avg($PendingTasks.GetSample(1))"):
        with pytest.raises(FormulaError):
            evaluate(f"$TargetDedicatedNodes = {text};", samples, now_s=0)
    for text in (
        "max(0, $PendingTasks.GetSample(1))",
        "1 < 2 ? 0 : avg($PendingTasks.GetSample(1))",
    ):
        found = evaluate(f"$TargetDedicatedNodes = {text};", samples, now_s=0)
        assert found == {"$TargetDedicatedNodes": 0.0}


@pytest.mark.parametrize(
    "text",
    [
        "$TargetDedicatedNodes = nodes;",
        "$TargetDedicatedNodes = max();",
        "$TargetDedicatedNodes = 1",
        "$TargetDedicatedNodes = $Pending.GetSample(1);",
        "$TargetDedicatedNodes = time() < 5 ? 1 : 0;",
        "$TargetDedicatedNodes = 1 ! 2;",
        "nodes = 1;",
    ],
)
def test_what_is_no_formula(text: str) -> None:
    with pytest.raises(FormulaError):
        evaluate(text, {"$PendingTasks": Samples((1.0,))}, now_s=0)
