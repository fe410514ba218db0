"""The runner on a node: what it reports, that it runs once, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from tesazure.access import Access, RegistryLogin
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.files import BEGUN, AttemptFiles
from tesazure.errors import NotFound
from tesazure.model import FileType, Input, Output, State
from tesazure.report import Ended, Noted, Said, Started
from tesazure.runner.config import AttemptDir
from tesazure.runner.node import ExitCode
from tests.conftest import shared
from tests.service.node_bench import (
    NodeBench,
    bundle_of,
    config_of,
    endpoints_of,
    identity_of,
    is_running,
    node_bench,
    plan_of,
    until,
)
from tests.services.azurite import Azurite, AzuriteTls
from tests.services.base import is_alive
from tests.services.cutting_proxy import CuttingProxy
from tests.services.entra_server import EntraServer


@pytest.fixture
def azurite() -> Azurite:
    return shared(Azurite)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeBench]:
    async with node_bench(tmp_path) as bench:
        yield bench


def told_by(pid: int) -> bytes:
    """What other users of a machine, or its administrator's tools, see of a process."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


def everything_below(directory: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


async def test_an_attempt_is_run_and_all_of_it_comes_back(
    node: NodeBench, azurite: Azurite
) -> None:
    with azurite.container() as container, azurite.client() as client:
        client.get_blob_client(container, "in").upload_blob(b"12345")
        url = f"{azurite.endpoint}/{container}"
        plan = plan_of(
            "cat /in; echo told >&2; cp /in /tes-wd/out",
            "cat /tes-wd/out /tes-wd/out > /tes-wd/more; echo second",
            inputs=[Input(path="/in", url=f"{url}/in", type=FileType.FILE)],
            outputs=[
                Output(path="/tes-wd/out", url=f"{url}/out", type=FileType.FILE),
                Output(path="/tes-wd/more", url=f"{url}/more", type=FileType.FILE),
            ],
            volumes=["/tes-wd"],
        )
        sas = azurite.container_sas(container)
        access = Access(
            inputs={0: f"{url}/in?{sas}"},
            outputs={0: f"{url}/out?{sas}", 1: f"{url}/more?{sas}"},
            registry=RegistryLogin("registry.example", "me", "the-password"),
        )
        code, said, attempt = await node.run(
            plan,
            access=access,
            endpoints=azurite.endpoints,
            facts={"vm_size": "Standard_D2s_v5", "vm_price_per_hour_usd": "0.096"},
            cost_per_hour_usd=3600.0,
        )
        assert (code, said) == (ExitCode.ENDED, "")
        assert client.get_blob_client(container, "out").download_blob().readall() == b"12345"
        assert client.get_blob_client(container, "more").download_blob().readall() == b"12345" * 2

    first, second, *_ = await node.events(attempt.key)
    assert isinstance(first, Started)
    assert isinstance(second, Noted)
    assert second.metadata["vm_size"] == "Standard_D2s_v5"
    found = await node.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.COMPLETE
    facts = found.log.metadata
    assert facts["vm_price_per_hour_usd"] == "0.096"
    assert (facts["bytes_downloaded"], facts["bytes_uploaded"]) == ("5", "15")
    assert {"pull_s", "stage_in_s", "run_s", "stage_out_s", "engine", "host"} <= facts.keys()
    # A dollar a second.
    assert float(facts["run_s"]) <= float(facts["estimated_cost_usd"]) < 60
    assert await node.stream(attempt.key) == b"12345"
    assert await node.stream(attempt.key, 0, "stderr") == b"told\n"
    assert await node.stream(attempt.key, 1) == b"second\n"
    assert await node.stream(attempt.key, 1, "stderr") == b""
    # Nothing is left on the node, not even the room that it took.
    assert everything_below(node.path) == b""


async def test_report_and_streams_are_there_while_it_runs(node: NodeBench) -> None:
    attempt = await node.attempt(plan_of("echo one; while [ ! -e /go ]; do sleep 0.1; done"))
    directory = await node.download(attempt)
    process = node.start(directory)
    await node.begun(attempt.key)

    async def printed() -> bool:
        try:
            return await node.stream(attempt.key) == b"one\n"
        except NotFound:
            return False

    await until(printed)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert node.ended(process) == (ExitCode.ENDED, "")


async def test_secrets_are_on_the_node_in_memory_only(node: NodeBench, marker: str) -> None:
    access = Access(registry=RegistryLogin("registry.example", "me", "the-password"))
    attempt = await node.attempt(plan_of(f"sleep {marker}"), access=access)
    directory = await node.download(attempt)
    process = node.start(directory)
    runner = await node.begun(attempt.key)
    left = everything_below(node.path) + told_by(process.pid) + told_by(runner)
    assert b"a-task" in left
    for secret in (b"the-password", b"sig=", attempt.channel.report.encode()):
        assert secret not in left
    process.send_signal(signal.SIGINT)
    assert node.ended(process)[0] == ExitCode.ENDED
    assert b"sig=" not in await node.files.read_report(attempt.key, 0)


async def test_a_failure_of_the_command_brings_its_streams_and_outputs(
    node: NodeBench, azurite: Azurite
) -> None:
    with azurite.container() as container, azurite.client() as client:
        url = f"{azurite.endpoint}/{container}/log"
        plan = plan_of(
            "echo why > /tes-wd/log; echo why; exit 3",
            outputs=[Output(path="/tes-wd/log", url=url, type=FileType.FILE)],
            volumes=["/tes-wd"],
        )
        access = Access(outputs={0: f"{url}?{azurite.container_sas(container)}"})
        code, said, attempt = await node.run(plan, access=access, endpoints=azurite.endpoints)
        assert (code, said) == (ExitCode.ENDED, "")
        assert client.get_blob_client(container, "log").download_blob().readall() == b"why\n"
    found = await node.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.EXECUTOR_ERROR
    assert await node.stream(attempt.key) == b"why\n"


# -- once -----------------------------------------------------------------------------------------


async def test_an_attempt_that_began_is_not_begun_again(node: NodeBench) -> None:
    attempt = await node.attempt(plan_of("echo once"))
    assert node.ended(node.start(await node.download(attempt))) == (ExitCode.ENDED, "")
    before = await node.files.read_report(attempt.key, 0)

    code, said = node.ended(node.start(await node.download(attempt, "-again")))
    assert code == ExitCode.ALREADY_BEGUN
    assert said.count("\n") == 1
    assert "begun before" in said
    assert await node.files.read_report(attempt.key, 0) == before


async def test_of_runners_that_begin_together_one_runs(node: NodeBench) -> None:
    attempt = await node.attempt(plan_of("echo once"))
    directories = [await node.download(attempt, f"-{number}") for number in range(4)]
    processes = [node.start(directory) for directory in directories]
    codes = sorted(node.ended(process)[0] for process in processes)
    assert codes == [ExitCode.ENDED, *[ExitCode.ALREADY_BEGUN] * 3]
    assert sum(isinstance(event, Started) for event in await node.events(attempt.key)) == 1
    assert await node.stream(attempt.key) == b"once\n"


async def test_a_released_attempt_does_not_begin(node: NodeBench) -> None:
    attempt = await node.attempt(plan_of("echo never"))
    await node.files.put(attempt, "job", 60)
    await node.files.bury(attempt.key)
    code, said = node.ended(node.start(await node.download(attempt)))
    assert (code, said) == (ExitCode.ALREADY_BEGUN, "")
    assert await node.files.reports() == {}


async def test_an_attempt_whose_secrets_are_gone_is_not_begun_again(node: NodeBench) -> None:
    directory = node.wd("k")
    (directory / "attempt.json").write_bytes(BEGUN)
    assert node.ended(node.start(directory)) == (ExitCode.ALREADY_BEGUN, "")
    assert await node.files.reports() == {}


async def test_an_attempt_released_since_its_file_came_does_not_begin(node: NodeBench) -> None:
    attempt = await node.attempt(plan_of("echo never"))
    directory = await node.download(attempt)
    await node.files.bury(attempt.key)
    code, said = node.ended(node.start(directory))
    assert code == ExitCode.ALREADY_BEGUN
    assert "released" in said
    assert await node.files.reports() == {attempt.key: 0}
    assert not list(directory.iterdir())


async def test_an_attempt_forgotten_since_its_file_came_does_not_begin(node: NodeBench) -> None:
    attempt = await node.attempt(plan_of("echo never"))
    directory = await node.download(attempt)
    await node.files.forget(attempt.key)
    code, said = node.ended(node.start(directory))
    assert code == ExitCode.ALREADY_BEGUN
    assert "released" in said
    assert await node.files.read_report(attempt.key, 0) == b""


async def test_who_cannot_tell_whether_it_is_released_reports_that(node: NodeBench) -> None:
    attempt = await node.attempt(plan_of("echo never"))
    directory = await node.download(attempt)
    url = attempt.channel.attempt.replace("sig=", "sig=AA")
    channel = msgspec.structs.replace(attempt.channel, attempt=url)
    attempt = msgspec.structs.replace(attempt, channel=channel)
    (directory / "attempt.json").write_bytes(msgspec.json.encode(attempt))
    code, said = node.ended(node.start(directory))
    assert code == ExitCode.ENDED
    assert "sig=" not in said
    found = await node.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.SYSTEM_ERROR
    assert found.ended.retryable
    assert "the attempt's blob" in found.ended.reason
    assert "sig=" not in found.ended.reason


async def test_an_attempt_released_while_it_runs_is_ended(node: NodeBench, marker: str) -> None:
    attempt = await node.attempt(plan_of("sleep 1", f"sleep {marker}"))
    process = node.start(await node.download(attempt))
    await node.begun(attempt.key)
    await node.files.bury(attempt.key)
    code, said = node.ended(process)
    assert code == ExitCode.UNDELIVERED
    assert "not there, or no more" in said
    assert not is_running(marker)
    assert await node.files.reports() == {}


# -- ends -----------------------------------------------------------------------------------------


async def test_sigterm_cancels_the_attempt_and_is_reported(node: NodeBench, marker: str) -> None:
    attempt = await node.attempt(plan_of(f"echo begun; sleep {marker}"))
    process = node.start(await node.download(attempt))
    await node.begun(attempt.key)
    process.send_signal(signal.SIGTERM)
    assert node.ended(process) == (ExitCode.ENDED, "")
    found = await node.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.CANCELED
    assert await node.stream(attempt.key) == b"begun\n"
    assert not is_running(marker)
    assert not list((node.path / "shared" / "tesazure").iterdir())


async def test_a_killed_attempt_has_no_end_but_a_reason(node: NodeBench, marker: str) -> None:
    attempt = await node.attempt(plan_of(f"echo begun; touch /tmp/said; sleep {marker}"))
    directory = await node.download(attempt)
    process = node.start(directory)
    mark = AttemptDir(directory / "attempt").root / "tmp" / "said"

    async def has_said() -> bool:
        return mark.exists()

    await until(has_said)
    os.kill(await node.begun(attempt.key), signal.SIGKILL)
    code, said = node.ended(process)
    assert code == ExitCode.DIED
    assert "the runner was killed by SIGKILL" in said
    events = await node.events(attempt.key)
    assert not any(isinstance(event, Ended) for event in events)
    last = events[-1]
    assert isinstance(last, Said)
    assert last.message == "the runner was killed by SIGKILL"
    assert await node.stream(attempt.key) == b"begun\n"
    assert not is_running(marker)


async def test_with_the_process_that_batch_started_all_of_it_ends(
    node: NodeBench, marker: str
) -> None:
    attempt = await node.attempt(plan_of(f"sleep {marker}"))
    process = node.start(await node.download(attempt))
    runner = await node.begun(attempt.key)
    process.kill()
    assert node.ended(process)[0] == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while is_running(marker) or is_alive(runner):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    # Whoever comes next sweeps up.
    left = node.path / "shared" / "tesazure"
    assert [path.name for path in left.iterdir()] == [attempt.key]
    code, said, _ = await node.run(plan_of("true"))
    assert (code, said) == (ExitCode.ENDED, "")
    assert not list(left.iterdir())


@pytest.mark.parametrize("content", [b"{", b'{"key": 1}', None])
async def test_what_is_no_attempt_is_refused(node: NodeBench, content: bytes | None) -> None:
    directory = node.wd("nothing")
    if content is not None:
        (directory / "attempt.json").write_bytes(content)
    code, said = node.ended(node.start(directory))
    assert code == ExitCode.UNREADABLE
    assert said.startswith("attempt.json: ")
    assert said.count("\n") == 1
    assert not list(directory.iterdir())


@pytest.mark.slow
async def test_without_a_report_nothing_runs(node: NodeBench, marker: str) -> None:
    attempt = await node.attempt(plan_of(f"sleep {marker}"))
    late = await node.files.channel(attempt.key, 1, -60.0)
    attempt = msgspec.structs.replace(attempt, channel=late)
    code, said = node.ended(node.start(await node.download(attempt)))
    assert code == ExitCode.NOT_BEGUN
    assert "HTTP 403" in said
    assert "its URL has expired" in said
    assert "sig=" not in said
    assert await node.files.reports() == {}


async def test_a_node_that_cannot_begin_reports_why(node: NodeBench) -> None:
    attempt = await node.attempt(plan_of("true"))
    directory = await node.download(attempt)
    (directory / "attempt").write_text("in the way")
    code, said = node.ended(node.start(directory))
    assert code == ExitCode.ENDED
    assert "File exists" in said
    found = await node.report(attempt.key)
    assert found.ended is not None
    assert found.ended.state is State.SYSTEM_ERROR
    assert found.ended.retryable
    assert "File exists" in found.ended.reason


def through(proxy: CuttingProxy, config: BatchConfig) -> BatchConfig:
    """For nodes that reach storage by the proxy."""
    url = config.storage_url.replace(f":{urlsplit(config.storage_url).port}", f":{proxy.port}")
    return msgspec.structs.replace(config, storage_url=url)


# -- networks -------------------------------------------------------------------------------------


async def test_nothing_is_lost_on_a_bad_network(azurite: Azurite, tmp_path: Path) -> None:
    with CuttingProxy(azurite.port) as proxy:
        config = config_of(azurite)
        near, far = AttemptFiles(config), AttemptFiles(through(proxy, config))
        await near.start()
        node = NodeBench(near, tmp_path)
        attempt = await node.attempt(
            plan_of("for i in 1 2 3 4 5 6; do seq 60000; sleep 0.3; done; seq 500000; echo done")
        )
        attempt = msgspec.structs.replace(attempt, channel=await far.channel(attempt.key, 1, 3600))
        directory = await node.download(attempt)
        proxy.cuts = [900, 4000, 200_000, 1500, 2_000_000]
        process = node.start(directory)
        await node.begun(attempt.key)
        proxy.hold()
        await asyncio.sleep(1)
        proxy.flowing.set()
        code, said = node.ended(process)
        assert code == ExitCode.ENDED
        assert "sig=" not in said
        printed = "".join(f"{number}\n" for number in range(1, 60001)) * 6
        printed += "".join(f"{number}\n" for number in range(1, 500001)) + "done\n"
        assert await node.stream(attempt.key) == printed.encode()
        found = await node.report(attempt.key)
        assert found.ended is not None
        assert found.ended.state is State.COMPLETE
        await near.stop()
        await far.stop()


async def test_a_report_that_cannot_be_delivered_is_told_by_the_exit_code(
    node: NodeBench, azurite: Azurite, tmp_path: Path
) -> None:
    with CuttingProxy(azurite.port) as proxy:
        far = AttemptFiles(through(proxy, node.files._config))
        script = "until [ -e /tmp/go ]; do sleep 0.02; done"
        attempt = await node.attempt(plan_of(script), deliver_s=1.0)
        attempt = msgspec.structs.replace(attempt, channel=await far.channel(attempt.key, 1, 3600))
        directory = await node.download(attempt)
        process = node.start(directory)
        await node.begun(attempt.key)
    (AttemptDir(directory / "attempt").root / "tmp" / "go").touch()
    code, said = node.ended(process)
    assert code == ExitCode.UNDELIVERED
    assert "the time for sending it is over; " in said
    assert "sig=" not in said
    await far.stop()


async def test_an_identity_signs_for_nodes_that_know_nobody(tmp_path: Path) -> None:
    azurite = shared(AzuriteTls)
    with EntraServer(tmp_path / "issuer") as issuer:
        bundle = bundle_of(tmp_path, azurite.ca, issuer)
        identity = msgspec.structs.replace(identity_of(issuer), ca_bundle=str(bundle))
        files = AttemptFiles(
            config_of(azurite, storage_key="", identity=identity, ca_bundle=str(bundle))
        )
        await files.start()
        bench = NodeBench(files, tmp_path, str(azurite.ca))
        try:
            attempt = await bench.attempt(plan_of("echo hello"), endpoints=endpoints_of(azurite))
            assert "skoid=" in attempt.channel.report
            directory = await bench.download(attempt)
            assert bench.ended(bench.start(directory)) == (ExitCode.ENDED, "")
            assert await bench.stream(attempt.key) == b"hello\n"
        finally:
            bench.close()
            await files.stop()
