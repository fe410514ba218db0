"""The runner's pipeline with real sandboxes: what a task sees, and what its report says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
    runtime,
    shell,
    wait_for_exit,
)

MB = 10**6


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


def test_a_failure_is_sorted_by_what_failed(bench: RunnerBench) -> None:
    absent = str(bench.files / "absent")
    ok = executor("true")
    ignored = shell("exit 3", ignore_error=True)
    lost = [Output(path="/tes-wd/none", url=absent)]
    found = {
        "": bench.run(ignored, ok),
        "executor": bench.run(ignored, shell("exit 3"), outputs=lost),
        "stage_in": bench.run(ok, inputs=[Input(url=absent, path="/tes-wd/in")]),
        "stage_out": bench.run(ignored, ok, outputs=lost),
        "node": bench.run(ok, node={"shared_global": absent}),
        "image": bench.run(ok, node={"engine": "docker", "engine_host": "unix:///none"}),
    }
    assert {cause: ended(report).cause for cause, report in found.items()} == {
        cause: cause for cause in found
    }


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


def test_a_workdir_behind_a_loop_of_links_is_an_executor_failure(bench: RunnerBench) -> None:
    found = bench.run(
        shell("ln -s loop /job/loop; touch /job/file"),
        executor("true", workdir="/job/loop/x", ignore_error=True),
        executor("true", workdir="/job/file/x", ignore_error=True),
        executor("true", workdir=f"/job/{'n' * 300}"),
        volumes=["/job"],
    )
    assert ended(found).state is State.EXECUTOR_ERROR
    assert [log.exit_code for log in found.log.logs] == [0, 126, 126, 126]
    assert "workdir /job/loop/x: Too many levels of symbolic links" in lines(found)
    assert str(bench.path) not in lines(found) + "".join(log.stderr or "" for log in found.log.logs)


def test_out_of_memory_names_the_limit(bench: RunnerBench) -> None:
    found = bench.run(executor("tail", "/dev/zero"), resources=Resources(ram_gb=0.064))
    if "no control group for memory" in lines(found):
        pytest.skip("this user cannot make control groups; the warning is said")
    assert ended(found).state is State.EXECUTOR_ERROR
    assert found.log.logs[0].exit_code == 137
    assert "out of memory, it exceeded its limit of 0.064 GB" in lines(found)
    assert ended(found).cause == "out_of_memory"


def test_a_child_that_runs_out_of_memory_fails_an_executor_that_fails(bench: RunnerBench) -> None:
    found = bench.run(shell("tail /dev/zero; exit 3"), resources=Resources(ram_gb=0.064))
    if "no control group for memory" in lines(found):
        pytest.skip("this user cannot make control groups; the warning is said")
    assert found.log.logs[0].exit_code == 137
    assert ended(found).state is State.EXECUTOR_ERROR


# -- time limit ---------------------------------------------------------------------------------


def test_the_time_limit_ends_the_task(bench: RunnerBench, marker: str) -> None:
    found = bench.run(
        shell(f"echo begun; sleep {marker} & sleep {marker}"),
        executor("true"),
        resources=runtime(0.4),
    )
    assert ended(found).state is State.SYSTEM_ERROR
    assert "timed out after 0.4 s" in lines(found)
    assert ended(found).cause == "time_limit"
    assert not ended(found).retryable
    assert found.log.logs[0].stdout == "begun\n"
    assert len(found.log.logs) == 1
    assert processes_with(marker) == []


@pytest.mark.parametrize("seconds", [60, 1e10, 1e300])
def test_a_time_limit_that_is_not_reached(bench: RunnerBench, seconds: float) -> None:
    assert ended(bench.run(executor("true"), resources=runtime(seconds))).state is State.COMPLETE


def test_the_report_says_when_the_executors_are_over(bench: RunnerBench) -> None:
    found = bench.run(shell("exit 1", ignore_error=True), shell("exit 2"), executor("true"))
    last = [event.last for event in events(bench.last) if isinstance(event, ExecutorEnded)]
    assert last == [False, True]
    assert found.executors_over
    late = bench.run(executor("sleep", "1000"), resources=runtime(0.2))
    assert not late.executors_over


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
    found = bench.run(
        shell("echo first > /out/first"),
        executor("cat", stdin="/in/none"),
        executor("true"),
        outputs=[Output(path="/out/first", url=f"file://{bench.files}/first")],
    )
    assert ended(found).state is State.EXECUTOR_ERROR
    assert "executor 1 could not be started: stdin /in/none is not there" in lines(found)
    assert [log.exit_code for log in found.log.logs] == [0, 127]
    assert found.log.logs[1].stderr == "stdin /in/none is not there\n"
    assert (bench.files / "first").read_text() == "first\n"


def test_a_stdin_that_is_not_there_can_be_ignored(bench: RunnerBench) -> None:
    found = bench.run(executor("cat", stdin="/tmp", ignore_error=True), executor("true"))
    assert ended(found).state is State.COMPLETE
    assert [log.exit_code for log in found.log.logs] == [126, 0]


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
        attempt = bench.attempt(bench.plan(shell(script, stdout="/job/big"), shell(wait)))
        pid = bench.begin(attempt)
        wait_for(lambda attempt=attempt: len(folded(attempt).log.logs) == 2)
        status = Path(f"/proc/{pid}/status").read_text()
        peaks.append(int(status.partition("VmHWM:")[2].split()[0]))
        (attempt.root / "tmp/go").touch()
        wait_for_exit(pid)
        assert ended(folded(attempt)).state is State.COMPLETE
        assert attempt.stream(0, "stdout").stat().st_size == size
        assert attempt.stream(0, "stdout").samefile(attempt.root / "job/big")
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


@pytest.mark.parametrize("engine", ["sandbox", pytest.param("docker", marks=pytest.mark.docker)])
def test_files_in_shared_global_are_found(
    bench: RunnerBench, engine: str, request: pytest.FixtureRequest
) -> None:
    node, image = {"engine": engine}, "an/image:1"
    if engine == "docker":
        service = request.getfixturevalue("docker_engine")
        node["engine_host"], image = service.url, service.image("busybox")
    outside = bench.path / f"everybody-{engine}"
    outside.mkdir()
    (outside / "text").write_text("shared\n")
    there = "/tes-wd/shared-global"
    executors = [
        shell(f"cat; cat {there}/given/x; ls {there}", stdin=f"{there}/text"),
        shell("echo said; echo oh >&2", stdout=f"{there}/log/out", stderr=f"{there}/log/err"),
        shell(f"cp {there}/log/out {there}/result; echo 1 > {there}/d/1.txt"),
    ]
    for each in executors:
        each.image = image
    found = bench.run(
        *executors,
        inputs=[Input(path=f"{there}/given/x", content="given\n")],
        outputs=[
            Output(path=f"{there}/result", url=f"file://{bench.files}/{engine}/result"),
            Output(path=f"{there}/log/err", url=f"file://{bench.files}/{engine}/err"),
            Output(path=f"{there}/d", url=f"file://{bench.files}/{engine}/d"),
            Output(
                path=f"{there}/d/*.txt", path_prefix=there, url=f"file://{bench.files}/{engine}/g"
            ),
        ],
        node={"shared_global": str(outside), **node},
    )
    assert ended(found).state is State.COMPLETE, lines(found)
    assert found.log.logs[0].stdout == "shared\ngiven\nd\ngiven\nlog\ntext\n"
    assert found.log.logs[1].stdout == "said\n"
    assert (outside / "given/x").read_text() == "given\n"
    assert (outside / "log/out").read_text() == "said\n"
    arrived = {p: (bench.files / engine / p).read_text() for p in ("result", "err", "d/1.txt")}
    assert arrived == {"result": "said\n", "err": "oh\n", "d/1.txt": "1\n"}
    assert (bench.files / engine / "g/d/1.txt").exists()


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
    assert ended(found).state is State.EXECUTOR_ERROR
    assert "stdin /tes-wd/in is not there" in ended(found).reason
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
