"""Which database a data directory belongs to.

What a data directory holds and the database does not know is deleted after a while. So a server
that was given the wrong database, or a new one, must not begin: it would find nothing it knows.
"""

from __future__ import annotations

import os
from pathlib import Path

from tesazure.errors import ConfigurationError

_FILE = "store-id"


def belong(directory: Path, identity: str) -> None:
    """Note in a data directory which database (`Store.identity`) it belongs to, if none is noted.

    Raises ConfigurationError when that is another one, or the directory cannot be written.
    """
    file = directory / _FILE
    try:
        if not file.exists() or file.stat().st_size == 0:
            fresh = file.with_suffix(".new")
            with fresh.open("w", encoding="ascii") as output:
                output.write(f"{identity}\n")
                output.flush()
                os.fsync(output.fileno())
            fresh.replace(file)
        noted = file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise ConfigurationError([f"DATA_DIR: {file}: {os.strerror(error.errno or 0)}"]) from error
    if noted != identity:
        problem = (
            f"DATA_DIR: {directory} belongs to the database with id {noted}, but the one in use"
            f" now has id {identity}: what the tasks of the first one left there would be deleted."
            f" Name the right database; or delete {file} if that is what you want"
        )
        raise ConfigurationError([problem])
