"""A data directory knows its database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tesazure.errors import ConfigurationError
from tesazure.store.belonging import belong


def test_a_directory_belongs_to_the_first_database_it_is_used_with(tmp_path: Path) -> None:
    belong(tmp_path, "one")
    belong(tmp_path, "one")
    with pytest.raises(ConfigurationError) as caught:
        belong(tmp_path, "two")
    [problem] = caught.value.problems
    assert all(word in problem for word in ("one", "two", f"delete {tmp_path / 'store-id'}"))
    (tmp_path / "store-id").unlink()
    belong(tmp_path, "two")


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "store-id").mkdir()
    with pytest.raises(ConfigurationError, match="store-id: Is a directory"):
        belong(tmp_path, "one")
