"""sealing: opened by whoever has the key, for the task it was closed for, and by nobody else."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tesazure.errors import ConfigurationError
from tesazure.sealing import KEY_BYTES, Seal, find_seal

WHOLE = {"inputs.0": "https://h/x?sig=päckchen", "outputs.3": "ftp://me:pw@h/"}


def key() -> str:
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def test_what_was_sealed_can_be_opened_and_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "secrets.key"
    seal = find_seal("", file)
    sealed = seal.close("t1", WHOLE)
    assert find_seal("", file).open("t1", sealed) == WHOLE
    assert seal.close("t1", WHOLE) != sealed
    assert b"sig" not in sealed
    assert b"inputs" not in sealed
    assert file.stat().st_mode & 0o777 == 0o600
    assert [file] == list(tmp_path.iterdir())


def test_another_key_says_what_to_do(tmp_path: Path) -> None:
    sealed = find_seal(key(), tmp_path / "none").close("t", WHOLE)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigurationError, match=r"set SECRETS_KEY to the same on all servers"):
        find_seal(key(), tmp_path / "none").open("t", sealed)


@pytest.mark.parametrize("place", [9, 25, -1])
def test_what_was_altered_is_not_opened(tmp_path: Path, place: int) -> None:
    seal = Seal([os.urandom(KEY_BYTES)])
    sealed = bytearray(seal.close("t", WHOLE))
    sealed[place] ^= 1
    with pytest.raises(ConfigurationError, match="altered"):
        seal.open("t", bytes(sealed))


def test_what_was_sealed_for_another_task_is_not_opened() -> None:
    seal = Seal([os.urandom(KEY_BYTES)])
    with pytest.raises(ConfigurationError, match="altered"):
        seal.open("t2", seal.close("t1", WHOLE))


@pytest.mark.parametrize("sealed", [b"", b"x", b"x" * 100])
def test_what_is_no_seal_at_all_is_refused(sealed: bytes) -> None:
    with pytest.raises(ConfigurationError):
        Seal([bytes(KEY_BYTES)]).open("t", sealed)


def test_a_key_can_be_replaced(tmp_path: Path) -> None:
    """The new one first, the old one after it, or still in its file."""
    file = tmp_path / "secrets.key"
    by_file = find_seal("", file).close("t", WHOLE)
    old, new = key(), key()
    by_old = find_seal(old, file).close("t", WHOLE)
    both = find_seal(f"{new}, {old}", file)
    assert both.open("t", by_file) == both.open("t", by_old) == WHOLE
    assert find_seal(new, tmp_path / "none").open("t", both.close("t", WHOLE)) == WHOLE


def test_keys_are_base64_of_either_alphabet(tmp_path: Path) -> None:
    raw = b"\xfb\xff" * (KEY_BYTES // 2)
    plain, safe = base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()
    sealed = find_seal(plain, tmp_path / "none").close("t", WHOLE)
    assert find_seal(safe.rstrip("="), tmp_path / "none").open("t", sealed) == WHOLE


@pytest.mark.parametrize("bad", ["x", "hunter2", "ä", "A" * 42])
def test_what_is_no_key_is_refused_without_showing_it(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^SECRETS_KEY: must be 32 bytes") as caught:
        find_seal(bad, tmp_path / "none")
    assert "hunter2" not in str(caught.value)
    (tmp_path / "secrets.key").write_text(bad)
    with pytest.raises(ConfigurationError, match=r"secrets\.key: must be 32 bytes"):
        find_seal("", tmp_path / "secrets.key")
