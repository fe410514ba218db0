"""How much disk there is for attempts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tesazure.backends.local_room import Room
from tesazure.runner.config import AttemptDir

SIZE = 4 * 2**20


class FixedRoom(Room):
    """A disk on which the same is always free."""

    def free(self) -> int:
        return 1000


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    """An attempt that has written all that it reserved, and more."""
    made = AttemptDir(tmp_path / "k")
    made.root.mkdir(parents=True)
    made.plan.write_text(json.dumps({"limits": {"reserved_disk_bytes": SIZE}}))
    (made.root / "file").write_bytes(os.urandom(2 * SIZE))
    return made


def test_what_live_attempts_wrote_of_their_own_counts_as_room(attempt: AttemptDir) -> None:
    assert FixedRoom(attempt.path).closely([attempt]) == 1000 + SIZE


def test_what_a_released_attempt_left_is_no_room(attempt: AttemptDir) -> None:
    room = FixedRoom(attempt.path)
    room.closely([attempt])
    assert room.closely([]) == 1000
