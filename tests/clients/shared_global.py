"""A directory that a client sees where the server's tasks do, as on machines that share it."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import refuse
from tests.services import base

SHARED_GLOBAL = "/tes-wd/shared-global"


def seeing(shared: Path) -> list[str | Path]:
    """What to put before a command that shall see `shared` at /tes-wd/shared-global."""
    try:
        arguments: list[str | Path] = [base.require_program("bwrap", "bubblewrap")]
    except base.Unavailable as error:
        refuse(str(error))
    for entry in Path("/").iterdir():
        if entry.is_symlink():
            arguments += ["--symlink", entry.readlink(), entry]
        elif entry.is_dir() and entry.name not in {"proc", "dev", "tes-wd"}:
            arguments += ["--dev-bind", entry, entry]
    arguments += ["--dev-bind", "/dev", "/dev", "--proc", "/proc"]
    return [*arguments, "--bind", shared, SHARED_GLOBAL, "--die-with-parent"]
