"""What the server grants an attempt: signatures field by field, and no credential that the plan
does not need."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tesazure.access import Access, S3Key
from tesazure.errors import UnsupportedUrl
from tesazure.model import Executor, FileType, Input, Output, Task
from tesazure.plan import Defaults, Plan, make_plan
from tesazure.settings import load
from tesazure.storage.configured import endpoints_of, grant_config_of
from tesazure.storage.grant import Granter

KEY = "YSBrZXkgZm9yIHRlc3Rz"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WEEK_S = 7 * 86400
HOST = "https://acct.blob.core.windows.net"
FILES = "https://acct.file.core.windows.net"
WITH_KEY = {"storage_account_name": "acct", "storage_account_key": KEY}


def granter(**given: object) -> Granter:
    """With the clock at NOW."""
    environ = {f"APP_{name.upper()}": str(value) for name, value in given.items()}
    return Granter(grant_config_of(load(environ).settings), clock=NOW.timestamp)


def plan_of(
    *inputs: tuple[str, FileType | None],
    outputs: tuple[tuple[str, str, FileType | None], ...] = (),
    max_runtime_s: float = 0,
) -> Plan:
    """A plan of inputs (URL, type) and outputs (path, URL, type)."""
    task = Task(
        executors=[Executor(image="x", command=["true"])],
        inputs=[Input(path=f"/in/{i}", url=url, type=kind) for i, (url, kind) in enumerate(inputs)],
        outputs=[
            Output(path=path, url=url, type=kind, path_prefix="/out" if "*" in path else None)
            for path, url, kind in outputs
        ],
    )
    return make_plan("t", task, Defaults(1, 1, 1, 0), [], max_runtime_s)


def access(plan: Plan, secrets: Mapping[str, str] = {}, **given: object) -> Access:
    return granter(**given).access(plan, secrets)


def fields(url: str) -> dict[str, str]:
    """The query's parameters but for the signature, which must be there once."""
    pairs = parse_qsl(urlsplit(url).query, strict_parsing=True)
    found = dict(pairs)
    assert len(found) == len(pairs)
    assert found.pop("sig")
    return found


def one(kind: FileType | None, url: str, **given: object) -> str:
    """The URL granted for one input."""
    return access(plan_of((url, kind)), **{**WITH_KEY, **given}).inputs[0]


def one_output(kind: FileType | None, url: str, path: str = "/out/x", **given: object) -> str:
    """The URL granted for one output."""
    return access(plan_of(outputs=((path, url, kind),)), **{**WITH_KEY, **given}).outputs[0]


@pytest.mark.parametrize(
    ("kind", "resource", "rights"),
    [(FileType.FILE, "b", "r"), (FileType.DIRECTORY, "c", "rl"), (None, "c", "rl")],
)
def test_inputs_of_blob_storage_are_read(kind: FileType | None, resource: str, rights: str) -> None:
    url = one(kind, f"{HOST}/data/a%20dir/x")
    assert url.startswith(f"{HOST}/data/a%20dir/x?")
    found = fields(url)
    assert found.pop("sv") >= "2020-12-06"
    assert found == {
        "st": "2026-03-01T11:45:00Z",
        "se": "2026-03-08T12:00:00Z",
        "sp": rights,
        "sr": resource,
        "spr": "https",
    }


@pytest.mark.parametrize(
    ("kind", "path", "resource"),
    [
        (FileType.FILE, "/out/x", "b"),
        (FileType.FILE, "/out/*.txt", "c"),
        (FileType.DIRECTORY, "/out/x", "c"),
        (None, "/out/x", "c"),
    ],
)
def test_outputs_to_blob_storage_are_written(
    kind: FileType | None, path: str, resource: str
) -> None:
    found = fields(one_output(kind, f"{HOST}/data/x", path))
    assert (found["sr"], found["sp"]) == (resource, "cw")


@pytest.mark.parametrize(
    ("kind", "resource", "rights"),
    [(FileType.FILE, "f", "r"), (FileType.DIRECTORY, "s", "rl"), (None, "s", "rl")],
)
def test_inputs_of_azure_files_are_read(kind: FileType | None, resource: str, rights: str) -> None:
    found = fields(one(kind, f"{FILES}/share/a/b"))
    assert (found["sr"], found["sp"], found["spr"]) == (resource, rights, "https")


@pytest.mark.parametrize("kind", [FileType.FILE, FileType.DIRECTORY, None])
def test_outputs_to_azure_files_replace_through_another_name(kind: FileType | None) -> None:
    found = fields(one_output(kind, f"{FILES}/share/a/b"))
    assert (found["sr"], found["sp"]) == ("s", "rcwd")


def test_a_container_as_a_whole_needs_rights_on_it_whatever_its_type() -> None:
    found = fields(one(FileType.FILE, f"{HOST}/data"))
    assert (found["sr"], found["sp"]) == ("c", "rl")


