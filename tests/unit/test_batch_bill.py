"""What attempts on Batch cost that could not say so themselves."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from tesazure.backends.azure_batch import bill as bills
from tesazure.backends.azure_batch.bill import facts_of
from tesazure.backends.azure_batch.known import Known
from tesazure.backends.azure_batch.shapes import Placement, Shape
from tesazure.backends.azure_batch.words import Row
from tesazure.lifecycle import CLOCKS_S, Bill
from tesazure.model import ExecutorLog, TaskLog
from tesazure.report import Report

T = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
PLACEMENT = Placement(
    shape=Shape(vm_size="Standard_D4ads_v5", spot=True, slots=4), slots=1, price_per_hour_usd=0.4
)
FACTS = facts_of(PLACEMENT, "job")
RUNNING = Row("running", started=T, changed=T)


def time(seconds: float) -> str:
    return datetime.fromtimestamp(T + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def known(*rows: Row, began: float | None = None, **metadata: str) -> Known:
    """What is known after these looks; `began`: its runner did so many seconds after T."""
    found = Known("job")
    if began is not None:
        log = TaskLog(start_time=time(began), metadata=metadata)
        found.report, found.begun = Report(log=log, started=True), True
    for row in rows:
        found.take(row)
    return found


def bill_of(known: Known, placement: Placement | None) -> Bill | None:
    """Asks for the placement of this attempt alone."""
    return bills.bill_of(
        known, lambda job, slots: placement if (job, slots) == ("job", 1) else None
    )


def test_one_that_has_no_node_costs_nothing() -> None:
    assert bill_of(known(), PLACEMENT) is None
    assert bill_of(known(Row("active", changed=T)), PLACEMENT) is None
    assert bill_of(known(Row("preparing", changed=T)), PLACEMENT) is None


def test_one_that_runs_has_its_node() -> None:
    assert bill_of(known(RUNNING), PLACEMENT) == Bill(0.1, T, None, FACTS)


@pytest.mark.parametrize("code", ["NodePreempted", "FailureExitCode"])
def test_one_that_ended_without_a_report_had_it_until_then(code: str) -> None:
    found = known(RUNNING, Row("completed", code=code, started=T, changed=T + 90))
    found.settled = True
    bill = bill_of(found, PLACEMENT)
    assert bill == Bill(0.1, T, T + 90, FACTS)
    assert bill.metadata(T, T + 1000) == {
        **FACTS,
        "estimated_cost_usd": "0.0025",
        "estimated_cost_until": "2026-01-01T00:01:30.000000Z",
    }


def test_one_that_batch_queued_again_had_it_until_then() -> None:
    found = known(RUNNING, Row("active", previous="running", changed=T + 60), began=20)
    assert found.lost
    assert bill_of(found, PLACEMENT) == Bill(0.1, T, T + 60, FACTS)


def test_one_that_began_anew_elsewhere_had_it_until_then_at_the_latest() -> None:
    ended = Row("completed", 75, "FailureExitCode", started=T + 300, changed=T + 330)
    found = known(ended, began=20)
    found.settled = True
    assert found.is_taken
    bill = bill_of(found, PLACEMENT)
    assert bill is not None
    assert (bill.since, bill.until) == (T + 20, T + 300)


def test_one_that_another_node_begins_costs_from_there() -> None:
    again = Row("active", previous="running", changed=T + 50)
    found = known(RUNNING, again)
    assert bill_of(found, PLACEMENT) is None
    found.take(Row("running", started=T + 400, changed=T + 400))
    assert bill_of(found, PLACEMENT) == Bill(0.1, T + 400, None, FACTS)
    # Also where nobody saw that it waited in between.
    found = known(RUNNING, Row("running", started=T + 400, changed=T + 400))
    assert bill_of(found, PLACEMENT) == Bill(0.1, T + 400, None, FACTS)


def test_one_that_somebody_deleted_had_it_as_long_as_it_was_known_to_run() -> None:
    found = known(RUNNING, began=20)
    found.missing = True
    bill = bill_of(found, PLACEMENT)
    assert bill is not None
    assert bill.until == T + 20
    found.report.log.logs.append(ExecutorLog(start_time=time(30), end_time=time(40)))
    assert bill_of(found, PLACEMENT) == Bill(0.1, T, T + 40, FACTS)
    found.alive = T + 70
    assert bill_of(found, PLACEMENT) == Bill(0.1, T, T + 70, FACTS)
    # Nothing but that it began, by a server that was away.
    found = known(RUNNING)
    found.missing = True
    bill = bill_of(found, PLACEMENT)
    assert bill is not None
    assert bill.metadata(T, T + 1000)["estimated_cost_usd"] == "0"


def test_the_report_knows_the_node_better() -> None:
    dedicated = {"vm_share": "2/4", "vm_kind": "dedicated", "vm_price_per_hour_usd": "2"}
    assert bill_of(known(RUNNING, began=5, **dedicated), PLACEMENT) == Bill(1.0, T, None, {})
    unknown = {"vm_share": "2/4", "vm_kind": "spot"}
    bill = bill_of(known(RUNNING, began=5, **unknown), PLACEMENT)
    assert bill == Bill(None, T, None, {})
    assert bill.metadata(T, T + 60) == {}


def test_without_a_price_there_is_no_cost() -> None:
    assert bill_of(known(RUNNING), None) == Bill(None, T, None, {})
    theirs = Placement(shape=Shape(vm_size="", pool="theirs"))
    bill = bill_of(known(RUNNING), theirs)
    assert bill is not None
    assert bill.metadata(T, T + 60) == {"batch_job": "job", "vm_share": "1/1"}


@pytest.mark.parametrize("share", ["", "x", "1/0", "3/2"])
def test_a_share_that_is_none_is_no_price(share: str) -> None:
    told = known(RUNNING, began=5, vm_share=share, vm_price_per_hour_usd="1")
    bill = bill_of(told, PLACEMENT)
    assert bill is not None
    assert bill.usd_per_hour == (1.0 if share == "3/2" else None)


def test_what_a_report_tells_or_nobody_needs_is_not_looked_up() -> None:
    """It would be for each attempt, and each time that anybody wants to know how they stand."""

    def refuse(job: str, slots: int) -> Placement | None:
        raise AssertionError(job, slots)

    assert bills.bill_of(known(), refuse) is None
    told = known(RUNNING, began=5, vm_share="1/2", vm_price_per_hour_usd="1")
    assert bills.bill_of(told, refuse) == Bill(0.5, T, None, {})


@pytest.mark.parametrize("told", ["", "soon", "0001-01-01T00:00:00"])
def test_a_report_that_tells_no_time_is_as_good_as_none(told: str) -> None:
    found = known(RUNNING, began=5)
    found.report.log.start_time = told
    found.report.log.logs.append(ExecutorLog(start_time=told, end_time=time(40)))
    assert bill_of(found, PLACEMENT) == Bill(0.1, T, None, FACTS)
    found.missing = True
    assert bill_of(found, PLACEMENT) == Bill(0.1, T, T + 40, FACTS)
    found.started = float("inf")
    assert bill_of(found, PLACEMENT) is None


def test_no_clock_makes_a_cost_that_cannot_be() -> None:
    """An hour, and a quarter of one on either side."""
    nodes = known(RUNNING, began=-50 * 365 * 86400)
    bill = bill_of(nodes, PLACEMENT)
    assert bill is not None
    assert bill.since < 0.5 * T
    assert bill.metadata(T, T + 3600)["estimated_cost_usd"] == "0.125"
    late = Bill(0.1, T, T + 10**9).metadata(T, T + 3600)
    assert late["estimated_cost_usd"] == "0.125"
    assert late["estimated_cost_until"] == "2026-01-01T01:15:00.000000Z"
    # Clocks that differ by less cost what was told.
    assert Bill(0.1, T - 600, T + 3000).metadata(T, T + 2400)["estimated_cost_usd"] == "0.1"


def test_clocks_that_differ_make_no_negative_cost() -> None:
    assert Bill(1.0, T).metadata(T - 90, T - 60)["estimated_cost_usd"] == "0"


@pytest.mark.parametrize("since", [-math.inf, math.inf, T * 1000])
def test_a_beginning_that_cannot_be_is_billed_within_what_can(since: float) -> None:
    found = Bill(usd_per_hour=3600.0, since=since).metadata(T, T + 60)
    assert 0 <= float(found["estimated_cost_usd"]) <= 60 + 2 * CLOCKS_S
