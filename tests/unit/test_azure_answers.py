"""Azure's refusals in words. The bodies are worded as Azure's own, which no emulator's are."""

from __future__ import annotations

import contextlib

import pytest

from tesazure.access import Endpoints
from tesazure.errors import PermissionDenied, StorageError, StorageNotFound, StorageUnavailable
from tesazure.storage.azure_answers import about, accept
from tesazure.storage.azure_urls import BlobUrl
from tesazure.storage.blob import BlobStorage, block_size
from tesazure.storage.parts import PART
from tesazure.storage.transport import Transport
from tesazure.storage.wire import Answer
from tests.services.faulty_http import FaultyHttp, Handler

URL = "https://acc.blob.core.windows.net/con/blob"
FAILED = (
    "Server failed to authenticate the request. Make sure the value of Authorization header is"
    " formed correctly including the signature."
)


def body(code: str, message: str, detail: str = "") -> bytes:
    """An error as Azure sends it."""
    more = f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail>" if detail else ""
    return (
        f'\ufeff<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}'
        f"\nRequestId:7c\nTime:2026-11-01T10:00:00.000Z</Message>{more}</Error>"
    ).encode()


TIMES = (
    "Signature not valid in the specified time frame: Start [Sun, 01 Nov 2026 00:00:00 GMT] - "
    "Expiry [Mon, 02 Nov 2026 00:00:00 GMT] - Current [Tue, 03 Nov 2026 00:00:00 GMT]"
)
GOOD = "sp=r&se=2999-01-01&sig=secret"
CASES = [
    # status, code, message, detail, SAS, error, what is said
    (403, "AuthenticationFailed", FAILED, TIMES, GOOD, PermissionDenied, "by Azure's clock"),
    (
        *(403, "AuthenticationFailed", FAILED, "Signature did not match.", GOOD),
        *(PermissionDenied, "the SAS does not fit"),
    ),
    (
        *(403, "AuthenticationFailed", FAILED, "", "se=2020-01-01T00:00Z&sig=secret"),
        *(PermissionDenied, "the SAS expired at 2020-01-01T00:00Z"),
    ),
    (
        *(403, "AuthorizationFailure", "This request is not authorized to perform this operation."),
        *("", GOOD, PermissionDenied, "network rules do not admit this machine"),
    ),
    (403, "AccountIsDisabled", "Disabled.", "", GOOD, PermissionDenied, "account is disabled"),
    (
        *(403, "AuthorizationResourceTypeMismatch", "Not authorized.", "", GOOD),
        *(PermissionDenied, "needs srt=co"),
    ),
    (
        *(403, "KeyBasedAuthenticationNotPermitted", "Not permitted.", "", GOOD),
        *(PermissionDenied, "user delegation SAS"),
    ),
    (
        *(409, "PublicAccessNotPermitted", "Public access is not permitted.", "", ""),
        *(PermissionDenied, "allows no anonymous access: the URL needs a SAS"),
    ),
    (
        *(404, "ResourceNotFound", "The specified resource does not exist.", "", ""),
        *(StorageNotFound, "cannot be read anonymously"),
    ),
    (
        409,
        "BlobArchived",
        "Not permitted on an archived blob.",
        "",
        GOOD,
        StorageError,
        "rehydrate",
    ),
    (418, "Unheard", "Of.", "", GOOD, StorageError, "HTTP 418 Reason Unheard"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]} {case[6]}")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_words(case: tuple[int, str, str, str, str, type[StorageError], str], method: str) -> None:
    status, code, message, detail, sas, error, said = case
    if method == "HEAD" and (detail or "network rules" in said):
        said = "the SAS does not fit"  # the body, which HEAD has not, would tell more
    target = BlobUrl.parse(f"{URL}?{sas}", Endpoints())
    sent = body(code, message, detail) if method == "GET" else b""
    answer = Answer(status, "Reason", {"x-ms-error-code": code}, sent, target.url)
    with pytest.raises(error) as caught:
        accept(answer, f"{method} {URL}", target)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{method} {URL}: HTTP {status} Reason {code}")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_success_is_accepted() -> None:
    target = BlobUrl.parse(URL, Endpoints())
    accept(Answer(201, "Created", {}, b"", URL), "PUT", target)


def test_blocks_grow_with_the_blob() -> None:
    assert block_size(1) == block_size(50_000 * PART) == PART
    assert block_size(50_000 * PART + 1) == PART + 2**20
    largest = 50_000 * 4000 * 2**20
    assert block_size(largest) == 4000 * 2**20
    with pytest.raises(StorageError, match="more than a blob can hold"):
        block_size(largest + 1)


def test_a_list_without_end_is_given_up() -> None:
    with FaultyHttp() as server, contextlib.closing(Transport()) as transport:

        def endless(handler: Handler) -> None:
            handler.send_response(200)
            handler.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    handler.wfile.write(b"<Blob>" * 2**16)

        server.answers["/acc/con"] = endless
        storage = BlobStorage(transport, Endpoints(blob=server.url("/acc")))
        with pytest.raises(StorageError, match="longer than any list of Azure's"):
            list(storage.list("az://con/"))


@pytest.mark.parametrize(
    ("said", "more"),
    [
        ("cannot resolve acc.blob.core.windows.net", "; there is no storage account of this name"),
        ("no connection within the time limit", ""),
    ],
)
def test_an_account_without_address_does_not_exist(said: str, more: str) -> None:
    with pytest.raises(StorageUnavailable) as caught, about(f"{URL}?{GOOD}"):
        raise StorageUnavailable(said)
    assert str(caught.value).startswith(f"{URL}: {said}{more}")
    assert bool(more) == str(caught.value).endswith("cannot be asked for")
