"""Gates, and issuers over TLS that they trust."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tesazure.callers import Role
from tesazure.errors import NotAllowed, NotSignedIn
from tesazure.signin.bearer import Trusted
from tesazure.signin.gate import Gate, SignIn
from tesazure.signin.keys import Pace
from tesazure.signin.tokens import TokenSource
from tesazure.store.sql_store import SqlStore, open_store
from tests.services.entra_server import AUDIENCE, TENANT, EntraServer

QUICK = Pace(refresh_s=0.2, cooldown_s=0.3, retry_s=0.02)


@pytest.fixture(scope="module")
def entra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EntraServer]:
    with EntraServer(tmp_path_factory.mktemp("entra")) as running:
        yield running


@pytest.fixture
def lonely(tmp_path: Path) -> Iterator[EntraServer]:
    """An issuer that the test may break."""
    with EntraServer(tmp_path / "lonely") as running:
        yield running


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store("", tmp_path / "tesazure.db")
    yield opened
    await opened.close()


def trusted(entra: EntraServer, **changes: Any) -> Trusted:
    values: dict[str, Any] = {
        "authority": entra.authority,
        "tenants": (TENANT,),
        "audiences": (AUDIENCE,),
        "ca_bundle": entra.ca_bundle,
    }
    return Trusted(**values | changes)


@contextlib.asynccontextmanager
async def gate(
    store: SqlStore, entra: EntraServer, pace: Pace | None = None, **changes: Any
) -> AsyncIterator[Gate]:
    made = Gate(SignIn(trusted=trusted(entra, **changes)), TokenSource(store), pace=pace)
    async with made.standing():
        yield made


def bearer(token: str | bytes) -> list[tuple[bytes, bytes]]:
    raw = token if isinstance(token, bytes) else token.encode("latin-1")
    return [(b"host", b"x"), (b"authorization", b"Bearer " + raw)]


async def refused(made: Gate, headers: list[tuple[bytes, bytes]]) -> NotSignedIn:
    with pytest.raises(NotSignedIn) as caught:
        await made.admit(Role.READ, headers)
    assert not isinstance(caught.value, NotAllowed)
    return caught.value
