"""Control groups: finding where they can be made, with both versions; and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tesazure.runner.engines.cgroup import Group, Hierarchy, find, mounted

LINE = "{n} 1 0:{n} {root} {point} rw,relatime shared:1 - {kind} cgroup {options}"


def mountinfo(*mounts: tuple[str, Path, str, str]) -> str:
    """Lines of /proc/self/mountinfo for (root, mount point, type, options)."""
    return "\n".join(
        LINE.format(n=n, root=root, point=point, kind=kind, options=options)
        for n, (root, point, kind, options) in enumerate(mounts, 30)
    )


def make(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)
    return directory


def test_version_1_uses_our_own_group_of_each_controller(tmp_path: Path) -> None:
    memory, cpu = make(tmp_path / "memory"), make(tmp_path / "cpu,cpuacct")
    own = make(memory / "services/tes")
    info = mountinfo(
        ("/", memory, "cgroup", "rw,memory"),
        ("/", cpu, "cgroup", "rw,cpu,cpuacct"),
        ("/", tmp_path, "tmpfs", "rw"),
    )
    found = mounted(info, "4:memory:/services/tes\n3:cpu,cpuacct:/\n1:name=systemd:/x\n0::/x\n")
    assert find(found) == {"memory": Hierarchy(1, own), "cpu": Hierarchy(1, cpu)}


def test_in_a_container_the_mount_is_our_group(tmp_path: Path) -> None:
    """There the mount's root is the container's group, as seen by the machine."""
    memory = make(tmp_path / "memory")
    info = mountinfo(("/docker/abc", memory, "cgroup", "rw,memory"))
    assert find(mounted(info, "4:memory:/docker/abc\n")) == {"memory": Hierarchy(1, memory)}
    assert find(mounted(info, "4:memory:/elsewhere\n")) == {"memory": Hierarchy(1, memory)}


def test_version_2_looks_upwards_for_a_group_with_controllers(tmp_path: Path) -> None:
    top = make(tmp_path / "cg", cgroup__procs="", cgroup__subtree_control="cpu memory pids")
    make(top / "user", cgroup__procs="", cgroup__subtree_control="memory cpu")
    make(top / "user/own", cgroup__procs="1")  # holds processes: no controllers below
    found = find(mounted(mountinfo(("/", top, "cgroup2", "rw")), "0::/user/own\n"))
    user = Hierarchy(2, top / "user")
    assert found == {"memory": user, "cpu": user}


def test_version_2_takes_both_controllers_from_one_group(tmp_path: Path) -> None:
    top = make(tmp_path / "cg", cgroup__procs="", cgroup__subtree_control="cpu memory")
    make(top / "user", cgroup__procs="", cgroup__subtree_control="pids memory")
    found = find(mounted(mountinfo(("/", top, "cgroup2", "rw")), "0::/user\n"))
    assert {hierarchy.parent for hierarchy in found.values()} <= {top, top / "user"}
    assert len(set(found.values())) == 1


def test_without_control_groups_there_are_none() -> None:
    assert find(mounted("", "")) == {}
    group = Group({}, "x", 1.0, 10**9)
    assert group.limited == set()
    group.enter()
    assert not group.ran_out_of_memory()
    group.remove()


def test_limits_of_version_2(tmp_path: Path) -> None:
    where = {"memory": Hierarchy(2, tmp_path), "cpu": Hierarchy(2, tmp_path)}
    group = Group(where, "k-0", cpu_cores=1.5, ram_bytes=10**8)
    directory = tmp_path / "tesazure-k-0"
    assert (directory / "memory.max").read_text() == "100000000"
    assert (directory / "memory.swap.max").read_text() == "0"
    assert (directory / "cpu.max").read_text() == "150000 100000"
    assert group.limited == {"memory", "cpu"}
    for count, out in (("0", False), ("2", True)):
        (directory / "memory.events").write_text(f"low 0\noom 9\noom_kill {count}\n")
        assert group.ran_out_of_memory() is out


def test_limits_of_version_1(tmp_path: Path) -> None:
    memory, cpu = make(tmp_path / "memory"), make(tmp_path / "cpu")
    where = {"memory": Hierarchy(1, memory), "cpu": Hierarchy(1, cpu)}
    group = Group(where, "k-0", cpu_cores=0.001, ram_bytes=10**8)
    assert (memory / "tesazure-k-0/memory.limit_in_bytes").read_text() == "100000000"
    assert (cpu / "tesazure-k-0/cpu.cfs_quota_us").read_text() == "1000"
    assert group.limited == {"memory", "cpu"}


def test_without_limits_there_are_no_groups(tmp_path: Path) -> None:
    memory, cpu = make(tmp_path / "memory"), make(tmp_path / "cpu")
    where = {"memory": Hierarchy(1, memory), "cpu": Hierarchy(1, cpu)}
    assert Group(where, "k-0").limited == set()
    assert list(tmp_path.glob("*/*")) == []
    group = Group(where, "k-0", cpu_cores=1)
    assert [path.name for path in tmp_path.glob("*/*")] == ["tesazure-k-0"]
    (cpu / "tesazure-k-0/cpu.cfs_quota_us").unlink()
    (cpu / "tesazure-k-0/cpu.cfs_period_us").unlink()
    group.remove()
    assert list(tmp_path.glob("*/*")) == []


@pytest.mark.parametrize("name", ["memory", "cpu"])
def test_a_group_that_cannot_be_made_limits_nothing(tmp_path: Path, name: str) -> None:
    where = {name: Hierarchy(1, tmp_path / "not-there")}
    assert Group(where, "k-0", 1.0, 10**8).limited == set()
