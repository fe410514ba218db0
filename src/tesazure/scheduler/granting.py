"""What an attempt is given besides its Plan: access to its files, made when it is placed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

from tesazure.access import Access
from tesazure.errors import (
    BackendError,
    NotGranted,
    StoreError,
    TesazureError,
    Unplaceable,
)
from tesazure.model import Task
from tesazure.plan import Plan
from tesazure.scheduler.adapting import Adapt, as_sent
from tesazure.sealing import Seal
from tesazure.secrecy import Censor, is_hidden, of_field
from tesazure.store.base import Store
from tesazure.submitters import Submitter

log = logging.getLogger(__name__)

Grant = Callable[[Plan, Mapping[str, str]], Awaitable[Access]]
"""The Access of an attempt, given its Plan and the whole URLs of those in it whose secrets were cut
out (see `secrecy.cut`). Raises a TesazureError: a `retryable` one is tried again, after any other
the task can never run."""


async def given(_: Plan, whole: Mapping[str, str]) -> Access:
    """The Grant of a server that has no credentials of its own: what the client sent."""
    return Access(inputs=of_field(whole, "inputs"), outputs=of_field(whole, "outputs"))


class Granting:
    """Makes the Access of attempts. `seal` opens what the API sealed."""

    def __init__(
        self, store: Store, seal: Seal, grant: Grant = given, adapt: Adapt = as_sent
    ) -> None:
        self._store = store
        self._seal = seal
        self._grant = grant
        self._adapt = adapt

    async def adapted(
        self, task_id: str, task: Task, submitter: Submitter
    ) -> tuple[Task, list[str]]:
        """The task as it is to be carried out, and warnings. Raises as `access`."""
        with _as_reasons(task_id, {}):
            return await self._adapt(task, submitter)

    async def access(self, plan: Plan) -> Access:
        """For an attempt that is about to be submitted. Raises Unplaceable with the reason,
        NotGranted for what may pass, StoreUnavailable."""
        whole: dict[str, str] = {}
        with _as_reasons(plan.task_id, whole):
            if _lacks_secrets(plan):
                sealed = await self._store.sealed(plan.task_id)
                if sealed is None:
                    raise Unplaceable("the secrets in its URLs are gone; submit the task again")
                whole.update(self._seal.open(plan.task_id, sealed))
            return await self._grant(plan, whole)


@contextmanager
def _as_reasons(task_id: str, whole: Mapping[str, str]) -> Iterator[None]:
    """Errors of the block as ends of a placement, without the secrets in `whole` URLs."""
    try:
        yield
    except (BackendError, StoreError):
        raise
    except TesazureError as error:
        reason = f"no access to its files: {Censor(whole.values())(str(error))}"
        raise (NotGranted if error.retryable else Unplaceable)(reason) from None
    except Exception as error:
        log.exception("a grant failed", extra={"task": task_id})
        raise NotGranted(f"no access to its files: {type(error).__name__}") from None


def _lacks_secrets(plan: Plan) -> bool:
    """Whether anything was cut out of the task's URLs: without asking the store, as most have
    none."""
    downloads = any(is_hidden(item.url) for item in plan.downloads if item.url)
    return downloads or any(is_hidden(item.url) for item in plan.uploads)
