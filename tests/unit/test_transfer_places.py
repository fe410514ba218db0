"""What URLs and patterns mean to `tesazure transfer`, and names that could do harm."""

from __future__ import annotations

import pytest

from tesazure.cli.exits import Code
from tesazure.cli.moving import code_of
from tesazure.errors import (
    ConfigurationError,
    PermissionDenied,
    StorageError,
    StorageFull,
    StorageNotFound,
    StorageUnavailable,
    TesazureError,
    UnsupportedUrl,
)
from tesazure.transfer.order import Item
from tesazure.transfer.places import Place, ends_with_slash, harmless, last_name, place_of


@pytest.mark.parametrize(
    ("url", "base", "pattern"),
    [
        ("az://c/dir/*.txt", "az://c/dir/", ("*.txt",)),
        ("az://c/*", "az://c/", ("*",)),
        ("https://h/c/a%20b*/x[%5D]?sig=*", "https://h/c/?sig=*", ("a b*", "x[]]")),
        ("file:///a/b?/*", "file:///a/b?/", ("*",)),
        ("/a/b*c/d", "/a/", ("b*c", "d")),
        ("https://h/c/plain?sig=a*b", "https://h/c/plain?sig=a*b", ()),
        ("s3://b/what?[x]", "s3://b/what?[x]", ()),
    ],
)
def test_patterns_begin_with_the_first_asterisk(
    url: str, base: str, pattern: tuple[str, ...]
) -> None:
    item = Item(url, "")
    assert place_of(item, wild=True) == Place(item, base, pattern)
    assert place_of(item, wild=False) == Place(item, url)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/c/a%20b?sig=/x", "a b"),
        ("az://c/dir/x%20y", "x%20y"),
        ("file:///a/b%23?", "b#?"),
        ("/a/b/", "b"),
        ("sftp://me@h/x#1", "x"),
    ],
)
def test_the_name_of_a_url(url: str, name: str) -> None:
    assert last_name(url) == name


@pytest.mark.parametrize(
    "url",
    ["https://h", "https://h/", "https://h/?x=/y", "az://c", "/", "https://h/a%2Fb", "s3://b/.."],
)
def test_what_names_no_file(url: str) -> None:
    with pytest.raises(StorageError, match="names no file"):
        last_name(url)


def test_a_slash_at_the_end_means_into() -> None:
    assert ends_with_slash("https://h/c/?sig=x")
    assert not ends_with_slash("https://h/c?sig=x/")
    assert ends_with_slash("/a?/")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "", "a\0b"])
def test_names_of_objects_that_lead_elsewhere_are_refused(path: str) -> None:
    place = place_of(Item("https://h/c?sig=hunter2", ""), wild=True)
    with pytest.raises(StorageError, match="name that no file can have") as caught:
        harmless(path, place)
    assert "hunter2" not in str(caught.value)
    assert harmless("a/b..c/.d", place) == "a/b..c/.d"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StorageNotFound("x"), Code.NOT_FOUND),
        (PermissionDenied("x"), Code.DENIED),
        (StorageFull("x"), Code.FULL),
        (StorageUnavailable("x"), Code.UNREACHABLE),
        (UnsupportedUrl("x"), Code.USAGE),
        (ConfigurationError(["x"]), Code.USAGE),
        (StorageError("x"), Code.NOT_COMPLETE),
    ],
)
def test_each_failure_has_its_exit_code(error: TesazureError, code: Code) -> None:
    assert code_of(error) == code
