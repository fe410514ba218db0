"""The clients' lock files say what `venvs.CLIENTS` pins, and a failure to install is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clients import venvs
from tests.services import base


@pytest.mark.parametrize("name", venvs.CLIENTS)
def test_a_lock_holds_the_pins_and_hashes(name: str) -> None:
    client, lock = venvs.CLIENTS[name], venvs.lock_file(name).read_text()
    locked = re.findall(r"^([\w.-]+)==([\w.]+)(?: ;.*)? \\\n    --hash=sha256:", lock, re.MULTILINE)
    assert len(locked) == len(re.findall(r"^\w", lock, re.MULTILINE))
    for pin in (*client.requirements, *client.overrides):
        package, _, version = pin.partition("==")
        assert (package.partition("[")[0], version) in locked or (
            not version and pin in dict(locked)
        )
    assert "://" not in lock


def test_every_lock_is_used() -> None:
    files = {path.name for path in venvs.LOCKS.glob("clients-*.txt")}
    assert files == {venvs.lock_file(name).name for name in venvs.CLIENTS}


def test_a_failed_install_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    lock = tmp_path / "clients-none.txt"
    lock.write_text(f"tesazure-no-such-package==1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(base.Unavailable, match=r"clients-none\.txt cannot be installed: exit 1"):
        venvs.install(lock, tmp_path / "venv")
