"""Which authorities are trusted by libraries that read one file."""

from __future__ import annotations

from pathlib import Path

import certifi
import pytest

from tesazure.trust import authorities, authorities_file


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where OpenSSL finds certificates."""
    place = tmp_path / "certs"
    place.mkdir()
    (place / "0a1b2c3d.0").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "no-such-file"))
    monkeypatch.setenv("SSL_CERT_DIR", str(place))
    assert authorities() == str(place)
    return place


def test_a_given_file_is_taken(tmp_path: Path) -> None:
    given = tmp_path / "ours.pem"
    given.touch()
    assert authorities_file(str(given)) == str(given)


def test_the_file_in_the_directory_is_taken(directory: Path) -> None:
    bundle = directory / "ca-certificates.crt"
    bundle.touch()
    assert authorities_file() == str(bundle)


def test_a_directory_without_one_is_left(directory: Path) -> None:
    assert directory.is_dir()
    assert authorities_file() == certifi.where()
