"""What a sandbox sees: the task's tree as `/`, and over it the host's own programs, read-only.

What is hidden is decided before anything is shown. Where the task has files of its own inside a
hidden directory, these are seen, and nothing of the host's.

The tree needs mount points. They are made here, never by bubblewrap, which would follow a link
that a task planted, out of the tree and as root; and they are removed afterwards, so that nobody
takes them for the task's files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from tesazure.errors import EngineError
from tesazure.plan import contains
from tesazure.runner.engines.base import Container
from tesazure.runner.engines.sandbox_secrets import private_paths
from tesazure.runner.tree import make_directories, resolve_inside

_SYSTEM = frozenset({"usr", "bin", "sbin", "etc", "opt"})
"""With lib*: what is shown of the host. Not /home, /root, /var, /srv, /mnt, /run."""

_RESOLVER = "/etc/resolv.conf"

_TASKS_DOING = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG})
"""Why a directory cannot be made where the reason lies in the task's own tree."""


class View:
    """The file system of one sandbox: `arguments` for bubblewrap, and mount points in the tree."""

    def __init__(self, container: Container, hidden: Iterable[str] = ()) -> None:
        """Makes the mount points. `hidden` are directories of the host that no task may see, beside
        the attempt's own and what `sandbox_secrets` finds. Raises EngineError when the task has put
        something in the way, OSError when the tree cannot be written. `remove` undoes it also after
        a failure."""
        self.arguments = ["--bind", str(container.root), "/"]
        self._root = container.root
        self._made: list[Path] = []
        self._shown: dict[str, str] = {}
        """Path in the sandbox -> the real path that is shown there, with all that is below it."""
        directories = [os.path.realpath(path) for path in (*hidden, str(container.root.parent))]
        self._hidden = _outermost({**private_paths(), **dict.fromkeys(directories, True)})
        try:
            self._build(container)
        except BaseException:
            self.remove()
            raise

    def _build(self, container: Container) -> None:
        for mount in container.mounts:
            self._mount_point(mount.target, is_directory=mount.is_directory)
        for path in ("/proc", "/dev", "/run"):
            self._mount_point(path, is_directory=True)
        targets = {mount.target for mount in container.mounts}
        for name in sorted(os.listdir("/")):  # noqa: PTH208
            if name in _SYSTEM or name.startswith("lib"):
                self._show(f"/{name}", f"/{name}", targets)
        if container.network:
            self._show_resolver()
        self._cover_hidden()
        self.arguments += ["--proc", "/proc", "--dev", "/dev"]
        for path in container.shared:
            if path != "/dev" and contains("/dev", path):
                source = self._mount_point(path, is_directory=True)
                self.arguments += ["--bind", str(source), path]
        for mount in container.mounts:
            option = "--ro-bind" if mount.read_only else "--bind"
            self.arguments += [option, str(mount.source), mount.target]

    def workdir(self, wanted: str | None) -> str:
        """The directory to start in, made in the tree if it is not there. One that cannot be made,
        or is in a directory of the host, is left to fail in the sandbox, which tells the task."""
        if wanted is None:
            return "/"
        try:
            here = resolve_inside(self._root, wanted)
            path = f"/{here.relative_to(self._root)}"
            if not any(contains(shown, path) for shown in self._shown):
                make_directories(self._root, wanted, 0o777)
        except OSError as error:
            if error.errno not in _TASKS_DOING:
                raise
        return wanted

    def remove(self) -> None:
        """Take the mount points out of the tree again. Only when the sandbox is gone. Never raises.

        A directory in which the task has put something stays: it was no mount point then."""
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                mode = path.lstat()
                if stat.S_ISDIR(mode.st_mode):
                    path.rmdir()
                elif stat.S_ISLNK(mode.st_mode) or mode.st_size == 0:
                    path.unlink()
        self._made.clear()

    def _show(self, path: str, real: str, targets: set[str]) -> None:
        """Show the host's `path`, which really is `real`. Where the tree has such a directory
        itself, because the task has files there, it is the host's entries that are shown in it, one
        by one; the task's win."""
        here = Path(f"{self._root}{path}")
        is_ours = os.path.lexists(here)
        if os.path.islink(path):  # noqa: PTH114
            if not is_ours:
                here.symlink_to(os.readlink(path))  # noqa: PTH115
                self._made.append(here)
                return
            real = os.path.realpath(path)
            if any(contains(hidden, real) for hidden in self._hidden):
                return
        if real in self._hidden:
            return
        if not is_ours:
            if os.path.isfile(path) or os.path.isdir(path):  # noqa: PTH112, PTH113
                self._mount_point(path, is_directory=os.path.isdir(path))  # noqa: PTH112
                self.arguments += ["--ro-bind", path, path]
                self._shown[path] = real
        elif path not in targets and _is_directory(here) and os.path.isdir(path):  # noqa: PTH112
            with contextlib.suppress(PermissionError):  # what we may not list, the task may not
                for name in os.listdir(path):  # noqa: PTH208
                    self._show(f"{path}/{name}", f"{real}/{name}", targets)

    def _show_resolver(self) -> None:
        """The list of name servers, which often is a link into /run."""
        real = os.path.realpath(_RESOLVER)
        shown = any(contains(path, real) for path in self._shown)
        if not shown and os.path.isfile(real):  # noqa: PTH113
            self._mount_point(real, is_directory=False)
            self.arguments += ["--ro-bind", real, real]

    def _cover_hidden(self) -> None:
        """Cover what is hidden wherever it would be seen: one place may be shown at two paths."""
        for path, real in self._shown.items():
            for hidden in self._hidden:
                if not contains(real, hidden):
                    continue
                place = path + hidden[len(real) :]
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # gone meanwhile
                    if _is_directory(Path(hidden)):
                        self.arguments += ["--tmpfs", place, "--remount-ro", place]
                    else:
                        self.arguments += ["--ro-bind", "/dev/null", place]

    def _mount_point(self, path: str, *, is_directory: bool) -> Path:
        """Make a mount point, passing through no link; return where it lies on the host."""
        here = self._root
        names = path.strip("/").split("/")
        for number, name in enumerate(names, 1):
            here = here / name
            last = number == len(names)
            if not os.path.lexists(here):
                if last and not is_directory:
                    here.touch()
                else:
                    here.mkdir(mode=0o755)
                self._made.append(here)
            elif not _is_directory(here) and not (last and not is_directory and _is_file(here)):
                raise EngineError(f"the task has put something else where {path} is to be mounted")
        return here


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _outermost(paths: dict[str, bool]) -> dict[str, bool]:
    """Without what lies in a directory that is hidden itself."""
    kept: dict[str, bool] = {}
    last = ""
    for path in sorted(paths, key=lambda path: path.split("/")):
        if not (last and contains(last, path)):
            kept[path] = paths[path]
            last = path if paths[path] else last
    return kept
