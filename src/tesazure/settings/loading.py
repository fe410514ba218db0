"""The settings from all sources: default < configuration file < database < Key Vault < environment
< command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tesazure.errors import ConfigurationError, TesazureError, VaultUnavailable
from tesazure.key_vault import Contents, KeyVault, VaultConfig
from tesazure.settings import sources
from tesazure.settings.checks import cautions, conflicts, vault_conflicts
from tesazure.settings.clouds import CLOUDS, identity_of, vault_url_of
from tesazure.settings.declarations import FIELDS, Settings, help_of
from tesazure.settings.sources import Candidate, Given, Source

_TO_VAULT = sources.NOT_IN_VAULT | {
    "cloud",
    "ca_bundle",
    "azure_client_id",
    "azure_secret",
    "azure_tenant",
    "azure_identity",
    "azure_authority_host",
}
"""What must be right before a vault is asked: who we are is not shown to anybody else."""


class Effective(msgspec.Struct, frozen=True):
    """The settings, and where each value came from. `warnings` hold no values."""

    settings: Settings
    sources: dict[str, Source]
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """Why they cannot be in effect, unless what the database holds mends it. See Sources.begin."""


class Sources:
    """Where a server's settings come from, read as often as it is asked for; by one thread at a
    time."""

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        command_line: Mapping[str, Any] | None = None,
        config: Path | None = None,
    ) -> None:
        """`command_line` maps setting names (lower case) to values; None means not given."""
        self._environ = sources.own_environment() if environ is None else environ
        self._command_line = command_line or {}
        self._config = config
        self._vault: KeyVault | None = None
        self._held: dict[str, Contents] = {}
        """What a vault held when last it could be read, by its URL: settings that may lead to
        another one are looked at before they are in effect."""

    def load(self, patience_s: float = 0.0, say: Callable[[str], None] | None = None) -> Effective:
        """Read all. A vault that cannot be read is asked again for `patience_s` seconds, and `say`
        is told so.

        Raises ConfigurationError with every problem at once, VaultUnavailable.
        """
        return _sound(self.begin(patience_s, say))

    def begin(self, patience_s: float = 0.0, say: Callable[[str], None] | None = None) -> Effective:
        """As `load`, but that values do not go together is no error yet: the rest may be in the
        database, which they lead to."""

        def read(vault: KeyVault) -> Contents:
            return vault.read_within(patience_s, say or (lambda _: None))

        return self._load(read, {})

    def again(
        self,
        kept: Mapping[str, str] | None = None,
        patience_s: float = 0.0,
        say: Callable[[str], None] | None = None,
    ) -> Effective:
        """Read all once more; `kept` is what the database holds. Where the vault cannot be read
        now, or refuses us now, what it held before is good still, and a warning says so; one that
        was never read is asked as by `load`. Raises as `load`."""

        def read(vault: KeyVault) -> Contents:
            held = self._held.get(vault.config.url)
            if held is None:
                return vault.read_within(patience_s, say or (lambda _: None))
            try:
                return vault.read()
            except (VaultUnavailable, ConfigurationError) as error:
                note = f"{error}; what it held when last read is still used"
                return msgspec.structs.replace(held, notes=(note,))

        return _sound(self._load(read, kept or {}))

    def _load(self, read: Callable[[KeyVault], Contents], kept: Mapping[str, str]) -> Effective:
        below, above, held = Given(), Given(), Given()
        sources.from_file(self._config, below)
        sources.from_database(kept, below)
        sources.from_environment(self._environ, above)
        sources.from_command_line(self._command_line, above)
        problems = [*below.problems, *above.problems]
        leading = _settled([*below.candidates, *above.candidates])
        if leading.settings.keyvault_url:
            wrong = [
                *(said for name, said in leading.problems if name in _TO_VAULT),
                *vault_conflicts(leading.settings),
            ]
            if wrong:
                others = [said for name, said in leading.problems if name not in _TO_VAULT]
                raise ConfigurationError([*problems, *wrong, *others])
            contents = self._read(leading, problems, read)
            sources.from_vault(contents.secrets, held)
            held.warnings[:0] = contents.notes
            given = [*below.candidates, *above.candidates]
            problems += sources.unprotected(contents.unusable, given)
        settled = _settled([*below.candidates, *held.candidates, *above.candidates])
        problems += [said for _, said in settled.problems]
        conflicting = conflicts(settled.settings)
        if problems:
            raise ConfigurationError([*problems, *conflicting])
        warnings = (*below.warnings, *above.warnings, *held.warnings, *cautions(settled.settings))
        return Effective(settled.settings, settled.origins, warnings, tuple(conflicting))

    def _read(
        self, leading: _Settled, problems: list[str], read: Callable[[KeyVault], Contents]
    ) -> Contents:
        s = leading.settings
        config = VaultConfig(
            url=vault_url_of(s),
            identity=identity_of(s),
            verify_challenge=s.keyvault_verify_challenge,
        )
        if self._vault is None or self._vault.config != config:
            self._vault = KeyVault(config)
        try:
            contents = read(self._vault)
        except TesazureError as error:
            said = [*problems, *(text for _, text in leading.problems)]
            if not said:
                raise
            more = error.problems if isinstance(error, ConfigurationError) else (str(error),)
            raise ConfigurationError([*said, *more]) from error
        self._held[config.url] = msgspec.structs.replace(contents, notes=())
        return contents


def _sound(effective: Effective) -> Effective:
    if effective.problems:
        raise ConfigurationError(effective.problems)
    return effective


def load(
    environ: Mapping[str, str] | None = None,
    command_line: Mapping[str, Any] | None = None,
    config: Path | None = None,
) -> Effective:
    """The settings, read once. See Sources."""
    return Sources(environ, command_line, config).load()


def shown(effective: Effective) -> list[tuple[str, str, Source]]:
    """(NAME, value, source) of every setting, secrets as ***."""
    rows = []
    for name in FIELDS:
        value = getattr(effective.settings, name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        text = text.lower() if isinstance(value, bool) else text
        secret = help_of(name).secret and bool(value)
        rows.append((name.upper(), "***" if secret else text, effective.sources[name]))
    return rows


class _Settled(msgspec.Struct, frozen=True):
    settings: Settings
    origins: dict[str, Source]
    problems: list[tuple[str, str]]
    """Setting, and what is wrong with its value."""


def _settled(candidates: list[Candidate]) -> _Settled:
    """The last candidate of each setting, in its type; the defaults that follow from others."""
    values: dict[str, Any] = {}
    origins: dict[str, Source] = dict.fromkeys(FIELDS, "default")
    problems = []
    for candidate in candidates:
        try:
            values[candidate.name] = sources.convert(candidate.name, candidate.value)
            origins[candidate.name] = candidate.source
        except (ValueError, TypeError) as error:
            problems.append((candidate.name, sources.problem_of(candidate, error)))
    return _Settled(Settings(**dict(_defaults(values)) | values), origins, problems)


def _defaults(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Defaults that follow from what is given."""
    yield from CLOUDS[values.get("cloud", Settings().cloud)].items()
    if values.get("batch_account_name") or values.get("batch_account_url"):
        yield "compute_backend", "batch"
