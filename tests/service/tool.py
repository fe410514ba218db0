"""`tesazure` as its user has it: a program, run beside or by a test."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tesazure.cli.exits import Code

PROGRAM = [sys.executable, "-m", "tesazure.cli.main"]


class Tool:
    """The program with a server by TESAZURE_SERVER, a current directory, and more environment."""

    def __init__(self, root: str, here: Path, environment: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.here = here
        named = {"TESAZURE_SERVER": root, "TZ": "UTC"}
        self._environment = {**os.environ, **named, **(environment or {})}

    def __call__(
        self, *arguments: str, code: Code = Code.OK, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; the exit code must be `code`."""
        done = subprocess.run(
            [*PROGRAM, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.here,
            env=self._environment,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    @contextlib.contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run beside the test."""
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.here,
            env=self._environment,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def on_terminal(self, *arguments: str) -> str:
        """What it shows on a terminal of 80 columns."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            cwd=self.here,
            env={**self._environment, "TERM": "xterm-256color", "COLUMNS": "80"},
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other side has closed
            while chunk := os.read(ours, 65536):
                shown += chunk
        os.close(ours)
        assert process.wait(10) == 0
        return shown.decode()

    def submit(self, *arguments: str) -> str:
        """`run` with these arguments; the task's id."""
        return self("run", *arguments).stdout.strip()

    def task(self, task_id: str) -> dict[str, Any]:
        """The task's FULL view."""
        return dict(json.loads(self("get", task_id).stdout))


def api_token(data: Path, user: str, *arguments: str) -> str:
    """A new API token of a user of the server with this data directory."""
    command = [*PROGRAM, "token", "create", user, "--data-dir", str(data), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APP_")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == Code.OK, done.stderr
    return done.stdout.strip()
