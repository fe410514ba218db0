"""Keeps the secrets of waiting and running tasks at rest: sealed, with the key elsewhere.

What is sealed lies in the database, the key in the data directory or in the setting SECRETS_KEY.
AES-256-GCM (NIST SP 800-38D) with random nonces: good for 2^32 seals a key. The task's id is
authenticated along, so that one task's secrets cannot be passed off as another's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tesazure.errors import ConfigurationError

KEY_BYTES = 32
_NAME_BYTES = 8
_NONCE_BYTES = 12

_MAKE = "`openssl rand -base64 32` makes one"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, str]).decode


class Seal:
    """Seals with the first of its keys, opens with any of them: that is how a key is changed."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Keys of KEY_BYTES each, at least one."""
        self._keys = {_name(key): AESGCM(key) for key in keys}
        self._first = _name(keys[0])

    @property
    def names(self) -> list[str]:
        """What tells its keys from others, the one that it seals with first."""
        return [name.hex() for name in self._keys]

    def check(self, noted: str) -> None:
        """Raises ConfigurationError when this is not one of the keys: a server without the key that
        the others on its database seal with would end their tasks."""
        if noted not in self.names:
            problem = (
                "SECRETS_KEY: the secrets of this database's tasks are sealed with a key that this"
                " server does not have: set SECRETS_KEY to the same on all its servers (where it is"
                " not set, it is what secrets.key in the first one's data directory holds), a key"
                " that is being replaced after the new one. If the key is lost, delete the row of"
                " the table sealing_key: waiting tasks with secrets will fail"
            )
            raise ConfigurationError([problem])

    def is_newest(self, sealed: bytes) -> bool:
        """Whether that was sealed with the key that it seals with now."""
        return sealed[:_NAME_BYTES] == self._first

    def close(self, task_id: str, whole: Mapping[str, str]) -> bytes:
        """What `secrecy.cut` returned for a task, for the store: the key's name, a nonce, and the
        sealed JSON."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._keys[self._first].encrypt(nonce, _encode(whole), task_id.encode())
        return self._first + nonce + sealed

    def open(self, task_id: str, sealed: bytes) -> dict[str, str]:
        """What was given to `close`. Raises ConfigurationError when that was another key's, or
        what there is was altered."""
        key = self._keys.get(sealed[:_NAME_BYTES])
        rest = sealed[_NAME_BYTES:]
        if key is None:
            problem = "the secrets in this task's URLs were sealed with a key that this server does"
            remedy = "set SECRETS_KEY to the same on all servers of a database, keep a replaced key"
            raise ConfigurationError(
                [f"{problem} not have; {remedy} after the new one, and submit the task again"]
            )
        try:
            found = key.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], task_id.encode())
            return _decode(found)
        except (InvalidTag, ValueError, msgspec.MsgspecError):
            problem = "the secrets in this task's URLs cannot be unsealed: the database's copy was"
            raise ConfigurationError([f"{problem} altered; submit the task again"]) from None


def find_seal(setting: str, file: Path) -> Seal:
    """The seal of a server: with the keys of SECRETS_KEY, then with that in `file`, if there is
    one. Where neither is, the file is made. Raises ConfigurationError for what is no key, OSError
    when the file cannot be read or made."""
    keys = [_decoded(text, "SECRETS_KEY") for text in setting.split(",") if text.strip()]
    if not keys and not file.exists():
        _make(file)
    if file.exists():
        keys.append(_decoded(file.read_text(encoding="utf-8", errors="replace"), str(file)))
    return Seal(keys)


def _decoded(text: str, place: str) -> bytes:
    """A key of 32 bytes in base64, of either alphabet, with or without its padding."""
    plain = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        key = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError([f"{place}: must be {KEY_BYTES} bytes in base64; {_MAKE}"])
    return key


def _make(file: Path) -> None:
    """A new key, on disk before anything is sealed with it."""
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
        out.flush()
        os.fsync(descriptor)
    new.replace(file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _name(key: bytes) -> bytes:
    """Tells keys apart, and nothing of them."""
    return hashlib.sha256(b"tesazure secrets key\0" + key).digest()[:_NAME_BYTES]
