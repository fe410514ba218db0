"""Every exception of the package.

TesazureError
├── InvalidInput            the caller's document or parameter is wrong; carries FieldErrors (400)
│   └── TooLarge            the request body exceeds the limit (413)
├── NotFound                no such task, or not one the caller may see (404)
├── Conflict                something is under way that this is at odds with (409)
├── NotSignedIn             who calls is not known; says how to prove it (401)
├── NotAllowed              who calls is known, and lacks a role (403)
├── SignInUnavailable       who calls cannot be checked now; try again later (503)
├── ConfigurationError      a setting is wrong; carries every problem found, each with its remedy
├── VaultUnavailable        the Key Vault with further settings cannot be read now
├── StoreError
│   ├── StoreUnavailable    the database cannot answer now; try again later (503)
│   └── StaleVersion        somebody else changed the row first (compare-and-set lost)
├── BackendError            the backend could not do what was asked; transient unless said otherwise
│   ├── BackendUnavailable  the backend cannot be reached now; changes no task
│   │   └── NotGranted      whoever issues credentials cannot be asked now; tried a few times
│   └── Unplaceable         this task can never run on this backend; final, with the reason
├── EngineError             the container engine failed (not the user's command)
│   ├── EngineUnavailable   the engine does not answer; retryable
│   └── ImageUnavailable    the image cannot be had: no such image, no permission, no network
└── StorageError            names the URL without its secrets
    ├── StorageNotFound     nothing at this URL
    ├── PermissionDenied    there, but not for us; or outside the allowed directories
    ├── UnsupportedUrl      no storage system serves this URL
    ├── StorageFull         no space left on the device
    └── StorageUnavailable  failed after retries; retryable
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(name: str) -> str:
    """A file name for messages and terminals: as in UTF-8, control characters as `\\x1b` and the
    like."""
    if name.isascii() and name.isprintable():
        return name
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", in_utf8(name))


def in_utf8(name: str) -> str:
    """A file name for JSON: bytes that are not UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class TesazureError(Exception):
    """Root of all errors that this package raises on purpose.

    `retryable` is for the errors that can end an attempt: whether another attempt of the task may
    succeed where this one failed, because the fault is neither the task's nor the node's lasting
    state. A runner's SYSTEM_ERROR takes it over, and `lifecycle` makes the attempts.
    """

    retryable = False


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with a document: the field's path (`executors[0].image`) and what to do."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidInput(TesazureError):
    """The caller's document or parameter is wrong; all of its errors at once."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(map(str, self.errors)))


class TooLarge(InvalidInput):
    """The request body exceeds the limit."""


class NotFound(TesazureError):
    """No such task, or not one that the caller may see."""


class Conflict(TesazureError):
    """What is asked for is at odds with something that is under way; the message names it."""


class NotSignedIn(TesazureError):
    """The request does not prove who sends it.

    `challenges` are values of WWW-Authenticate (RFC 9110, section 11.6.1). Neither they nor the
    message hold anything of what was sent.
    """

    def __init__(self, message: str, challenges: Iterable[str] = ()) -> None:
        self.challenges = tuple(challenges)
        super().__init__(message)


class NotAllowed(NotSignedIn):
    """The caller lacks a role; the message names it."""


class SignInUnavailable(TesazureError):
    """Whoever issues tokens does not say with which keys; the request may be repeated later."""


class ConfigurationError(TesazureError):
    """Settings that cannot work; every problem found, each with its remedy."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class VaultUnavailable(TesazureError):
    """The Key Vault that holds further settings cannot be read now; it may be tried again."""


class StoreError(TesazureError):
    """The store failed."""


class StoreUnavailable(StoreError):
    """The database cannot answer now; the request may be repeated later."""


class StaleVersion(StoreError):
    """The row changed since it was read: compare-and-set lost, read again."""


class BackendError(TesazureError):
    """The backend could not do what was asked."""


class BackendUnavailable(BackendError):
    """The backend cannot be reached now. Never changes a task."""


class NotGranted(BackendUnavailable):
    """An attempt's access to its files cannot be had now. So often as the scheduler's limit has it;
    then the attempt ends."""


class Unplaceable(BackendError):
    """This task can never run on this backend; the message is the reason shown to the user."""


class EngineError(TesazureError):
    """The container engine failed, not the user's command."""


class EngineUnavailable(EngineError):
    """The engine does not answer."""

    retryable = True


class ImageUnavailable(EngineError):
    """The image cannot be had; the message says why."""


class StorageError(TesazureError):
    """A transfer failed. The message names the URL without its secrets."""


class StorageNotFound(StorageError):
    """Nothing lies at this URL."""


class PermissionDenied(StorageError):
    """The object or path may not be used by us."""


class UnsupportedUrl(StorageError):
    """No storage system serves this URL."""


class StorageFull(StorageError):
    """No space is left on the device that was written to. Another attempt would fill it again."""


class StorageUnavailable(StorageError):
    """The storage system failed, after the retries that make sense."""

    retryable = True
