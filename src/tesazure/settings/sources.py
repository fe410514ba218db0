"""What each source gives, and its way into a setting's type. The only place that reads the
environment."""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec

from tesazure.key_vault import PREFIX as VAULT_PREFIX
from tesazure.key_vault import setting_of
from tesazure.settings.declarations import (
    ALIASES,
    CLIENT_FIELDS,
    CLIENT_PREFIX,
    FIELDS,
    PREFIX,
    Client,
    help_of,
)

Source = Literal["default", "file", "database", "Key Vault", "environment", "command line"]
"""Later ones win."""

NOT_IN_VAULT = frozenset({"keyvault_url", "keyvault_endpoint_suffix", "keyvault_verify_challenge"})
"""What leads to the vault cannot come from it."""

NOT_IN_DATABASE = frozenset({"database_url", "data_dir", "secrets_key"})
"""Nor what leads to the database from it, or opens what is sealed there."""

PROTECTING = frozenset(
    {"aad_verify", "aad_roles_required", "api_tokens", "task_access_restrictions"}
)
"""What keeps the server closed: never left out in silence."""

_FLAGS = {
    **{name: f"--{name.replace('_', '-')}" for name in ("host", "port", "data_dir", "allow_dir")},
    **{name: f"--{name.replace('_', '-')}" for name in ("database_url", "log_level")},
    "local_engine": "--engine",
}
"""Settings with a flag of their own; the others come by --set."""

_PROXIES = frozenset({"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"})
_BUNDLES = frozenset({"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"})
_DIRECT = "the server reaches Key Vaults, issuers of tokens and storage without a proxy"

_KEPT_BACK = re.compile(
    rf"{PREFIX}|{CLIENT_PREFIX}(.*_)?(TOKEN|SECRET)$|PGPASSWORD$|IDENTITY_HEADER$|MSI_SECRET$"
    r"|APPLICATIONINSIGHTS_|APPINSIGHTS_|OTEL_"
    r"|(AZURE|AWS|GOOGLE|GCLOUD)_.*(SECRET|PASSWORD|KEY|TOKEN|SAS|CREDENTIALS|CONNECTION_STRING)"
)


class Candidate(NamedTuple):
    """A value as a source gives it. `place` names it to the user."""

    source: Source
    place: str
    name: str
    value: Any


class Given(msgspec.Struct):
    """What the sources give: values, and what is wrong with them. `warnings` are no faults."""

    candidates: list[Candidate] = []
    problems: list[str] = []
    warnings: list[str] = []


def load_client(
    environ: Mapping[str, str] | None = None, server: str | None = None, token: str | None = None
) -> Client:
    """The client's settings: arguments that are given win over the environment."""
    environ = os.environ if environ is None else environ
    given = {name: environ.get(CLIENT_PREFIX + name.upper(), "") for name in CLIENT_FIELDS}
    given |= {"server": server or given["server"], "token": token or given["token"]}
    return Client(**{name: value for name, value in given.items() if value})


def state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where the command line keeps what it must remember (XDG Base Directory Specification,
    XDG_STATE_HOME; a relative path there counts for nothing)."""
    environ = os.environ if environ is None else environ
    given = Path(environ.get("XDG_STATE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".local" / "state") / "tesazure"


def own_environment() -> dict[str, str]:
    """The environment of this process."""
    return dict(os.environ)


def quieten_azure_monitor() -> None:
    """Keep Azure Monitor's SDK from telling Microsoft about itself, from asking there how to
    behave, and from adding metrics of its own. It takes no arguments for that; call this first."""
    for what in (
        "STATSBEAT_DISABLED_ALL",
        "SDKSTATS_DISABLED",
        "CONTROLPLANE_DISABLED",
        "OPENTELEMETRY_RESOURCE_METRIC_DISABLED",
    ):
        os.environ.setdefault(f"APPLICATIONINSIGHTS_{what}", "true")


def passed_on(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for programs that we start: without our settings, which hold secrets, and
    without what the clouds' SDKs would take for credentials: those are the server's own."""
    environ = os.environ if environ is None else environ
    return {name: value for name, value in environ.items() if not _KEPT_BACK.match(name)}


def from_file(config: Path | None, given: Given) -> None:
    """A TOML file, settings by name, in any case."""
    if config is None:
        return
    try:
        values = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        given.problems.append(f"--config {config}: {error}")
        return
    for key, value in values.items():
        if key.lower() in FIELDS:
            given.candidates.append(Candidate("file", f"{config}: {key}", key.lower(), value))
        else:
            given.problems.append(f"{config}: unknown setting {key}{_nearest(key.lower())}")


