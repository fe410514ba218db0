"""What the tests of runners share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.service.runner_bench import RunnerBench, open_bench


@pytest.fixture(scope="module")
def bench() -> Iterator[RunnerBench]:
    """A directory and a spawner for the attempts of one module."""
    with open_bench() as bench:
        yield bench


@pytest.fixture
def marker() -> str:
    """An argument of `sleep` that no other process has."""
    return f"1000{secrets.randbelow(10**9)}"
