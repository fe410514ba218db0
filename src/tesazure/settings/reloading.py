"""Settings that change while the server runs: read again now and then, and when asked for.

| what has changed | what happens |
|---|---|
| a `live` setting | it is in effect at once |
| another one | a line in the log says that it takes effect at the next start |
| a `live` setting that goes with such another one, as a key with its account | likewise |
| one that the Azure Batch backend was started with, where that runs tasks | likewise |
| one that protects tasks, to less protection | likewise: only a start takes protection away |
| anything, to what cannot work | nothing changes, and the log says why |

The log names settings, never their values.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import msgspec

from tesazure.errors import ConfigurationError, TesazureError
from tesazure.settings.checks import conflicts
from tesazure.settings.declarations import FIELDS, Settings, help_of
from tesazure.settings.loading import Effective

_GO_WITH = {
    "storage_account_key": ("storage_account_name",),
    "azure_client_id": ("azure_authority_host",),
    "azure_secret": ("azure_authority_host",),
    "azure_tenant": ("azure_authority_host",),
    "azure_identity": ("azure_authority_host",),
    "s3_access_key_id": ("s3_endpoint_url",),
    "s3_secret_access_key": ("s3_endpoint_url",),
    "s3_session_token": ("s3_endpoint_url",),
    "gcs_credentials_file": ("gcs_endpoint_url",),
    "sftp_key_file": ("sftp_known_hosts",),
}
"""A live setting that means something only together with others, which are not live."""

_OF_BATCH = frozenset(
    {
        "storage_account_key",
        "azure_client_id",
        "azure_secret",
        "azure_tenant",
        "azure_identity",
        "private_docker_registry_url",
        "private_docker_registry_username",
        "private_docker_registry_password",
        "credential_hours",
    }
)
"""Live settings that are not with `COMPUTE_BACKEND=batch`: the backend's clients and its pools are
made with them once."""

_RESTRICTED = {"none": 0, "per-tenant": 1, "per-user": 2}

_log = logging.getLogger(__name__)

Load = Callable[[], Awaitable[Effective]]
"""Reads all settings again. Raises ConfigurationError with every problem, other TesazureErrors for
what may pass."""

Apply = Callable[[Settings], Awaitable[None]]
"""Puts settings in effect, of which only live ones differ from those before. Raises
ConfigurationError when that cannot be, and then has changed nothing."""


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
    now = [name for name in differing if _is_live(name, differing, old)]
    kept = _protecting(old, msgspec.structs.replace(old, **{n: getattr(new, n) for n in now}))
    now = [name for name in now if name not in kept]
    settings = msgspec.structs.replace(old, **{name: getattr(new, name) for name in now})
    return Change(settings, tuple(now), tuple(name for name in differing if name not in now))


def _is_live(name: str, differing: list[str], old: Settings) -> bool:
    if old.compute_backend == "batch" and name in _OF_BATCH:
        return False
    return help_of(name).live and not any(other in differing for other in _GO_WITH.get(name, ()))


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

    def __init__(self, effective: Effective, load: Load, apply: Apply) -> None:
        self.settings = effective.settings
        """What is in effect."""
        self._warnings = effective.warnings
        self._load = load
        self._apply = apply
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._problems: tuple[str, ...] = ()
        self._later: tuple[str, ...] = ()

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

    async def _run(self) -> None:
        while True:
            asked = await self._due()
            try:
                await self._once(asked)
            except Exception:
                _log.exception("reading the settings again failed")

    async def _due(self) -> bool:
        """Wait until it is time; whether that is because somebody asked."""
        refresh_s = self.settings.keyvault_refresh_s
        periodic = refresh_s > 0 and bool(self.settings.keyvault_url)
        try:
            await asyncio.wait_for(self._asked.wait(), refresh_s if periodic else None)
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _once(self, asked: bool) -> None:
        try:
            effective = await self._load()
            found = change(self.settings, effective.settings)
            if problems := conflicts(found.settings):
                raise ConfigurationError(problems)
            if found.now or asked:
                await self._apply(found.settings)
        except (TesazureError, TimeoutError) as error:
            self._refused(error)
            return
        for warning in effective.warnings:
            if warning not in self._warnings:
                _log.warning("%s", warning)
        if self._problems:
            _log.info("the settings are right again")
        self._warnings, self._problems = effective.warnings, ()
        self.settings = found.settings
        self._tell(found, asked)

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
