"""Settings that change while the server runs: read again now and then, and when asked for.

| what has changed | what happens |
|---|---|
| a `live` setting | it is in effect at once; of the backend's, once that was found to be ready |
| another one | a line in the log says that it takes effect at the next start |
| one that protects tasks, to less protection | likewise: only a start takes protection away |
| anything, to what cannot work | nothing changes, and the log says why |

The log names settings, never their values.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable

import msgspec

from tesazure.errors import ConfigurationError, StoreError, TesazureError
from tesazure.settings.checks import conflicts
from tesazure.settings.declarations import FIELDS, Settings, help_of
from tesazure.settings.loading import Effective

LOOK_S = 2.0
"""Seconds between looks at whether other settings were kept for all servers."""
AGAIN_S = 30.0
"""Seconds after which settings are tried again that could not be read or put in effect: a vault may
be back, a backend ready."""

_RESTRICTED = {"none": 0, "per-tenant": 1, "per-user": 2}

_log = logging.getLogger(__name__)

Load = Callable[[], Awaitable[Effective]]
"""Reads all settings again. Raises ConfigurationError with every problem, other TesazureErrors for
what may pass."""

Apply = Callable[[Settings], Awaitable[None]]
"""Puts settings in effect, of which only live ones differ from those before. Raises
ConfigurationError when that cannot be, other TesazureErrors for what may pass, and then has changed
nothing."""

Changed = Callable[[], Awaitable[bool]]
"""Whether the settings that all servers share are others than when `Load` last read them. Cheap.
Raises StoreError."""


async def never() -> bool:
    """The Changed of a server whose settings are its own."""
    return False


class Change(msgspec.Struct, frozen=True):
    """What new settings mean for a running server. Names in lower case."""

    settings: Settings
    """To be in effect from now on."""
    now: tuple[str, ...]
    """Which of them are new."""
    later: tuple[str, ...]
    """What takes effect at the next start."""


def change(old: Settings, new: Settings) -> Change:
    """What can be in effect at once of `new`. Pure."""
    differing = [name for name in FIELDS if getattr(old, name) != getattr(new, name)]
    now = [name for name in differing if help_of(name).live]
    kept = _protecting(old, msgspec.structs.replace(old, **{n: getattr(new, n) for n in now}))
    now = [name for name in now if name not in kept]
    settings = msgspec.structs.replace(old, **{name: getattr(new, name) for name in now})
    return Change(settings, tuple(now), tuple(name for name in differing if name not in now))


def _protecting(old: Settings, new: Settings) -> set[str]:
    """What must stay as it is, so that nobody sees or does more than before."""
    kept: set[str] = set()
    if (old.aad_verify or old.api_tokens) and not (new.aad_verify or new.api_tokens):
        kept |= {"aad_verify", "api_tokens"}
    if old.aad_roles_required and not new.aad_roles_required:
        kept.add("aad_roles_required")
    restricted = [_RESTRICTED[s.task_access_restrictions] for s in (old, new)]
    if restricted[1] < restricted[0]:
        kept.add("task_access_restrictions")
    return kept


class Reloader:
    """Keeps a running server's settings up to date."""

    def __init__(
        self,
        effective: Effective,
        load: Load,
        apply: Apply,
        changed: Changed = never,
        *,
        look_s: float = LOOK_S,
        again_s: float = AGAIN_S,
    ) -> None:
        """`look_s`: seconds between calls of `changed`; `again_s`: after which what could not be
        read or applied is tried again."""
        self.settings = effective.settings
        """What is in effect."""
        self._warnings = effective.warnings
        self._load = load
        self._apply = apply
        self._changed = changed
        self._look_s, self._again_s = look_s, again_s
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._one = asyncio.Lock()
        """Held by who reads and applies."""
        self._problems: tuple[str, ...] = ()
        self._later: tuple[str, ...] = ()
        self._again_at = math.inf
        """When what could not be read or applied is tried again, on the monotonic clock."""

    async def start(self) -> None:
        """Begin. May be called twice."""
        if self._task is None:
            for warning in self._warnings:
                _log.warning("%s", warning)
            self._task = asyncio.create_task(self._run(), name="settings")

    async def stop(self) -> None:
        """End; what is being read is not waited for. May be called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def ask(self) -> None:
        """Read all settings again now."""
        self._asked.set()

    async def take_up(self) -> Change:
        """Read all settings again, put in effect what can be, and say what is. Raises
        ConfigurationError, TesazureError and TimeoutError when nothing of it is."""
        async with self._one:
            return await self._take_up(asked=True)

    async def _run(self) -> None:
        while True:
            try:
                asked = await self._due()
                await self._once(asked)
            except Exception:
                _log.exception("reading the settings again failed")

    async def _due(self) -> bool:
        """Wait until it is time; whether that is because somebody asked."""
        refresh_s = self.settings.keyvault_refresh_s
        periodic = refresh_s > 0 and bool(self.settings.keyvault_url)
        refresh_at = time.monotonic() + refresh_s if periodic else math.inf
        while True:
            due = min(refresh_at, self._again_at)
            try:
                left = min(due - time.monotonic(), self._look_s)
                await asyncio.wait_for(self._asked.wait(), max(left, 0))
            except TimeoutError:
                if time.monotonic() >= due or await self._have_changed():
                    return False
            else:
                self._asked.clear()
                return True

    async def _have_changed(self) -> bool:
        try:
            return await self._changed()
        except StoreError:
            return False  # it is looked again soon, and others say that the database is away

    async def _once(self, asked: bool) -> None:
        async with self._one:
            try:
                await self._take_up(asked)
            except (TesazureError, TimeoutError) as error:
                self._refused(error)

    async def _take_up(self, asked: bool) -> Change:
        try:
            effective, found = await self._in_effect(asked)
        except BaseException:
            self._again_at = time.monotonic() + self._again_s
            raise
        self._again_at = math.inf
        for warning in effective.warnings:
            if warning not in self._warnings:
                _log.warning("%s", warning)
        if self._problems:
            _log.info("the settings are right again")
        self._warnings, self._problems = effective.warnings, ()
        self.settings = found.settings
        self._tell(found, asked)
        return found

    async def _in_effect(self, asked: bool) -> tuple[Effective, Change]:
        """Read, and put in effect."""
        effective = await self._load()
        found = change(self.settings, effective.settings)
        if problems := conflicts(found.settings):
            raise ConfigurationError(problems)
        if found.now or asked:
            await self._apply(found.settings)
        return effective, found

    def _refused(self, error: Exception) -> None:
        """Say so, once for the same fault."""
        told = error.problems if isinstance(error, ConfigurationError) else (str(error),)
        if told != self._problems:
            text = "new settings are not used, nothing has changed: %s"
            _log.error(text, "; ".join(told) or type(error).__name__)
        self._problems = told

    def _tell(self, found: Change, asked: bool) -> None:
        if found.now:
            _log.info("settings have changed, in effect now: %s", _names(found.now))
        if found.later and (asked or found.later != self._later):
            _log.warning("settings take effect at the next start: %s", _names(found.later))
        elif asked and not found.now:
            _log.info("settings were read again; none has changed")
        self._later = found.later


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(name.upper() for name in names)
