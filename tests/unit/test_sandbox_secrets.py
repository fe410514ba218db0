"""What a sandbox must not show: found once, and kept up to date without a whole search."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tesazure.runner.engines.sandbox_secrets import MOST_COVERS, Secrets
from tests.contract.node import wait_for


def file(path: Path, mode: int = 0o600) -> str:
    """Make a file, in open directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("secret")
    path.chmod(mode)
    return str(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree to search, open to all."""
    made = tmp_path / "tree"
    made.mkdir()
    made.chmod(0o755)
    return made


def test_whatever_is_not_open_to_all_is_private(tree: Path) -> None:
    file(tree / "a/open", 0o644)
    own, group = file(tree / "a/b/own"), file(tree / "a/group", 0o640)
    file(tree / "closed/open", 0o644)
    (tree / "closed").chmod(0o750)
    file(tree / "listed/open", 0o644)
    (tree / "listed").chmod(0o711)
    (tree / "link").symlink_to("a/b/own")
    (tree / "nowhere").symlink_to("none")
    file(tree / "whole/open", 0o644)
    (tree / "whole").chmod(0o750)
    assert Secrets([f"{tree}/whole"]).paths() == {f"{tree}/whole": True}
    shutil.rmtree(tree / "whole")
    expected = {own: False, group: False, f"{tree}/closed": True, f"{tree}/listed": True}
    assert Secrets([str(tree), f"{tree}/none", f"{tree}/link"]).paths() == expected


def test_changes_are_seen(tree: Path) -> None:
    (tree / "a/b").mkdir(parents=True)
    secrets = Secrets([str(tree)])
    assert secrets.paths() == {}
    new = file(tree / "a/b/new")
    wait_for(lambda: dict(secrets.paths()) == {new: False})
    (tree / "a").chmod(0o700)
    wait_for(lambda: dict(secrets.paths()) == {f"{tree}/a": True})
    shutil.rmtree(tree / "a")
    wait_for(lambda: dict(secrets.paths()) == {})


def test_a_file_that_loses_permissions_is_found_by_the_next_search(
    tree: Path,
) -> None:
    changed = Path(file(tree / "a/file", 0o644))
    secrets = Secrets([str(tree)], search_s=0.1)
    assert secrets.paths() == {}
    changed.chmod(0o600)
    wait_for(lambda: dict(secrets.paths()) == {str(changed): False})


def test_many_are_covered_as_whole_directories(tree: Path) -> None:
    for number in range(MOST_COVERS + 1):
        file(tree / f"many/sub/{number}")
    single = file(tree / "other/single")
    assert Secrets([str(tree)]).paths() == {f"{tree}/many/sub": True, single: False}


def test_a_search_ends_in_time_and_goes_on_later(tree: Path) -> None:
    near, far = file(tree / "near"), file(tree / "a/b/far")
    secrets = Secrets([str(tree)], most_s=0.0)
    assert secrets.paths() == {near: False}
    wait_for(lambda: dict(secrets.paths()) == {near: False, far: False})


def test_what_a_search_did_not_come_to_stays_covered(tree: Path) -> None:
    private = {file(tree / name / "private") for name in "abcde"}
    secrets = Secrets([str(tree)], search_s=0)
    assert set(secrets.paths()) == private
    secrets._most_s = 0.0  # from now on there is time for one directory only
    assert set(secrets.paths()) == private


def test_files_that_come_and_go_are_no_error(tree: Path) -> None:
    for number in range(50):
        (tree / f"d{number}").mkdir()
    script = (
        "import os, shutil, sys; print(1, flush=True)\n"
        "while True:\n"
        "  for n in range(50):\n"
        "    d = f'{sys.argv[1]}/d{n}'; shutil.rmtree(d); os.mkdir(d); open(f'{d}/f', 'w').close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tree)], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(200):
                Secrets([str(tree)]).paths()
        finally:
            process.kill()


def test_what_this_user_may_not_read_needs_no_cover(ordinary: Path) -> None:
    tree = ordinary
    file(tree / "a", 0o000)
    file(tree / "d/a", 0o644)
    (tree / "d").chmod(0o000)
    assert Secrets([str(tree)]).paths() == {}
