"""What becomes of the settings once the provisioner has made a backend: it is tried, the settings
are kept where all servers find them, and this server takes them up."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import msgspec

from tesazure.azure_identity import Identity
from tesazure.backends.azure_batch.names import installation_of, scope_of
from tesazure.backends.base import Backend
from tesazure.daemon_threads import in_thread
from tesazure.database_settings import DatabaseSettings
from tesazure.errors import (
    BackendError,
    ConfigurationError,
    FieldError,
    NotFound,
    TesazureError,
    Unplaceable,
)
from tesazure.key_vault import KeyVault, VaultConfig, setting_of
from tesazure.lifecycle import Handle, Phase
from tesazure.model import Executor, State, Task
from tesazure.plan import Defaults, Plan, make_plan
from tesazure.provision.base import Tell
from tesazure.provisioning import INSTALLATION_TAG, Failure, ProvisionFailed, Request
from tesazure.report import Report
from tesazure.settings import Effective, Settings, convert, identity_of, vault_url_of
from tesazure.settings.reloading import LOOK_S, Reloader
from tesazure.stations.station import Footing, Station, make

READY_S = 15 * 60.0
"""Seconds that a new account has to become ready: roles that were just assigned may take ten
minutes to count ("Troubleshoot Azure RBAC")."""
TASK_S = 45 * 60.0
"""Seconds that the test task has to end: the first node of an account comes in some minutes."""
OTHERS_S = 3 * LOOK_S
"""Seconds after which the other servers have taken up what is kept in the database, if they can."""
_PAUSE_S = 5.0
_WORDS = "a node of tesazure"
_FACTS = ("vm_size", "vm_kind")
_PREFIXES = ("batch_", "storage_", "private_docker_registry_")
_NAMES = frozenset({"compute_backend", "azure_subscription_id", "cromwell_storage_container_name"})
_CODE = "SettingsRefused"
_KEYS = ("batch_account_key", "storage_account_key")
_SOME_KEY = "AAAA"
"""In place of the keys of what is not made yet."""

Preview = Callable[[Mapping[str, str]], Awaitable[Effective]]
"""The settings as they would be if the database held these, too, by lower-case name, and nothing
where they are empty. Raises ConfigurationError, StoreUnavailable."""


class Settling:
    """See `provision.base.Settling`."""

    def __init__(
        self, footing: Footing, kept: DatabaseSettings, preview: Preview, reloader: Reloader
    ) -> None:
        self._footing = footing
        self._kept = kept
        self._preview = preview
        self._reloader = reloader

    async def problems(self, request: Request) -> list[FieldError]:
        """By what can be known of the settings by then: a test task would find the same, but after
        all was made, and paid for."""
        values = {
            "compute_backend": "batch",
            "batch_account_name": request.batch_account_name,
            "batch_region": request.location,
            "storage_account_name": request.storage_account_name,
        }
        async with _as_failures():
            if request.key_vault:
                vault = self._vault(request)
                try:
                    await in_thread(vault.read)
                    await in_thread(vault.demand_writable)
                except ConfigurationError as error:
                    return [FieldError("key_vault", text) for text in error.problems]
                values["keyvault_url"] = vault.config.url
            try:
                with_keys = not identity_of(self._reloader.settings).exists
                values |= dict.fromkeys(_KEYS, _SOME_KEY if with_keys else "")
                effective = await self._preview({**await self._left(), **values})
            except ConfigurationError as error:
                return [FieldError("", f"this server: {text}") for text in error.problems]
        sure = {name: value for name, value in values.items() if value != _SOME_KEY}
        return [FieldError("", text) for text in _hidden(effective, sure)]

    async def test(self, values: Mapping[str, str], tell: Tell) -> str:
        """One task that prints a line, on a node of the first pool."""
        async with _as_failures():
            effective = await self._preview({**await self._left(), **values})
            _demand(effective, values)
            settings = effective.settings
            station = await make(settings, self._footing, None)
            try:
                await _ready(station, tell)
                return await _run(station, settings, tell)
            finally:
                await station.backend.stop()
                station.close()

    async def publish(self, values: Mapping[str, str], request: Request) -> str:
        """Into the vault that the request names, else into the database."""
        async with _as_failures():
            if request.key_vault:
                where = await self._publish_in_vault(values, request)
            else:
                await self._kept.keep({**await self._left(), **values})
                where = "the database"
            await self._reloader.take_up()
            names = ", ".join(sorted(name.upper() for name, value in values.items() if value))
            return f"in effect, and kept in {where} for all servers: {names}"

    async def withdraw(self, request: Request) -> str:
        """What leads to the request's Batch account is forgotten: where tasks run then follows from
        the other settings. Their attempts there have to be over."""
        account = request.batch_account_name
        async with _as_failures():
            if request.key_vault:
                await self._withdraw_from_vault(request)
            kept = await self._kept.read()
            if kept.get("batch_account_name") == account:
                await self._kept.keep(await self._left())
            await self._reloader.take_up()
            settings = self._reloader.settings
            if settings.compute_backend == "batch" and settings.batch_account_name == account:
                text = f"this server's own settings lead to {account}"
                remedy = "take BATCH_* and COMPUTE_BACKEND out of its environment, files and vault"
                raise ProvisionFailed(Failure("InUse", text, remedy))
            # What they begin there by then is counted, too.
            await asyncio.sleep(OTHERS_S)
            scope = scope_of(account, installation_of(self._footing.identity))
            if live := await self._footing.store.abandon(scope):
                text = f"attempts of tasks that are not over in {account}: {live}"
                remedy = "wait for them, or cancel their tasks, and ask for the removal again"
                raise ProvisionFailed(Failure("InUse", text, remedy))
            return f"tasks run on {settings.compute_backend}"

    async def _left(self) -> dict[str, str]:
        """Nothing, in place of what the database holds of an earlier backend: keys of accounts that
        are used with an identity now, a share, a subnet, a registry."""
        return dict.fromkeys(filter(_leads_there, await self._kept.read()), "")

    async def _publish_in_vault(self, values: Mapping[str, str], request: Request) -> str:
        """Only where this server can read them there."""
        vault = self._vault(request)
        await in_thread(lambda: vault.write(values, self._mark))
        leading = {"keyvault_url": vault.config.url}
        left = await self._left()
        _demand(await self._preview({**left, **leading}), {**leading, **values})
        # Kept again if it is kept: so all servers read the vault now.
        await self._kept.keep({**left, **leading})
        return f"the Key Vault {vault.config.url}"

    async def _withdraw_from_vault(self, request: Request) -> None:
        """What else is in the vault stays in use, where servers have read it: that may be what
        protects them."""
        vault = self._vault(request)

        def take_back() -> None:
            held = {setting_of(name): value for name, value in vault.read().secrets.items()}
            if held.get("batch_account_name") == request.batch_account_name:
                vault.write({}, self._mark)

        await in_thread(take_back)
        if (await self._kept.read()).get("keyvault_url") == vault.config.url:
            await self._kept.keep({"keyvault_url": vault.config.url})

    @property
    def _mark(self) -> dict[str, str]:
        """Tags of what we write into vaults: others' secrets there stay as they are."""
        return {INSTALLATION_TAG: self._footing.identity}

    def _vault(self, request: Request) -> KeyVault:
        """The request's, as its principal, if it has one."""
        settings = self._reloader.settings
        identity, principal = identity_of(settings), request.service_principal
        if principal is not None:
            identity = Identity(
                tenant=principal.tenant,
                client_id=principal.client_id,
                secret=principal.secret,
                authority=identity.authority,
                ca_bundle=identity.ca_bundle,
            )
        named = msgspec.structs.replace(settings, keyvault_url=request.key_vault)
        return KeyVault(
            VaultConfig(
                url=vault_url_of(named),
                identity=identity,
                verify_challenge=settings.keyvault_verify_challenge,
            )
        )


