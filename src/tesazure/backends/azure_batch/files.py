"""An attempt's blobs: what its node is given, what the node reports, what the executors printed.

Their names are those of `names`. The attempt's blob is there from `put` to `forget`, and all else
is found by it. Once the attempt has begun it holds no secrets any more (`strip`), and from `bury`
on it is empty, a tombstone: at either, another start of the task turns round. Nodes get signatures
for single blobs; this server signs for the container.

Sources: "Put Blob", "Get Blob", "List Blobs", "Specifying conditional headers for Blob service
operations", "Create a service SAS" (Microsoft).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit
from xml.etree.ElementTree import Element

import msgspec

from tesazure.azure_identity import credential_of, short
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.names import (
    ATTEMPTS,
    REPORTS,
    STREAMS,
    attempt_blob,
    report_blob,
    stream_blob,
)
from tesazure.backends.base import Stream
from tesazure.errors import (
    BackendUnavailable,
    ConfigurationError,
    NotFound,
    PermissionDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
)
from tesazure.runner.node import Channel, NodeAttempt
from tesazure.storage.azure_answers import about, accept
from tesazure.storage.azure_requests import Requests, name_of
from tesazure.storage.azure_signer import AzureConfig, AzureSigner, Wanted
from tesazure.storage.azure_urls import BlobUrl
from tesazure.storage.transport import Patience, Transport
from tesazure.storage.wire import (
    Answer,
    content_length,
    content_range,
    date,
    service_code,
    target_of,
)

T = TypeVar("T")

CHUNK = 8 * 2**20
"""The most of a report that is read at once, in bytes."""

BEGUN = b"null"
"""In place of an attempt that has begun: no attempt, and no tombstone either."""

_THREADS = 16
_PATIENCE = Patience(attempts=4, connect_s=10, read_s=20, longest_pause_s=4, retry_after_s=20)
"""Whoever asks here comes again anyway."""
_OWN_S = 3600.0
"""How long this server's own signatures are good: for one request and its retries."""
_OWN_RIGHTS = Wanted("rcwdl", whole=True)
_ATTEMPTS_RIGHTS = Wanted("r", whole=False)
_STREAMS_RIGHTS = Wanted("ac", whole=False)
_REPORTS_RIGHTS = Wanted("rac", whole=False)
"""To be read as well: a runner whose request to create it was answered by nobody must be able to
tell its own report from another runner's."""
_TRIES = 5
"""Of changing a blob that others change, too."""


class StreamPart(msgspec.Struct, frozen=True):
    """Bytes of an executor's stream from `offset`; `size` is what has come of it by now."""

    data: bytes
    offset: int
    size: int


