"""What the tests of the stand-in for Azure share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.azure_cloud import AzureCloud
from tests.services.entra_server import EntraServer
from tests.services_selftest.azure_clients import NAMESPACES, STRANGER, Clients


@pytest.fixture
def entra(tmp_path: Path) -> Iterator[EntraServer]:
    with EntraServer(tmp_path / "entra") as entra:
        entra.secrets[STRANGER] = "another-secret"
        yield entra


@pytest.fixture
def cloud(tmp_path: Path, entra: EntraServer) -> Iterator[AzureCloud]:
    with AzureCloud(tmp_path / "cloud", entra) as cloud:
        cloud.register(*NAMESPACES)
        yield cloud


@pytest.fixture
def owner(cloud: AzureCloud, entra: EntraServer) -> Clients:
    return Clients(cloud, entra)


@pytest.fixture
def stranger(cloud: AzureCloud, entra: EntraServer) -> Clients:
    return Clients(cloud, entra, STRANGER)


@pytest.fixture
def quick(cloud: AzureCloud) -> None:
    """What takes a while is done at once."""
    cloud.pace.creation_s = cloud.pace.deletion_s = cloud.pace.registration_s = 0
