"""storage.registry: which system serves which URL, decided without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tesazure.access import Endpoints
from tesazure.errors import PermissionDenied, UnsupportedUrl
from tesazure.storage.file import FileStorage
from tesazure.storage.http import HttpStorage
from tesazure.storage.mounts import Mounts
from tesazure.storage.registry import Storages

AZURE = ["https://*.blob.core.windows.net", "https://*.file.core.windows.net"]


def test_each_scheme_has_one_system(tmp_path: Path) -> None:
    storages = Storages([tmp_path])
    assert isinstance(storages.for_url("/a"), FileStorage)
    assert storages.for_url("file:///a") is storages.for_url("/b")
    assert isinstance(storages.for_url("HTTPS://h/a"), HttpStorage)
    assert storages.for_url("http://h/a") is storages.for_url("https://h/b")
    expected = {
        "https://account.blob.core.windows.net/container/name?sig=x": "BlobStorage",
        "https://account.blob.core.chinacloudapi.cn/container/name": "BlobStorage",
        "https://account.file.core.windows.net/share/name": "AzureFilesStorage",
        "https://account.blob.core.windows.net.example.org/container/name": "HttpStorage",
        "s3://bucket/key": "S3Storage",
        "gs://bucket/key": "GcsStorage",
        "ftp://h/a": "FtpStorage",
        "sftp://h/a": "SftpStorage",
        "drs://h/a": "DrsStorage",
    }
    assert {url: type(storages.for_url(url)).__name__ for url in expected} == expected
    storages.close()
    storages.close()


def test_schemes_are_listed_for_service_info(tmp_path: Path) -> None:
    """All but az://, which means nothing without an account."""
    always = ["http://", "https://", "s3://", "gs://", "ftp://", "sftp://", "drs://"]
    assert Storages([tmp_path]).schemes() == [tmp_path.as_uri(), *always, *AZURE]
    endpoints = Endpoints(blob="http://127.0.0.1:10000/account")
    listed = Storages([], endpoints=endpoints).schemes()
    assert listed == ["http://", "https://", "az://", *always[2:], *AZURE]


def test_schemes_whose_packages_are_not_installed_are_not_listed(tmp_path: Path) -> None:
    """Python without site-packages but for what the package itself cannot do without."""
    import msgspec

    import tesazure

    for package in (msgspec, tesazure):
        place = Path(package.__file__ or "").parent
        (tmp_path / place.name).symlink_to(place)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "from tesazure.storage.registry import Storages; print(*Storages([]).schemes())"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True, check=False
    )
    listed = ["http://", "https://", "ftp://", "drs://", *AZURE]
    assert (done.stdout.split(), done.stderr) == (listed, "")


def test_configured_endpoints_are_azures_and_may_be_private() -> None:
    endpoints = Endpoints(
        blob="http://10.1.2.3:10000/account", file="http://10.1.2.3:10004/account", s3="http://m:9"
    )
    storages = Storages([], endpoints=endpoints, allow_private=False)
    for url, name in (
        ("http://10.1.2.3:10000/account/container/name", "BlobStorage"),
        ("http://10.1.2.3:10004/account/share/name", "AzureFilesStorage"),
        ("az://container/name", "BlobStorage"),
    ):
        assert type(storages.for_url(url)).__name__ == name
        storages.check_input(url)
    with pytest.raises(PermissionDenied, match="private"):
        storages.check_input("http://10.1.2.3:10001/account/container/name")


@pytest.mark.parametrize("url", ["gopher://h/a", "C:\\data"])
def test_an_unknown_scheme_is_told_what_there_is(tmp_path: Path, url: str) -> None:
    storages = Storages([tmp_path])
    for check in (storages.check_input, storages.check_output):
        with pytest.raises(UnsupportedUrl) as caught:
            check(url)
        assert url in str(caught.value)
        assert tmp_path.as_uri() in str(caught.value)
        assert "https://" in str(caught.value)


def test_a_relative_path_is_told_to_be_absolute(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedUrl, match="relative/path: a path must be absolute"):
        Storages([tmp_path]).check_input("relative/path")


