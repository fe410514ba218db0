"""Whether a budget that a task needs is spent: at submission, and while it waits."""

from __future__ import annotations

from collections.abc import Sequence

from tesazure.api.errors import HttpError
from tesazure.api.parts import Parts
from tesazure.budgets import Budget, Purse, Tags
from tesazure.model import State
from tesazure.store.records import NewTask, TaskRecord, tags_of


class BudgetCheck:
    """Compares the budgets in effect with what was spent. Without any nothing is asked."""

    def __init__(self, parts: Parts) -> None:
        self._budgets = parts.budgets
        self._store = parts.store
        self._clock = parts.clock

    async def demand(self, task: NewTask) -> None:
        """Raises HttpError 403 where submissions beyond a budget are refused, and this is one."""
        if self._budgets.refuse and self._budgets.all:
            [spent] = await self._spent([(task.owner, task.tags)])
            if spent is not None:
                budget, purse, cost = spent
                raise HttpError(403, "budget_spent", budget.spent(purse, cost))

    async def holds(self, records: Sequence[TaskRecord]) -> dict[str, str]:
        """Of those of the tasks that wait for a budget: their ids, and why, in words."""
        if not self._budgets.all:
            return {}
        waiting = [r for r in records if r.state is State.QUEUED and _is_idle(r)]
        if not waiting:
            return {}
        spent = await self._spent([(r.owner, tags_of(r.document)) for r in waiting])
        return {
            record.id: found[0].waits(*found[1:])
            for record, found in zip(waiting, spent, strict=True)
            if found is not None
        }

    async def _spent(
        self, tasks: Sequence[tuple[str | None, Tags]]
    ) -> list[tuple[Budget, Purse, int] | None]:
        """For each task the first of its budgets that is spent, and what was."""
        now = self._clock()
        limited = [
            [(b, purse) for b in self._budgets.all if (purse := b.purse(owner, tags, now))]
            for owner, tags in tasks
        ]
        spent = await self._store.spent({purse for some in limited for _, purse in some})
        return [
            next(((b, a, spent[a]) for b, a in some if spent[a] >= b.limit), None)
            for some in limited
        ]


def _is_idle(record: TaskRecord) -> bool:
    """Whether no attempt of the task lives."""
    return not record.attempts or record.attempts[-1].released
