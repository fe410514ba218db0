"""The life of a task: every combination of facts and observations, and lives at random."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from tesazure.lifecycle import (
    TRANSITIONS,
    Action,
    Advance,
    Attempt,
    Cancel,
    Facts,
    Observation,
    Phase,
    Policy,
    Reclaim,
    Release,
    Retry,
    Submit,
    check,
    decide,
)
from tesazure.model import TERMINAL, State
from tests.unit.lifecycle_cases import ALIVE, HANDLE, NOW, POLICY, facts, report, seen


def every_case() -> Iterator[tuple[Facts, Observation | None]]:
    """Every combination that the store and a backend can present."""
    reports = [report(events=0), report(), report(executor=True)] + [
        report(end, executor=executor, retryable=retryable)
        for end in State
        for executor in (False, True)
        for retryable in (False, True)
    ]
    sights: list[Observation | None] = [None]
    sights += [seen(phase, told) for phase in Phase for told in reports]
    attempts = itertools.product((1, 2, 3), (None, HANDLE), (False, True), (10, 10_000))
    for number, handle, released, age in attempts:
        for state, sight, limit in itertools.product(TRANSITIONS, sights, (0.0, 20.0)):
            task = facts(
                state,
                number=number,
                handle=handle,
                released=released,
                started=NOW - age,
                max_runtime_s=limit,
            )
            yield task, sight if handle else None


def walk(state: State, actions: list[Action]) -> list[State]:
    """The states that the actions lead through; fails on an illegal step."""
    passed = []
    for action in actions:
        after = action.state if isinstance(action, Advance) else None
        if isinstance(action, Retry):
            after = State.QUEUED
        if isinstance(action, Submit) and state is State.QUEUED:
            after = State.INITIALIZING
        if after is not None:
            check(state, after)
            state = after
            passed.append(state)
    return passed


def test_in_every_case_the_rules_hold() -> None:
    cases = 0
    for task, sight in every_case():
        cases += 1
        actions = decide(task, sight, NOW, POLICY)
        passed = walk(task.state, actions)
        kinds = [type(action) for action in actions]
        ended = sight.report.ended if sight else None
        number = task.attempt.number if task.attempt else 0
        assert decide(task, sight, NOW, POLICY) == actions
        if task.state in TERMINAL:
            assert set(kinds) <= {Release, Reclaim}
        if State.COMPLETE in passed:
            assert ended is not None
            assert ended.state is State.COMPLETE
        if State.CANCELED in passed:
            assert task.state is State.CANCELING
            assert kinds[0] is Release or (task.attempt and task.attempt.released)
        if Retry in kinds:
            assert number <= POLICY.max_retries
            assert kinds.index(Release) < kinds.index(Retry)
            assert ended is None or ended.state not in {State.COMPLETE, State.EXECUTOR_ERROR}
        if passed and passed[-1] in TERMINAL:
            assert Release in kinds or (task.attempt and task.attempt.released)
        if sight is None or task.attempt is None:
            assert not {Cancel, Retry} & set(kinds)
    assert cases > 30_000


class World:
    """A store and a backend of one task, in a few variables."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.policy = Policy(max_retries=self.draw(st.integers(0, 2)), cancel_grace_s=5)
        self.now = NOW
        self.state, self.history = State.QUEUED, [State.QUEUED]
        self.number = 0
        self.place()

    def place(self) -> None:
        """Another attempt."""
        self.number += 1
        self.handle: dict[str, str] | None = None
        self.released = False
        self.asked: float | None = None
        self.told, self.phase = report(events=0), Phase.PENDING

    def node(self, events: list[str]) -> None:
        """Something happens where the attempt runs."""
        if not self.handle or self.released or self.phase not in ALIVE:
            return
        count = self.told.events + 1
        match self.draw(st.sampled_from(events)):
            case "executor":
                self.told, self.phase = report(events=count, executor=True), Phase.RUNNING
            case "end":
                end = self.draw(st.sampled_from([State.COMPLETE, State.EXECUTOR_ERROR]))
                self.told, self.phase = report(end, events=count, executor=True), Phase.EXITED
            case "die":
                self.phase = Phase.EXITED
            case "vanish":
                self.phase = Phase.MISSING

    def owner(self) -> None:
        """The task's owner may cancel it."""
        if State.CANCELING in TRANSITIONS[self.state] and not self.draw(st.integers(0, 19)):
            self.state = State.CANCELING
            self.history.append(self.state)

    def server(self) -> None:
        """The server looks, and does what was decided."""
        if self.state is State.QUEUED and self.released:
            self.place()
        attempt = Attempt(self.number, f"k{self.number}", NOW, self.handle, self.released)
        task = Facts("t", self.state, 0.0, attempt, 0, self.asked)
        sight = Observation(self.phase, self.told) if self.handle else None
        for action in decide(task, sight, self.now, self.policy):
            match action:
                case Submit() | Reclaim():
                    self.handle = HANDLE
                case Cancel():
                    self.asked = self.now
                case Release():
                    self.released = True
            for after in walk(self.state, [action]):
                self.state = after
                self.history.append(after)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_every_task_comes_to_an_end_and_leaves_nothing(data: st.DataObject) -> None:
    """Backend, owner and clock do what they like for a while; the server keeps up."""
    world = World(data)
    for turn in range(200):
        if world.state in TERMINAL and world.released:
            break
        world.now += data.draw(st.floats(0, 3))
        world.node(["none", "executor", "end", "die", "vanish"] if turn < 100 else ["end"])
        world.owner()
        world.server()
    assert world.state in TERMINAL, world.history
    assert world.released
    assert world.number <= world.policy.max_retries + 1
