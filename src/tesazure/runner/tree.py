"""The task's own tree on the host: the container path `/a/b` lies at `root/a/b`, unless it is in a
mounted directory such as /tes-wd/shared-global.

What a task left in its tree is not to be trusted: it may have planted symbolic links to anywhere,
and directories that nobody may enter. Whoever goes into the tree goes by these functions. They are
for the times when nothing of the task runs, so nothing changes under them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tesazure.model import FileType
from tesazure.plan import (
    SHARED,
    SHARED_GLOBAL,
    TMP,
    WORK,
    Plan,
    contains,
    normalise,
    static_parent,
)
from tesazure.runner.engines.base import Mount

_MAX_LINKS = 40
"""As the kernel's own limit: path_resolution(7)."""

_DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC
_OPEN = 0o777
_PRIVATE_TMP = 0o1777


class Tree(msgspec.Struct, frozen=True):
    """A task's files as its executors see them: `root`, and `mounts` over directories of it.

    A path is called real when it is an absolute, normalised container path that passes through no
    link: there is exactly one place on the host for it. The `source` of each mount is real too.
    Other tasks may work in a mounted directory at the same time; what is written or read there goes
    through `held`.
    """

    root: Path
    mounts: tuple[Mount, ...] = ()

    def real(self, path: str) -> str:
        """The real path that a container path leads to, all links followed as a process with its
        root directory at `root` would follow them: absolute targets start at `/`, `..` stops there.

        It need not exist. Raises OSError: ELOOP after 40 links, EACCES where a directory may not be
        searched.
        """
        done: list[str] = []
        pending = path.split("/")[::-1]
        links = 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del done[-1:]
                continue
            here = self.place("/" + "/".join((*done, name)))
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
        return "/" + "/".join(done)

    def place(self, real: str) -> Path:
        """Where a real path lies on the host."""
        base, below = self._base(real)
        return base / below

    def is_private(self, real: str) -> bool:
        """Whether it lies in no mounted directory, so that only this task ever touches it."""
        return not any(contains(mount.target, real) for mount in self.mounts)

    def container_path(self, place: str) -> str | None:
        """The container path of a place on the host; None for one outside the tree."""
        for source, target in (*((m.source, m.target) for m in self.mounts), (self.root, "/")):
            if contains(str(source), place):
                return normalise(f"{target}/{place[len(str(source)) :]}")
        return None

    @contextlib.contextmanager
    def held(self, real: str) -> Iterator[Path]:
        """A path of the host that leads to a real path, or to where it is to be. While the body
        runs, nobody can make it lead elsewhere, save by a link at the path itself.

        Raises OSError where one of its directories is none any more.
        """
        if self.is_private(real):
            yield self.place(real)
            return
        base, below = self._base(real)
        directory, _, name = f"./{below}".rpartition("/")
        with _opened(base, directory) as descriptor:
            yield Path(f"/proc/self/fd/{descriptor}", name)

    def names(self, real: str) -> list[str]:
        """Names in a directory; none if it is not one. Raises OSError."""
        try:
            with self.held(f"{real}/.") as directory:
                return os.listdir(directory)  # noqa: PTH208 - names are what is wanted
        except (FileNotFoundError, NotADirectoryError):
            return []

    def make_directories(self, path: str, mode: int = 0o755) -> str:
        """Make a directory, with its parents, and return its real path.

        `mode` is that of the directories made, whatever the umask. Raises OSError,
        NotADirectoryError where a file is in the way.
        """
        real = self.real(path)
        base, below = self._base(real)
        with _opened(base, below, mode):
            return real

    def _base(self, real: str) -> tuple[Path, str]:
        """The root or the mount's source that a real path belongs to, and the rest of it."""
        for mount in self.mounts:
            if contains(mount.target, real):
                return mount.source, real[len(mount.target) :].lstrip("/")
        return self.root, real.lstrip("/")


def _link_target(path: Path) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - a Path would drop "." and "//"
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return None
        raise


@contextlib.contextmanager
def _opened(base: Path, below: str, mode: int | None = None) -> Iterator[int]:
    """A descriptor of the directory `below` another one, reached through no link; with a `mode`,
    made if need be. Raises OSError."""
    here = os.open(base, _DIRECTORY | os.O_PATH)
    try:
        for name in below.split("/"):
            if name in ("", "."):
                continue
            base /= name
            try:
                there = _entered(here, name, mode)
            except OSError as error:
                error.filename = str(base)
                raise
            os.close(here)
            here = there
        yield here
    finally:
        os.close(here)


def _entered(parent: int, name: str, mode: int | None) -> int:
    """A descriptor of one directory in another one; see `_opened`."""
    try:
        return os.open(name, _DIRECTORY | os.O_PATH | os.O_NOFOLLOW, dir_fd=parent)
    except FileNotFoundError:
        if mode is None:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
    made = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    os.fchmod(made, mode)
    return made


def resolve_inside(root: Path, container_path: str) -> Path:
    """Where `Tree.real` leads on the host, in a tree without mounts."""
    tree = Tree(root)
    return tree.place(tree.real(container_path))


def make_directories(root: Path, container_path: str, mode: int = 0o755) -> Path:
    """As `Tree.make_directories` in a tree without mounts; where the directory lies on the host."""
    tree = Tree(root)
    return tree.place(tree.make_directories(container_path, mode))


def prepare(tree: Tree, plan: Plan) -> None:
    """Make the tree of a new attempt: everything that its executors may expect to find.

    Directories that a task writes to are open to all users, because an image may name a user of
    its own; the attempt's directory around them is what keeps strangers out. Raises OSError.
    """
    tree.root.mkdir(mode=0o755, exist_ok=True)
    for mount in tree.mounts:
        make_directories(tree.root, mount.target, _OPEN)
    for path in _writable_directories(plan):
        made = tree.make_directories(path, _OPEN)
        if path == TMP:
            tree.place(made).chmod(_PRIVATE_TMP)


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
