"""The Batch stand-in's pools and nodes: how they come, fail, are preempted, and scale."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.batch import models
from azure.core.exceptions import HttpResponseError, ResourceExistsError

from tests.services.base import processes_naming
from tests.services.batch_nodes import SimulatedTask
from tests.services.batch_server import Failed, NodeScript
from tests.services_selftest.batch_account import (
    BatchAccount,
    code_of,
    machine,
    script,
    until_killed,
)

BY_DEMAND = """
    // As many nodes as tasks, at most two.
    pending = max(0, $PendingTasks.GetSample(1));
    $TargetDedicatedNodes = min(2, pending);
    $NodeDeallocationOption = taskcompletion;
"""


@pytest.fixture
def real(tmp_path: Path) -> Iterator[BatchAccount]:
    """An account whose command lines run as processes."""
    with BatchAccount(tmp_path / "batch") as found:
        yield found


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[BatchAccount]:
    """An account whose tasks run until they are ended."""
    with BatchAccount(tmp_path / "batch", simulation=until_killed) as found:
        yield found


# ---------------------------------------------------------------------- nodes


def test_slots(simulated: BatchAccount) -> None:
    simulated.pool(task_slots_per_node=4)
    simulated.run("x", "x", required_slots=2)
    simulated.run("x", required_slots=1)
    simulated.wait(["t0", "t1"], "running")
    assert simulated.client.get_task("p", "t2").state == "active"
    node = next(iter(simulated.client.list_nodes("p")))
    assert node.running_task_slots_count == 4
    simulated.client.terminate_task("p", "t0")
    simulated.wait(["t2"], "running")


@pytest.mark.parametrize("counts", [False, True])
def test_a_preempted_task_begins_again_elsewhere(
    real: BatchAccount, tmp_path: Path, counts: bool
) -> None:
    real.server.fleet.losses_count = counts
    real.pool(target_low_priority_nodes=1)
    mark = tmp_path / "running"
    text = f"open('ready', 'w'); import time; time.sleep(60) # {mark}/"
    real.run(script(text))
    real.wait_for_file("t0", "wd/ready")
    first = real.server.node_of("p", "t0")
    task = real.server.task("p", "t0")
    assert task is not None
    assert task.execution is not None
    lost = task.execution.root
    assert lost is not None
    real.server.timing.replacement_s = math.inf
    real.server.preempt(first)
    found = real.client.get_task("p", "t0")
    assert (found.state, found.previous_state) == ("active", "running")
    assert found.execution_info is not None
    assert found.execution_info.requeue_count == int(counts)
    assert (found.execution_info.last_requeue_time is not None) == counts
    assert found.execution_info.start_time is None
    assert real.client.get_node("p", first).state == "preempted"
    assert real.client.get_pool("p").current_low_priority_nodes == 1
    real.server.wait_for(lambda _: not lost.exists())
    assert list(processes_naming(mark)) == []
    real.server.restore(first)
    real.wait_for_file("t0", "wd/ready")
    assert real.client.get_task("p", "t0").state == "running"


def test_a_preempted_node_is_replaced_unless_there_is_a_shortage(simulated: BatchAccount) -> None:
    simulated.server.timing.replacement_s = 0.05
    simulated.pool(target_low_priority_nodes=1)
    simulated.wait(simulated.run("x"), "running")
    simulated.server.shortage(spot=True)
    simulated.server.preempt(simulated.server.node_of("p", "t0"))
    assert simulated.server.nodes("p", "preempted")
    simulated.server.plenty()
    simulated.wait(["t0"], "running")


@pytest.mark.parametrize("state", ["unusable", "unknown", "offline"])
def test_a_node_that_fails(simulated: BatchAccount, state: str) -> None:
    simulated.pool(target_dedicated_nodes=2)
    simulated.server.wait_for(lambda it: len(it.nodes("p", "idle")) == 2)
    simulated.wait(simulated.run("x"), "running")
    first = simulated.server.node_of("p", "t0")
    simulated.server.fail_node(first, state, "DiskFull", "There is not enough disk space")
    simulated.wait(["t0"], "running")
    assert simulated.server.node_of("p", "t0") != first
    bad = list(simulated.client.list_nodes("p", filter=f"state eq '{state}'"))
    assert [node.id for node in bad] == [first]
    assert bad[0].errors is not None
    assert bad[0].errors[0].code == "DiskFull"
    counts = next(iter(simulated.client.list_pool_node_counts(filter="poolId eq 'p'")))
    assert counts.dedicated is not None
    assert counts.dedicated.total == 2
    assert counts.dedicated.running == 1


def test_a_reboot_requeues(simulated: BatchAccount) -> None:
    simulated.server.fleet.losses_count = True
    simulated.pool()
    simulated.wait(simulated.run("x"), "running")
    simulated.server.reboot(simulated.server.node_of("p", "t0"))
    simulated.server.wait_for(
        lambda it: (task := it.task("p", "t0")) is not None and task.requeues == 1
    )
    simulated.wait(["t0"], "running")


def test_start_tasks_that_fail_and_nodes_that_never_come(simulated: BatchAccount) -> None:
    simulated.server.script_nodes(
        NodeScript("starttaskfailed"), NodeScript("starting"), NodeScript(delay_s=0.1)
    )
    start = models.BatchStartTask(command_line="true", wait_for_success=True)
    simulated.pool(target_dedicated_nodes=3, start_task=start)
    simulated.server.wait_for(
        lambda it: all(it.nodes("p", state) for state in ("starttaskfailed", "starting", "idle"))
    )
    failed = list(simulated.client.list_nodes("p", filter="startTaskInfo/result eq 'failure'"))
    assert len(failed) == 1
    assert failed[0].start_task_info is not None
    assert failed[0].start_task_info.exit_code == 1


def test_scripted_ends_of_tasks(simulated: BatchAccount) -> None:
    simulated.pool()
    simulated.server.fail_tasks(Failed("DiskFull", "The disk is full", "servererror"))
    simulated.server.fail_tasks(75, lambda task: task.id == "t1")
    simulated.wait(simulated.run("x", "x"))
    first, second = simulated.info("t0"), simulated.info("t1")
    assert first.failure_info is not None
    assert first.failure_info.code == "DiskFull"
    assert second.exit_code == 75


# ---------------------------------------------------------------------- pools


def test_resizing(simulated: BatchAccount) -> None:
    simulated.pool()
    simulated.server.wait_for(lambda it: len(it.nodes("p", "idle")) == 1)
    simulated.wait(simulated.run("x"), "running")
    resize = models.BatchPoolResizeOptions(target_dedicated_nodes=0, target_low_priority_nodes=1)
    simulated.client.begin_resize_pool("p", resize, polling_interval=0)
    simulated.server.wait_for(
        lambda it: (task := it.task("p", "t0")) is not None and task.requeues == 1
    )
    simulated.wait(["t0"], "running")
    assert simulated.server.node_of("p", "t0").endswith("p")


def test_quotas_and_shortages_of_nodes(simulated: BatchAccount) -> None:
    simulated.server.quotas.dedicated_cores = 4
    simulated.pool("q", target_dedicated_nodes=3)
    simulated.server.shortage(spot=True, most=1)
    simulated.pool("s", target_low_priority_nodes=2)
    simulated.server.wait_for(lambda it: bool(it.nodes("q") and it.nodes("s")))
    found = {pool.id: pool for pool in simulated.client.list_pools()}
    assert (found["q"].current_dedicated_nodes, found["s"].current_low_priority_nodes) == (2, 1)
    codes = [(found[id_].resize_errors or [])[0].code for id_ in ("q", "s")]
    assert codes == ["AccountCoreQuotaReached", "AllocationFailed"]
    assert {pool.allocation_state for pool in found.values()} == {"steady"}


def test_autoscaling_follows_its_formula(simulated: BatchAccount) -> None:
    simulated.server.timing.shrink_s = 0
    simulated.pool(auto_scale_formula=BY_DEMAND)
    assert simulated.server.nodes("p") == []
    simulated.run("x", "x", "x")
    simulated.wait(["t0", "t1"], "running")
    simulated.client.delete_task("p", "t2")
    for id_ in ("t0", "t1"):
        simulated.client.terminate_task("p", id_)
    simulated.server.wait_for(lambda it: it.nodes("p") == [])
    run = simulated.client.get_pool("p").auto_scale_run
    assert run is not None
    assert "$TargetDedicatedNodes=0" in (run.results or "")


def test_autoscaling_on_request_alone(simulated: BatchAccount) -> None:
    simulated.server.timing.autoscale_s = math.inf
    simulated.server.timing.between_enables_s = math.inf
    simulated.pool(auto_scale_formula=BY_DEMAND)
    simulated.run("x")
    options = models.BatchPoolEnableAutoScaleOptions(auto_scale_formula=BY_DEMAND)
    simulated.client.enable_pool_auto_scale("p", options)
    with pytest.raises(HttpResponseError) as raised:
        simulated.client.enable_pool_auto_scale("p", options)
    assert code_of(raised.value) == "TooManyEnableAutoScaleRequests"
    simulated.wait(["t0"], "running")


@pytest.mark.parametrize(
    "text",
    [
        "nodes = 1;",
        "$TargetDedicatedNodes = 1",
        "$TargetDedicatedNodes = unknown;",
        "$TargetDedicatedNodes = 1 + TimeInterval_Minute;",
        "$TargetDedicatedNodes = time() < 3 ? 1 : 0;",
        "$TargetDedicatedNodes = surprise(1);",
        "$TargetDedicatedNodes = avg($PendingTasks);",
        "$Nodes = 1; $TargetDedicatedNodes = 1;",
        "$TargetDedicatedNodes = 1 / 0;",
        "$TargetDedicatedNodes = @;",
    ],
)
def test_formulas_that_cannot_be(simulated: BatchAccount, text: str) -> None:
    with pytest.raises(HttpResponseError) as raised:
        simulated.pool(auto_scale_formula=text)
    assert code_of(raised.value) == "AutoScalingFormulaSyntaxError"


def test_pools_that_contradict_themselves(simulated: BatchAccount) -> None:
    with pytest.raises(HttpResponseError):
        simulated.pool(task_slots_per_node=257)
    with pytest.raises(HttpResponseError):
        simulated.pool(auto_scale_formula=BY_DEMAND, target_dedicated_nodes=1)
    with pytest.raises(HttpResponseError):
        simulated.pool(virtual_machine_configuration=None)


def test_a_pool_that_is_being_deleted_is_not_deleted_again(simulated: BatchAccount) -> None:
    simulated.server.timing.deletion_s = math.inf
    simulated.pool()
    simulated.send("DELETE", "/pools/p")
    with pytest.raises(ResourceExistsError) as raised:
        simulated.client.begin_delete_pool("p", polling_interval=0)
    assert code_of(raised.value) == "PoolBeingDeleted"


def test_deleting_a_pool_and_a_job(simulated: BatchAccount) -> None:
    simulated.pool()
    simulated.wait(simulated.run("x"), "running")
    simulated.client.begin_delete_pool("p", polling_interval=0)
    simulated.server.wait_for(lambda it: it.world.pools.get("p") is None)
    assert simulated.client.get_task("p", "t0").state == "active"
    again = models.BatchPoolCreateOptions(
        id="p",
        vm_size="Standard_D2s_v5",
        virtual_machine_configuration=machine(),
        target_dedicated_nodes=1,
    )
    simulated.client.create_pool(again)
    simulated.wait(["t0"], "running")
    simulated.client.begin_delete_job("p", polling_interval=0)
    simulated.server.wait_for(lambda it: it.world.jobs.get("p") is None)
    simulated.server.wait_for(lambda it: bool(it.nodes("p", "idle")))


def test_a_job_may_be_made_before_its_pool(simulated: BatchAccount) -> None:
    simulated.client.create_job(
        models.BatchJobCreateOptions(id="early", pool_info=models.BatchPoolInfo(pool_id="p"))
    )
    simulated.run("x", job="early")
    simulated.pool()
    simulated.wait(["t0"], "running", job="early")


def test_passwords_of_registries_are_not_told(simulated: BatchAccount) -> None:
    given = machine(containers=True)
    assert given.container_configuration is not None
    given.container_configuration.container_registries = [
        models.ContainerRegistryReference(
            registry_server="r.example.org", username="u", password="hush"
        )
    ]
    simulated.pool(virtual_machine_configuration=given)
    assert "hush" not in str(simulated.client.get_pool("p").as_dict())


@pytest.mark.serial
def test_many_tasks_on_simulated_nodes(tmp_path: Path) -> None:
    def play(task: SimulatedTask) -> int:
        return int(task.id[1:]) % 2

    with BatchAccount(tmp_path, simulation=play) as account:
        account.pool(target_dedicated_nodes=10, task_slots_per_node=8)
        tasks = [models.BatchTaskCreateOptions(id=f"t{n}", command_line="x") for n in range(2000)]
        start = time.monotonic()
        account.client.create_tasks("p", tasks)
        account.wait([f"t{n}" for n in range(2000)])
        taken_s = time.monotonic() - start
        select = ["id", "state", "executionInfo"]
        found = list(account.client.list_tasks("p", select=select))
        assert len(found) == 2000
        codes = [task.execution_info and task.execution_info.exit_code for task in found]
        assert codes.count(1) == 1000
        assert account.server.calls["Task_AddCollection"] == 20
        assert taken_s < 30
