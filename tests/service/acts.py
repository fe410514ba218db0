"""What can be done with a URL, by name: for tables of refusals."""

from __future__ import annotations

from pathlib import Path

from tesazure.storage.base import Storage


def do(storage: Storage, act: str, url: str, file: Path) -> None:
    """What `act` names, whole: `put` sends `file`, `get` writes beside it."""
    match act:
        case "get":
            storage.get(url, file.parent / "got")
        case "put":
            storage.put(file, url)
        case "stat":
            storage.stat(url)
        case "list":
            list(storage.list(url))