@pytest.mark.parametrize(
    ("limit_s", "hours", "expiry"),
    [
        (3600, 168, "2026-03-02T01:00:00Z"),  # an hour, and twelve for transfers
        (30 * 86400, 168, "2026-03-08T12:00:00Z"),  # for a week at most
        (3600, 1.5, "2026-03-01T13:30:00Z"),
        (0, 168, "2026-03-08T12:00:00Z"),
        (0, 1.5, "2026-03-01T13:30:00Z"),
    ],
)
def test_signatures_end_with_the_time_limit(limit_s: float, hours: float, expiry: str) -> None:
    plan = plan_of((f"{HOST}/data/x", FileType.FILE), max_runtime_s=limit_s)
    granted = access(plan, **WITH_KEY, credential_hours=hours)
    assert fields(granted.inputs[0])["se"] == expiry


@pytest.mark.parametrize(("hours", "expiry"), [(168, "08T12:00:00Z"), (2, "01T14:00:00Z")])
def test_those_of_attempts_that_wait_for_a_node_live_as_long_as_they_may(
    hours: float, expiry: str
) -> None:
    plan = plan_of((f"{HOST}/data/x", FileType.FILE), max_runtime_s=60)
    batch = {
        "batch_account_name": "acct",
        "batch_account_key": KEY,
        "batch_region": "westeurope",
        "filetransfer_container_image": "runner:1",
    }
    granted = access(plan, **WITH_KEY, **batch, credential_hours=hours)
    assert fields(granted.inputs[0])["se"] == f"2026-03-{expiry}"


def test_az_urls_mean_the_configured_account() -> None:
    assert one(FileType.FILE, "az://data/a b").startswith(f"{HOST}/data/a%20b?")
    endpoint = "http://127.0.0.1:10000/acct"
    url = one(FileType.FILE, "az://data/x", storage_blob_endpoint=endpoint)
    assert url.startswith(f"{endpoint}/data/x?")
    assert fields(url)["spr"] == "https,http"


def test_the_same_blob_is_signed_the_same_by_whichever_of_its_urls() -> None:
    by_az, by_host = one(FileType.FILE, "az://data/x"), one(FileType.FILE, f"{HOST}/data/x")
    assert by_az == by_host
    sovereign = one(FileType.FILE, "az://data/x", storage_endpoint_suffix="core.usgovcloudapi.net")
    assert sovereign.startswith("https://acct.blob.core.usgovcloudapi.net/data/x?")


def test_a_custom_domain_is_signed_with_the_accounts_name() -> None:
    domain = one(FileType.FILE, "az://data/x", storage_blob_endpoint="https://data.example.org")
    assert domain.startswith("https://data.example.org/data/x?")
    assert urlsplit(domain).query == urlsplit(one(FileType.FILE, "az://data/x")).query


@pytest.mark.parametrize(
    "url",
    [
        "https://other.blob.core.windows.net/data/x",
        "https://acct.blob.core.chinacloudapi.cn/data/x",  # a namesake in another cloud
        "http://acct.blob.core.windows.net/data/x",  # a signature is not sent in the clear
        "https://acct.blob.core.windows.net.example.org/data/x",
        "https://example.org/data/x",
        f"{HOST}/data/x?sv=2020&sp=r&sig=theirs",
        "file:///data/x",
        "/data/x",
    ],
)
def test_the_key_signs_for_its_own_account_only(url: str) -> None:
    plan = plan_of((url, FileType.FILE), outputs=(("/out/x", url, FileType.FILE),))
    assert access(plan, **WITH_KEY) == Access()


def test_other_parameters_stay() -> None:
    url = one(FileType.FILE, f"{HOST}/data/x?versionid=2026-01-01")
    assert fields(url)["versionid"] == "2026-01-01"


def test_parameters_of_the_client_are_not_signed_for() -> None:
    asked = "comp=list&restype=container&prefix=x&sig=&se=2099-01-01&snapshot=a%26comp=list"
    found = fields(one(FileType.FILE, f"{HOST}/data/x?{asked}"))
    assert found.pop("snapshot") == "a&comp=list"
    assert found == fields(one(FileType.FILE, f"{HOST}/data/x"))


def test_what_the_client_sent_is_used_as_it_is() -> None:
    plan = plan_of(
        (f"{HOST}/data/x?sig=***", FileType.FILE),
        ("https://u:***@h/x", None),
        outputs=(("/out/x", "az://data/y?sig=***", None),),
    )
    secrets = {
        "inputs.0": f"{HOST}/data/x?sig=s1",
        "inputs.1": "https://u:s2@h/x",
        "outputs.0": "az://data/y?sig=s3",
    }
    granted = access(plan, secrets, **WITH_KEY)
    assert granted.inputs == {0: secrets["inputs.0"], 1: secrets["inputs.1"]}
    assert granted.outputs == {0: secrets["outputs.0"]}