def _leads_there(name: str) -> bool:
    """Whether a setting that is kept may lead to what the provisioner made."""
    return name in _NAMES or name.startswith(_PREFIXES)


def _hidden(effective: Effective, values: Mapping[str, str]) -> list[str]:
    """Which settings would not be these, in words."""
    return [
        f"this server: {name.upper()} comes from the {effective.sources[name]}; take it out there"
        for name, value in sorted(values.items())
        if str(getattr(effective.settings, name)) != str(convert(name, value))
    ]


def _demand(effective: Effective, values: Mapping[str, str]) -> None:
    """Raises ProvisionFailed unless the settings would be these."""
    if hidden := _hidden(effective, values):
        remedy = "then restart this server, and post the same request again"
        raise ProvisionFailed(Failure(_CODE, "; ".join(hidden), remedy))


@contextlib.asynccontextmanager
async def _as_failures() -> AsyncIterator[None]:
    """What goes wrong in the block, as a step's failure. No message holds a secret."""
    try:
        yield
    except ProvisionFailed:
        raise
    except ConfigurationError as error:
        remedy = "mend that, and post the same request again"
        raise ProvisionFailed(Failure(_CODE, "; ".join(error.problems), remedy)) from error
    except (TesazureError, TimeoutError) as error:
        text = str(error) or "this server's settings could not be read in time"
        raise ProvisionFailed(
            Failure("Unavailable", text, "post the same request again")
        ) from error


