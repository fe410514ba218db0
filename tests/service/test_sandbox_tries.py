"""The sandbox engine when bubblewrap fails once, as it does when the host's files change meanwhile.

A program in front of the real bwrap in PATH stands for the first, failing one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tesazure.plan import Step
from tesazure.runner.engines.base import Container, Exit
from tesazure.runner.engines.sandbox import KILLED, SandboxEngine
from tests.conftest import refuse

FAILS_ONCE = """#!/bin/sh
if [ -e {mark} ]; then exec {bwrap} "$@"; fi
: > {mark}
sleep 60 & echo "{{\\"child-pid\\": $!}}" > /proc/self/fd/$4
[ {waits} = yes ] && wait $! || kill $!
echo "bwrap: Can't mount proc on /newroot/proc: gone" >&2
exit 1
"""


def run(directory: Path, environment: pytest.MonkeyPatch, *, waits: bool, kill: bool) -> Exit:
    """Run `echo`; with `kill`, the engine is told to kill as soon as it says that it has begun."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        refuse("there is no program bwrap (Debian package bubblewrap)")
    programs, root = directory / "bin", directory / "root"
    for path in (programs, root / "tmp"):
        path.mkdir(parents=True)
    (programs / "bwrap").write_text(
        FAILS_ONCE.format(mark=directory / "mark", bwrap=bwrap, waits="yes" if waits else "no")
    )
    (programs / "bwrap").chmod(0o755)
    environment.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    engine = SandboxEngine()
    container = Container(
        key=directory.name,
        index=0,
        step=Step("not/used:1", ["echo", "ran"]),
        root=root,
        shared=("/tmp",),
        mounts=(),
        stdin=None,
        stdout=directory / "stdout",
        stderr=directory / "stderr",
        cpu_cores=None,
        ram_bytes=None,
        network=False,
    )
    return engine.run(container, engine.kill if kill else lambda: None, lambda *_: None)


def test_what_fails_once_is_tried_again(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(short_dir, monkeypatch, waits=False, kill=False) == Exit(0)
    assert (short_dir / "stdout").read_text() == "ran\n"
    assert (short_dir / "stderr").read_text() == ""


FAILS = """#!/bin/sh
echo x >> {mark}
[ "$(wc -l < {mark})" -gt {times} ] && exec {bwrap} "$@"
echo "bwrap: Can't remount /newroot/run: gone" >&2
exit 1
"""


@pytest.mark.parametrize(("times", "made"), [(2, True), (99, False)])
def test_whether_sandboxes_can_be_made_is_tried_again(
    short_dir: Path, times: int, made: bool
) -> None:
    """Else a server or node that begins while a file system goes has no engine."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        refuse("there is no program bwrap (Debian package bubblewrap)")
    mark, program = short_dir / "mark", short_dir / "bwrap"
    program.write_text(FAILS.format(mark=mark, times=times, bwrap=bwrap))
    program.chmod(0o755)
    code = "from tesazure.runner.engines.choose import try_sandbox; print(try_sandbox())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PATH": f"{short_dir}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert mark.read_text() == "x\n" * 3
    if made:
        assert done.stdout.startswith("bubblewrap ")
    else:
        assert "cannot make a sandbox here: bwrap: Can't remount /newroot/run: gone" in done.stderr


def test_what_was_killed_is_not_tried_again(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(short_dir, monkeypatch, waits=True, kill=True).exit_code == KILLED
    assert (short_dir / "stdout").read_text() == ""
