"""What is said of pools that attempts wait for."""

from __future__ import annotations

import msgspec
import pytest

from tesazure.backends.azure_batch.pool_words import Look, after, bad_node, resize_error, waiting

SPOT = Look(vm_size="Standard_D2as_v5", spot=True, maximum=5)
BEGIN = "waiting for a node of pool p (Standard_D2as_v5, Spot): "


def said(**more: object) -> str:
    return waiting("p", msgspec.structs.replace(SPOT, **more))


def test_before_any_look_the_pool_is_named() -> None:
    assert waiting("p", None) == "waiting for a node of pool p"


@pytest.mark.parametrize(
    ("more", "end"),
    [
        ({}, "nodes are asked for"),
        ({"resizing": True}, "nodes are asked for"),
        ({"starting": 1}, "nodes are starting"),
        ({"running": 2, "starting": 1}, "nodes are starting"),
        ({"running": 5}, "all nodes that it may have are busy (BATCH_MAX_NODES and quotas)"),
        ({"running": 2}, "its turn comes when a node is free"),
        ({"idle": 2}, "its turn comes when a node is free"),
        ({"preempted": 2}, "Azure took its Spot nodes away, and others are asked for (preempted)"),
        ({"bad": ("a node cannot be used (unusable)",)}, "a node cannot be used (unusable)"),
        (
            {"bad": ("a node cannot be used (unusable)",), "tries_one": True},
            (
                "no node of it works, so that one at a time is tried: a node cannot be used"
                " (unusable)"
            ),
        ),
        (
            {"target": 1, "errors": (("AllocationFailed", "x"),)},
            "Azure could not allocate such nodes (AllocationFailed)",
        ),
        ({"errors": (("AllocationFailed", "x"),)}, "nodes are asked for"),
        (
            {"running": 2, "target": 2, "errors": (("AllocationFailed", "x"),)},
            "its turn comes when a node is free",
        ),
        (
            {"errors": (("AutoScalingFormulaEvaluationError", "It is wrong."),)},
            "It is wrong. (AutoScalingFormulaEvaluationError)",
        ),
        (
            {"running": 1, "target": 2, "errors": (("AllocationFailed", "x"),)},
            (
                "all nodes that there are have work, and no more come: Azure could not allocate"
                " such nodes (AllocationFailed)"
            ),
        ),
    ],
)
def test_what_is_missing(more: dict[str, object], end: str) -> None:
    assert said(**more) == BEGIN + end


def test_the_words_do_not_change_with_numbers() -> None:
    assert said(running=1) == said(running=3, idle=1)
    assert said(starting=1) == said(starting=4, running=1)


def test_the_words_do_not_change_while_batch_tries_again() -> None:
    failed = msgspec.structs.replace(SPOT, target=3, errors=(("AllocationFailed", "x"),))
    trying = msgspec.structs.replace(failed, errors=(), resizing=True)
    assert after(failed, trying) == msgspec.structs.replace(failed, resizing=True)
    assert waiting("p", after(failed, trying)) == waiting("p", failed)
    other = (("AccountCoreQuotaReached", "y"),)
    assert after(failed, msgspec.structs.replace(failed, errors=other)).errors == other
    well = msgspec.structs.replace(failed, errors=(), idle=3)
    assert after(failed, well) == well
    assert after(None, trying) == trying


def test_a_job_that_somebody_disabled() -> None:
    assert said(idle=1, job="disabled") == (
        "somebody has disabled its job on pool p; it waits until the job is enabled"
    )


def test_pools_that_go() -> None:
    assert waiting("p", Look(state="deleting")) == "pool p is being deleted"
    assert waiting("p", Look(state="gone")) == "pool p is gone: somebody deleted it"


def test_an_error_said_twice_is_said_once() -> None:
    twice = (("AccountCoreQuotaReached", "a"), ("AccountCoreQuotaReached", "a"))
    assert said(errors=twice, target=1).count("AccountCoreQuotaReached") == 1


def test_unknown_codes_come_with_batchs_message() -> None:
    assert resize_error("New", "Something is new.") == "Something is new. (New)"
    assert resize_error("New", "") == "the pool cannot grow (New)"
    assert "Spot cores" in resize_error("AccountSpotCoreQuotaReached", "")


def test_nodes() -> None:
    assert (
        bad_node("starttaskfailed", [("DiskFull", "The disk is full")])
        == "could not be made ready: The disk is full (DiskFull)"
    )
    assert bad_node("unusable", []) == "cannot be used (unusable)"
    assert bad_node("new", []) == "is in state new (new)"
