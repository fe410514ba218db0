"""Which queued tasks are placed: by example, and for any queue on any machine."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesazure.backends.base import Capacity
from tesazure.scheduler.placement import (
    Blocked,
    Choice,
    choose,
    fits,
    plus,
    short_of_disk,
    waits_for,
)
from tesazure.store.records import Queued, Reservation

GB = 10**9
MACHINE = Capacity(cpu_cores=4, ram_bytes=8 * GB, disk_bytes=100 * GB)
IDLE = Reservation(0.0, 0, 0)


def need(cores: float, ram_gb: float = 1, disk_gb: float = 1) -> Reservation:
    """A reservation."""
    return Reservation(cores, int(ram_gb * GB), int(disk_gb * GB))


def queue(*needs: Reservation) -> list[Queued]:
    """Tasks named t0, t1, … from the oldest on."""
    return [
        Queued(seq=i, id=f"t{i}", version=1, created=0, reservation=n) for i, n in enumerate(needs)
    ]


def placed(
    waiting: list[Queued],
    used: Reservation = IDLE,
    capacity: Capacity | None = MACHINE,
    now: float = 0,
    blocked: Blocked | None = None,
) -> Choice:
    """`choose` with a patience of 30 s."""
    return choose(waiting, used, capacity, now, 30, blocked)


CASES = {
    "nothing waits": (queue(), IDLE, []),
    "one fits": (queue(need(1)), IDLE, ["t0"]),
    "all of the machine": (queue(need(4, 8, 100)), IDLE, ["t0"]),
    "as many as fit, oldest first": (queue(*[need(1)] * 6), IDLE, ["t0", "t1", "t2", "t3"]),
    "beside what runs": (queue(need(2), need(2)), need(2), ["t0"]),
    "nothing is free": (queue(need(1)), need(4), []),
    "more is used than there is": (queue(need(1)), need(9), []),
    "memory is short": (queue(need(1, 5), need(1, 5)), IDLE, ["t0"]),
    "disk is short": (queue(need(1, 1, 60), need(1, 1, 60)), IDLE, ["t0"]),
    "tenths of cores add up": (queue(*[need(0.1, 0.1)] * 41), IDLE, [f"t{i}" for i in range(40)]),
    "thirds of cores add up": (queue(*[need(1 / 3, 0.1)] * 13), IDLE, [f"t{i}" for i in range(12)]),
    "a smaller one passes": (queue(need(3), need(1)), need(2), ["t1"]),
    "small ones pass two large ones": (queue(need(4), need(3), need(1)), need(2), ["t2"]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_placed(case: str) -> None:
    waiting, used, expected = CASES[case]
    assert placed(waiting, used).place == expected


def test_without_a_capacity_everything_is_placed() -> None:
    assert placed(queue(need(1000), need(1)), capacity=None).place == ["t0", "t1"]


def test_what_is_used_afterwards() -> None:
    assert placed(queue(need(1), need(0.5)), need(1)).used == need(2.5, 3, 3)


@pytest.mark.parametrize(
    ("large", "reason"),
    [
        (need(64), "needs 64 cores, this machine has 4"),
        (need(4.5), "needs 4.5 cores, this machine has 4"),
        (need(1, 16), "needs 16 GB of memory, this machine has 8"),
        (need(1, 1, 1000), "needs 1000 GB of disk, this machine has 100"),
        (need(8, 9), "needs 8 cores, this machine has 4; needs 9 GB of memory, this machine has 8"),
        (
            Reservation(1.0, 8 * GB + 1, 0),
            "needs 8.000000001 GB of memory, this machine has 8",
        ),
    ],
)
def test_what_can_never_run_is_refused_in_words(large: Reservation, reason: str) -> None:
    waiting = queue(large, need(1))
    choice = placed(waiting, need(4))
    assert choice.reject == [(waiting[0], f"can never run here: {reason}")]
    assert choice.blocked == Blocked("t1", 0)


def test_the_oldest_that_does_not_fit_is_passed_only_for_a_while() -> None:
    waiting = queue(need(4), need(1), need(1))
    first = placed(waiting, need(2), now=100)
    assert first.place == ["t1", "t2"]
    assert first.blocked == Blocked("t0", 100)
    assert placed(waiting, need(2), now=129.9, blocked=first.blocked).place == ["t1", "t2"]
    later = placed(waiting, need(2), now=130, blocked=first.blocked)
    assert later.place == []
    assert later.blocked == first.blocked


def test_its_time_begins_anew_for_the_next_one() -> None:
    old = Blocked("gone", 0)
    choice = placed(queue(need(4), need(1)), need(2), now=1000, blocked=old)
    assert choice.place == ["t1"]
    assert choice.blocked == Blocked("t0", 1000)


def test_nothing_is_blocked_once_it_fits() -> None:
    choice = placed(queue(need(4)), now=1000, blocked=Blocked("t0", 0))
    assert choice.place == ["t0"]
    assert choice.blocked is None


def test_what_cannot_delay_the_oldest_may_pass_it_for_ever() -> None:
    waiting = queue(need(3), need(1), need(1))
    choice = placed(waiting, need(2), now=1000, blocked=Blocked("t0", 0))
    assert choice.place == ["t1"]  # 3 + 1 cores fit together; with a second one they would not
    assert choice.blocked == Blocked("t0", 0, need(1))
    again = placed(queue(need(3), need(1)), need(3), now=1001, blocked=choice.blocked)
    assert again.place == []
    assert again.blocked == choice.blocked


@pytest.mark.parametrize(
    ("wanted", "used", "words"),
    [
        (need(3), need(2), "3 cores; 2 of 4 are free"),
        (need(1, 8), need(2), "8 GB of memory; 7 of 8 are free"),
        (need(1, 1, 100), need(1), "100 GB of disk; 99 of 100 are free"),
        (need(1), need(9), "1 cores; 0 of 4 are free"),
        (need(1), need(1), None),
    ],
)
def test_why_a_task_waits(wanted: Reservation, used: Reservation, words: str | None) -> None:
    assert waits_for(wanted, used, MACHINE) == words


CORES = st.integers(1, 600).map(lambda n: n / 100)
SIZES = st.integers(0, 10 * GB)
NEEDS = st.builds(Reservation, CORES, SIZES, st.just(0))


@given(st.lists(NEEDS, max_size=30), NEEDS, st.floats(0, 100))
@settings(deadline=None)
def test_never_more_than_there_is(needs: list[Reservation], used: Reservation, now: float) -> None:
    waiting = queue(*needs)
    choice = placed(waiting, used, now=now, blocked=Blocked("t0", 0))
    total = used
    for task in waiting:
        if task.id in choice.place:
            total = plus(total, task.reservation)
    assert choice.used == total
    assert not choice.place or fits(total, MACHINE)
    refused = {task.id for task, _ in choice.reject}
    assert refused == {task.id for task in waiting if not fits(task.reservation, MACHINE)}
    assert not refused & set(choice.place)
    assert choice.place == [task.id for task in waiting if task.id in choice.place]


@given(
    st.lists(NEEDS.filter(lambda n: fits(n, MACHINE)), min_size=1, max_size=12),
    st.lists(NEEDS.filter(lambda n: fits(n, MACHINE)), min_size=1, max_size=4),
    st.integers(1, 60),
)
@settings(deadline=None, max_examples=150)
def test_no_task_starves(
    first: list[Reservation], stream: list[Reservation], runtime_s: int
) -> None:
    """Each second as many tasks arrive as there are cores, for ever; those who came first get in
    nevertheless, within the time that those before them may take."""
    waiting = queue(*first)
    running: list[tuple[float, Reservation]] = []
    blocked, used, number = None, IDLE, len(waiting)
    last = len(first) * (30 + 2 * runtime_s) + runtime_s
    for now in range(last):
        running = [(end, n) for end, n in running if end > now]
        used = IDLE
        for _, n in running:
            used = plus(used, n)
        for n in stream:
            waiting.append(Queued(number, f"t{number}", 1, now, n))
            number += 1
        choice = placed(waiting[:64], used, now=now, blocked=blocked)
        blocked = choice.blocked
        chosen = set(choice.place)
        running += [(now + runtime_s, t.reservation) for t in waiting if t.id in chosen]
        waiting = [t for t in waiting if t.id not in chosen]
        if not waiting or waiting[0].seq >= len(first):
            return
    raise AssertionError(f"still waiting after {last} s: {waiting[0]}")


def test_what_does_not_fit_now_waits_and_holds_up_no_other() -> None:
    room = Capacity(4, 8 * GB, 20 * GB)
    waiting = queue(need(1, 1, 50), need(1, 1, 15), need(1, 1, 101), need(1, 1, 10), need(1, 1, 5))
    choice = choose(waiting, IDLE, MACHINE, 1000, 30, Blocked("t3", 0), room)
    assert choice.place == ["t1", "t4"]
    assert [task.id for task, _ in choice.reject] == ["t2"]
    assert choice.blocked == Blocked("t3", 0, need(1, 1, 5))
    assert waits_for(need(1, 1, 50), IDLE, room) == "50 GB of disk; 20 of 20 are free"


def test_short_of_disk_is_what_waits_for_disk_whatever_else_it_lacks() -> None:
    room = Capacity(4, 8 * GB, 20 * GB)
    assert short_of_disk(need(1, 1, 15), need(1, 1, 10), room)
    assert not short_of_disk(need(1, 1, 10), need(1, 1, 10), room)
    assert short_of_disk(need(9, 1, 15), need(1, 1, 10), room)
    assert not short_of_disk(need(9, 1, 10), need(1, 1, 10), room)
