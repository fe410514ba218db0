"""Runners of one node learn which of them are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tesazure.errors import EngineUnavailable
from tesazure.runner.remains import Remains


class Runner:
    """A process that has entered as `key`."""

    def __init__(self, directory: Path, key: str) -> None:
        program = (
            "import sys, pathlib; from tesazure.runner.remains import Remains\n"
            "remains = Remains(pathlib.Path(sys.argv[1])); remains.enter(sys.argv[2])\n"
            "print('entered', flush=True); sys.stdin.read(); remains.leave()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(directory), key],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"entered\n"

    def kill(self) -> None:
        """It has no chance to leave."""
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def leave(self) -> None:
        """It ends as it should."""
        self._process.communicate(b"")


def swept(remains: Remains) -> list[str]:
    found: list[str] = []
    remains.sweep(found.append, pytest.fail)
    return found


def test_only_those_that_are_gone_are_swept_and_only_once(tmp_path: Path) -> None:
    directory = tmp_path / "tesazure"
    mine = Remains(directory)
    mine.enter("mine")
    alive, killed, orderly = (Runner(directory, key) for key in ("alive", "killed", "orderly"))
    killed.kill()
    orderly.leave()
    assert swept(mine) == ["killed"]
    assert swept(mine) == []
    alive.kill()
    assert swept(mine) == ["alive"]
    mine.leave()
    assert not list(directory.iterdir())
    mine.leave()


def test_what_cannot_be_ended_is_tried_by_the_next_runner(tmp_path: Path) -> None:
    killed = Runner(tmp_path, "killed")
    killed.kill()
    told: list[str] = []

    def refuse(key: str) -> None:
        raise EngineUnavailable("docker is away")

    Remains(tmp_path).sweep(refuse, told.append)
    assert told == ["what is left of attempt killed cannot be ended: docker is away"]
    assert swept(Remains(tmp_path)) == ["killed"]


def test_what_stays_in_the_way_is_told_once_and_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "a-directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "z-pipe")
    Runner(tmp_path, "killed").kill()
    told: list[str] = []
    found: list[str] = []
    remains = Remains(tmp_path)
    remains.sweep(found.append, told.append)
    remains.sweep(found.append, told.append)
    assert sorted(found) == ["killed", "z-pipe"]
    assert sorted(line.split(" cannot")[0] for line in told) == [
        "what is left of attempt a-directory",
        "what is left of attempt link",
    ]


def test_who_enters_while_another_sweeps_is_entered_all_the_same(tmp_path: Path) -> None:
    """The same key again, whose file the sweeper deletes while the new runner waits for it."""
    Runner(tmp_path, "k").kill()
    entering: list[subprocess.Popen[bytes]] = []

    def end(key: str) -> None:
        program = (
            "import sys, pathlib; from tesazure.runner.remains import Remains\n"
            "print('now', flush=True); Remains(pathlib.Path(sys.argv[1])).enter('k')\n"
            "print('entered', flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        entering.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"

    Remains(tmp_path).sweep(end, pytest.fail)
    [process] = entering
    assert process.stdout is not None
    assert process.stdout.readline() == b"entered\n"
    assert swept(Remains(tmp_path)) == []
    process.kill()
    process.communicate()
    assert swept(Remains(tmp_path)) == ["k"]
