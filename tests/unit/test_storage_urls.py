"""storage.urls: what URLs mean, and what of them may be shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesazure.errors import UnsupportedUrl
from tesazure.storage.urls import file_path, host_of, join, named, printable, redact, scheme_of


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/data/a b", "/data/a b"),
        ("/data/100%25", "/data/100%25"),
        ("file:///data/a%20b", "/data/a b"),
        ("file:///data/a b", "/data/a b"),
        ("FILE:///data/a", "/data/a"),
        ("file://localhost/data/a", "/data/a"),
        ("file:/data/a", "/data/a"),
        ("file:///data/%C3%A6", "/data/æ"),
        ("file:///data/a#1?x", "/data/a#1?x"),
        ("file:///data/50%", "/data/50%"),
    ],
)
def test_file_path(url: str, path: str) -> None:
    assert file_path(url) == path


@pytest.mark.parametrize(
    "url",
    ["file://otherhost/data", "file:data", "file://", "data/a", "", "file:///a%00b", "/a\0b"],
)
def test_what_is_no_file_path(url: str) -> None:
    with pytest.raises(UnsupportedUrl):
        file_path(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@h.org:8/a/b?sig=x&y=z#f", "https://h.org:8/a/b"),
        ("https://h.org?sig=x", "https://h.org"),
        ("s3://bucket/key@1", "s3://bucket/key@1"),
        ("ftp://u:p@h/a", "ftp://h/a"),
        ("/data/a?b", "/data/a?b"),
        ("file:///data/a?b", "file:///data/a?b"),
        (" https://u:p@h/a?sig=x", "https://h/a"),
        ("\x01https://u:p@h/a?sig=x", "https://h/a"),
        ("(https://u:p@h/a?sig=x", "(https://h/a"),
        ("//u:p@h/a?sig=x", "//h/a"),
        ("u:p@h/a?sig=x", "h/a"),
        ("https:u:p@h//a#sig=x", "h//a"),
        ("h.org/a?sig=x", "h.org/a"),
        ("relative/path", "relative/path"),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown


@given(st.text(), st.text())
def test_redact_never_shows_a_query(head: str, secret: str) -> None:
    assert redact(f"https://h/?{head}&sig={secret}") == "https://h/"


@pytest.mark.parametrize(
    ("url", "relative", "joined"),
    [
        ("/data", "a b", "/data/a b"),
        ("/data/", "/a", "/data/a"),
        ("file:///data/x", "a b/%/æ#?", "file:///data/x/a%20b/%25/%C3%A6%23%3F"),
        ("https://h/c?sig=1", "a b", "https://h/c/a%20b?sig=1"),
        ("s3://bucket/dir/", "a b", "s3://bucket/dir/a b"),
    ],
)
def test_join(url: str, relative: str, joined: str) -> None:
    assert join(url, relative) == joined


@given(st.binary(min_size=1).filter(lambda b: b"\0" not in b and b[:1] != b"/"))
def test_join_keeps_every_name(name: bytes) -> None:
    text = os.fsdecode(name)
    assert os.fsencode(file_path(join("file:///d", text))) == b"/d/" + name
    assert os.fsencode(file_path(join("/d", text))) == b"/d/" + name
    printable(text).encode()


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
def test_a_path_s_own_uri_means_that_path(name: str) -> None:
    path = Path("/d") / name.lstrip("/")
    assert file_path(path.as_uri()) == str(path)


def test_schemes_and_hosts() -> None:
    assert [scheme_of(u) for u in ("/a:b", "S3://b", "http://x", "a/b", "C:\\x")] == [
        "",
        "s3",
        "http",
        "",
        "c",
    ]
    assert host_of("https://u:p@Host.ORG:80/x") == "host.org"
    wrong = [
        f"http://evil{c}.h.org/x"
        for c in ("\\", "\0", " ", "\t", "%2f", ";", "\uff0f", "\u212a", "ü")
    ]
    for url in ("https://", "https:///x", "http://[::1", "http://h:port/", *wrong):
        with pytest.raises(UnsupportedUrl):
            host_of(url)


@pytest.mark.parametrize("said", ["why", "s3://bucket/key: why"])
def test_errors_name_the_url_once(said: str) -> None:
    with pytest.raises(UnsupportedUrl, match=r"^s3://bucket/key: why$"), named("s3://bucket/key?x"):
        raise UnsupportedUrl(said)
