"""What a machine has, as its kernel tells: cores and memory, and the limits of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tesazure.backends.local_machine import (
    capacity,
    cores,
    lets_others_gain_rights,
    memory,
    node_name,
)

ALL = float(len(os.sched_getaffinity(0)))


def machine(directory: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup of a machine with 4 GB."""
    proc, cgroups = directory / "proc", directory / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:        4000000 kB\nMemFree:  1 kB\n")
    (proc / "self/cgroup").write_text(groups)
    for name, text in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    return proc, cgroups


@pytest.mark.parametrize(
    ("groups", "files", "found_cores", "found_memory"),
    [
        ("0::/\n", {}, ALL, 4_096_000_000),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n"}, 0.5, 4_096_000_000),
        ("0::/a/b\n", {"a/cpu.max": "25000 100000\n", "a/b/cpu.max": "max 100000\n"}, 0.25, None),
        ("0::/a\n", {"a/memory.max": "1000000\n", "memory.max": "max\n"}, ALL, 1_000_000),
        (
            "3:cpu,cpuacct:/d\n4:memory:/d\n",
            {
                "cpu/d/cpu.cfs_quota_us": "10000\n",
                "cpu/d/cpu.cfs_period_us": "100000\n",
                "memory/d/memory.limit_in_bytes": "2000000\n",
            },
            0.1,
            2_000_000,
        ),
        (
            "3:cpu,cpuacct:/d\n4:memory:/d\n",
            {
                "cpu,cpuacct/d/cpu.cfs_quota_us": "-1\n",
                "memory/d/memory.limit_in_bytes": "9223372036854771712\n",
            },
            ALL,
            4_096_000_000,
        ),
    ],
)
def test_limits_of_control_groups_hold(
    tmp_path: Path, groups: str, files: dict[str, str], found_cores: float, found_memory: int | None
) -> None:
    proc, cgroups = machine(tmp_path, groups, files)
    assert cores(proc, cgroups) == found_cores
    if found_memory is not None:
        assert memory(proc, cgroups) == found_memory


def test_amounts_that_are_given_win(tmp_path: Path) -> None:
    given = capacity(tmp_path, 1.5, 10, 20)
    assert (given.cpu_cores, given.ram_bytes, given.disk_bytes) == (1.5, 10, 20)
    found = capacity(tmp_path, 0, 0, 0)
    assert found.cpu_cores > 0
    assert found.ram_bytes > 10**8
    assert found.disk_bytes > 0


def test_setuid_programs_are_no_danger_where_nobody_comes(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert not lets_others_gain_rights(tmp_path)  # for the tests' own directory is closed
    (tmp_path / "alias").symlink_to("/var/tmp")
    assert lets_others_gain_rights(tmp_path / "alias")
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for _, place, _, options, *_ in mounts:
        if "nosuid" in options.split(",") and Path(place).is_dir():
            assert not lets_others_gain_rights(Path(place))


def test_the_node_is_this_machine_and_user() -> None:
    assert node_name() == node_name()
    assert node_name().endswith(f"/uid{os.geteuid()}")
