"""A Batch account, through Microsoft's SDK: its calls made in threads, its errors in our words."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from tesazure import __version__
from tesazure.azure_identity import credential_of, short
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.errors import BackendUnavailable

if TYPE_CHECKING:
    from azure.batch import BatchClient, models
    from azure.core.exceptions import HttpResponseError

T = TypeVar("T")

THREADS = 8
"""Calls under way at once; Batch answers one in some tens of milliseconds."""
TRIES = 5
PATIENCE_S = 60.0
"""For how long a call is tried again, in seconds; whoever wanted it comes back anyway."""
LONGEST_PAUSE_S = 20.0
PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same call may succeed ("Batch Status and Error Codes")."""
_ABSENT = frozenset({"JobNotFound", "TaskNotFound"})
_GONE = ("BeingDeleted", "NotFound")
"""How Batch's codes end of what is gone. Other 404s are of a proxy, or of a URL that is wrong
(ResourceNotFound): they say nothing of a task."""
TIMEOUTS_S = {"connection_timeout": 10, "read_timeout": 30}


class Refused(BackendUnavailable):
    """Batch answered, and not as was wished. `code` is its own (BatchErrorCodeStrings)."""

    def __init__(self, message: str, code: str, status: int, retry_after_s: float = 0.0) -> None:
        self.code, self.status, self.retry_after_s = code, status, retry_after_s
        super().__init__(message)


class Gone(Refused):
    """Batch says that there is no such thing, or that its deletion is under way."""

    @property
    def is_absent(self) -> bool:
        """Whether there is no such task, or none of its whole job; one that is being deleted may
        still run."""
        return self.code in _ABSENT


class Exists(Refused):
    """There is such a thing already (409; 412 of Resource Manager)."""


class Account:
    """One account. `calls` counts what was asked of it, every try, by operation."""

    def __init__(self, config: BatchConfig) -> None:
        self._config = config
        self._threads: ThreadPoolExecutor | None = None
        self._client: BatchClient | None = None
        self._closed_until = 0.0
        """Batch wants nothing before then, on the monotonic clock."""
        self.calls: Counter[str] = Counter()

    async def start(self) -> None:
        """Load the SDK. Asks nobody yet."""
        if self._client is None:
            self._threads = self._threads or ThreadPoolExecutor(THREADS, "azure-batch")
            loop = asyncio.get_running_loop()
            self._client = await loop.run_in_executor(self._threads, self._connect)

    async def stop(self) -> None:
        """Let go, after calls under way. May be called twice."""
        client, self._client = self._client, None
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
        if client is not None:
            client.close()

    async def call(self, operation: str, ask: Callable[[BatchClient], T]) -> T:
        """What `ask` returns, called in a thread; it must also read the pages of a list.

        Tried again after what passes by itself, so `ask` is to be idempotent: what Batch has done
        already shows as Exists or Gone. Raises Gone, Exists, Refused, and BackendUnavailable when
        there was no answer.
        """
        begun = time.monotonic()
        for number in itertools.count(1):
            await self._until_open()
            try:
                return await self._call(operation, ask)
            except BackendUnavailable as error:
                pause = self._pause(error, number)
                if pause is None or time.monotonic() + pause > begun + PATIENCE_S:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("never comes here")

    async def _call(self, operation: str, ask: Callable[[BatchClient], T]) -> T:
        client, threads = self._client, self._threads
        if client is None or threads is None:
            raise BackendUnavailable("the Batch backend has not been started, or is being stopped")
        self.calls[operation] += 1
        asked = functools.partial(_asked, operation, ask, client)
        return await asyncio.get_running_loop().run_in_executor(threads, asked)

    async def _until_open(self) -> None:
        """An account that throttles one call throttles all: none goes out before it is to."""
        left = self._closed_until - time.monotonic()
        if left > 0:
            await asyncio.sleep(left + random.uniform(0, 0.2))  # noqa: S311 - spreads them

    def _pause(self, error: BackendUnavailable, number: int) -> float | None:
        """Seconds until the next try; None: there is none."""
        if number >= TRIES:
            return None
        pause: float = 0.25 * 2**number
        if isinstance(error, Refused):
            if error.status not in PASSING:
                return None
            pause = min(max(pause, error.retry_after_s), LONGEST_PAUSE_S)
            if error.status == 429:
                self._closed_until = max(self._closed_until, time.monotonic() + pause)
        elif not isinstance(error, _Unreached):
            return None
        return pause * random.uniform(1, 1.25)  # noqa: S311 - spreads them

    def _connect(self) -> BatchClient:
        from azure.batch import BatchClient
        from azure.core.credentials import AzureNamedKeyCredential
        from azure.core.pipeline.policies import RetryPolicy

        config = self._config
        credential = (
            AzureNamedKeyCredential(config.account, config.key)
            if config.key
            else credential_of(config.identity)
        )
        return BatchClient(
            config.url,
            credential,
            # The SDK's own tries occupy a thread while they wait, and repeat no POST.
            retry_policy=RetryPolicy.no_retries(),
            user_agent=f"tesazure/{__version__}",
            connection_verify=config.ca_bundle or True,
            credential_scopes=[config.scope],
            # As storage has it: proxies that the environment names are not used.
            use_env_settings=False,
            **TIMEOUTS_S,
        )


class _Unreached(BackendUnavailable):
    """There was no answer; whether Batch did what was asked is not known."""


def _asked(operation: str, ask: Callable[[BatchClient], T], client: BatchClient) -> T:
    from azure.core import exceptions

    try:
        return ask(client)
    except exceptions.HttpResponseError as error:
        raise _refusal(operation, error) from error
    except exceptions.AzureError as error:
        text = f"Azure Batch cannot be reached to {operation}: {short(error)}"
        raise _Unreached(text) from error


def _refusal(operation: str, error: HttpResponseError) -> Refused:
    status = error.status_code or 0
    code, said = told(getattr(error, "model", None), short(error))
    if status in (401, 403):
        # The details quote the request's signature.
        said = said.partition("; ")[0]
        said += "; check BATCH_ACCOUNT_KEY, or the roles of this server's identity on the account"
    text = f"Azure Batch would not {operation}: {said} ({code or status})"
    return refusal_of(text, code, status, _retry_after(error))


def refusal_of(text: str, code: str, status: int, retry_after_s: float = 0.0) -> Refused:
    """What an answer of Batch's means, by its code and status."""
    if code.endswith(_GONE) and code != "ResourceNotFound":
        return Gone(text, code, status)
    if status == 412 or (status == 409 and code.endswith("Exists")):
        return Exists(text, code, status)
    return Refused(text, code, status, retry_after_s)


def _retry_after(error: HttpResponseError) -> float:
    from azure.core.pipeline.policies import RetryPolicy

    value = getattr(error.response, "headers", {}).get("Retry-After")
    try:
        return RetryPolicy().parse_retry_after(value) if value else 0.0
    except ValueError:
        return 0.0


def told(error: models.BatchError | None, otherwise: str = "") -> tuple[str, str]:
    """Batch's code and message, without the ids of request and time that follow in it, and without
    values that it refuses: they may be signed URLs."""
    message = error.message.value if error is not None and error.message is not None else None
    lines = (message or otherwise).strip().splitlines()
    values = (error.error_values if error is not None else None) or []
    details = [f"{it.key}: {it.value}" for it in values if it.key != "PropertyValue"]
    code = (error.code if error is not None else None) or ""
    return code, "; ".join([lines[0] if lines else "no reason was given", *details])[:500]
