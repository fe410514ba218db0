"""Signatures for Azure: the same as Microsoft's SDKs make, where both speak of the same version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest
from azure.storage import blob, fileshare
from azure.storage.blob import _shared_access_signature as blob_sdk
from azure.storage.fileshare import _shared_access_signature as file_sdk

from tesazure.storage.sas import DelegationKey, Grant, Place, delegation_sas, service_sas

KEY = "YSBrZXkgZm9yIHRlc3Rz"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAMES = ("x", "a/b c", "tab\tand%20&?=+", "grün/日本")
GRANTS = [
    Grant("r", START, START + timedelta(days=1)),
    Grant("rcwd", START, START + timedelta(seconds=59), "https,http"),
]


def sdk(grant: Grant) -> dict[str, Any]:
    return {
        "permission": grant.rights,
        "start": grant.start,
        "expiry": grant.expiry,
        "protocol": grant.protocol,
    }


def pairs(query: str) -> dict[str, str]:
    return dict(parse_qsl(query, strict_parsing=True))


@pytest.mark.parametrize("grant", GRANTS)
@pytest.mark.parametrize("path", ["", *NAMES])
def test_an_account_key_signs_for_blobs_as_the_sdk_does(path: str, grant: Grant) -> None:
    ours = service_sas(Place("blob", "acct", "data", path), grant, KEY, blob_sdk.X_MS_VERSION)
    if path:
        theirs = blob.generate_blob_sas("acct", "data", path, account_key=KEY, **sdk(grant))
    else:
        theirs = blob.generate_container_sas("acct", "data", account_key=KEY, **sdk(grant))
    assert pairs(ours) == pairs(theirs)


@pytest.mark.parametrize("grant", GRANTS)
@pytest.mark.parametrize("path", ["", *NAMES])
def test_an_account_key_signs_for_files_as_the_sdk_does(path: str, grant: Grant) -> None:
    ours = service_sas(Place("file", "acct", "share", path), grant, KEY, file_sdk.X_MS_VERSION)
    assert pairs(ours) == pairs(files_sdk(path, grant, account_key=KEY))


@pytest.mark.parametrize("path", ["", *NAMES])
def test_an_identity_signs_for_files_as_the_sdk_does(path: str) -> None:
    theirs = fileshare.UserDelegationKey()
    theirs.signed_oid, theirs.signed_tid = "oid", "tid"
    theirs.signed_start, theirs.signed_expiry = "2026-03-01T11:45:00Z", "2026-03-08T11:45:00Z"
    theirs.signed_service, theirs.signed_version, theirs.value = "f", "2025-07-05", KEY
    ours = DelegationKey(
        oid="oid",
        tid="tid",
        start="2026-03-01T11:45:00Z",
        expiry="2026-03-08T11:45:00Z",
        service="f",
        version="2025-07-05",
        value=KEY,
    )
    place, version = Place("file", "acct", "share", path), file_sdk.X_MS_VERSION
    made = delegation_sas(place, GRANTS[0], ours, version)
    assert pairs(made) == pairs(files_sdk(path, GRANTS[0], user_delegation_key=theirs))


def files_sdk(path: str, grant: Grant, **key: Any) -> str:
    if path:
        return fileshare.generate_file_sas("acct", "share", path.split("/"), **key, **sdk(grant))
    return fileshare.generate_share_sas("acct", "share", **key, **sdk(grant))


def test_keys_are_not_printed() -> None:
    key = DelegationKey("o", "t", "s", "e", "b", "v", KEY)
    assert KEY not in repr(key)
