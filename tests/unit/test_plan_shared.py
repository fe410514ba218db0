"""plan: which directories the executors of a task share."""

from __future__ import annotations

import pytest

from tesazure.model import Executor, Task
from tesazure.plan import Defaults, is_kernels, make_plan


def shared(*workdirs: str | None) -> list[str]:
    """Of a task whose executors have these working directories."""
    executors = [Executor(image="i", command=["c"], workdir=w) for w in workdirs]
    return make_plan("t", Task(executors=executors), Defaults(1, 1, 1, 0), []).shared


def test_working_directories_are_shared_between_executors() -> None:
    assert shared("/data") == ["/tes-wd", "/tmp"]  # nobody to share it with
    assert shared("/data", None) == ["/data", "/tes-wd", "/tmp"]
    assert shared("/data/a//b/", "/data/c") == ["/data/a/b", "/data/c", "/tes-wd", "/tmp"]
    assert shared("/tmp/x", "/tes-wd/y") == ["/tes-wd", "/tmp"]


@pytest.mark.parametrize(
    "workdir", ["/", "/usr/src/app", "/root", "/home/me", "/lib64/x", "/proc/self", "/dev", "app"]
)
def test_directories_of_the_image_are_not(workdir: str) -> None:
    assert shared(workdir, workdir) == ["/tes-wd", "/tmp"]


def test_the_kernels_own() -> None:
    for path in ("/dev", "/dev/null", "/proc/self/fd", "/sys"):
        assert is_kernels(path)
    for path in ("/dev/shm", "/dev/shm/x", "/device", "/system", "/"):
        assert not is_kernels(path)
