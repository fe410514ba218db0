"""PostgreSQL by a token of Entra ID instead of a password: a real one, which checks each token."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesazure import compose, settings
from tesazure.errors import ConfigurationError, StoreUnavailable
from tesazure.settings import Settings
from tesazure.store.entra import database_sign_in_of
from tesazure.store.sql_store import SqlStore, open_store
from tests.conftest import refuse
from tests.service.server import start_server, until
from tests.service.test_reload import hang_up, says, server_with_file
from tests.services import base
from tests.services.entra_postgresql import RESOURCE, EntraPostgreSQL
from tests.services.entra_server import CLIENT, LIFETIME_S, SECRET, TENANT, EntraServer

pytestmark = [pytest.mark.postgres, pytest.mark.xdist_group("entra-postgresql")]

TASK = {"executors": [{"image": "x", "command": ["true"]}]}


@pytest.fixture(scope="module")
def entra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EntraServer]:
    with EntraServer(tmp_path_factory.mktemp("entra")) as running:
        yield running


@pytest.fixture(scope="module")
def database(entra: EntraServer) -> Iterator[EntraPostgreSQL]:
    with tempfile.TemporaryDirectory(prefix="tz-") as directory:
        Path(directory).chmod(0o755)
        try:
            with EntraPostgreSQL(Path(directory) / "pg", entra) as running:
                yield running
        except base.Unavailable as error:
            refuse(str(error))


@pytest.fixture
def given(entra: EntraServer, database: EntraPostgreSQL, tmp_path: Path) -> dict[str, str]:
    """The settings of a server on a new database there."""
    database.verdicts.clear()
    entra.asked.clear()
    entra.lifetime_s = LIFETIME_S
    entra.secrets[CLIENT] = SECRET
    bundle = tmp_path / "authorities.pem"
    bundle.write_text(Path(entra.ca_bundle).read_text() + database.ca_bundle.read_text())
    return {
        "database_url": database.create_database_of_role(),
        "database_auth": "entra",
        "azure_client_id": CLIENT,
        "azure_secret": SECRET,
        "azure_tenant": TENANT,
        "azure_authority_host": entra.authority,
        "ca_bundle": str(bundle),
    }


def loaded(given: dict[str, str]) -> Settings:
    return settings.load({f"APP_{name.upper()}": value for name, value in given.items()}).settings


async def opened(given: dict[str, str]) -> SqlStore:
    s = loaded(given)
    return await open_store(s.database_url, sign_in=database_sign_in_of(s))


def test_a_server_runs_on_it(
    given: dict[str, str], database: EntraPostgreSQL, entra: EntraServer, tmp_path: Path
) -> None:
    with start_server(tmp_path / "server", **given) as server, server.client() as client:
        assert client.get("/v1/tasks/service-info").status_code == 200
        assert client.post("/ga4gh/tes/v1/tasks", json=TASK).status_code == 200
        checks = {c["name"]: c for c in client.get("/readyz").json()["checks"]}
        assert checks["store"]["ok"]
        log = server.log.read_text()
    assert set(database.verdicts) == {"ok"}
    assert SECRET not in log
    assert "eyJ" not in log, "no token is logged"
    assert len([path for path in entra.asked if path.endswith("/token")]) == 1, "it is kept"


async def test_a_new_connection_gets_a_new_token_when_the_old_one_is_spent(
    given: dict[str, str], database: EntraPostgreSQL, entra: EntraServer
) -> None:
    # azure-identity asks anew for tokens that end within five minutes.
    entra.lifetime_s = 60
    store = await opened(given)
    before = len(entra.asked)
    entra.rotate(keep=False)
    database.restart(mode="fast")
    for _ in range(5):
        try:
            await store.ping()
            break
        except StoreUnavailable:
            continue
    await store.ping()
    await store.close()
    assert len(entra.asked) > before
    assert set(database.verdicts) == {"ok"}


def test_another_secret_is_that_of_the_next_connection_once_it_has_proved_good(
    given: dict[str, str], database: EntraPostgreSQL, entra: EntraServer, tmp_path: Path
) -> None:
    entra.lifetime_s = 60  # asked for anew each time, see above
    config = tmp_path / "c.toml"
    config.write_text(f'azure_secret = "{given.pop("azure_secret")}"')
    with server_with_file(config, tmp_path / "s", **given) as server, server.client() as client:

        def use(secret: str) -> None:
            config.write_text(f'azure_secret = "{secret}"')
            hang_up(server)

        use("a-wrong-secret")
        says(server, "new settings are not used, nothing has changed: DATABASE_AUTH: no token")
        entra.secrets[CLIENT] = "the-second-secret"
        use("the-second-secret")
        says(server, "in effect now: AZURE_SECRET")
        database.restart(mode="fast")
        until(lambda: client.post("/ga4gh/tes/v1/tasks", json=TASK).status_code == 200)
        log = server.log.read_text()
    assert "AADSTS7000215" in log
    assert not [each for each in (SECRET, "a-wrong-secret", "the-second-secret") if each in log]


async def test_settings_that_something_else_refuses_change_no_sign_in(
    given: dict[str, str], entra: EntraServer
) -> None:
    entra.lifetime_s = 60  # asked for anew each time, see above
    sign_in = database_sign_in_of(loaded(given))
    assert sign_in is not None
    await asyncio.to_thread(sign_in)
    entra.secrets[CLIENT] = "the-second-secret"
    others = loaded({**given, "azure_secret": "the-second-secret"})
    with pytest.raises(ConfigurationError):
        async with sign_in.changing(others):
            raise ConfigurationError(["another part of the server"])
    with pytest.raises(ConnectionError, match="AADSTS7000215"):
        await asyncio.to_thread(sign_in)
    async with sign_in.changing(others):
        pass
    await asyncio.to_thread(sign_in)


async def test_settings_of_another_cloud_are_followed_as_at_a_start(
    given: dict[str, str], entra: EntraServer
) -> None:
    sign_in, others = database_sign_in_of(loaded(given)), loaded({**given, "cloud": "AzureChina"})
    assert sign_in is not None
    async with sign_in.changing(others):
        pass
    token = (await asyncio.to_thread(sign_in))["password"]
    entra.verify(token, settings.database_scope_of(others).removesuffix("/.default"))


async def test_what_is_told_without_a_token(
    given: dict[str, str], database: EntraPostgreSQL
) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await opened({**given, "azure_secret": "another-secret"})
    said = str(caught.value)
    assert "no token of Entra ID: " in said
    assert "AADSTS7000215" in said
    assert "another-secret" not in said
    assert database.verdicts == []


async def test_what_is_told_when_the_database_refuses(
    given: dict[str, str], database: EntraPostgreSQL
) -> None:
    with pytest.raises(StoreUnavailable, match="authentication failed") as caught:
        await opened({**given, "cloud": "AzureChina"})
    assert "eyJ" not in str(caught.value)
    assert database.verdicts == ["Audience doesn't match"]


async def test_a_database_that_does_not_prove_itself_sees_no_token(
    given: dict[str, str], database: EntraPostgreSQL, entra: EntraServer
) -> None:
    weak = f"{given['database_url']}?sslmode=disable"
    for url in (given["database_url"], weak):
        with pytest.raises(StoreUnavailable, match="certificate verify failed"):
            await opened({**given, "database_url": url, "ca_bundle": entra.ca_bundle})
    assert database.verdicts == []


async def test_tls_is_not_left_out_because_the_url_says_so(
    given: dict[str, str], database: EntraPostgreSQL
) -> None:
    store = await opened({**given, "database_url": f"{given['database_url']}?sslmode=disable"})
    await store.close()
    assert set(database.verdicts) == {"ok"}


async def test_with_a_password_the_documented_url_asks_for_the_same_proof(
    database: EntraPostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq alone would look for authorities where its OpenSSL was built, and find none."""
    options = "?sslmode=verify-full&sslrootcert=system"
    for page in ("kubernetes", "operations"):
        assert options in Path(__file__).parents[2].joinpath(f"docs/{page}.md").read_text()
    url = database.create_database()
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    for asked in (options, "?sslrootcert=system"):
        with pytest.raises(StoreUnavailable, match="certificate verify failed"):
            await opened({"database_url": url + asked})
    # As Debian keeps them; a directory of OpenSSL's own would have names by their hashes.
    (tmp_path / "ca-certificates.crt").write_text(database.ca_bundle.read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    store = await opened({"database_url": url + options})
    await store.close()


def test_doctor_looks_at_it(given: dict[str, str]) -> None:
    assert compose.database_of(loaded(given)).endswith("the schema will be made")


def test_the_scope_is_the_one_of_the_cloud(given: dict[str, str]) -> None:
    assert settings.database_scope_of(loaded(given)) == f"{RESOURCE}/.default"
