"""Which of a task's directories are bound, which merged, and what comes back of the latter."""

from __future__ import annotations

import pytest

from tesazure.errors import EngineError
from tesazure.runner.engines.docker_paths import (
    ADDED,
    DELETED,
    MODIFIED,
    Change,
    Layout,
    lay_out,
    to_bring_back,
    volumes_in,
)


def image_with(*directories: str) -> set[str]:
    return set(directories)


def test_what_the_image_lacks_is_bound_and_what_it_has_is_merged() -> None:
    filled = image_with("/etc", "/opt/tool")
    layout = lay_out(["/data", "/etc", "/opt/tool"], [], [], filled.__contains__)
    assert layout == Layout(bound=("/data",), merged=("/etc", "/opt/tool"))


def test_tmp_and_the_work_directory_are_bound_without_a_look() -> None:
    def never(directory: str) -> bool:
        raise AssertionError(directory)

    assert lay_out(["/tes-wd", "/tmp"], [], [], never) == Layout(("/tes-wd", "/tmp"))


def test_root_is_merged_and_its_directories_each_as_fits() -> None:
    filled = image_with("/etc")
    layout = lay_out(
        ["/"], ["tmp", "tes-wd", "etc", "data", "run", "proc"], [], filled.__contains__
    )
    assert layout == Layout(bound=("/data", "/tes-wd", "/tmp"), merged=("/etc", "/"))


def test_a_volume_in_a_bound_directory_is_bound_too() -> None:
    layout = lay_out(["/data"], [], ["/data/out", "/data", "/var/x"], lambda _: False)
    assert layout.bound == ("/data", "/data/out")


@pytest.mark.parametrize("directory", ["/dev", "/dev/shmx", "/proc/self", "/sys/fs"])
def test_the_kernels_directories_are_refused(directory: str) -> None:
    with pytest.raises(EngineError, match=directory):
        lay_out([directory], [], [], lambda _: False)


def test_shared_memory_is_bound() -> None:
    layout = lay_out(["/dev/shm", "/tmp"], [], [], lambda _: True)
    assert layout == Layout(bound=("/dev/shm", "/tmp"))


CHANGES: list[Change] = [
    ("/etc", MODIFIED),
    ("/etc/passwd", MODIFIED),
    ("/etc/group", DELETED),
    ("/etc/a", ADDED),
    ("/etc/a/b", ADDED),
    ("/out.txt", ADDED),
    ("/new", ADDED),
    ("/new/file", ADDED),
    ("/new/mounted", ADDED),
    ("/new/mounted/x", ADDED),
    ("/usr", MODIFIED),
    ("/usr/x", ADDED),
    ("/.dockerenv", ADDED),
    ("/dev", MODIFIED),
    ("/dev/console", ADDED),
    ("/run", MODIFIED),
    ("/run/x", ADDED),
]


def test_changes_of_a_directory_come_back_relative_and_parents_first() -> None:
    assert to_bring_back(list(reversed(CHANGES)), "/etc", []) == [
        ("a", ADDED),
        ("a/b", ADDED),
        ("group", DELETED),
        ("passwd", MODIFIED),
    ]


def test_of_root_come_its_files_and_new_directories() -> None:
    assert to_bring_back(CHANGES, "/", ["/new/mounted"]) == [
        ("etc", MODIFIED),
        ("new", ADDED),
        ("new/file", ADDED),
        ("out.txt", ADDED),
        ("usr", MODIFIED),
    ]


def test_names_are_compared_by_components() -> None:
    assert to_bring_back([("/data2/x", ADDED), ("/data/x", ADDED)], "/data", []) == [("x", ADDED)]


@pytest.mark.parametrize(
    ("directory", "expected"),
    [("/var", ["lib/db"]), ("/var/lib/db/sub", ["."]), ("/etc", []), ("/", [])],
)
def test_volumes_in_a_directory(directory: str, expected: list[str]) -> None:
    assert volumes_in(["/var/lib/db"], directory) == expected
