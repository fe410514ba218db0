"""What Azure Storage's refusals mean, in words with a remedy.

Source of the codes: "Common REST API error codes", "Blob service error codes", "Azure Files error
codes" (Microsoft).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime as dt
import re
from collections.abc import Iterator

from tesazure.errors import PermissionDenied, StorageUnavailable, UnsupportedUrl
from tesazure.storage.azure_urls import AzureUrl
from tesazure.storage.base import Stat
from tesazure.storage.digests import Digest
from tesazure.storage.urls import named, printable
from tesazure.storage.wire import Answer, content_length, require, service_code, status_of

_WORDS = {
    "AccountIsDisabled": "the storage account is disabled, perhaps with its subscription",
    "AuthorizationProtocolMismatch": "the SAS is for https URLs only (spr=https)",
    "AuthorizationResourceTypeMismatch": (
        "the account SAS is not for this kind of resource: it needs srt=co"
    ),
    "AuthorizationServiceMismatch": "the account SAS is not for this service (ss)",
    "AuthorizationSourceIPMismatch": "the SAS may not be used from this machine's IP address (sip)",
    "BlobArchived": "the blob is in the archive tier: rehydrate it to hot or cool first",
    "BlobBeingRehydrated": "the blob is on its way out of the archive tier, which takes hours",
    "BlobImmutableDueToPolicy": "a retention policy or legal hold forbids to replace the blob",
    "BlobNotFound": "the container has no blob of this name; names are case-sensitive",
    "ContainerBeingDeleted": "the container is being deleted",
    "ContainerNotFound": "the account has no such container",
    "InsufficientAccountPermissions": "the account is read-only at present",
    "InvalidBlobOrBlock": (
        "another program left uncommitted blocks at this blob: delete it, or use another name"
    ),
    "InvalidBlobType": "there is a page or append blob of this name: delete it first",
    "KeyBasedAuthenticationNotPermitted": (
        "the account accepts no SAS made with its key: it needs a user delegation SAS"
    ),
    "LeaseIdMissing": "another program holds a lease on it, and must release it first",
    "NoAuthenticationInformation": "it cannot be read anonymously: the URL needs a SAS",
    "ParentNotFound": "there is no such directory in the share",
    "PublicAccessNotPermitted": "the account allows no anonymous access: the URL needs a SAS",
    "ShareBeingDeleted": "the share is being deleted",
    "ShareNotFound": "the account has no such share",
    "SharingViolation": "another program has it open",
}
_DENIED = frozenset({"PublicAccessNotPermitted", "InsufficientAccountPermissions"})
"""Codes that come with status 409 but mean that we may not."""
_AUTHENTICATION = frozenset({"AuthenticationFailed", "AuthorizationFailure", "InvalidSasToken"})
_TIME_FRAME = re.compile(rb"not valid in the specified time frame")


@contextlib.contextmanager
def about(url: str) -> Iterator[None]:
    """As `urls.named`. A host without address mostly means an account that does not exist, and says
    so."""
    with named(url):
        try:
            yield
        except StorageUnavailable as error:
            if "cannot resolve" not in str(error):
                raise
            text = "there is no storage account of this name, or its name cannot be asked for"
            raise StorageUnavailable(f"{error}; {text}") from error


def accept(answer: Answer, what: str, target: AzureUrl) -> None:
    """Raises the StorageError that an answer other than 2xx means, in words with a remedy."""
    if not answer.succeeded and service_code(answer) in _DENIED:
        raise PermissionDenied(f"{what}: {status_of(answer)}; {words(answer, target)}")
    require(answer, what, hint=lambda found: words(found, target))


def words(answer: Answer, target: AzureUrl) -> str:
    """What the user should know about an answer beyond its code; empty if nothing."""
    code = service_code(answer)
    if answer.status == 403 and code in _AUTHENTICATION | {""}:
        return _unauthenticated(answer, code, target)
    if code in ("AuthorizationPermissionMismatch", "UnauthorizedBlobOverwrite"):
        permitted = target.signed("sp")
        given = f"it permits sp={permitted}" if permitted else "see its stored access policy"
        return f"the SAS does not permit this ({given})"
    if code == "ResourceNotFound" and not target.query:
        return "nothing is there, or it cannot be read anonymously: then the URL needs a SAS"
    return _WORDS.get(code, "")


def _unauthenticated(answer: Answer, code: str, target: AzureUrl) -> str:
    if not target.signed("sig"):
        return "the URL has no SAS, and anonymous access is not allowed here"
    problem = expired(target)
    if problem:
        return problem
    if _TIME_FRAME.search(answer.body):
        return "the SAS is expired or not valid yet, by Azure's clock"
    if code == "AuthorizationFailure" and b"not authorized" in answer.body:
        return "the account's network rules do not admit this machine, or the SAS is not for this"
    text = (
        "the SAS does not fit: it is made for another container or name, its key or policy was"
        " changed, or it was cut short"
    )
    if target.signed("sr") == "b":
        text += "; it is for one blob alone: what is a directory needs the type DIRECTORY"
    return text


def expired(target: AzureUrl) -> str:
    """Why the SAS cannot be used now, in words, as far as its own times tell; else empty."""
    now = dt.datetime.now(dt.UTC)
    end, start = _time(target.signed("se")), _time(target.signed("st"))
    if end and now > end:
        return f"the SAS expired at {target.signed('se')}: make a new one"
    if start and now < start:
        return f"the SAS is not valid before {target.signed('st')}"
    return ""


def check_sas(target: AzureUrl, shown: str, *, any_of: str) -> None:
    """Raises PermissionDenied for a SAS that is expired, or permits none of `any_of` (sp), and
    UnsupportedUrl for parameters without a SAS."""
    if foreign := target.foreign_parameters():
        text = f"without a SAS of its own it cannot have the parameter {printable(foreign[0])!r}"
        raise UnsupportedUrl(f"{shown}: {text}")
    permitted = target.signed("sp")
    problem = expired(target)
    if not problem and permitted and not set(permitted) & set(any_of):
        wanted = " or ".join(any_of)
        problem = f"the SAS permits sp={permitted}, but this needs {wanted}"
    if problem:
        raise PermissionDenied(f"{shown}: {problem}")


def _time(text: str) -> dt.datetime | None:
    """A SAS's time: a date, or a time in UTC with or without seconds ("Create a service SAS")."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def digest_of(answer: Answer) -> Digest | None:
    """The MD5 that is stored with a whole blob or file, whatever range was asked for ("Get Blob",
    "Get File", response headers); None if there is none."""
    headers = answer.headers
    stored = headers.get("x-ms-blob-content-md5") or headers.get("x-ms-content-md5")
    whole = headers.get("content-md5") if answer.status == 200 else None
    try:
        md5 = base64.b64decode(stored or whole or "")
    except binascii.Error:
        return None
    return Digest("md5", md5) if len(md5) == 16 else None


def stat_of(answer: Answer) -> Stat:
    """What the headers tell of a blob or a file."""
    digest = digest_of(answer)
    return Stat(
        is_directory=False,
        size=content_length(answer),
        checksum=f"{digest.algorithm}:{digest.expected.hex()}" if digest else None,
        version=answer.headers.get("etag"),
    )
