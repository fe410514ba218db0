"""What tasks cost: counted by purse, compared with budgets, added up; on each database."""

from __future__ import annotations

import asyncio
import time

import pytest

from tesazure.budgets import EVERYBODYS, Budget, Purse, parse, period
from tesazure.callers import Visibility
from tesazure.model import State
from tesazure.store.records import Change, ListQuery
from tesazure.store.sql_store import SqlStore
from tests.contract.spender import begun, cost, paid, tagged
from tests.contract.store_tasks import ALL, SCOPE, created, everything

USD = 10**9
LONG = "x" * 3000


@pytest.fixture(autouse=True)
async def one_day() -> None:
    """Costs count on the day, in UTC, on which they come: a test so late begins on the next."""
    left = 86400 - time.time() % 86400
    if left < 30:
        await asyncio.sleep(left)


async def spent(store: SqlStore, *budgets: str, **task: object) -> list[int]:
    """What was spent of budgets, as a task of these would find it."""
    owner, tags = task.get("owner"), task.get("tags", {})
    found = []
    for budget in map(parse, budgets):
        purse = budget.purse(owner, tags, time.time())  # type: ignore[arg-type]
        assert purse is not None
        found.append((await store.spent([purse]))[purse])
    return found


async def placed(store: SqlStore, *budgets: str, limit: int = 512) -> list[str]:
    """Names of the tasks that are placed under these budgets."""
    wanted: list[Budget] = [parse(budget) for budget in budgets]
    records = await store.place("s", SCOPE, everything, limit, time.time(), wanted)
    return [record.id for record in records]


async def test_a_cost_counts_under_all_its_purses(store: SqlStore) -> None:
    tags = {"project": "covid", LONG: LONG, "empty": None}
    assert await spent(store, "all=1") == [0]
    record = await begun(store, tagged(tags, owner="ann"))
    version = await cost(store, record.id, record.version, "0.25")
    for _ in range(2):  # said again, it is not spent again
        version = await cost(store, record.id, version, "1.5")
    await paid(store, tagged({"project": "flu"}, owner="bob"), "2")
    await paid(store, tagged({}), "0.000000001")
    total = 3_500_000_001
    assert (await store.spent([EVERYBODYS]))[EVERYBODYS] == total
    for time_ in ("", "/month", "/day"):
        assert await spent(store, f"all=1{time_}") == [total]
        of_ann = [f"{name}=1{time_}" for name in ("owner", "tag:project", "tag:empty")]
        assert await spent(store, *of_ann, owner="ann", tags=tags) == [1_500_000_000] * 3
        assert await spent(store, f"owner=1{time_}", owner="bob") == [2 * USD]
    purse = Purse("tag", LONG, LONG, "")
    assert await store.spent([purse]) == {purse: 1_500_000_000}


async def test_what_was_spent_stays_spent(store: SqlStore) -> None:
    """Records go, budgets are not refunded; past days and months are forgotten, the sum is not."""
    await paid(store, tagged({"project": "covid"}, owner="ann"), "3")
    assert await store.forget(time.time() + 60, 9) == 1
    now = time.time()
    names = ["all=1", "all=1/month", "owner=1/day", "tag:project=1/month"]
    task = {"owner": "ann", "tags": {"project": "covid"}}
    await store.prune_spending(now)
    assert await spent(store, *names, **task) == [3 * USD] * 4
    await store.prune_spending(now + 32 * 86400)
    assert await spent(store, *names, **task) == [3 * USD, 0, 0, 0]
    found = await store.costs(ListQuery(limit=10), 0.0)
    assert (found.tasks, found.cost) == (0, None)


