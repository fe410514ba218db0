"""Azure Blob Storage, on Azurite, and Azure Files, on a stand-in that checks signatures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tesazure.storage.azure_files import AzureFilesStorage
from tesazure.storage.blob import BlobStorage
from tesazure.storage.transport import Transport
from tesazure.storage.urls import join
from tests.conftest import shared
from tests.contract.systems import System
from tests.services.azure_files_server import AzureFilesServer, File
from tests.services.azurite import Azurite


class Blob(System):
    """https URLs (here: http) with a SAS of the container."""

    can_select = True

    query = "&sig=hunter3&token=hunter4"

    def __init__(self, azurite: Azurite, container: str, transport: Transport) -> None:
        self.storage = BlobStorage(transport, azurite.endpoints, page=3)
        self.container = azurite.client().get_container_client(container)
        self.top = f"{azurite.endpoint}/{container}?{azurite.container_sas(container)}"

    @classmethod
    @contextlib.contextmanager
    def made(cls, tmp_path: Path) -> Iterator[Self]:
        azurite = shared(Azurite)
        with contextlib.closing(Transport()) as transport, azurite.container() as container:
            yield cls(azurite, container, transport)

    def url(self, path: str) -> str:
        return join(self.top, path)

    def plant(self, path: str, content: bytes) -> str:
        self.container.upload_blob(path, content, overwrite=True)
        return self.url(path)

    def planted(self, path: str) -> bytes | None:
        blob = self.container.get_blob_client(path)
        return blob.download_blob().readall() if blob.exists() else None


class AzBlob(Blob):
    """az:// URLs, with a SAS."""

    query = "&token=hunter4"
    user = ""

    def __init__(self, azurite: Azurite, container: str, transport: Transport) -> None:
        super().__init__(azurite, container, transport)
        self.top = f"az://{container}?{azurite.container_sas(container)}"


class AzureFiles(System):
    """https URLs (here: http) with a SAS of the share."""

    query = "&sig=hunter3&token=hunter4"

    def __init__(self, server: AzureFilesServer, transport: Transport) -> None:
        self.server = server
        self.storage = AzureFilesStorage(transport, server.endpoints, page=3)
        self.top = f"{server.endpoint}/share?{server.share_sas('share')}"

    @classmethod
    @contextlib.contextmanager
    def made(cls, tmp_path: Path) -> Iterator[Self]:
        with contextlib.closing(Transport()) as transport, AzureFilesServer() as server:
            server.make_share("share")
            yield cls(server, transport)

    def url(self, path: str) -> str:
        return join(self.top, path)

    def plant(self, path: str, content: bytes) -> str:
        self.server.plant("share", path, content)
        return self.url(path)

    def planted(self, path: str) -> bytes | None:
        found = self.server.found("share", path)
        return bytes(found.content) if isinstance(found, File) else None


SYSTEMS = {"blob": Blob, "az": AzBlob, "azure_files": AzureFiles}
