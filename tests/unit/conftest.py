"""What the tests of transfers share: a server that fails on demand, a large file, a small disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure.runner.tree import remove_tree
from tesazure.storage.transport import Transport
from tests.services.faulty_http import FaultyHttp
from tests.unit.ranges import HASTY, SIZE

NOBODY = 65534
"""User and group that no file belongs to."""


@pytest.fixture
def server() -> Iterator[FaultyHttp]:
    with FaultyHttp() as running:
        yield running


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(patience=HASTY)) as made:
        yield made


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of several parts."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        pytest.skip(f"mounting a small file system needs root: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=20)


@pytest.fixture
def ordinary() -> Iterator[Path]:
    """A directory of an ordinary user, as whom the test runs: root may do what others may not."""
    directory = Path(tempfile.mkdtemp(prefix="tz-"))
    directory.chmod(0o755)
    if os.geteuid() != 0:
        yield directory
    else:
        os.chown(directory, NOBODY, NOBODY)
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        try:
            yield directory
        finally:
            os.seteuid(0)
            os.setegid(0)
    remove_tree(directory)
