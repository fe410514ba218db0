"""The two versions of the standard that one set of handlers serves."""

from __future__ import annotations

from tesazure.errors import FieldError, InvalidInput
from tesazure.model import State


class Flavour:
    """One version of the standard: its prefix, and the words it has for states.

    `shown_as` maps each state that the version does not know to the one it shows instead.
    """

    def __init__(self, version: str, prefix: str, shown_as: dict[State, State]) -> None:
        self.version = version
        self.prefix = prefix
        self.known = [state for state in State if state not in shown_as]
        self._shown = {state: shown_as.get(state, state).value.encode() for state in State}
        self._stored = {
            word.value: tuple(s for s in State if shown_as.get(s, s) is word) for word in self.known
        }

    def word(self, state: State) -> bytes:
        """The state as this version writes it."""
        return self._shown[state]

    def states(self, word: str) -> tuple[State, ...]:
        """The stored states that a filter by `word` means. Raises InvalidInput."""
        try:
            return self._stored[word]
        except KeyError:
            allowed = ", ".join(self._stored)
            raise InvalidInput([FieldError("state", f"must be one of {allowed}")]) from None


V1_1 = Flavour("1.1.0", "/ga4gh/tes/v1", {})
"""TES 1.1.0."""

V1_0 = Flavour(
    "1.0.0",
    "/v1",
    # 1.0 has no word for a cancel under way; such a task is still live, so clients keep watching.
    {State.PREEMPTED: State.SYSTEM_ERROR, State.CANCELING: State.RUNNING},
)
"""TES 1.0.0, and the documents of 2019."""