@pytest.mark.parametrize(
    ("budget", "held"),
    [
        ("owner=5", ("ann",)),
        ("owner:ann=5/month", ("ann",)),
        ("owner:bob=5", ()),
        ("tag:project=5/day", ("ann", "covid")),
        ("tag:project:covid=5", ("ann", "covid")),
        ("tag:project:flu=1", ()),
        ("tag:other=1", ()),
        ("all=5", ("ann", "covid", "flu", "bob", "nobody")),
        ("all=5.01", ()),
    ],
)
async def test_tasks_of_a_spent_budget_wait_and_others_pass(
    store: SqlStore, budget: str, held: tuple[str, ...]
) -> None:
    await paid(store, tagged({"project": "covid"}, owner="ann"), "5")
    tasks = {
        "ann": tagged({"project": "covid"}, owner="ann"),
        "covid": tagged({"project": "covid"}, owner="eve"),
        "flu": tagged({"project": "flu"}, owner="eve"),
        "bob": tagged({}, owner="bob"),
        "nobody": tagged({}),
    }
    for task in tasks.values():
        await store.create(task)
    expected = [task.id for name, task in tasks.items() if name not in held]
    assert await placed(store, budget, "owner=1000", "tag:project=1000/month") == expected
    assert await placed(store) == [tasks[name].id for name in held]


async def test_a_crowd_that_waits_does_not_fill_the_window(store: SqlStore) -> None:
    await paid(store, tagged({}, owner="ann"), "5")
    await created(store, 30, owner="ann")
    [other] = await created(store, 1, owner="bob")
    assert await placed(store, "owner=5/month", limit=10) == [other.id]


async def test_a_retry_waits_as_well(store: SqlStore) -> None:
    record = await begun(store, tagged({}, owner="ann"))
    version = await cost(store, record.id, record.version, "5", state=State.INITIALIZING)
    again = Change(task_id=record.id, version=version, state=State.QUEUED, released=True)
    await store.apply(again)
    assert await placed(store, "owner=5") == []
    assert await placed(store, "owner=6") == [record.id]


async def test_costs_are_added_up(store: SqlStore) -> None:
    prices = ["0.1", "0.2", "?", "1"]
    moments = [1000.0, 2000.0, 3000.0, 4000.0]
    owners = [("ann", "lab"), ("bob", "lab"), ("ann", "lab"), ("eve", "x")]
    for price, moment, (owner, tenant) in zip(prices, moments, owners, strict=True):
        tags = {"project": "covid", "price": price}
        task = tagged(tags, owner=owner, tenant=tenant, created=moment)
        await paid(store, task, price)
        await created(store, 2, owner=owner)
    covid = (("project", "covid"),)
    lab = Visibility(everyone=False, tenant="lab")

    async def sums(since: float = 0.0, limit: int = 2, **query: object) -> tuple[int, int | None]:
        before, tasks, known = None, 0, None
        while True:
            asked = ListQuery(limit=limit, before=before, **query)  # type: ignore[arg-type]
            part = await store.costs(asked, since)
            tasks += part.tasks
            known = known if part.cost is None else (known or 0) + part.cost
            before = part.next_before
            if before is None:
                return tasks, known

    for limit in (1, 2, 100):
        assert await sums(limit=limit) == (12, 1_300_000_000)
        assert await sums(limit=limit, tags=covid) == (4, 1_300_000_000)
        assert await sums(limit=limit, tags=covid, visibility=lab) == (3, 300_000_000)
        assert await sums(2000.0, limit, tags=covid) == (3, 1_200_000_000)
        assert await sums(limit=limit, tags=covid, visibility=ALL.of("ann")) == (2, 100_000_000)
        assert await sums(limit=limit, tags=covid, visibility=lab.of("eve")) == (0, None)
        assert await sums(limit=limit, tags=(*covid, ("price", "?"))) == (1, None)
    nobody = Visibility(everyone=False)
    assert await sums(visibility=nobody) == (0, None)
    assert await sums(visibility=nobody.of("ann")) == (0, None)
    assert await sums(tags=(("project", "\0"),)) == (0, None)


def test_periods_are_in_utc() -> None:
    midnight = 1_796_083_200.0  # 2026-12-01
    assert [period("month", midnight - 1), period("day", midnight - 1)] == ["2026-11", "2026-11-30"]
    assert [period("month", midnight), period("day", midnight)] == ["2026-12", "2026-12-01"]
    assert period("", midnight) == ""
