"""The attempts' directories: made once for each key, and reports read as they grow."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tesazure.backends.local_files import Attempts, Follower, fence, is_alive, last_words
from tesazure.model import Executor, State, Task
from tesazure.plan import Defaults, Plan, make_plan
from tesazure.report import Ended, ExecutorStarted, Started, encode
from tesazure.runner.config import AttemptDir, NodeConfig

TASK = Task(executors=[Executor(image="i", command=["true"])])


@pytest.fixture
def plan() -> Plan:
    return make_plan("t", TASK, Defaults(1, 1, 1, 0), [])


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    made = Attempts(tmp_path / "one", tmp_path / "register")
    made.open()
    return made


def node(key: str) -> NodeConfig:
    """What a runner with this key is told."""
    return NodeConfig(key=key, engine="sandbox")


def test_a_directory_is_made_whole_and_once(attempts: Attempts, plan: Plan) -> None:
    first = attempts.begin(plan, node("k"))
    written = first.plan.stat()
    assert attempts.begin(plan, node("k")).path == first.path
    assert first.plan.stat().st_mtime_ns == written.st_mtime_ns
    assert {file.name for file in attempts.path.iterdir()} == {"k"}
    for private in (first.plan, first.node):
        assert private.stat().st_mode & 0o777 == 0o600
    assert first.path.stat().st_mode & 0o777 == 0o700


def test_many_at_once_make_one_directory(tmp_path: Path, plan: Plan) -> None:
    servers = [Attempts(tmp_path / f"server{i}", tmp_path / "register") for i in range(4)]
    for server in servers:
        server.open()
    found: set[Path] = set()

    def begin(server: Attempts) -> None:
        for _ in range(10):
            found.add(server.begin(plan, node("k")).path)
            found.add(server.claim("k").path)

    threads = [threading.Thread(target=begin, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
    assert not [left for server in servers for left in server.path.glob(".new-*")]


def test_what_was_claimed_cannot_be_begun(attempts: Attempts, plan: Plan) -> None:
    claimed = attempts.claim("k")
    begun = attempts.begin(plan, node("k"))
    assert begun.path == claimed.path
    assert begun.report.exists()
    assert not begun.plan.exists()


def test_what_was_left_half_made_is_deleted(attempts: Attempts) -> None:
    left = attempts.path / ".new-k-1234"
    left.mkdir()
    (left / "plan.json").write_text("{")
    attempts.open()
    assert not left.exists()


def test_a_register_that_is_not_ours_is_not_used(tmp_path: Path, plan: Plan) -> None:
    register = tmp_path / "register"
    register.mkdir()
    register.chmod(0o777)
    attempts = Attempts(tmp_path / "one", register)
    attempts.open()
    assert attempts.begin(plan, node("k")).plan.exists()
    assert not list(register.iterdir())


def test_directories_that_are_gone_leave_the_register(tmp_path: Path) -> None:
    gone = Attempts(tmp_path / "gone", tmp_path / "register")
    gone.open()
    gone.path.rmdir()
    Attempts(tmp_path / "one", tmp_path / "register").open()
    assert len(list((tmp_path / "register").glob("*.attempts"))) == 1


def test_the_data_directories_are_known_by_their_real_paths(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    one = Attempts(tmp_path / "alias", tmp_path / "register")
    one.open()
    two = Attempts(tmp_path / "two", tmp_path / "register")
    two.open()
    real, other = str(tmp_path / "real"), str(tmp_path / "two")
    assert (one.data_dirs(), two.data_dirs()) == ((real, other), (other, real))


def test_begun_before(attempts: Attempts, plan: Plan) -> None:
    old, new = attempts.begin(plan, node("old")), attempts.begin(plan, node("new"))
    os.utime(old.path, (0, 1000))
    assert set(attempts.begun_before(2000)) == {"old"}
    assert set(attempts.begun_before(new.path.stat().st_mtime + 1)) == {"old", "new"}


def test_a_report_is_read_as_it_grows(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    follower = Follower(attempt)
    with pytest.raises(FileNotFoundError):
        follower.read()
    lines = [
        encode(Started(time="a", pid=42, host="h")),
        encode(ExecutorStarted(time="b")),
        encode(Ended(time="c", state=State.COMPLETE)),
    ]
    whole = b"".join(lines)
    for size in range(len(whole) + 1):
        attempt.report.write_bytes(whole[:size])
        follower.read()
        assert follower.report.events == whole[:size].count(b"\n")
    assert follower.pid == 42
    assert follower.report.ended is not None
    assert len(follower.report.log.logs) == 1


def test_a_line_that_is_no_event_is_named_and_passed_over(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    attempt.report.write_bytes(
        encode(Started(time="a"))
        + b"\0\0\0\n"
        + b'{"event":"executor_ended","time":"x","index":7}\n'
        + encode(Ended(time="c", state=State.COMPLETE))
    )
    follower = Follower(attempt)
    follower.read()
    assert follower.report.ended is not None
    assert "cannot be understood" in follower.spoilt


def test_fence_lets_a_report_be(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    fence(attempt)
    assert attempt.report.read_bytes() == b""
    attempt.report.write_bytes(b"x")
    fence(attempt)
    assert attempt.report.read_bytes() == b"x"
    assert not is_alive(attempt)


def test_last_words(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    assert last_words(attempt) == ""
    attempt.output.write_bytes(b"x" * 5000 + b"\nTraceback\nOSError: \xff is wrong\n\n")
    assert last_words(attempt) == "OSError: \ufffd is wrong"
