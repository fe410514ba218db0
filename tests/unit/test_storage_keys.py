"""Keys of object stores as files and directories."""

from __future__ import annotations

import pytest

from tesazure.errors import StorageError, UnsupportedUrl
from tesazure.storage.base import Entry
from tesazure.storage.content_types import content_type
from tesazure.storage.keys import Place, entries, parse, parse_object


@pytest.mark.parametrize(
    ("url", "bucket", "key"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("S3://bucket/a b/ø%20?#.txt", "bucket", "a b/ø%20?#.txt"),
        ("gs://some.bucket_1//doubled", "some.bucket_1", "/doubled"),
        ("gs://bucket/dir/", "bucket", "dir/"),
    ],
)
def test_keys_stand_as_they_are(url: str, bucket: str, key: str) -> None:
    assert parse(url) == Place(bucket, key)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3:bucket/key", "needs the form s3://bucket/key"),
        ("s3:///key", "not a bucket's name"),
        ("s3://ab/key", "not a bucket's name"),
        ("s3://id:hunter2@bucket/key", "not a bucket's name"),
        ("s3://bucket:9000/key", "not a bucket's name"),
        ("gs://bucket/a/../b", r"\. or \.\. between slashes"),
        ("gs://bucket/..", r"\. or \.\. between slashes"),
        ("gs://bucket/" + "x" * 1025, "at most 1024 bytes, not 1025"),
        ("gs://bucket/\udcff", "must be UTF-8"),
        (
            "s3://bucket/key?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2",
            "beginning with https",
        ),
    ],
)
def test_what_is_no_bucket_and_key(url: str, text: str) -> None:
    with pytest.raises(UnsupportedUrl, match=text) as caught:
        parse(url)
    assert "hunter2" not in str(caught.value)


def test_an_object_has_a_name() -> None:
    assert parse_object("s3://bucket/a/b") == Place("bucket", "a/b")
    for url in ("s3://bucket", "s3://bucket/", "s3://bucket/a/"):
        with pytest.raises(UnsupportedUrl, match="names a directory"):
            parse_object(url)


def test_prefixes_end_in_one_slash() -> None:
    assert [parse(f"s3://bucket{path}").prefix for path in ("", "/", "/a", "/a/b/")] == [
        "",
        "",
        "a/",
        "a/b/",
    ]


def test_markers_are_directories_where_nothing_follows() -> None:
    keys = [
        ("d/", 0),
        ("d/a/", 0),
        ("d/a/b", 1),
        ("d/c/", 0),
        ("d/c/d/", 0),
        ("d/e", 2),
        ("d/f/", 0),
    ]
    assert list(entries("d/", keys)) == [
        Entry("a/b", 1),
        Entry("c/d", 0, is_directory=True),
        Entry("e", 2),
        Entry("f", 0, is_directory=True),
    ]
    assert list(entries("d/", [("d/", 0)])) == []
    assert list(entries("", [("a/", 0)])) == [Entry("a", 0, is_directory=True)]


@pytest.mark.parametrize("key", ["d//", "d/a//b", "d/../b", "d/./b", "d/a/..", "d/nul\0", "d//a"])
def test_keys_that_are_no_paths(key: str) -> None:
    with pytest.raises(StorageError, match="cannot be the path of a file"):
        list(entries("d/", [(key, 0)]))


def test_a_marker_with_bytes_is_no_directory() -> None:
    with pytest.raises(StorageError, match="cannot be the path of a file"):
        list(entries("d/", [("d/a/", 5)]))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/b.txt", "text/plain"),
        ("reads.fastq.gz", "application/gzip"),
        ("x.tar.xz", "application/x-xz"),
        ("", "application/octet-stream"),
    ],
)
def test_content_types(name: str, kind: str) -> None:
    assert content_type(name) == kind
