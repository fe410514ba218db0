"""Page tokens: the place in the list and its filters, for clients to hand back as they came.

A token is no secret, can be read and gives no right: it only narrows what its bearer may list
anyway (docs/security.md says what it tells). Its digest is keyed with the installation's identity,
which is in its database: any of its servers understands the token, also after a restart, and no
other installation's token is taken for one of its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Annotated

import msgspec

from tesazure.errors import FieldError, InvalidInput
from tesazure.model import State

DEFAULT_PAGE_SIZE = 256
MAX_PAGE_SIZE = 2048
_PERSON = b"tesazure-page-1"
_DIGEST_BYTES = 8


class Filters(msgspec.Struct, frozen=True, array_like=True):
    """The filters of a list."""

    states: tuple[State, ...] = ()
    name_prefix: str = ""
    tags: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.states or self.name_prefix or self.tags)


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a list goes on: after the task with sequence number `before`. `audience` is the flavour
    and the owner that the token was made for."""

    before: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    audience: tuple[str, str]
    filters: Filters


def encode(place: Place, identity: str) -> str:
    """The token of a place: URL-safe characters."""
    payload = msgspec.json.encode(place)
    return (
        base64.urlsafe_b64encode(_digest(payload, identity) + payload).rstrip(b"=").decode("ascii")
    )


def decode(token: str, identity: str, audience: tuple[str, str], filters: Filters) -> Place:
    """The place that a token names. Without filters of its own a request takes the token's.

    Raises InvalidInput for a damaged token, one made for someone else or for other filters.
    """
    try:
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), b"-_", True)
        digest, payload = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if not hmac.compare_digest(digest, _digest(payload, identity)):
            raise ValueError("damaged")
        place = msgspec.json.decode(payload, type=Place)
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise _refused("is not a token of this server; use next_page_token as it came") from None
    if place.audience != audience:
        raise _refused("was given for another path or caller")
    if filters and filters != place.filters:
        raise _refused("was given for other filters; repeat those or leave them out")
    return place


def _digest(payload: bytes, identity: str) -> bytes:
    key = identity.encode("ascii")
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES, key=key, person=_PERSON).digest()


def _refused(message: str) -> InvalidInput:
    return InvalidInput([FieldError("page_token", message)])
