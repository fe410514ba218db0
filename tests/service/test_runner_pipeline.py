"""The runner's pipeline with real sandboxes: what a task sees, and what its report says."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.errors import EngineUnavailable
from tesazure.model import Input, Output, Resources, State
from tesazure.report import Ended, ExecutorEnded, ExecutorStarted, Noted, Said, Started
from tests.contract.node import processes_with, wait_for
from tests.service.runner_bench import (
    RunnerBench,
    ended,
    events,
    executor,
    folded,
    lines,
    open_bench,
    runtime,
    shell,
    wait_for_exit,
)

MB = 10**6


@pytest.fixture(scope="module")
def bench() -> Iterator[RunnerBench]:
    with open_bench() as bench:
        yield bench


# -- order and outcome --------------------------------------------------------------------------


def test_a_task_from_start_to_end(bench: RunnerBench) -> None:
    found = bench.run(executor("echo", "hello"), notes=["unknown field x was ignored"])
    told = [type(event) for event in events(bench.last) if not isinstance(event, Said)]
    assert told == [Started, Noted, ExecutorStarted, ExecutorEnded, Noted, Ended]
    assert ended(found).state is State.COMPLETE
    assert found.log.logs[0].stdout == "hello\n"
    assert found.log.logs[0].exit_code == 0
    assert found.log.metadata["engine"] == "sandbox"
    assert found.log.metadata["host"] == os.uname().nodename
    assert {"pull_s", "stage_in_s", "run_s", "stage_out_s"} <= found.log.metadata.keys()
    assert all(float(found.log.metadata[name]) >= 0 for name in ("run_s", "stage_in_s"))
    first, second = found.log.system_logs[:2]
    assert "WARNING unknown field x was ignored" in first
    assert "an/image:1 is not used" in second
    assert not bench.last.report.with_name("report.jsonl.reserve").exists()


def test_executors_run_in_order_and_share_their_directories(bench: RunnerBench) -> None:
    found = bench.run(
        shell("pwd > /tmp/a; echo 1 >> /vol/log; echo one"),
        shell("cat /tmp/a; echo 2 >> /vol/log; echo two >&2", workdir="/vol"),
        shell("cat log; ls -d /tes-wd/shared /tes-wd/shared-global", workdir="/vol"),
        volumes=["/vol"],
    )
    assert ended(found).state is State.COMPLETE
    assert [log.stdout for log in found.log.logs] == [
        "one\n",
        "/\n",
        "1\n2\n/tes-wd/shared\n/tes-wd/shared-global\n",
    ]
    assert [log.stderr for log in found.log.logs] == ["", "two\n", ""]


def test_a_failure_stops_the_rest(bench: RunnerBench) -> None:
    found = bench.run(shell("exit 3"), executor("touch", "/tmp/second"))
    assert ended(found).state is State.EXECUTOR_ERROR
    assert ended(found).reason == "executor 0 ended with exit code 3"
    assert "ERROR executor 0 ended with exit code 3" in lines(found)
    assert [log.exit_code for log in found.log.logs] == [3]
    assert not (bench.last.root / "tmp/second").exists()


def test_ignore_error_runs_the_rest_and_completes(bench: RunnerBench) -> None:
    found = bench.run(shell("exit 3", ignore_error=True), executor("no-such", ignore_error=True))
    assert ended(found).state is State.COMPLETE
    assert [log.exit_code for log in found.log.logs] == [3, 127]
    assert "WARNING executor 0 ended with exit code 3; ignored" in lines(found)


def test_a_command_that_cannot_start_is_an_executor_failure(bench: RunnerBench) -> None:
    found = bench.run(executor("no-such-program"))
    assert ended(found).state is State.EXECUTOR_ERROR
    assert found.log.logs[0].exit_code == 127
    assert "no-such-program: command not found" in (found.log.logs[0].stderr or "")
    assert "could not be started: no-such-program: command not found" in lines(found)

    found = bench.run(executor("/etc/passwd"))
    assert ended(found).state is State.EXECUTOR_ERROR
    assert found.log.logs[0].exit_code == 126


def test_a_workdir_that_cannot_be_is_an_executor_failure(bench: RunnerBench) -> None:
    found = bench.run(executor("true", workdir="/usr/no/such"))
    assert ended(found).state is State.EXECUTOR_ERROR
    assert "workdir /usr/no/such: No such file or directory" in lines(found)


def test_out_of_memory_names_the_limit(bench: RunnerBench) -> None:
    found = bench.run(executor("tail", "/dev/zero"), resources=Resources(ram_gb=0.064))
    if "no control group for memory" in lines(found):
        pytest.skip("this user cannot make control groups; the warning is said")
    assert ended(found).state is State.EXECUTOR_ERROR
    assert found.log.logs[0].exit_code == 137
    assert "out of memory, it exceeded its limit of 0.064 GB" in lines(found)


def test_a_child_that_runs_out_of_memory_ends_the_executor(bench: RunnerBench) -> None:
    found = bench.run(shell("tail /dev/zero; exit 0"), resources=Resources(ram_gb=0.064))
    if "no control group for memory" in lines(found):
        pytest.skip("this user cannot make control groups; the warning is said")
    assert found.log.logs[0].exit_code == 137
    assert ended(found).state is State.EXECUTOR_ERROR


# -- time limit ---------------------------------------------------------------------------------


def test_the_time_limit_ends_the_task(bench: RunnerBench) -> None:
    marker = f"1000{secrets.randbelow(10**9)}"
    found = bench.run(
        shell(f"echo begun; sleep {marker} & sleep {marker}"),
        executor("true"),
        resources=runtime(0.4),
    )
    assert ended(found).state is State.SYSTEM_ERROR
    assert "timed out after 0.4 s" in lines(found)
    assert not ended(found).retryable
    assert found.log.logs[0].stdout == "begun\n"
    assert len(found.log.logs) == 1
    assert processes_with(marker) == []


def test_a_time_limit_that_is_not_reached(bench: RunnerBench) -> None:
    assert ended(bench.run(executor("true"), resources=runtime(30))).state is State.COMPLETE


# -- streams ------------------------------------------------------------------------------------


def test_stdin_stdout_stderr(bench: RunnerBench) -> None:
    found = bench.run(
        shell("cat; echo e1 >&2", stdin="/in/text", stdout="/made/for/out", stderr="/tmp/err"),
        shell("cat; echo and", stdin="/made/for/out", stdout="/made/for/next"),
        shell("cat", stdin="/tmp/err"),
        inputs=[Input(path="/in/text", content="given\n")],
        outputs=[Output(path="/made/for/next", url=f"file://{bench.files}/copied")],
    )
    assert ended(found).state is State.COMPLETE, lines(found)
    assert [log.stdout for log in found.log.logs] == ["given\n", "given\nand\n", "e1\n"]
    assert found.log.logs[0].stderr == "e1\n"
    assert (bench.last.root / "tmp/err").read_text() == "e1\n"
    assert bench.last.stream(0, "stdout").read_text() == "given\n"
    assert (bench.files / "copied").read_text() == "given\nand\n"


def test_stdout_and_stderr_in_one_file(bench: RunnerBench) -> None:
    bench.run(shell("echo 1; echo 2 >&2; echo 3", stdout="/log/all", stderr="/log/all"))
    assert (bench.last.root / "log/all").read_text() == "1\n2\n3\n"
    assert bench.last.stream(0, "stdout").read_text() == "1\n2\n3\n"
    assert bench.last.stream(0, "stderr").read_text() == "1\n2\n3\n"


def test_a_later_executor_does_not_write_into_an_earlier_ones_stream(bench: RunnerBench) -> None:
    bench.run(shell("echo 1", stdout="/log/x"), shell("echo 2", stdout="/log/x"))
    assert bench.last.stream(0, "stdout").read_text() == "1\n"
    assert (bench.last.root / "log/x").read_text() == "2\n"


def test_a_stdin_that_is_not_there_is_named(bench: RunnerBench) -> None:
    found = bench.run(executor("cat", stdin="/in/none"))
    assert ended(found).state is State.SYSTEM_ERROR
    assert "executor 0: stdin /in/none: No such file or directory" in lines(found)
    assert found.log.logs == []


def test_a_stdout_that_is_a_directory_is_named(bench: RunnerBench) -> None:
    found = bench.run(executor("true", stdout="/vol"), volumes=["/vol"])
    assert ended(found).state is State.SYSTEM_ERROR
    assert "executor 0: stdout /vol: Is a directory" in lines(found)


def test_tails_of_text_begin_with_a_character(bench: RunnerBench) -> None:
    found = bench.run(shell("printf 'aé日🧬%.0s' 1 2 3 4"), node={"tail_bytes": 12})
    assert found.log.logs[0].stdout == "aé日🧬"


def test_binary_output_has_a_tail_too(bench: RunnerBench) -> None:
    found = bench.run(shell("printf '\\000\\377\\376ok\\303'"))
    assert found.log.logs[0].stdout == "\0��ok�"
    assert bench.last.stream(0, "stdout").read_bytes() == b"\0\xff\xfeok\xc3"


def test_fifty_megabytes_of_output_stay_on_the_disk(bench: RunnerBench) -> None:
    wait = "until [ -e /tmp/go ]; do sleep 0.02; done"
    peaks = []
    for size in (0, 50 * MB):
        script = f"head -c {size} /dev/zero"
        attempt = bench.attempt(bench.plan(shell(script, stdout="/work/big"), shell(wait)))
        pid = bench.begin(attempt)
        wait_for(lambda attempt=attempt: len(folded(attempt).log.logs) == 2)
        status = Path(f"/proc/{pid}/status").read_text()
        peaks.append(int(status.partition("VmHWM:")[2].split()[0]))
        (attempt.root / "tmp/go").touch()
        wait_for_exit(pid)
        assert ended(folded(attempt)).state is State.COMPLETE
        assert attempt.stream(0, "stdout").stat().st_size == size
        assert attempt.stream(0, "stdout").samefile(attempt.root / "work/big")
    assert peaks[1] < peaks[0] + 4096  # KiB


def test_a_task_cannot_hide_its_own_streams(bench: RunnerBench) -> None:
    found = bench.run(shell("echo here; chmod 0 /log/out", stdout="/log/out"))
    assert ended(found).state is State.COMPLETE
    assert found.log.logs[0].stdout == "here\n"
    assert bench.last.stream(0, "stdout").stat().st_mode & 0o400


# -- files --------------------------------------------------------------------------------------


def test_inputs_and_outputs(bench: RunnerBench) -> None:
    (bench.files / "source").write_text("some text\n")
    found = bench.run(
        shell("tr a-z A-Z < /in/source > /out/result"),
        inputs=[Input(path="/in/source", url=f"file://{bench.files}/source")],
        outputs=[Output(path="/out/result", url=f"file://{bench.files}/result")],
    )
    assert ended(found).state is State.COMPLETE, lines(found)
    assert (bench.files / "result").read_text() == "SOME TEXT\n"
    assert (bench.files / "source").read_text() == "some text\n"
    assert [(o.path, o.size_bytes) for o in found.log.outputs] == [("/out/result", "10")]
    assert found.input_types
    assert found.output_types


def test_a_missing_input_is_a_system_error(bench: RunnerBench) -> None:
    found = bench.run(
        executor("true"), inputs=[Input(path="/in/x", url=f"file://{bench.files}/no-such")]
    )
    assert ended(found).state is State.SYSTEM_ERROR
    assert "no-such" in lines(found)
    assert found.log.logs == []


def test_a_missing_output_after_success_is_a_system_error(bench: RunnerBench) -> None:
    found = bench.run(
        executor("true"), outputs=[Output(path="/out/none", url=f"file://{bench.files}/none")]
    )
    assert ended(found).state is State.SYSTEM_ERROR
    assert "/out/none" in ended(found).reason


def test_outputs_are_collected_after_a_failure(bench: RunnerBench) -> None:
    found = bench.run(
        shell("echo partial > /out/there; exit 4"),
        outputs=[
            Output(path="/out/there", url=f"file://{bench.files}/partial"),
            Output(path="/out/none", url=f"file://{bench.files}/none"),
        ],
    )
    assert ended(found).state is State.EXECUTOR_ERROR
    assert (bench.files / "partial").read_text() == "partial\n"
    assert "WARNING" in next(line for line in found.log.system_logs if "/out/none" in line)


def test_files_written_anywhere_are_found(bench: RunnerBench) -> None:
    found = bench.run(
        shell("mkdir -p /data/x; echo 1 > /out.txt; echo 2 > /data/x/f; pwd"),
        outputs=[
            Output(path="/out.txt", url=f"file://{bench.files}/out.txt"),
            Output(path="/data/x/f", url=f"file://{bench.files}/f"),
        ],
    )
    assert ended(found).state is State.COMPLETE, lines(found)
    assert (bench.files / "out.txt").read_text() == "1\n"
    assert (bench.files / "f").read_text() == "2\n"


def test_shared_global_is_the_hosts_directory(bench: RunnerBench) -> None:
    outside = bench.path / "global"
    outside.mkdir(exist_ok=True)
    (outside / "known").write_text("to all")
    node = {"shared_global": str(outside)}
    script = "cat known; echo mine > new"
    found = bench.run(shell(script, workdir="/tes-wd/shared-global"), node=node)
    assert found.log.logs[0].stdout == "to all"
    assert (outside / "new").read_text() == "mine\n"


# -- planted links ------------------------------------------------------------------------------


def test_planted_links_do_not_lead_the_runner_out_of_the_tree(bench: RunnerBench) -> None:
    outside = bench.path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    found = bench.run(
        shell(f"rm -r /tes-wd/dir; ln -s {outside} /tes-wd/dir; ln -s {outside}/new /tes-wd/file"),
        shell("echo through", stdout="/tes-wd/dir/a/b", stderr="/tes-wd/file"),
        shell(f"rm -r /d; ln -s {outside} /d; ln -s {outside}/secret /tes-wd/in"),
        executor("cat", stdin="/tes-wd/in", stdout="/d/deep/out"),
    )
    assert ended(found).state is State.SYSTEM_ERROR
    assert "stdin /tes-wd/in" in ended(found).reason
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    # Inside, the link's target is a path of the container.
    assert (bench.last.root / str(outside).lstrip("/") / "a/b").read_text() == "through\n"


def test_planted_links_do_not_lead_mount_points_out_of_the_tree(bench: RunnerBench) -> None:
    outside = bench.path / "mounted"
    outside.mkdir()
    node = {"shared_global": str(bench.path / "shared")}
    (bench.path / "shared").mkdir()
    found = bench.run(
        shell(f"mv /tes-wd /old; ln -s /oldroot{outside} /tes-wd; ln -s /oldroot{outside} /x"),
        executor("true"),
        node=node,
    )
    assert ended(found).state is State.SYSTEM_ERROR
    assert "/tes-wd/shared-global" in ended(found).reason
    assert list(outside.iterdir()) == []


# -- faults of the node -------------------------------------------------------------------------


def test_a_vanished_engine_may_be_tried_again(bench: RunnerBench) -> None:
    node = {"engine": "docker", "engine_host": f"unix://{bench.path}/no-engine.sock"}
    found = bench.run(executor("true"), node=node)
    assert ended(found).state is State.SYSTEM_ERROR
    assert ended(found).retryable
    assert EngineUnavailable.__name__ not in ended(found).reason


def test_an_unexpected_failure_is_reported_without_a_traceback(bench: RunnerBench) -> None:
    attempt = bench.attempt(bench.plan(executor("true")))
    attempt.plan.write_bytes(b'{"task_id": 1}')
    wait_for_exit(bench.begin(attempt))
    found = folded(attempt)
    assert ended(found).state is State.SYSTEM_ERROR
    assert "ValidationError" in ended(found).reason
    assert "Traceback" not in attempt.report.read_text()
    assert "Traceback" in attempt.output.read_text()


@pytest.fixture
def small_disk(bench: RunnerBench) -> Iterator[RunnerBench]:
    """The attempts on a disk of 2 MB. Only root can mount one."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    small = RunnerBench(bench.path / "small", bench.spawner, bench.files)
    small.path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small.path], check=True)
    try:
        yield small
    finally:
        subprocess.run(["umount", "--lazy", small.path], check=True)
        small.path.rmdir()


def test_a_full_disk_at_stage_in_is_named(small_disk: RunnerBench) -> None:
    (small_disk.files / "large").write_bytes(b"x" * 3 * MB)
    large = Input(path="/in", url=f"file://{small_disk.files}/large")
    found = small_disk.run(executor("true"), inputs=[large])
    assert ended(found).state is State.SYSTEM_ERROR
    assert any(text in ended(found).reason.lower() for text in ("no space left", "disk is full"))


def test_a_full_disk_does_not_lose_the_end(small_disk: RunnerBench) -> None:
    script = "echo before; cat /dev/zero > /tmp/fill; echo after; exit 5"
    found = small_disk.run(shell(script))
    assert ended(found).state is State.EXECUTOR_ERROR
    assert found.log.logs[0].exit_code == 5


def test_each_event_is_notified(bench: RunnerBench) -> None:
    path = bench.path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(10)
        bench.run(executor("true"), node={"notify": str(path)})
        # The one before the node's configuration is read is not.
        for _ in events(bench.last)[1:]:
            assert listener.recv(16) == b""
    found = bench.run(executor("true"), node={"notify": str(path)})  # nobody listens any more
    assert ended(found).state is State.COMPLETE