def from_database(values: Mapping[str, str], given: Given) -> None:
    """Settings that all servers on one database share, by name in lower case. One that this version
    does not know is no fault: another one may have kept it."""
    for name, value in sorted(values.items()):
        place = f"database setting {name.upper()}"
        if name in NOT_IN_DATABASE:
            given.warnings.append(f"{place} leads to the database: it is not used there")
        elif name not in FIELDS:
            given.warnings.append(f"{place} is no setting{_nearest(name)}")
        else:
            given.candidates.append(Candidate("database", place, name, value))


def from_vault(secrets: Mapping[str, str], given: Given) -> None:
    """Secrets by their names in the vault. An empty one counts as not given. One that is no setting
    is no fault: others may keep theirs in the same vault."""
    for secret, value in sorted(secrets.items()):
        name = setting_of(secret)
        place = f"Key Vault secret {secret}"
        if name in NOT_IN_VAULT:
            given.warnings.append(f"{place} leads to the vault: it is not used there")
        elif name not in FIELDS:
            near = _nearest(name, VAULT_PREFIX).replace("_", "-")
            given.warnings.append(f"{place} is no setting{near}")
        elif value:
            given.candidates.append(Candidate("Key Vault", place, name, value))


def unprotected(unusable: Sequence[str], others: Sequence[Candidate]) -> Iterator[str]:
    """What is wrong with secrets that cannot be used, and that no other source replaces: without
    one of `PROTECTING` the server would be more open than it should be."""
    for secret in unusable:
        name = setting_of(secret)
        if name in PROTECTING and not any(other.name == name for other in others):
            yield (
                f"Key Vault secret {secret} is disabled, expired or not valid yet, and protects"
                f" this server: renew it, delete it, or set {PREFIX}{name.upper()}"
            )


def from_environment(environ: Mapping[str, str], given: Given) -> None:
    """Variables `APP_<NAME>`, and some of other programs. An empty one counts as not given."""
    present = {name: value for name, value in sorted(environ.items()) if value}
    given.warnings += [f"{name} is not used: {_DIRECT}" for name in present if name in _PROXIES]
    trust = "SSL_CERT_FILE and the setting CA_BUNDLE name the authorities to trust"
    given.warnings += [f"{name} is not used: {trust}" for name in present if name in _BUNDLES]
    for name, variable in ALIASES.items():
        if variable in present:
            given.candidates.append(Candidate("environment", variable, name, present[variable]))
    for variable, value in present.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX):
            continue
        if name in FIELDS:
            given.candidates.append(Candidate("environment", variable, name, value))
        else:
            given.problems.append(f"unknown setting {variable}{_nearest(name, PREFIX)}")


def from_command_line(values: Mapping[str, Any], given: Given) -> None:
    """Setting name -> value; None means not given."""
    for name, value in values.items():
        if value is not None:
            place = _FLAGS.get(name, f"--set {PREFIX}{name.upper()}")
            given.candidates.append(Candidate("command line", place, name, value))


def convert(name: str, value: Any) -> Any:
    """`value`, of whatever source, in the setting's type; ValueError says what it must be."""
    kind = FIELDS[name].__origin__
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        separator = os.pathsep if item is Path else ","
        parts = value.split(separator) if isinstance(value, str) else list(value)
        texts = [str(part).strip() for part in parts]
        return tuple(item(text) for text in texts if text)
    if get_origin(kind) is Literal:
        return _one_of(get_args(kind), value)
    if kind is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if kind is str and isinstance(value, str):
        return value
    return _number(kind, value)


def problem_of(candidate: Candidate, error: Exception) -> str:
    """What is wrong with a value, which is shown unless it is, or comes from among, secrets."""
    secret = help_of(candidate.name).secret or candidate.source == "Key Vault"
    return f"{candidate.place}: {error} (given: {'***' if secret else repr(candidate.value)})"


def _one_of(allowed: tuple[str, ...], value: Any) -> str:
    if value == "None" and "none" in allowed:
        return "none"  # as Python writes it, and with it the settings of 2019
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"must be one of {', '.join(allowed)}{hint}")
    return str(value)


def _number(kind: type, value: Any) -> bool | int | float:
    """A boolean, an integer or a number, also from text; numbers are finite and not negative."""
    must = {
        bool: "must be true or false",
        int: "must be a whole number",
        float: "must be a number",
        str: "must be a string",
        Path: "must be a path",
    }[kind]
    if kind not in (bool, int, float) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(must)
    try:
        converted: bool | int | float = msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        raise ValueError(must) from None
    if not math.isfinite(converted):
        raise ValueError(must)
    if converted < 0:
        raise ValueError("must not be negative")
    return converted


def _nearest(name: str, prefix: str = "") -> str:
    near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{near[0].upper()}?" if near else ""
