"""Which account, container and name a URL of Azure storage means."""

from __future__ import annotations

import pytest

from tesazure.access import Endpoints
from tesazure.errors import UnsupportedUrl
from tesazure.storage.azure_urls import AzureUrl, BlobUrl, FileUrl

NONE = Endpoints()
EMULATOR = Endpoints(blob="http://127.0.0.1:10000/account")
DOMAIN = Endpoints(blob="https://data.example.org", file="https://files.example.org/")
ACC = "https://acc.blob.core.windows.net"

BLOBS = [
    (f"{ACC}/con/a/b?sv=1&sig=x", NONE, (ACC, "acc", "con", "a/b", "sv=1&sig=x")),
    (
        "https://acc.blob.core.usgovcloudapi.net/con/a",
        NONE,
        ("https://acc.blob.core.usgovcloudapi.net", "acc", "con", "a", ""),
    ),
    (
        "https://acc.blob.core.chinacloudapi.cn/con/a",
        NONE,
        ("https://acc.blob.core.chinacloudapi.cn", "acc", "con", "a", ""),
    ),
    ("https://ACC.Blob.Core.Windows.Net:443/con/A", NONE, (ACC, "acc", "con", "A", "")),
    ("https://user:pw@acc.blob.core.windows.net/con/a", NONE, (ACC, "acc", "con", "a", "")),
    *(
        (f"{host}/con/a", NONE, (host, "acc", "con", "a", ""))
        for more in ("-internetrouting", ".z12", ".privatelink")
        for host in (f"https://acc{more}.blob.core.windows.net",)
    ),
    (f"{ACC}/con", NONE, (ACC, "acc", "con", "", "")),
    (f"{ACC}/$root/a%20b%2Fc%25.txt", NONE, (ACC, "acc", "$root", "a b/c%.txt", "")),
    (f"{ACC}/con//a//b", NONE, (ACC, "acc", "con", "/a//b", "")),
    (
        "https://acc-secondary.blob.core.windows.net/con/a",
        NONE,
        ("https://acc-secondary.blob.core.windows.net", "acc", "con", "a", ""),
    ),
    (
        "http://127.0.0.1:10000/account/con/dir/?sv=1",
        EMULATOR,
        (EMULATOR.blob, "account", "con", "dir/", "sv=1"),
    ),
    ("az://con/a b?c#d%20", EMULATOR, (EMULATOR.blob, "account", "con", "a b?c#d%20", "")),
    ("az://con/a?sv=1&sig=x", EMULATOR, (EMULATOR.blob, "account", "con", "a", "sv=1&sig=x")),
    ("az://con", EMULATOR, (EMULATOR.blob, "account", "con", "", "")),
    ("https://data.example.org/con/a", DOMAIN, (DOMAIN.blob, "data", "con", "a", "")),
]


@pytest.mark.parametrize(("url", "endpoints", "parts"), BLOBS)
def test_blobs(url: str, endpoints: Endpoints, parts: tuple[str, ...]) -> None:
    found = BlobUrl.parse(url, endpoints)
    assert (found.endpoint, found.account, found.container, found.path, found.query) == parts
    if not url.startswith("az:"):
        assert BlobUrl.serves(url, endpoints)
    assert BlobUrl.parse(found.url, endpoints) == found


def test_files() -> None:
    found = FileUrl.parse("https://files.example.org/share/a%20dir/file?sig=x", DOMAIN)
    assert (found.endpoint, found.container) == ("https://files.example.org", "share")
    assert (found.path, found.query) == ("a dir/file", "sig=x")
    found = FileUrl.parse("https://acc.file.core.windows.net/share", NONE)
    assert (found.account, found.container, found.path) == ("acc", "share", "")


