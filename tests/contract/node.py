"""For tests of what happens on a node: a runner to be killed, and looking for its processes.

`python -m tests.contract.node ENGINE HOST` runs the Container that it gets on standard input.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from tesazure.runner.engines.base import Container
from tesazure.runner.engines.choose import make_engine
from tests.services import base

DEADLINE_S = 30.0


def wait_for(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Returns once the condition holds; fails after the deadline."""
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def processes_with(word: str) -> list[int]:
    """Living processes of this machine that have `word` as one of their arguments."""
    return [pid for pid, command in base.command_lines() if word.encode() in command.split(b"\0")]


def _path(kind: type, value: Any) -> Any:
    return kind(value)


def main(engine: str, host: str) -> None:
    """Run one container."""
    container = msgspec.json.decode(sys.stdin.buffer.read(), type=Container, dec_hook=_path)
    make_engine(engine, host).run(container, lambda: None, lambda *_: None)


if __name__ == "__main__":
    main(*sys.argv[1:])
