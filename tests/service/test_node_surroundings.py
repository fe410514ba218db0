"""The runner on a node: what it makes of the node that it comes to, and of what it finds there."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tesazure.access import RegistryIdentity
from tesazure.model import State
from tesazure.runner.node import ExitCode
from tests.conftest import refuse
from tests.service.node_bench import NodeBench, node_bench, plan_of, until
from tests.services.metadata_service import POOL_IDENTITY


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeBench]:
    async with node_bench(tmp_path) as bench:
        yield bench


async def test_what_a_killed_runner_left_is_swept_up_by_one_that_runs(
    node: NodeBench, marker: str
) -> None:
    living = await node.attempt(plan_of(f"sleep {marker}"))
    survivor = node.start(await node.download(living))
    await node.begun(living.key)
    dying = await node.attempt(plan_of("sleep 100"))
    process = node.start(await node.download(dying))
    await node.begun(dying.key)
    process.kill()
    left = node.path / "shared" / "tesazure"

    async def swept() -> bool:
        await asyncio.sleep(0.05)
        return [path.name for path in left.iterdir()] == [living.key]

    await until(swept)
    survivor.send_signal(signal.SIGTERM)
    assert node.ended(survivor) == (ExitCode.ENDED, "")


async def test_last_words_are_found_in_a_log_of_any_size(node: NodeBench) -> None:
    attempt = await node.attempt(plan_of("sleep 100"))
    directory = await node.download(attempt)
    process = node.start(directory)
    runner = await node.begun(attempt.key)
    with (directory / "attempt" / "runner.log").open("r+b") as log:
        log.seek(2**40)  # more than any memory; it takes no room
        log.write(b"\nlast words\n")
    os.kill(runner, signal.SIGKILL)
    code, said = node.ended(process)
    assert code == ExitCode.DIED
    assert "the runner was killed by SIGKILL: last words\n" in said


BWRAP = """#!/bin/sh
case "$*" in *--version) echo "bwrap: Can't mount /newroot: gone" >&2; exit 1 ;; esac
exec {bwrap} "$@"
"""
"""Fails for whoever only tries whether it can make a sandbox."""


async def test_an_engine_that_did_not_answer_at_first_is_asked_by_the_attempt(
    node: NodeBench, short_dir: Path
) -> None:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        refuse("there is no program bwrap (Debian package bubblewrap)")
    (short_dir / "bwrap").write_text(BWRAP.format(bwrap=bwrap))
    (short_dir / "bwrap").chmod(0o755)
    attempt = await node.attempt(plan_of("true"))
    process = node.start(await node.download(attempt), PATH=f"{short_dir}:{os.environ['PATH']}")
    code, said = node.ended(process)
    assert code == ExitCode.ENDED
    assert "cannot make a sandbox here: bwrap: Can't mount /newroot: gone" in said
    found = await node.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.COMPLETE, found.log.system_logs
    assert found.log.metadata["engine"] == "sandbox"


async def test_executors_are_never_in_a_network_in_which_identities_have_tokens(
    node: NodeBench,
) -> None:
    identity = RegistryIdentity(host="reg.azurecr.io", id=POOL_IDENTITY)
    plan = plan_of("true")
    code, _, attempt = await node.run(plan, registry_identity=identity)
    assert code == ExitCode.ENDED
    found = await node.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.SYSTEM_ERROR
    assert not found.ended.retryable
    assert found.ended.reason.startswith("the sandbox engine runs no executors on a node with an")
    assert found.log.logs == []
    _, _, attempt = await node.run(plan, registry_identity=identity, network=False)
    found = await node.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.COMPLETE, found.log.system_logs


SPOT = {"vm_kind": "spot", "vm_price_per_hour_usd": "0.02"}
DEDICATED = {"vm_kind": "dedicated", "vm_price_per_hour_usd": "0.1"}


@pytest.mark.parametrize(
    ("planned", "is_dedicated", "kind", "price", "cost_per_hour"),
    [
        (SPOT, "true", "dedicated", "0.1", 0.05),
        (SPOT, "false", "spot", "0.02", 0.01),
        (SPOT, "", "spot", "0.02", 0.01),
        (DEDICATED, "true", "dedicated", "0.1", 0.01),
        (DEDICATED, "false", "spot", None, None),
        ({}, "true", "dedicated", None, 0.01),
    ],
)
async def test_an_attempt_is_counted_as_what_its_node_came_to_be(
    node: NodeBench,
    planned: dict[str, str],
    is_dedicated: str,
    kind: str,
    price: str | None,
    cost_per_hour: float | None,
) -> None:
    attempt = await node.attempt(
        plan_of("true"),
        facts={"vm_size": "Standard_D2s_v5", **planned},
        cost_per_hour_usd=0.01 * 3600e3,
        dedicated_price_per_hour_usd=0.1,
        dedicated_cost_per_hour_usd=0.05 * 3600e3,
    )
    directory = await node.download(attempt)
    started = time.monotonic()
    process = node.start(directory, AZ_BATCH_NODE_IS_DEDICATED=is_dedicated)
    assert node.ended(process) == (ExitCode.ENDED, "")
    facts = (await node.report(attempt.key)).log.metadata
    assert facts["vm_size"] == "Standard_D2s_v5"
    assert facts["vm_kind"] == kind
    assert facts.get("vm_price_per_hour_usd") == price
    if cost_per_hour is None:
        assert "estimated_cost_usd" not in facts
    else:
        seconds = float(facts["estimated_cost_usd"]) / cost_per_hour / 1e3
        assert float(facts["run_s"]) <= seconds <= time.monotonic() - started


@pytest.fixture
def mounted_share(node: NodeBench) -> Iterator[Path]:
    """As a node mounts it; only root can."""
    if os.geteuid() != 0:
        refuse("mounting a file system needs root")
    path = node.mounts / "mounted"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


async def test_a_share_that_is_mounted_is_used(node: NodeBench, mounted_share: Path) -> None:
    plan = plan_of("echo hello > /tes-wd/shared-global/greeting")
    _, _, attempt = await node.run(plan, shared_global=mounted_share.name)
    found = await node.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.COMPLETE, found.log.system_logs
    assert (mounted_share / "greeting").read_text() == "hello\n"


@pytest.mark.parametrize("leave", ["nothing", "a directory"])
async def test_the_share_must_be_mounted(node: NodeBench, leave: str) -> None:
    if leave == "a directory":  # of the node's own disk, at which the share was to be
        (node.mounts / "share").mkdir()
    plan = plan_of("echo hello > /tes-wd/shared-global/greeting")
    code, _, attempt = await node.run(plan, shared_global="share")
    assert code == ExitCode.ENDED
    found = await node.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.SYSTEM_ERROR
    assert found.ended.retryable
    assert found.ended.reason == "/tes-wd/shared-global: share is not mounted on this node"
    assert leave == "nothing" or not list((node.mounts / "share").iterdir())
