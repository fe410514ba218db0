"""What of this machine not everybody may read: it is covered in every sandbox.

A sandbox runs as the server's user, whose rights a task must not have: root's, or those of a group
that may read a key. So whatever is not open to all is hidden, whoever owns it.

To search the trees takes some 4 µs a file, too long for each task. So it is done once, in the warm
process that forks the runners. After that only directories are looked at: one whose change time is
another is searched again, at most a second late. What that cannot show, a file that loses
permissions where it lies, is found by a whole search within a minute. On machines where that is
slow, looking and searching are done less often: together they take at most a twentieth of the time.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TREES = ("/etc", "/opt", "/usr/local")
"""The rest of what is shown, /usr, comes from packages, which keep no secrets there."""
LOOK_S = 1.0
SEARCH_S = 60.0
_SHARE = 40
"""The time between two looks, or two searches, is at least this many times what one takes."""
MOST_FILES = 500_000
MOST_S = 5.0
"""Where a search ends, nearest to the top first. Beyond, permissions alone decide; what was left
for want of time is searched with the next look."""
MOST_COVERS = 400
"""bubblewrap takes 9,000 words, and a mount takes time: beyond, whole directories are covered."""
_SETTLED_NS = 100_000_000
"""A directory that changed less than this ago may change again within the same tick."""


@dataclass
class _Directory:
    changed: int
    """st_ctime_ns, or -1: to be searched again."""
    files: int = 0
    private: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)


class Secrets:
    """The private files and directories below `trees`, kept up to date. For one thread."""

    def __init__(
        self, trees: Sequence[str] = TREES, search_s: float = SEARCH_S, most_s: float = MOST_S
    ) -> None:
        """`search_s`: seconds between whole searches; `most_s`: what one may take at a time."""
        self._search_s, self._most_s = search_s, most_s
        self._trees = tuple(trees)
        self._known: dict[str, _Directory] = {}
        self._found: dict[str, bool] = {}
        self._look_at = self._search_at = 0.0
        self._complete = True
        """Whether the last look was not ended for want of time."""

    def paths(self) -> Mapping[str, bool]:
        """Each private path, and whether it is a directory; what is in such a one is not listed.

        At most `LOOK_S` old, as said above. Never raises."""
        now = time.monotonic()
        if now >= self._search_at and self._complete:
            self._known = {}
            complete = self._look()
            spent = time.monotonic() - now
            self._search_at = now + max(self._search_s, spent * _SHARE)
            # Its price is not yet known, and the whole search is an upper bound.
            self._look_at = now + max(LOOK_S, spent if complete else 0.0)
        elif now >= self._look_at:
            self._look()
            spent = time.monotonic() - now
            self._look_at = now + max(LOOK_S, spent * (_SHARE if self._complete else 1.0))
        return self._found

    def _look(self) -> bool:
        """Go through all directories, searching those that changed or are new; whether there was
        time for all of them."""
        known: dict[str, _Directory] = {}
        found: dict[str, bool] = {}
        files = searched = 0
        deadline = time.monotonic() + self._most_s
        pending = deque(self._trees)
        complete = True
        while pending and files < MOST_FILES:
            path = pending.popleft()
            with contextlib.suppress(OSError):  # it has gone, and so its secrets have
                state = os.lstat(path)
                if not stat.S_ISDIR(state.st_mode):
                    continue
                if state.st_mode & 0o005 != 0o005:
                    if _is_ours(path, os.R_OK) or _is_ours(path, os.X_OK):
                        found[path] = True
                    continue
                directory = self._known.get(path)
                if directory is None or directory.changed != state.st_ctime_ns:
                    complete &= not searched or time.monotonic() < deadline
                    if complete:
                        directory = _searched(path, state.st_ctime_ns)
                        searched += 1
                    elif directory is None:
                        continue
                known[path] = directory
                files += directory.files
                found.update(dict.fromkeys(directory.private, False))
                pending.extend(directory.below)
        if not complete:  # what was not reached this time stays covered
            found = {**self._found, **found}
        self._complete = complete
        self._known, self._found = known, _coarsened(found, self._trees)
        return complete


def _searched(path: str, changed: int) -> _Directory:
    settled = abs(time.time_ns() - changed) > _SETTLED_NS
    directory = _Directory(changed if settled else -1)
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                mode = entry.stat(follow_symlinks=False).st_mode
                directory.files += 1
                if stat.S_ISDIR(mode):
                    directory.below.append(entry.path)
                elif not stat.S_ISLNK(mode) and not mode & 0o004 and _is_ours(entry.path, os.R_OK):
                    directory.private.append(entry.path)
    return directory


def _is_ours(path: str, right: int) -> bool:
    """Whether this process's user has the right. What it may not do, its tasks may not either."""
    return os.access(path, right, effective_ids=True)


def _coarsened(found: dict[str, bool], trees: Sequence[str]) -> dict[str, bool]:
    """At most `MOST_COVERS` paths, if that can be: fuller directories are covered as a whole."""
    while len(found) > MOST_COVERS:
        counts = Counter(path.rpartition("/")[0] for path in found)
        for tree in trees:
            del counts[tree]
        if not counts:
            break
        fullest, _ = counts.most_common(1)[0]
        found = {p: kind for p, kind in found.items() if not p.startswith(f"{fullest}/")}
        found[fullest] = True
    return found


_secrets = Secrets()


def private_paths() -> Mapping[str, bool]:
    """Those of this machine; a forked process begins with what its parent knew. Not for several
    threads at once."""
    return _secrets.paths()