class AttemptFiles:
    """Blocking work is done in threads of its own. All methods are idempotent, and raise
    BackendUnavailable when storage does not do what was asked: perhaps it does so later."""

    def __init__(self, config: BatchConfig) -> None:
        self._config = config
        self._installation = config.installation
        self._certificates = ""
        parts = target_of(config.storage_url)
        self._transport = Transport(
            trusted=[f"{parts.host}:{parts.port}"],
            ca_bundle=config.ca_bundle,
            patience=_PATIENCE,
        )
        self._requests = Requests(self._transport)
        self._signer = AzureSigner(
            AzureConfig(
                account=config.storage_account,
                key=config.storage_key,
                services=(config.storage_url,),
                identity=config.identity,
            )
        )
        self._threads: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Have the container. Raises ConfigurationError when storage refuses us."""
        await self._do(self._open)

    async def stop(self) -> None:
        """Close connections; waits for requests under way. May be called twice."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
        await asyncio.to_thread(self._transport.close)

    async def check(self) -> None:
        """Returns when the container can be listed."""
        await self._do(self._check)

    async def put(self, attempt: NodeAttempt, job: str, lifetime_s: float) -> str | None:
        """Write what the node is given, and remember its Batch job; a URL to read it, good for
        `lifetime_s` seconds. Newer secrets replace older ones; a released attempt stays so: None
        then."""
        return await self._do(self._put, attempt, job, lifetime_s)

    async def channel(self, key: str, executors: int, lifetime_s: float) -> Channel:
        """URLs with which a node can add to the attempt's report and streams, for `lifetime_s`
        seconds (at most a week where an identity signs)."""
        return await self._do(self._channel, key, executors, lifetime_s)

    async def job_of(self, key: str) -> str | None:
        """The Batch job that the attempt was put into, also when it is released; None if there is
        no such attempt."""
        return await self._do(self._job_of, key)

    async def is_released(self, key: str) -> bool:
        """Whether `bury`, or `fence`, has left a tombstone."""
        return await self._do(self._is_released, key)

    async def fence(self, key: str) -> bool:
        """See to it that the attempt cannot begin unless it was put: leave a tombstone where there
        is nothing. Whether it did."""
        return await self._do(self._fence, key)

    async def strip(self, key: str) -> None:
        """Take the secrets out of what the node was given: its runner has begun, and has them."""
        await self._do(self._strip, key)

    async def reports(self) -> Mapping[str, int]:
        """Key and size, in bytes, of every report that is not buried: one request for each 5,000.
        A report is there from the moment when its runner began."""
        return await self._do(self._reports)

    async def read_report(self, key: str, offset: int) -> bytes:
        """What the report holds from `offset` on, at most `CHUNK` bytes; empty when there is no
        more, or no report."""
        return await self._do(self._read_report, key, offset)

    async def read_stream(
        self, key: str, executor: int, stream: Stream, offset: int, limit: int
    ) -> StreamPart:
        """At most `limit` bytes of an executor's stream from `offset` (negative: from its end).
        Raises NotFound when there is none, as long as the executor has not begun."""
        return await self._do(self._read_stream, key, executor, stream, offset, limit)

    async def bury(self, key: str) -> None:
        """Replace what the node was given by a tombstone, then delete the report: its reader has
        it. The streams stay."""
        await self._do(self._bury, key)

    async def forget(self, key: str) -> None:
        """Delete all blobs of the attempt, the one that it is found by last."""
        await self._do(self._forget, key)

    async def held(self, begun_before: float) -> Mapping[str, str]:
        """Key and Batch job of all attempts of this installation that were put, or changed if
        that is not known, before then (seconds since the epoch). The job is empty for what a node
        wrote after its attempt had been forgotten."""
        return await self._do(self._held, begun_before)

    # -- in threads -----------------------------------------------------------------------------

    async def _do(self, function: Callable[..., T], *arguments: object) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="attempt-files")
        loop = asyncio.get_running_loop()
        with _unavailable():
            return await loop.run_in_executor(self._threads, function, *arguments)

    def _open(self) -> None:
        if self._config.ca_bundle:
            try:
                self._certificates = Path(self._config.ca_bundle).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                problem = f"{self._config.ca_bundle}: cannot be read: {error}"
                raise ConfigurationError([problem]) from error
        try:
            try:
                self._check()
            except StorageNotFound:
                self._make_container()
                self._check()
        except PermissionDenied as error:
            remedy = "check the storage account's key, or give this server's identity the roles"
            raise ConfigurationError(
                [f"{error}; {remedy} Storage Blob Data Contributor and Storage Blob Delegator"]
            ) from error

    def _check(self) -> None:
        target = self._signed("", _OWN_RIGHTS, _OWN_S)
        parameters = "restype=container&comp=list&maxresults=1"
        with about(self._shown()):
            accept(self._requests.ask("GET", target, parameters), "LIST", target)

    def _make_container(self) -> None:
        """By Microsoft's SDK: a container is made by the account's key or a token, which our own
        requests do not use."""
        from azure.core import exceptions
        from azure.core.pipeline.transport import RequestsTransport
        from azure.storage.blob import BlobServiceClient, ExponentialRetry

        config = self._config
        own = {"account_name": config.storage_account, "account_key": config.storage_key}
        verify = config.ca_bundle or True
        with BlobServiceClient(
            config.storage_url,
            own if config.storage_key else credential_of(config.identity),
            retry_policy=ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=2),
            transport=RequestsTransport(use_env_settings=False, connection_verify=verify),
            connection_timeout=10,
            read_timeout=20,
        ) as client:
            about_it = f"container {config.container} cannot be made"
            try:
                client.create_container(config.container)
            except exceptions.ResourceExistsError:
                return  # by another server, or it is being deleted, as the next request will tell
            except exceptions.HttpResponseError as error:
                kind = PermissionDenied if error.status_code in (401, 403) else StorageUnavailable
                raise kind(f"{about_it}: {short(error)}") from error
            except exceptions.AzureError as error:
                raise StorageUnavailable(f"{about_it}: {short(error)}") from error

    def _put(self, attempt: NodeAttempt, job: str, lifetime_s: float) -> str | None:
        name = attempt_blob(self._installation, attempt.key)
        if self._certificates:
            attempt = msgspec.structs.replace(attempt, certificates=self._certificates)
        body = msgspec.json.encode(attempt)
        facts = {"x-ms-meta-job": job, "x-ms-meta-begun": f"{time.time():.3f}"}
        condition = {"If-None-Match": "*"}
        for _ in range(_TRIES):
            answer = self._write(name, body, {**facts, **condition})
            if answer.succeeded:
                return self._signed(name, _ATTEMPTS_RIGHTS, lifetime_s).url
            found = self._head(name)
            if found is None:
                condition = {"If-None-Match": "*"}
            elif content_length(found) == 0:
                return None
            elif "If-Match" in condition:  # another server has put it just now: that will do
                return self._signed(name, _ATTEMPTS_RIGHTS, lifetime_s).url
            else:
                condition = {"If-Match": found.headers.get("etag", "")}
        raise StorageUnavailable(f"{name}: others are writing it all the time")

    def _write(self, name: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """The answer to a conditional Put Blob: it succeeded, or the condition does not hold."""
        target = self._signed(name, _OWN_RIGHTS, _OWN_S)
        headers = {"x-ms-blob-type": "BlockBlob", "Content-Type": "application/json", **headers}
        answer = self._requests.ask("PUT", target, headers=headers, body=body)
        if service_code(answer) == "ContainerNotFound":  # somebody deleted it
            self._make_container()
            answer = self._requests.ask("PUT", target, headers=headers, body=body)
        if service_code(answer) not in _CONDITIONS:
            self._accept(answer, "PUT", target)
        return answer

    def _channel(self, key: str, executors: int, lifetime_s: float) -> Channel:
        def signed(name: str, wanted: Wanted) -> str:
            return self._signed(name, wanted, lifetime_s).url

        streams: tuple[Stream, ...] = ("stdout", "stderr")
        return Channel(
            attempt=signed(attempt_blob(self._installation, key), _ATTEMPTS_RIGHTS),
            report=signed(report_blob(self._installation, key), _REPORTS_RIGHTS),
            streams={
                f"{executor}.{stream}": signed(
                    stream_blob(self._installation, key, executor, stream), _STREAMS_RIGHTS
                )
                for executor in range(executors)
                for stream in streams
            },
        )

    def _job_of(self, key: str) -> str | None:
        found = self._head(attempt_blob(self._installation, key))
        return None if found is None else found.headers.get("x-ms-meta-job", "")

    def _is_released(self, key: str) -> bool:
        found = self._head(attempt_blob(self._installation, key))
        return found is not None and content_length(found) == 0

    def _fence(self, key: str) -> bool:
        facts = {"x-ms-meta-begun": f"{time.time():.3f}"}
        name = attempt_blob(self._installation, key)
        return self._write(name, b"", {**facts, "If-None-Match": "*"}).succeeded

    def _reports(self) -> dict[str, int]:
        prefix = f"{self._installation}/{REPORTS}/"
        return {
            name_of(item).removeprefix(prefix): int(item.findtext(_SIZE) or 0)
            for item in self._listed(prefix)
        }

    def _read_report(self, key: str, offset: int) -> bytes:
        name = report_blob(self._installation, key)
        answer = self._range(name, offset, CHUNK)
        return b"" if answer is None else answer.body

    def _read_stream(
        self, key: str, executor: int, stream: Stream, offset: int, limit: int
    ) -> StreamPart:
        name = stream_blob(self._installation, key, executor, stream)
        size: int | None = None
        if offset < 0 or limit <= 0:
            found = self._head(name)
            if found is None:
                raise NotFound(f"executor {executor} has no {stream} here")
            size = content_length(found) or 0
            offset = max(size + offset, 0) if offset < 0 else min(offset, size)
            if limit <= 0 or offset == size:
                return StreamPart(b"", offset, size)
        answer = self._range(name, offset, limit)
        if answer is None:
            raise NotFound(f"executor {executor} has no {stream} here")
        _, total = content_range(answer)
        if not answer.succeeded:
            if total is None:
                return self._read_stream(key, executor, stream, offset, 0)
            return StreamPart(b"", min(offset, total), total)
        return StreamPart(answer.body, offset, total or offset + len(answer.body))

    def _range(self, name: str, offset: int, limit: int) -> Answer | None:
        """A part of a blob; None if there is no such blob. With status 416 and without a body when
        nothing is there from `offset` on."""
        target = self._signed(name, _OWN_RIGHTS, _OWN_S)
        wanted = {"Range": f"bytes={offset}-{offset + limit - 1}"}
        answer = self._requests.ask("GET", target, headers=wanted)
        if service_code(answer) == "BlobNotFound":
            return None
        if answer.status == 416:
            return msgspec.structs.replace(answer, body=b"")
        self._accept(answer, "GET", target)
        return answer

    def _strip(self, key: str) -> None:
        name = attempt_blob(self._installation, key)
        found = self._head(name)
        if found is not None and content_length(found) not in (0, len(BEGUN)):
            # If somebody else writes it meanwhile, it is not what was begun, or a tombstone.
            self._replace(name, found, BEGUN)

    def _replace(self, name: str, found: Answer, body: bytes) -> bool:
        """Whether the blob that was found is this now; what is known of it besides stays."""
        facts = {n: v for n, v in found.headers.items() if n.startswith("x-ms-meta-")}
        condition = {"If-Match": found.headers.get("etag", "")}
        return self._write(name, body, {**facts, **condition}).succeeded

    def _bury(self, key: str) -> None:
        name = attempt_blob(self._installation, key)
        for _ in range(_TRIES):
            found = self._head(name)
            if found is None or content_length(found) == 0:
                break
            if self._replace(name, found, b""):
                break
        else:
            raise StorageUnavailable(f"{name}: others are writing it all the time")
        self._delete(report_blob(self._installation, key))

    def _forget(self, key: str) -> None:
        for item in self._listed(f"{self._installation}/{STREAMS}/{key}/"):
            self._delete(name_of(item))
        self._delete(report_blob(self._installation, key))
        self._delete(attempt_blob(self._installation, key))

    def _held(self, begun_before: float) -> dict[str, str]:
        found: dict[str, str] = {}
        begun: set[str] = set()
        prefix = f"{self._installation}/{ATTEMPTS}/"
        for item in self._listed(prefix, "&include=metadata"):
            key = name_of(item).removeprefix(prefix)
            begun.add(key)
            if _begun(item) < begun_before:
                found[key] = item.findtext("Metadata/job") or ""
        for kind in (REPORTS, STREAMS):
            prefix = f"{self._installation}/{kind}/"
            for item in self._listed(prefix):
                key = name_of(item).removeprefix(prefix).partition("/")[0]
                if key not in begun and _changed(item) < begun_before:
                    found[key] = ""
        return found

    def _listed(self, prefix: str, parameters: str = "") -> Iterator[Element]:
        target = self._signed("", _OWN_RIGHTS, _OWN_S)
        more = f"restype=container&comp=list&prefix={quote(prefix, safe='')}{parameters}"
        with about(self._shown(prefix)):
            try:
                yield from self._requests.listed(target, more, "Blobs/Blob")
            except StorageNotFound:
                # Somebody deleted the container, if a new one can be listed: nothing is there.
                self._make_container()
                yield from self._requests.listed(target, more, "Blobs/Blob")

    def _head(self, name: str) -> Answer | None:
        target = self._signed(name, _OWN_RIGHTS, _OWN_S)
        answer = self._requests.ask("HEAD", target)
        if answer.status == 404:
            return None
        self._accept(answer, "HEAD", target)
        return answer

    def _delete(self, name: str) -> None:
        target = self._signed(name, _OWN_RIGHTS, _OWN_S)
        answer = self._requests.ask("DELETE", target)
        if answer.status != 404:
            self._accept(answer, "DELETE", target)

    def _accept(self, answer: Answer, what: str, target: BlobUrl) -> None:
        with about(self._shown(target.path)):
            accept(answer, what, target)

    def _signed(self, name: str, wanted: Wanted, lifetime_s: float) -> BlobUrl:
        config = self._config
        plain = BlobUrl(
            endpoint=config.storage_url,
            account=config.storage_account,
            container=config.container,
            path=name,
        )
        signed, _ = self._signer.signed(plain, wanted, lifetime_s)
        if not signed:
            raise PermissionDenied(
                f"{self._shown()}: this server has neither the account's key nor an identity"
            )
        return msgspec.structs.replace(plain, query=urlsplit(signed).query)

    def _shown(self, name: str = "") -> str:
        return f"{self._config.storage_url}/{self._config.container}{name and '/'}{name}"


_CONDITIONS = frozenset({"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet"})
_SIZE = "Properties/Content-Length"


def _begun(item: Element) -> float:
    """When an attempt was put, in seconds since the epoch."""
    try:
        return float(item.findtext("Metadata/begun") or "")
    except ValueError:
        return _changed(item)


def _changed(item: Element) -> float:
    return date(item.findtext("Properties/Last-Modified") or "") or time.time()


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    """Storage's errors of the block as the backend's: none of them says anything of a task."""
    try:
        yield
    except StorageError as error:
        raise BackendUnavailable(f"the attempts' blobs: {error}") from error