def test_making_requests() -> None:
    found = BlobUrl.parse(f"{ACC}/con/a?sp=r&se=2030-01-01T00%3A00%3A00Z&sig=a%2Bb", NONE)
    assert found.signed("se") == "2030-01-01T00:00:00Z"
    assert found.signed("sr") == ""
    assert found.at("ü x/+").url.startswith(f"{ACC}/con/%C3%BC%20x/%2B?sp=r")
    assert found.asking("comp=block").startswith(f"{ACC}/con/a?comp=block&sp=r&se=")
    assert found.at("").asking("") == f"{ACC}/con?{found.query}"


WRONG: list[tuple[type[AzureUrl], str, Endpoints, str]] = [
    (BlobUrl, ACC, NONE, "names no container"),
    (BlobUrl, f"{ACC}/", NONE, "names no container"),
    (BlobUrl, f"{ACC}/Con/a", NONE, "'Con' cannot be the name of a container: 3 to 63 lower"),
    (BlobUrl, f"{ACC}/co/a", NONE, "cannot be the name"),
    (BlobUrl, f"{ACC}/a--b/a", NONE, "cannot be the name"),
    (BlobUrl, f"{ACC}/abc-/a", NONE, "cannot be the name"),
    (BlobUrl, f"{ACC}/{'c' * 64}/a", NONE, "cannot be the name"),
    (BlobUrl, f"{ACC}/$other/a", NONE, "cannot be the name"),
    (BlobUrl, f"{ACC}/con/{'n' * 1025}", NONE, "at most 1024 characters, this one 1025"),
    (BlobUrl, f"{ACC}/con/a/../b", NONE, "is . or .., which Azure"),
    (BlobUrl, f"{ACC}/con/a/%2E%2e", NONE, "is . or .., which Azure"),
    (BlobUrl, f"{ACC}/con/%FF", NONE, "not UTF-8"),
    (BlobUrl, "az://con/\udcff", EMULATOR, "not UTF-8"),
    (BlobUrl, "az://con/a", NONE, "the configured storage account, and there is none"),
    (BlobUrl, "https://example.org/con/a", NONE, "not a URL of Azure Blob Storage"),
    (BlobUrl, "https://blob.core.windows.net.example.org/con/a", NONE, "not a URL of Azure Blob"),
    (BlobUrl, "https://.blob.core.windows.net/con/a", NONE, "not a URL of a storage account"),
    *(
        (BlobUrl, f"https://{host}.blob.core.windows.net/con/a", NONE, "a")
        for host in (
            *(
                "evil.example\\",
                "evil.example%2f",
                "evil.example;",
                "evil.example ",
                "evil\0",
                "e\tx",
            ),
            *(
                "evil.example\uff0f",
                "evil.example\u2044",
                "evil\u3002",
                "acct_",
                "-acct",
                "ab",
                "a" * 25,
            ),
            *("acct..x", "acct.-x", "evil.example:80\\", "acct.x_y"),
        )
    ),
    (BlobUrl, "http://127.0.0.1:10000/account2/con/a", EMULATOR, "not a URL of Azure Blob"),
    (BlobUrl, "http://127.0.0.1:10001/account/con/a", EMULATOR, "not a URL of Azure Blob"),
    (FileUrl, f"{ACC}/share/a", NONE, "not a URL of Azure Files"),
    (FileUrl, "az://share/a", EMULATOR, "az:// URLs are for blobs"),
    (FileUrl, "https://acc.file.core.windows.net/share/a%3Ab", NONE, "':' cannot be in a name"),
    (FileUrl, f"https://acc.file.core.windows.net/share/{'n' * 256}", NONE, "at most 255"),
    (FileUrl, "https://acc.file.core.windows.net/$root/a", NONE, "of a share"),
]


@pytest.mark.parametrize(("kind", "url", "endpoints", "text"), WRONG)
def test_what_is_none(kind: type[AzureUrl], url: str, endpoints: Endpoints, text: str) -> None:
    with pytest.raises(UnsupportedUrl) as caught:
        kind.parse(f"{url}?sig=secret", endpoints)
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)
