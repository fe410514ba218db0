"""What Batch says of tasks, in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tesazure.backends.azure_batch import words
from tesazure.backends.azure_batch.known import Known, fold
from tesazure.backends.azure_batch.listing import row_of
from tesazure.backends.azure_batch.words import Row
from tesazure.model import State
from tesazure.report import Ended, Said, Started, encode
from tesazure.runner.node import ExitCode

AT = "2026-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row("completed"), "Batch ended the task and says nothing more"),
        (Row("completed", 1, "FailureExitCode"), "ended with exit code 1, and reported no end"),
        (Row("completed", 70, "FailureExitCode"), "died on its node, such as for lack of memory"),
        (Row("completed", 75, "FailureExitCode"), "begun before, or released (exit code 75)"),
        (
            Row("completed", None, "DiskFull", "There is no space."),
            "the node's disk is full; ask for more disk_gb (DiskFull); There is no space.",
        ),
        (Row("completed", None, "New", "It is so."), "It is so. (New)"),
        (Row("completed", None, "New"), "Batch ended the task (New)"),
        (Row("completed", 137, "TaskEnded"), "terminated, not by this server (TaskEnded)"),
    ],
)
def test_failures_have_batchs_own_code(row: Row, said: str) -> None:
    assert said in words.failure(row)
    assert words.failure(row, "node n1 cannot be used").endswith("; node n1 cannot be used")


def test_every_exit_code_of_the_runner_but_success_has_words() -> None:
    for code in set(ExitCode) - {ExitCode.ENDED}:
        row = Row("completed", int(code), "FailureExitCode")
        assert words.failure(row).endswith(f"(exit code {code})")
        assert "the runner ended with exit code" not in words.failure(row)


@pytest.mark.parametrize(
    ("row", "begun", "taken"),
    [
        (Row("completed", 75, "FailureExitCode"), True, True),
        (Row("completed", 75, "FailureExitCode"), False, False),  # it was released
        (Row("completed", None, "NodePreempted"), True, True),
        (Row("completed", None, "NodePreempted"), False, True),
        (Row("completed", 70, "FailureExitCode", requeues=1), True, False),
        (Row("running", 75, requeues=1), True, False),
    ],
)
def test_a_node_that_was_taken_is_told_from_one_that_failed(
    row: Row, begun: bool, taken: bool
) -> None:
    assert row.is_taken(begun) == taken


@pytest.mark.parametrize("requeues", [0, 1])
def test_a_task_is_queued_again_if_it_was_something_else_before(requeues: int) -> None:
    """Whatever requeueCount says, which counts requests of users."""
    assert Row("active", previous="running", requeues=requeues).queued_again
    assert Row("active", previous="preparing", requeues=requeues).queued_again
    assert not Row("active", requeues=requeues).queued_again
    assert not Row("running", previous="active", requeues=requeues).queued_again


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row("active"), "its node was taken away or failed, and Batch queued it again"),
        (Row("active", requeues=2), "queued it again (requeueCount 2)"),
        (Row("completed", code="NodePreempted"), "taken away or failed (NodePreempted)"),
        (Row("completed", 75, "FailureExitCode"), "and Batch queued it again"),
    ],
)
def test_a_loss_is_told(row: Row, said: str) -> None:
    assert words.loss(row).endswith(said)
    assert words.loss(row, "node n1 is unusable").endswith(f"{said}; node n1 is unusable")


def test_what_waits_says_for_what() -> None:
    pool = "waiting for a node"
    assert words.progress(None, pool) == pool
    assert words.progress(Row("active"), pool) == pool
    assert words.progress(Row("preparing", node="n1"), pool) == "node n1 gets the runner ready"
    assert words.progress(Row("running", node="n1"), pool) == ""


def test_queued_again_before_it_began_is_no_loss() -> None:
    """Batch begins it on another node; only what had begun must not be begun again."""
    known = Known("job")
    known.take(Row("active", previous="running"))
    assert not known.lost
    known.begun = True
    assert known.is_doubtful
    known.take(Row("running", previous="active"))
    assert not (known.lost or known.is_doubtful)
    assert known.take(Row("active", previous="running"))
    assert known.lost
    assert known.over


def test_the_node_that_was_lost_is_the_one_that_it_began_on() -> None:
    """Batch need not name it any more, and names the next one when it has begun the task there."""
    known = Known("job")
    known.take(Row("preparing", node="n1"))
    known.take(Row("active", previous="preparing"))
    known.take(Row("running", node="n2"))
    known.begun = True
    for row in (
        Row("active", previous="running"),
        Row("completed", 75, "FailureExitCode", node="n3"),
        Row("completed", None, "NodePreempted", node="n2"),
    ):
        assert known.loses(row)
        known.take(row)
        assert known.node == "n2"
    assert not Known("job").loses(Row("active", previous="running"))
    assert not Known("job").loses(Row("completed", 1, "FailureExitCode", node="n1"))


def test_a_loss_is_news_though_batch_says_the_same() -> None:
    """A server that has just started sees the task first, then its report."""
    known, row = Known("job"), Row("active", previous="running")
    assert known.take(row)
    assert not known.take(row)
    known.begun = True
    assert known.take(row)
    assert known.lost


def test_rows_are_read_from_the_sdks_models() -> None:
    models = pytest.importorskip("azure.batch.models")
    task = models.BatchTask(
        {
            "id": "k",
            "state": "completed",
            "previousState": "running",
            "stateTransitionTime": "2026-01-01T00:00:20Z",
            "requiredSlots": 3,
            "executionInfo": {
                "startTime": "2026-01-01T00:00:10Z",
                "exitCode": 3,
                "requeueCount": 2,
                "retryCount": 0,
                "failureInfo": {
                    "category": "usererror",
                    "code": "FailureExitCode",
                    "message": "The task exited so.\nRequestId: 1",
                },
            },
            "nodeInfo": {"nodeId": "n1"},
        }
    )
    begun = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert row_of(task) == Row(
        *("completed", 3, "FailureExitCode", "The task exited so.", 2, "n1", "running"),
        started=begun + 10,
        changed=begun + 20,
        slots=3,
    )
    assert row_of(models.BatchTask({"id": "k", "state": "active"})) == Row("active")


def test_reports_are_folded_as_they_come() -> None:
    lines = encode(Started(time=AT)) + encode(Said(time=AT, message="a"))
    lines += encode(Ended(time=AT, state=State.COMPLETE))
    for size in (1, 7, len(lines)):
        known = Known("job")
        for start in range(0, len(lines), size):
            assert fold(known, lines[start : start + size]) == []
        assert known.read == len(lines)
        assert known.report.events == 3
        assert known.report.ended is not None
        assert known.over


def test_lines_that_nobody_understands_are_left_out() -> None:
    known = Known("job")
    end = encode(Ended(time=AT, state=State.COMPLETE))
    spoilt = fold(known, b'{"event":"new"}\n\xff\n{"event":"executor_ended","time":""}\n' + end)
    assert len(spoilt) == 3
    assert known.report.ended is not None
