"""What is to be moved, and who is told how it goes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from tesazure.errors import FieldError, InvalidInput, TesazureError
from tesazure.model import FileType

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something to be moved: a file, a directory with all below it, or what a pattern matches.

    `type` None: found out. With a type, `*` and the like are ordinary characters.
    """

    url: str
    path: str
    type: FileType | None = None


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be moved, all of it side by side; as JSON, what `tesazure transfer run` takes."""

    downloads: list[Item] = []
    uploads: list[Item] = []


class Observer(Protocol):
    """Is told what happens to an Order. Calls may come from several threads at once."""

    def begin(self, files: int, size: int | None) -> None:
        """All has been found; `size` in bytes, None where a system does not tell."""
        ...

    def moved(self, size: int) -> None:
        """So many bytes more have been moved, some perhaps for the second time; 0: it waits."""
        ...

    def done(self, url: str, path: str, size: int) -> None:
        """A file is there, whole. The URL is without its secrets."""
        ...

    def failed(self, url: str, path: str, error: TesazureError) -> None:
        """An item of the Order failed; what of it is not there yet will not come."""
        ...


class Outcome(NamedTuple):
    """How an Order went: files and bytes that are there, and the error of each item that failed, in
    their order."""

    files: int
    size: int
    errors: Sequence[TesazureError]


def read_order(text: bytes) -> Order:
    """An Order from its JSON. Raises InvalidInput."""
    try:
        order = msgspec.json.decode(text, type=Order)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
        raise InvalidInput([FieldError(place.strip("`."), said)]) from None
    except msgspec.DecodeError as error:
        raise InvalidInput([FieldError("", f"not JSON: {error}")]) from None
    if mistakes := [*_mistakes("downloads", order.downloads), *_mistakes("uploads", order.uploads)]:
        raise InvalidInput(mistakes)
    return order


def mistake_in_path(path: str) -> str:
    """Why a PATH can be none, in words; empty for one that can."""
    if not path:
        return "is empty"
    return "is a URL, but PATH is on this machine" if _URL.match(path) else ""


def _mistakes(field: str, items: list[Item]) -> Iterator[FieldError]:
    for number, item in enumerate(items):
        if not item.url:
            yield FieldError(f"{field}[{number}].url", "is empty")
        if mistake := mistake_in_path(item.path):
            yield FieldError(f"{field}[{number}].path", mistake)
