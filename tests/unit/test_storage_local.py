"""storage.local: what errors of the operating system mean."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageFull,
    StorageNotFound,
    StorageUnavailable,
)
from tesazure.storage.local import os_errors

KINDS = {
    StorageNotFound: [errno.ENOENT],
    PermissionDenied: [errno.EACCES, errno.EPERM, errno.EROFS],
    StorageFull: [errno.ENOSPC, errno.EDQUOT],
    StorageUnavailable: [
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE),
        *(errno.ENOMEM, errno.EINTR, errno.EBUSY, errno.EHOSTDOWN, errno.ECONNRESET),
    ],
    StorageError: [
        *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENXIO, errno.ENODEV, errno.EFBIG),
    ],
}


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind, numbers in KINDS.items() for number in numbers]
)
def test_kinds(kind: type[StorageError], number: int) -> None:
    with pytest.raises(kind) as caught, os_errors("/a"):
        raise OSError(number, "what it says")
    assert type(caught.value) is kind
    assert str(caught.value) == "/a: what it says"


def test_a_limit_of_file_sizes_is_like_a_full_disk() -> None:
    script = """
import resource, tempfile
from tesazure.storage.local import os_errors, write_all
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
with tempfile.TemporaryFile() as file:
    try:
        with os_errors("/a"):
            write_all(file.fileno(), bytes(20_000))
    except Exception as error:
        print(repr(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "StorageFull('/a: File too large')\n"
