"""The task's own tree on the host: the container path `/a/b` lies at `root/a/b`.

What a task left in its tree is not to be trusted: it may have planted symbolic links to anywhere,
and directories that nobody may enter. Whoever goes into the tree goes by these functions. They are
for the times when nothing of the task runs, so nothing changes under them.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tesazure.model import FileType
from tesazure.plan import SHARED, SHARED_GLOBAL, TMP, WORK, Plan, static_parent

_MAX_LINKS = 40
"""As the kernel's own limit: path_resolution(7)."""

_OPEN = 0o777
_PRIVATE_TMP = 0o1777


def resolve_inside(root: Path, container_path: str) -> Path:
    """Where a container path lies on the host, all links followed as a process with its root
    directory at `root` would follow them: absolute targets start at `root`, `..` stops there.

    No component of the result below `root` is a link, so it cannot leave `root`. It need not
    exist. Raises OSError: ELOOP after 40 links, EACCES where a directory may not be searched.
    """
    done: list[str] = []
    pending = container_path.split("/")[::-1]
    links = 0
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            del done[-1:]
            continue
        here = root.joinpath(*done, name)
        target = _link_target(here)
        if target is None:
            done.append(name)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(here))
        if target.startswith("/"):
            done.clear()
        pending.extend(target.split("/")[::-1])
    return root.joinpath(*done)


def _link_target(path: Path) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - a Path would drop "." and "//"
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def make_directories(root: Path, container_path: str, mode: int = 0o755) -> Path:
    """Make a directory of the tree, with its parents, and return where it lies on the host.

    `mode` is that of the directories made, whatever the umask. Links are followed inside `root`.
    Raises OSError, NotADirectoryError where a file is in the way.
    """
    path = resolve_inside(root, container_path)
    missing = []
    here = path
    while not here.exists() and here != root:
        missing.append(here)
        here = here.parent
    if not here.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(here))
    for directory in reversed(missing):
        directory.mkdir()
        directory.chmod(mode)
    return path


def prepare(root: Path, plan: Plan) -> None:
    """Make the tree of a new attempt: everything that its executors may expect to find.

    Directories that a task writes to are open to all users, because an image may name a user of
    its own; the attempt's directory around them is what keeps strangers out. Raises OSError.
    """
    root.mkdir(mode=0o755, exist_ok=True)
    for path in _writable_directories(plan):
        directory = make_directories(root, path, _OPEN)
        directory.chmod(_PRIVATE_TMP if path == TMP else _OPEN)


def _writable_directories(plan: Plan) -> list[str]:
    paths = [TMP, WORK, SHARED, SHARED_GLOBAL, *plan.volumes, *plan.shared]
    for upload in plan.uploads:
        whole = upload.type is FileType.DIRECTORY and upload.prefix is None
        paths.append(upload.path if whole else static_parent(upload.path))
    for step in plan.steps:
        paths.extend(os.path.dirname(path) for path in (step.stdout, step.stderr) if path)  # noqa: PTH120
    return sorted(set(paths) - {"/"})


def make_readable(root: Path) -> None:
    """Give this process's user back the permissions that a task took from itself: read files,
    search and change directories. Root needs none. Raises OSError for other users' files."""
    if os.geteuid() == 0:
        return
    pending = [os.fspath(root)]
    while pending:
        directory = pending.pop()
        _grant(directory, os.lstat(directory).st_mode, 0o700)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    _grant(entry.path, entry.stat(follow_symlinks=False).st_mode, 0o400)


def _grant(path: str, mode: int, wanted: int) -> None:
    if mode & wanted != wanted:
        os.chmod(path, stat.S_IMODE(mode) | wanted)  # noqa: PTH101


def remove_tree(path: Path) -> None:
    """Delete a file or a whole tree, following no link; nothing there is fine.

    Works on directories whose owner (this process's user) has no permission to enter them, and at
    any depth: deep directories are first moved to the top, so that no path grows too long.
    Raises OSError when something cannot be deleted, such as another user's files.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        path.unlink()
        return
    prefix = f"{path}/.{os.urandom(8).hex()}-"
    moved = 0
    top = os.fspath(path)
    pending = [top]
    while pending:
        directory = pending.pop()
        os.chmod(directory, 0o700)  # noqa: PTH101 - plain strings are faster in a large tree
        with os.scandir(directory) as found:
            entries = list(found)
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)  # noqa: PTH108
            elif directory == top:
                pending.append(entry.path)
            else:
                moved += 1
                os.chmod(entry.path, 0o700)  # noqa: PTH101 - moving it rewrites its `..`
                os.rename(entry.path, f"{prefix}{moved}")  # noqa: PTH104
                pending.append(f"{prefix}{moved}")
        if directory != top:
            os.rmdir(directory)  # noqa: PTH106
    path.rmdir()
