"""What is wrong with the settings of telemetry. No message shows a value."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tesazure.settings.declarations import Settings
from tesazure.settings.forms import endpoint

_KEY = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+=[\x21-\x7e]+")
"""RFC 9110, section 5.6.2, and a value that is percent-encoded."""
_STRING = "APPLICATIONINSIGHTS_CONNECTION_STRING"


def connection_string_of(s: Settings) -> str:
    """Of Application Insights, as its SDK takes it; empty: nothing is sent there."""
    parts = dict(_parts(s.applicationinsights_connection_string))
    if not parts and s.appinsights_instrumentationkey:
        parts = {"instrumentationkey": s.appinsights_instrumentationkey}
    if parts:
        parts["instrumentationkey"] = parts.get("instrumentationkey", "").lower()
    return ";".join(f"{name}={value}" for name, value in parts.items())


def telemetry_conflicts(s: Settings) -> Iterator[str]:
    """Every problem, each with its remedy."""
    if s.applicationinsights_connection_string:
        yield from _connection_string(s.applicationinsights_connection_string)
    elif (key := s.appinsights_instrumentationkey) and not _KEY.fullmatch(key):
        yield f"APPINSIGHTS_INSTRUMENTATIONKEY: is no key (a GUID); better, set {_STRING}"
    if s.otlp_endpoint:
        problems = endpoint("OTLP_ENDPOINT", s.otlp_endpoint, path=True)[1]
        yield from (problem.replace("[/account]", "[/path]") for problem in problems)
    elif s.otlp_headers:
        yield "OTLP_HEADERS: are sent where? set OTLP_ENDPOINT"
    for number, pair in enumerate(s.otlp_headers, 1):
        if not _HEADER.fullmatch(pair):
            yield f"OTLP_HEADERS: entry {number} must be name=value, the value percent-encoded"
    if s.trace_ratio > 1:
        yield "TRACE_RATIO: must be from 0 to 1"


def telemetry_cautions(s: Settings) -> Iterator[str]:
    """What works and still should be known."""
    if s.appinsights_instrumentationkey and not s.applicationinsights_connection_string:
        yield (
            "APPINSIGHTS_INSTRUMENTATIONKEY: Microsoft no longer supports sending by the key alone;"
            f" set {_STRING}"
        )


def _connection_string(text: str) -> Iterator[str]:
    """Source: Microsoft, "Connection strings in Application Insights", schema."""
    pairs = list(_parts(text))
    parts = dict(pairs)
    if any(not name or not value or "=" in value for name, value in pairs):
        yield f"{_STRING}: must be name=value;name=value;…, as the portal shows it"
        return
    if not _KEY.fullmatch(parts.get("instrumentationkey", "")):
        yield f"{_STRING}: must have InstrumentationKey= and a GUID"
    if parts.get("authorization", "ikey").lower() != "ikey":
        yield f"{_STRING}: its Authorization must be ikey, or left out"
    if (url := parts.get("ingestionendpoint")) and endpoint("", url)[1]:
        yield f"{_STRING}: its IngestionEndpoint must be a URL such as https://host"


def _parts(connection_string: str) -> Iterator[tuple[str, str]]:
    """Names, in lower case, and values."""
    for pair in connection_string.split(";"):
        if pair.strip():
            name, _, value = pair.partition("=")
            yield name.strip().lower(), value.strip()
