"""What Cromwell sees below its root, and where that really is."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath
from typing import Protocol

from tests.services.azurite import Azurite


class Place(Protocol):
    """Files by the absolute paths that Cromwell knows them by."""

    def read(self, path: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""
        ...

    def write(self, path: str, content: bytes) -> None:
        """Make a file, and its directories."""
        ...


class OnDisk:
    """A directory of this machine that Cromwell knows as `root`."""

    def __init__(self, directory: Path, root: str) -> None:
        self._directory = directory
        self._root = root

    def read(self, path: str) -> bytes:
        """See Place. Links are followed as on a machine where the directory is at `root`."""
        place = self.at(path)
        while place.is_symlink():
            target = place.readlink()
            place = self.at(str(target)) if target.is_absolute() else place.parent / target
        return place.read_bytes()

    def write(self, path: str, content: bytes) -> None:
        """See Place."""
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_bytes(content)

    def at(self, path: str) -> Path:
        """Where it is on this machine."""
        return self._directory / PurePosixPath(path).relative_to(self._root)


class InContainer:
    """A container of Azure Blob, mounted at `mount` on Cromwell's machine."""

    def __init__(self, azurite: Azurite, container: str, mount: str) -> None:
        self._azurite = azurite
        self._container = container
        self._mount = mount

    def read(self, path: str) -> bytes:
        """See Place."""
        from azure.core.exceptions import ResourceNotFoundError

        with self._azurite.client() as client, contextlib.ExitStack() as stack:
            blob = stack.enter_context(client.get_blob_client(self._container, self._name(path)))
            try:
                return bytes(blob.download_blob().readall())
            except ResourceNotFoundError as error:
                raise FileNotFoundError(path) from error

    def write(self, path: str, content: bytes) -> None:
        """See Place."""
        self.put(self._name(path), content)

    def put(self, name: str, content: bytes) -> None:
        """Write a blob by its very name, which may be no path."""
        with self._azurite.client() as client:
            client.get_blob_client(self._container, name).upload_blob(content, overwrite=True)

    @property
    def key(self) -> str:
        """The account's."""
        return self._azurite.key

    def url(self, path: str) -> str:
        """The blob's, without signature."""
        return f"{self._azurite.endpoint}/{self._container}/{self._name(path)}"

    def _name(self, path: str) -> str:
        return str(PurePosixPath(path).relative_to(self._mount))