def test_without_credentials_everything_is_asked_anonymously() -> None:
    plan = plan_of((f"{HOST}/data/x", None), ("az://data/x", None), ("s3://b/k", None))
    assert access(plan, storage_account_name="acct") == Access()


def test_az_urls_without_an_account_are_refused() -> None:
    with pytest.raises(UnsupportedUrl, match="no"):
        access(plan_of(("az://data/x", None)))


OTHERS: dict[str, Any] = {
    "s3_access_key_id": "id",
    "s3_secret_access_key": "secret",
    "s3_session_token": "token",
    "drs_tokens": "drs.example.org=t1,Drs.example.org:8080=t2,other.org=t3",
}
S3 = S3Key("id", "secret", "token")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org/x", Access()),
        ("s3://bucket/key", Access(s3=S3)),
        ("drs://drs.example.org/id", Access(s3=S3, drs_tokens={"drs.example.org": "t1"})),
        ("DRS://DRS.example.org:8080/id", Access(s3=S3, drs_tokens={"drs.example.org:8080": "t2"})),
        ("drs://unknown.org/id", Access(s3=S3)),
        ("file:///s3://x", Access()),
    ],
)
def test_an_attempt_gets_the_credentials_of_its_systems_only(url: str, expected: Access) -> None:
    assert access(plan_of((url, None)), **OTHERS) == expected
    assert granter(**OTHERS).to_systems([url]) == expected


def test_an_sftp_key_goes_with_sftp_urls(tmp_path: Any) -> None:
    from tests.unit.test_settings_storage import private_key

    file = tmp_path / "key"
    file.write_bytes(private_key())
    given = {"sftp_key_file": file}
    assert access(plan_of(("sftp://h/x", None)), **given).sftp_key == file.read_text()
    assert access(plan_of(("sftp://me:***@h/x", None)), **given) == Access()
    both = plan_of(("sftp://me:***@h/x", None), ("sftp://me@h/x", None))
    assert access(both, **given).sftp_key == file.read_text()
    assert access(plan_of(("ftp://h/x", None)), **given) == Access()


def test_what_needs_no_service_is_told() -> None:
    by_key = granter(**WITH_KEY, **OTHERS)
    identity = {"azure_client_id": "i", "azure_secret": "s", "azure_tenant": "t"}
    by_identity = granter(**identity, **OTHERS)
    urls = ("file:///x", "s3://b/k", "gs://b/k", "az://data/x", f"{HOST}/data/x")
    assert [by_key.is_quick(plan_of((url, None))) for url in urls] == [True] * 5
    assert [by_identity.is_quick(plan_of((url, None))) for url in urls] == [True] * 3 + [False] * 2
    assert not by_key.is_quick(plan_of(*[("az://data/x", None)] * 101))


def test_a_user_at_the_command_line_gets_a_signature_as_long_as_asked() -> None:
    made = granter(**WITH_KEY)
    url = made.resolve("az://data/x", writing=False, directory=True, lifetime_s=60)
    found = fields(url)
    assert (found["sp"], found["sr"], found["se"]) == ("rl", "c", "2026-03-01T12:01:00Z")
    for other in ("s3://b/k", "/x", "https://example.org", f"{HOST}/data/x?sig=theirs"):
        assert made.resolve(other, writing=True, directory=False, lifetime_s=60) == other


def test_secrets_are_not_in_what_is_printed() -> None:
    config = grant_config_of(
        load({"APP_STORAGE_ACCOUNT_NAME": "acct", "APP_STORAGE_ACCOUNT_KEY": KEY}).settings
    )
    granted = Granter(config).access(plan_of(("az://data/x", None)), {})
    assert KEY not in f"{config!r} {config.azure!r} {granted!r}"
    assert "sig=" not in f"{granted!r}"


def test_endpoints_hold_what_the_settings_say() -> None:
    environ = {
        "APP_STORAGE_ACCOUNT_NAME": "acct",
        "APP_STORAGE_ENDPOINT_SUFFIX": "core.example.org",
        "APP_S3_ENDPOINT_URL": "http://minio:9000/",
        "APP_GCS_ENDPOINT_URL": "http://127.0.0.1:4443/",
    }
    endpoints = endpoints_of(load(environ).settings)
    assert endpoints.blob == "https://acct.blob.core.example.org"
    assert endpoints.file == "https://acct.file.core.example.org"
    assert endpoints.blob_suffixes[:2] == (".blob.core.example.org", ".blob.core.windows.net")
    assert (endpoints.s3, endpoints.gcs) == ("http://minio:9000", "http://127.0.0.1:4443")
    plain = endpoints_of(load({}).settings)
    assert (plain.blob, plain.s3, plain.gcs) == ("", "", "https://storage.googleapis.com")
