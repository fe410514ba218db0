"""What storage systems share on this machine's disk: files that appear whole, copies of bytes, and
what an OSError means."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

from tesazure.errors import (
    PermissionDenied,
    StorageError,
    StorageFull,
    StorageNotFound,
    StorageUnavailable,
)
from tesazure.storage.base import Progress
from tesazure.storage.beside import part_name

CHUNK = 8 * 2**20
"""Bytes between two calls of a Progress."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""errno values that mean: no space left for this user."""

_TRANSIENT = frozenset(
    {
        *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EDEADLK, errno.ENOLCK, errno.ETXTBSY),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EUSERS),
        # Disks, and file systems of other machines.
        *(errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.ETIME, errno.ECOMM),
        *(errno.EPIPE, errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ESHUTDOWN, errno.ENOLINK, errno.ENONET),
    }
)
"""errno values of what may be over when it is tried again, perhaps on another node."""

_SMALL = 256 * 2**10
_FICLONE = 0x40049409  # linux/fs.h
_NO_COPY_IN_KERNEL = frozenset(
    {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
)
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFREG: "a file",
}


def kind_of(mode: int) -> str:
    """What a file mode says a path is, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


@contextlib.contextmanager
def os_errors(subject: str) -> Iterator[None]:
    """Raises OSErrors of the block as StorageErrors whose message begins with `subject`."""
    try:
        yield
    except OSError as error:
        raise _error_class(error)(f"{subject}: {error.strerror or error}") from error


def _error_class(error: OSError) -> type[StorageError]:
    if error.errno in FULL or (error.errno == errno.EFBIG and _limits_files()):
        return StorageFull
    if error.errno in _TRANSIENT or isinstance(error, TimeoutError):
        return StorageUnavailable
    match error.errno:
        case errno.ENOENT:
            return StorageNotFound
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PermissionDenied
        case _:
            return StorageError


def _limits_files() -> bool:
    """Whether this process may not write large files, as a quota would have it."""
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


@contextlib.contextmanager
def whole_file(directory: int, name: str, mode: int) -> Iterator[int]:
    """A descriptor to write to; the file gets its `name` in the open `directory`, replacing what
    had it, when the block ends without an exception, and otherwise never exists.

    The file has no name until then, so that nothing is left even by a process that is killed;
    where the file system has no such files (NFS), it has a temporary name.
    """
    descriptor, temporary = _nameless(directory, mode)
    try:
        yield descriptor
        if not temporary:
            source = f"/proc/self/fd/{descriptor}"
            try:
                os.link(source, name, dst_dir_fd=directory)
                return
            except FileExistsError:
                temporary = part_name()
                os.link(source, temporary, dst_dir_fd=directory)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        temporary = ""
    finally:
        os.close(descriptor)
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)


def _nameless(directory: int, mode: int) -> tuple[int, str]:
    """A new file in a directory: its descriptor, and its name if it has to have one."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=directory), ""
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    temporary = part_name()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(temporary, flags, mode, dir_fd=directory), temporary


@contextlib.contextmanager
def opened_directory(path: Path) -> Iterator[int]:
    """A descriptor of a directory, good for `dir_fd`."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def copy_bytes(source: int, target: int, size: int, progress: Progress | None = None) -> int:
    """Copy what the file `source` holds to the empty file `target`; returns the number of bytes.

    `size` is the source's size as fstat gave it. Shares blocks where the file system can, copies in
    the kernel where that can, and keeps the holes of sparse files.
    """
    if size <= _SMALL:
        return _copy_by_reading(source, target, progress)
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return _copy_segments(source, target, size, progress)
    if progress:
        progress(size)
    return size


def write_all(target: int, data: bytes | memoryview) -> None:
    """Write all of `data`, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _copy_by_reading(source: int, target: int, progress: Progress | None) -> int:
    """Copy up to the end of file, whatever size was announced (/proc announces 0)."""
    total = 0
    while data := os.read(source, _SMALL):
        write_all(target, data)
        total += len(data)
        if progress:
            progress(len(data))
    return total


def _copy_segments(source: int, target: int, size: int, progress: Progress | None) -> int:
    is_sparse = os.fstat(source).st_blocks * 512 < size
    end = 0
    for start, stop in _segments(source, size) if is_sparse else ((0, size),):
        end = _copy_range(source, target, start, stop, progress)
        if end < stop:
            return end  # the source has become shorter
    if end < size:
        os.ftruncate(target, size)
    return size


def _segments(source: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a sparse file that hold data."""
    stop = 0
    while stop < size:
        try:
            start = os.lseek(source, stop, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        stop = min(os.lseek(source, start, os.SEEK_HOLE), size)
        yield start, stop


def _copy_range(source: int, target: int, start: int, stop: int, progress: Progress | None) -> int:
    """Copy bytes `start` to `stop`; returns how far it came."""
    in_kernel = True
    while start < stop:
        wanted = min(CHUNK, stop - start)
        moved = 0
        if in_kernel:
            try:
                moved = os.copy_file_range(source, target, wanted, start, start)
            except OSError as error:
                if error.errno not in _NO_COPY_IN_KERNEL:
                    raise
            # Some file systems say 0 for what they cannot copy in the kernel: ask them to read.
            in_kernel = moved > 0
        if not in_kernel:
            data = os.pread(source, min(wanted, 2**20), start)
            os.lseek(target, start, os.SEEK_SET)
            write_all(target, data)
            moved = len(data)
            if not moved:
                break
        start += moved
        if progress:
            progress(moved)
    return start
