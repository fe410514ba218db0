"""Accounts: resources that carry tags, each in the resource group under a name of the request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from tesazure.errors import FieldError
from tesazure.provision.azure.clients import Clients
from tesazure.provision.azure.config import UNTAGGED, Place
from tesazure.provision.base import Found, Outcome, Tell


class AccountStep(ABC):
    """Makes, completes and removes one; see `base.Step`. Of an account that this run did not make,
    nothing is changed. What the methods to fill in are given is Azure's model of the account; they
    raise ProvisionFailed."""

    name: ClassVar[str]

    def __init__(self, place: Place, clients: Clients, kind: str, called: str) -> None:
        self._place, self._clients = place, clients
        self._names = place.request.resource_group, called
        self.title = f"{kind} {called}"

    def look(self) -> Found:
        """Ours by its tags; of others, what `_problem` says."""
        there = self._get()
        if there is None:
            return Found(state="missing")
        ours = self._place.made(there.tags)
        if not ours and (problem := self._problem(there)):
            return Found(state="foreign", resource_id=str(there.id), problem=problem)
        return Found(
            state="ours" if ours else "right",
            resource_id=str(there.id),
            detail=self._detail(there),
        )

    def make(self, tell: Tell, is_ours: bool) -> Outcome:
        """Make it, or have one of ours be as it should."""
        there = self._get()
        made = is_ours or there is None
        if there is None or (made and not self._is_right(there)):
            there = self._put_right(there, tell)
        return Outcome(resource_id=str(there.id), made=made, detail=self._detail(there))

    def remove(self) -> str:
        """With everything that is in it."""
        there = self._get()
        if there is None:
            return ""
        if not self._place.made(there.tags):
            return UNTAGGED
        self._delete()
        return ""

    @abstractmethod
    def _get(self) -> Any:
        """The account; None if there is none."""

    @abstractmethod
    def _problem(self, there: Any) -> FieldError | None:
        """Why one that another made cannot be used; None if it can."""

    @abstractmethod
    def _is_right(self, there: Any) -> bool:
        """Whether nothing is to be done."""

    @abstractmethod
    def _put_right(self, there: Any, tell: Tell) -> Any:
        """Make it, where it is None, or what is wrong with it; as it is then."""

    @abstractmethod
    def _delete(self) -> None:
        """Delete it, and wait until it is gone."""

    @abstractmethod
    def _detail(self, there: Any) -> str:
        """What people want to know of it."""

    def _unusable(self, there: Any, field: str, text: str) -> FieldError | None:
        """A problem with a name: it is not of this installation, or else what `text` says, if it
        says anything."""
        if not self._place.known(there.tags):
            text = "in the resource group, and not made by this server"
        elif not text:
            return None
        remedy = "choose another name, or leave it out to have one made"
        return FieldError(field, f"{self._names[1]} is {text}; {remedy}")
