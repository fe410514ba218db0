"""Settings from a Key Vault: the real azure-identity and azure-keyvault-secrets, and a vault that
checks who asks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tesazure.azure_identity import Identity
from tesazure.cli.exits import Code
from tesazure.errors import ConfigurationError, VaultUnavailable
from tesazure.key_vault import KeyVault, VaultConfig
from tesazure.settings import Sources, shown
from tests.service.server import environment
from tests.service.tool import Tool
from tests.service.vaults import Site
from tests.service.vaults import site as running_site
from tests.services.cutting_proxy import CuttingProxy
from tests.services.entra_server import CLIENT, IDENTITY_HEADER, OTHER_TENANT, SECRET, TENANT
from tests.services.key_vault_server import KeyVaultServer

DAY_S = 86400
PLANTED = "pl4nted-value"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running_site(tmp_path / "azure", page=2) as running:
        yield running


def sources(site: Site, config: Path | None = None, **more: str) -> Sources:
    given = {name: value for name, value in (site.settings | more).items() if value}
    return Sources({f"APP_{name.upper()}": value for name, value in given.items()}, {}, config)


def problems(given: Sources) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        given.load()
    return list(caught.value.problems)


def test_values_are_typed_and_know_where_they_come_from(site: Site) -> None:
    site.vault.set("TESAZURE-AAD-VERIFY", "True")
    site.vault.set("TESAZURE-AAD-AUDIENCE", "one,two")
    site.vault.set("tesazure-aad-tenant-id", TENANT)
    site.vault.set("TESAZURE-LOG-LEVEL", "warning")
    site.vault.set("TESAZURE-LEASE-S", "12.5")
    found = sources(site).load()
    assert found.settings.aad_verify is True
    assert found.settings.aad_audience == ("one", "two")
    assert found.settings.aad_tenant_id == (TENANT,)
    assert found.settings.lease_s == 12.5
    from_vault = {name for name, source in found.sources.items() if source == "Key Vault"}
    names = {"aad_verify", "aad_audience", "aad_tenant_id", "log_level", "lease_s"}
    assert from_vault == names
    assert ("LOG_LEVEL", "warning", "Key Vault") in shown(found)
    assert found.warnings == ()


def test_it_stands_between_the_file_and_the_environment(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("port = 1\nlease_s = 1\nmax_retries = 1\nbackfill_s = 1\n")
    for name in ("PORT", "LEASE-S", "MAX-RETRIES"):
        site.vault.set(f"TESAZURE-{name}", "2")
    given = Sources(
        {f"APP_{n.upper()}": v for n, v in {**site.settings, "lease_s": "3", "port": "3"}.items()},
        {"port": 4},
        config,
    )
    found = given.load()
    names = ("backfill_s", "max_retries", "lease_s", "port")
    assert [found.sources[name] for name in names] == [
        "file",
        "Key Vault",
        "environment",
        "command line",
    ]
    assert [getattr(found.settings, name) for name in names] == [1, 2, 3, 4]


def test_the_vault_may_be_named_in_the_file(site: Site, tmp_path: Path) -> None:
    site.vault.set("TESAZURE-PORT", "7")
    config = tmp_path / "c.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in site.settings.items()]
    config.write_text("\n".join(lines).replace('"false"', "false"))
    assert Sources({}, {}, config).load().settings.port == 7


def test_no_proxy_of_the_environment_is_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.vault.set("TESAZURE-PORT", "7")
    with CuttingProxy(1) as proxy:
        url = f"http://user:{PLANTED}@127.0.0.1:{proxy.port}"
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", url)
        given = {f"APP_{name.upper()}": value for name, value in site.settings.items()}
        found = Sources(given | {"HTTPS_PROXY": url}, {}, None).load()
        assert proxy.connections == 0
    assert found.settings.port == 7
    [said] = found.warnings
    assert said.startswith("HTTPS_PROXY is not used: the server reaches Key Vaults, ")


def test_without_a_bundle_the_systems_authorities_are_trusted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.vault.set("TESAZURE-PORT", "7")
    with pytest.raises(VaultUnavailable, match=r"(?i)certificate"):
        sources(site, ca_bundle="").load()
    monkeypatch.setenv("SSL_CERT_FILE", str(site.ca_bundle))
    given = {f"APP_{name.upper()}": value for name, value in site.settings.items()}
    del given["APP_CA_BUNDLE"]
    found = Sources(given | {"REQUESTS_CA_BUNDLE": "/nowhere.pem"}, {}, None).load()
    assert found.settings.port == 7
    [said] = found.warnings
    assert said.startswith("REQUESTS_CA_BUNDLE is not used: SSL_CERT_FILE and the setting ")


def test_all_pages_are_read(site: Site) -> None:
    for number in range(5):
        site.vault.set(f"Other-{number}", PLANTED)
    for name in ("PORT", "LEASE-S", "BACKFILL-S"):
        site.vault.set(f"TESAZURE-{name}", "9")
    found = sources(site).load()
    assert (found.settings.port, found.settings.lease_s, found.settings.backfill_s) == (9, 9, 9)
    assert site.vault.count("GET /secrets/Other") == 0
    assert len([path for path in site.vault.asked if path == "GET /secrets"]) == 5  # 1 challenged


def test_secrets_out_of_use_are_skipped_and_named(site: Site) -> None:
    now = time.time()
    site.vault.set("TESAZURE-PORT", "1", enabled=False)
    site.vault.set("TESAZURE-LEASE-S", "1", expires=now - DAY_S)
    site.vault.set("TESAZURE-MAX-RETRIES", "1", not_before=now + DAY_S)
    site.vault.set("TESAZURE-BACKFILL-S", "1", expires=now + DAY_S, not_before=now - DAY_S)
    site.vault.set("TESAZURE-RETRY-DELAY-S", "")
    found = sources(site).load()
    assert [name for name, source in found.sources.items() if source == "Key Vault"] == [
        "backfill_s"
    ]
    said = sorted(found.warnings)
    assert said[0].startswith("Key Vault secret TESAZURE-LEASE-S has expired on ")
    assert said[1].startswith("Key Vault secret TESAZURE-MAX-RETRIES is not valid before ")
    assert said[2] == "Key Vault secret TESAZURE-PORT is disabled: it is not used"
    assert len(said) == 3


@pytest.mark.parametrize(
    "name", ["AAD-VERIFY", "AAD-ROLES-REQUIRED", "API-TOKENS", "TASK-ACCESS-RESTRICTIONS"]
)
def test_what_protects_the_server_is_never_skipped(site: Site, name: str) -> None:
    site.vault.set(f"TESAZURE-{name}", "true", expires=time.time() - DAY_S)
    with pytest.raises(ConfigurationError, match=f"TESAZURE-{name} is disabled, expired .* protec"):
        sources(site).load()
    variable = f"APP_{name.replace('-', '_')}"
    off = "none" if name.startswith("TASK") else "false"
    given = {f"APP_{n.upper()}": v for n, v in site.settings.items()}
    Sources({**given, variable: off}, {}).load()


def test_the_newest_version_counts(site: Site) -> None:
    site.vault.set("TESAZURE-PORT", "1")
    site.vault.set("TESAZURE-PORT", "2")
    assert sources(site).load().settings.port == 2


def test_unknown_names_are_a_warning(site: Site) -> None:
    site.vault.set("TESAZURE-AAD-TENNANT", PLANTED)
    site.vault.set("TESAZURE-KEYVAULT-URL", f"https://{PLANTED}.example.org")
    found = sources(site).load()
    assert sorted(found.warnings) == [
        "Key Vault secret TESAZURE-AAD-TENNANT is no setting; did you mean TESAZURE-AAD-TENANT-ID?",
        "Key Vault secret TESAZURE-KEYVAULT-URL leads to the vault: it is not used there",
    ]
    assert found.settings.keyvault_url == site.vault.url


def test_wrong_values_are_told_together_with_all_others_and_not_shown(site: Site) -> None:
    site.vault.set("TESAZURE-PORT", PLANTED)
    site.vault.set("TESAZURE-BATCH-ACCOUNT-KEY", "c2VjcmV0")
    site.vault.set("TESAZURE-ALLOW-DIR", f"/{PLANTED}")
    site.vault.set("TESAZURE-AAD-TENANT-ID", f"{PLANTED} {PLANTED}")
    site.vault.set("TESAZURE-SFTP-KEY-FILE", f"/{PLANTED}")
    found = problems(sources(site, lease_s="x"))
    assert found == [
        "Key Vault secret TESAZURE-PORT: must be a whole number (given: ***)",
        "APP_LEASE_S: must be a number (given: 'x')",
        "ALLOW_DIR: entry 1 is not a directory; make it or leave it out",
        "BATCH_ACCOUNT_KEY: is a key of which account? set BATCH_ACCOUNT_NAME",
        "AAD_TENANT_ID: entry 1 is no tenant; give its id (a GUID) or a domain of its own",
        "SFTP_KEY_FILE: No such file or directory",
    ]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"azure_secret": "wrong"}, "the identity to read it by is refused: .*AADSTS7000215"),
        ({"azure_client_id": "nobody"}, "the identity to read it by is refused: .*AADSTS700016"),
        ({"azure_tenant": OTHER_TENANT}, f"not configured to acquire tokens for tenant {TENANT};"),
        ({"keyvault_verify_challenge": "true"}, "answers as no vault of this cloud: .*CLOUD"),
    ],
)
def test_a_way_that_cannot_lead_to_it_is_final(
    site: Site, more: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        sources(site, **more).load(600)
    assert SECRET not in str(caught.value)
    assert len(caught.value.problems) == 1


def test_an_identity_without_rights_is_told_what_it_lacks(site: Site) -> None:
    site.vault.readers = set()
    (problem,) = problems(sources(site))
    assert "refuses this server's identity" in problem
    assert "give it the role Key Vault Secrets User" in problem


@pytest.mark.parametrize("trouble", ["closed", 503, 429])
def test_an_outage_at_the_start_is_waited_for(site: Site, trouble: Any) -> None:
    site.vault.set("TESAZURE-PORT", "7")
    site.vault.down(trouble)
    said: list[str] = []

    def up_again(text: str) -> None:
        said.append(text)
        site.vault.up()

    assert sources(site).load(60, up_again).settings.port == 7
    assert len(said) == 1
    assert "cannot be read now" in said[0]
    assert "trying again for 60 s" in said[0]


@pytest.mark.parametrize("which", ["vault", "entra"])
def test_a_longer_outage_is_an_error(site: Site, which: str) -> None:
    getattr(site, which).down()
    start = time.monotonic()
    with pytest.raises(VaultUnavailable, match="cannot be read now"):
        sources(site).load(1)
    assert time.monotonic() - start < 30


def test_a_wrong_authority_is_named(site: Site) -> None:
    with pytest.raises(VaultUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        sources(site, ca_bundle=site.entra.ca_bundle).load()


@pytest.mark.parametrize("trouble", ["closed", 503, "refused"])
def test_an_outage_later_is_survived(site: Site, tmp_path: Path, trouble: Any) -> None:
    config = tmp_path / "c.toml"
    config.write_text("lease_s = 10\n")
    site.vault.set("TESAZURE-PORT", "7")
    given = sources(site, config)
    given.load()
    config.write_text("lease_s = 20\n")
    if trouble == "refused":
        site.vault.readers = set()
    else:
        site.vault.down(trouble)
    found = given.again()
    assert (found.settings.port, found.settings.lease_s) == (7, 20)
    (warning,) = found.warnings
    assert "what it held when last read is still used" in warning
    site.vault.up()
    site.vault.readers = None
    site.vault.set("TESAZURE-PORT", "8")
    assert given.again().settings.port == 8


def test_what_goes_from_the_vault_goes_from_the_settings(site: Site) -> None:
    site.vault.set("TESAZURE-PORT", "7")
    given = sources(site)
    given.load()
    site.vault.remove("TESAZURE-PORT")
    assert given.again().sources["port"] == "default"


def test_a_token_that_expires_is_got_anew(site: Site) -> None:
    site.entra.lifetime_s = 1
    site.vault.set("TESAZURE-PORT", "7")
    given = sources(site)
    given.load()
    before = site.entra.issued
    given.again()
    assert site.entra.issued > before


def test_what_another_vault_held_is_not_used(site: Site, tmp_path: Path) -> None:
    """Settings that lead to one may have been looked at, and not be in effect."""
    site.vault.set("TESAZURE-PORT", "7")
    with KeyVaultServer(tmp_path / "other", site.entra) as other:
        bundle = tmp_path / "all.pem"
        bundle.write_text(site.ca_bundle.read_text() + Path(other.ca_bundle).read_text())
        other.set("TESAZURE-PORT", "8")
        given = sources(site, keyvault_url="", ca_bundle=str(bundle))
        assert given.again({"keyvault_url": site.vault.url}).settings.port == 7
        assert given.again({"keyvault_url": other.url}).settings.port == 8
        site.vault.down(503)
        assert given.again({"keyvault_url": site.vault.url}).settings.port == 7
        other.down(503)
        assert given.again({"keyvault_url": other.url}).settings.port == 8


def vault_of(site: Site) -> KeyVault:
    identity = Identity(
        tenant=TENANT,
        client_id=CLIENT,
        secret=SECRET,
        authority=site.entra.authority,
        ca_bundle=str(site.ca_bundle),
    )
    return KeyVault(VaultConfig(url=site.vault.url, identity=identity, verify_challenge=False))


def test_whether_we_may_write_is_asked_without_writing(site: Site) -> None:
    site.vault.set("TESAZURE-PORT", "7")
    vault_of(site).demand_writable()
    site.vault.writers = set()
    with pytest.raises(ConfigurationError, match="Key Vault Secrets Officer"):
        vault_of(site).demand_writable()
    site.vault.down(503)
    with pytest.raises(VaultUnavailable):
        vault_of(site).demand_writable()
    site.vault.up()
    assert vault_of(site).read().secrets == {"TESAZURE-PORT": "7"}
    assert site.vault.versions("TESAZURE-PORT") == ["7"]


def test_what_is_written_replaces_what_was_written_and_nothing_else(site: Site) -> None:
    """What others keep there stays, also what begins as ours do."""
    site.vault.set("TESAZURE-BATCH-VM-SIZES", "Standard_D2s_v5")
    site.vault.set("TESAZURE-BATCH-REGION", "westeurope")
    site.vault.set("theirs", "x", tags={"tesazure-installation": "another"})
    vault = vault_of(site)
    mark = {"tesazure-installation": "this"}
    vault.write(
        {"batch_account_name": "a", "batch_account_key": "k", "batch_region": "westeurope"}, mark
    )
    vault.write({"batch_account_name": "b", "batch_region": "westeurope"}, mark)
    assert site.vault.value("TESAZURE-BATCH-ACCOUNT-NAME") == "b"
    assert site.vault.value("TESAZURE-BATCH-ACCOUNT-KEY") is None
    vault.write({}, mark)
    vault.write({}, mark)
    assert site.vault.value("TESAZURE-BATCH-ACCOUNT-NAME") is None
    assert site.vault.value("TESAZURE-BATCH-VM-SIZES") == "Standard_D2s_v5"
    assert site.vault.value("TESAZURE-BATCH-REGION") == "westeurope"
    assert site.vault.value("theirs") == "x"
    vault.write({"batch_account_name": "b"}, mark)
    assert vault.read().secrets["TESAZURE-BATCH-ACCOUNT-NAME"] == "b"


def tool(site: Site, here: Path, more: dict[str, str], **settings: str) -> Tool:
    return Tool("http://127.0.0.1:9", here, environment(**settings) | more)


def test_a_managed_identity_reads_it(site: Site, tmp_path: Path) -> None:
    site.vault.set("TESAZURE-PORT", "7")
    host = {"IDENTITY_ENDPOINT": site.entra.msi_endpoint, "IDENTITY_HEADER": IDENTITY_HEADER}
    run = tool(site, tmp_path, host, **site.anonymous, azure_identity="default")
    assert json.loads(run("config", "--json").stdout)["PORT"] == {
        "value": "7",
        "source": "Key Vault",
    }
    assert site.entra.count("/msi/token") == 1
    assert site.entra.count("/oauth2/") == 0


def test_a_workload_identity_reads_it(site: Site, tmp_path: Path) -> None:
    site.vault.set("TESAZURE-PORT", "7")
    token = tmp_path / "federated"
    token.write_text(site.entra.federated_token())
    host = {
        "AZURE_FEDERATED_TOKEN_FILE": str(token),
        "AZURE_CLIENT_ID": CLIENT,
        "AZURE_TENANT_ID": TENANT,
    }
    run = tool(site, tmp_path, host, **site.anonymous, azure_identity="default")
    assert json.loads(run("config", "--json").stdout)["PORT"]["source"] == "Key Vault"
    assert site.entra.count("/oauth2/v2.0/token") == 1


def test_config_shows_sources_and_no_secrets(site: Site, tmp_path: Path) -> None:
    site.vault.set("TESAZURE-STORAGE-ACCOUNT-NAME", "acct")
    site.vault.set("TESAZURE-STORAGE-ACCOUNT-KEY", "cGw0bnRlZA==")
    site.vault.set("TESAZURE-PROT", PLANTED)
    run = tool(site, tmp_path, {}, **site.settings)
    done = run("config", "--set", "PORT=9")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert ["STORAGE_ACCOUNT_NAME", "acct", "Key Vault"] in rows
    assert ["STORAGE_ACCOUNT_KEY", "***", "Key Vault"] in rows
    assert ["AZURE_SECRET", "***", "environment"] in rows
    assert ["PORT", "9", "command line"] in rows
    assert "TESAZURE-PROT is no setting; did you mean TESAZURE-PORT?" in done.stderr
    for secret in ("cGw0bnRlZA==", SECRET, PLANTED):
        assert secret not in done.stdout + done.stderr


def test_config_says_what_is_wrong(site: Site, tmp_path: Path) -> None:
    done = tool(site, tmp_path, {}, **(site.settings | {"azure_secret": "wr0ng"}))(
        "config", code=Code.USAGE
    )
    assert "AADSTS7000215" in done.stderr
    assert "wr0ng" not in done.stderr
    assert len(done.stderr.splitlines()) == 2
    site.vault.down()
    done = tool(site, tmp_path, {}, **site.settings)("config", code=Code.UNREACHABLE)
    assert "cannot be read now" in done.stderr
