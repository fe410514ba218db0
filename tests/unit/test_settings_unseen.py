"""No message about settings shows a value: it may hold a secret, or come from among secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tesazure.settings import FIELDS, Settings
from tesazure.settings.checks import conflicts, vault_conflicts
from tesazure.settings.sources import Candidate, convert, problem_of

PLANTED = "pl4nted"
WORDS = (
    PLANTED,
    f"/{PLANTED}",
    f"{PLANTED}=",
    f"{PLANTED}\0",
    f"{PLANTED}={PLANTED},{PLANTED}",
    f"{PLANTED}.core.windows.net",
    f"https://{PLANTED}.org",
    f"https://{PLANTED}.org:8443/{PLANTED}",
    f"http://127.0.0.1:1/{PLANTED}",
    f"https://me:{PLANTED}@{PLANTED}.org/{PLANTED}?{PLANTED}#{PLANTED}",
    f"https://[{PLANTED}",
    f"https://{PLANTED}:{PLANTED}",
    f"postgresql://me:{PLANTED}@[{PLANTED}/{PLANTED}",
)
BASES: tuple[dict[str, Any], ...] = (
    {},
    {
        "storage_account_name": "acct",
        "keyvault_url": "vault",
        "azure_identity": "default",
        "aad_verify": True,
        "aad_audience": ("an-id",),
        "aad_tenant_id": ("contoso.org",),
        "aad_issuer": "https://issuer.example.org",
        "compute_backend": "batch",
        "private_docker_registry_url": "registry.example.org",
    },
)


@pytest.mark.parametrize("name", FIELDS)
def test_no_message_shows_a_value(name: str) -> None:
    said = []
    for word in WORDS:
        try:
            value = convert(name, word)
        except ValueError as error:
            said.append(problem_of(Candidate("Key Vault", "it", name, word), error))
            continue
        for base in BASES:
            s = Settings(**base | {name: value})
            said += [*conflicts(s), *vault_conflicts(s)]
    assert not [text for text in said if PLANTED in text.lower()]


def test_what_is_in_files_is_not_shown_either(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (PLANTED, f'{{"type": "{PLANTED}"}}', f"-----BEGIN {PLANTED}-----", "\0\xff"):
        file.write_text(content)
        for name in ("gcs_credentials_file", "sftp_known_hosts", "sftp_key_file", "ca_bundle"):
            said = str(conflicts(Settings(**{name: str(file)})))
            assert PLANTED not in said
            assert str(file) not in said