async def _ready(station: Station, tell: Tell) -> None:
    """Wait until the backend can be used. Raises ConfigurationError with what it lacks."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            return await station.demand_ready()
        except ConfigurationError as error:
            if time.monotonic() > deadline:
                raise
            tell(f"not ready yet: {'; '.join(error.problems)}")
        await asyncio.sleep(_PAUSE_S)


async def _run(station: Station, settings: Settings, tell: Tell) -> str:
    """The test task, from its submission until nothing of it is left; what is known of it."""
    backend, key = station.backend, f"provision-{secrets.token_hex(8)}"
    plan = _plan(key, settings)
    try:
        backend.admit(plan)
        handle = await backend.submit(plan, key, await station.grants.grant(plan, {}))
        try:
            report = await _ended(backend, key, handle, tell)
            said = await backend.read_stream(handle, 0, "stdout", 0, 1024)
        finally:
            # What is left after a crash, the next sweep of a server that uses the account finds.
            with contextlib.suppress(BackendError):
                await backend.release(handle)
                await backend.discard(handle)
    except Unplaceable as error:
        raise _failed(str(error), "see BATCH_VM_SIZES, and the quotas of the account") from error
    except NotFound as error:
        raise _failed(f"its output is not there: {error}", "post the same request again") from error
    if said.data != f"{_WORDS}\n".encode():
        raise _failed("its output is not what it wrote", "see FILETRANSFER_CONTAINER_IMAGE")
    facts = report.log.metadata or {}
    return " ".join(["a task ran on", *(facts[each] for each in _FACTS if each in facts)])


async def _ended(backend: Backend, key: str, handle: Handle, tell: Tell) -> Report:
    """The report of the attempt once it has succeeded."""
    deadline, last = time.monotonic() + TASK_S, "its task waits"
    while time.monotonic() < deadline:
        try:
            await backend.changed(_PAUSE_S)
            seen = (await backend.observe({key: handle})).get(key)
        except BackendError as error:
            seen, last = None, str(error)
        if seen is not None:
            report, ended = seen.report, seen.report.ended
            if ended is not None and ended.state is State.COMPLETE:
                return report
            if ended is not None or seen.phase not in (Phase.PENDING, Phase.RUNNING):
                reason = (ended and ended.reason) or seen.reason or f"it is {seen.phase}"
                remedy = "see FILETRANSFER_CONTAINER_IMAGE and PRIVATE_DOCKER_REGISTRY_*"
                raise _failed("; ".join([reason, *report.log.system_logs[-3:]]), remedy)
            last = seen.reason or f"its task is {seen.phase}"
        tell(last)
    remedy = "see the quotas of the Batch account, and post the same request again"
    raise _failed(f"it did not end within {TASK_S / 60:g} minutes: {last}", remedy)


def _plan(key: str, settings: Settings) -> Plan:
    command = Executor(image=settings.filetransfer_container_image, command=["echo", _WORDS])
    defaults = Defaults(1, 0.5, 0.1, TASK_S)
    return make_plan(key, Task(name="provisioning test", executors=[command]), defaults, [])


def _failed(text: str, remedy: str) -> ProvisionFailed:
    return ProvisionFailed(Failure("TestTaskFailed", f"the test task failed: {text}", remedy))