def test_paths_outside_are_refused_with_the_setting(tmp_path: Path) -> None:
    storages = Storages([tmp_path])
    for check in (storages.check_input, storages.check_output):
        for url in ("/etc/passwd", "file:///etc/passwd", f"{tmp_path}/../x", f"{tmp_path}x/y"):
            with pytest.raises(PermissionDenied, match=r"ALLOW_DIR.*--allow-dir") as caught:
                check(url)
            assert str(tmp_path) in str(caught.value)
        check(f"{tmp_path}/new/file")
        check(str(tmp_path))


TABLE = """\
22 27 0:21 / /proc rw - proc proc rw
23 27 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
31 22 0:30 / /proc/sys/fs/binfmt_misc rw shared:1 - autofs systemd-1 rw
27 1 254:0 / / rw,relatime shared:2 - ext4 /dev/vda rw
40 27 0:40 / /a\\040b rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("more", "local"),
    [
        ("", True),
        ("50 27 0:50 / /data rw - nfs4 server:/data rw\n", False),
        ("50 27 0:50 / /data rw master:3 - fuse.blobfuse2 blobfuse2 rw\n", False),
        ("50 27 0:50 / /data rw - autofs /etc/auto.data rw\n", False),
        ("50 27 0:50 / /devices rw - cifs //server/share rw\n", False),
    ],
)
def test_file_systems_of_a_network_may_hang(tmp_path: Path, more: str, local: bool) -> None:
    (tmp_path / "mountinfo").write_text(TABLE + more)
    assert Mounts(tmp_path / "mountinfo").are_local() is local


def test_an_unreadable_mount_table_promises_nothing(tmp_path: Path) -> None:
    assert not Mounts(tmp_path / "none").are_local()


def test_denied_directories_are_refused_within_allowed_ones(tmp_path: Path) -> None:
    storages = Storages([str(tmp_path)], [tmp_path / "data"])
    for check in (storages.check_input, storages.check_output):
        check(f"file://{tmp_path}/other")
        with pytest.raises(PermissionDenied, match=r"/data/x: .*DATA_DIR"):
            check(f"file://{tmp_path}/data/x")


def test_without_allowed_directories_no_path_is_served() -> None:
    storages = Storages([])
    with pytest.raises(PermissionDenied, match="none"):
        storages.check_input("/etc/hostname")


def test_urls_of_azure_are_checked_as_all_are() -> None:
    endpoints = Endpoints(blob="http://169.254.169.254/account", file="http://169.254.169.254/f")
    storages = Storages([], endpoints=endpoints)
    for url in ("az://container/x", f"{endpoints.file}/share/x"):
        with pytest.raises(PermissionDenied, match="metadata"):
            storages.check_input(url)


@pytest.mark.parametrize("query", ["comp=list", "restype=container&comp=list", "sig=", "sv=1"])
def test_parameters_without_a_signature_are_refused(query: str) -> None:
    storages = Storages([])
    for kind in ("blob", "file"):
        url = f"https://acc.{kind}.core.windows.net/container/x"
        with pytest.raises(UnsupportedUrl, match="without a SAS of its own"):
            storages.check_input(f"{url}?{query}")
        storages.check_input(f"{url}?{query}&sig=x")
    storages.check_input("https://acc.blob.core.windows.net/container/x?snapshot=2026-01-01")


def test_metadata_services_are_refused_at_submission(tmp_path: Path) -> None:
    storages = Storages([tmp_path])
    with pytest.raises(PermissionDenied, match=r"169\.254\.169\.254/latest"):
        storages.check_input("http://169.254.169.254/latest?secret")
    storages.check_input("http://127.0.0.1/x")
    with pytest.raises(PermissionDenied, match="private"):
        Storages([], allow_private=False).check_input("http://10.0.0.1/x")


HEAVY = (
    "heavy = {'httpx', 'httpcore', 'asyncio', 'http.client', 'pycurl', 'ssl', 'botocore', 'azure',"
    " 'google.auth', 'paramiko', 'cryptography'} & sys.modules.keys();"
    "sys.exit(', '.join(heavy) or 0)"
)


@pytest.mark.parametrize(
    "code",
    [
        "import sys, tesazure.runner.run;",
        (
            "import sys; from tesazure.storage.registry import Storages; s = Storages(['/tmp']);"
            "s.check_input('/tmp/x'); s.for_url('https://acc.blob.core.windows.net/container/x');"
            "s.check_input('https://h/x'); s.schemes();"
        ),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code + HEAVY],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
