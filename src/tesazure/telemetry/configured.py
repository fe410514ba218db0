"""Telemetry as the settings have it. Where they have none, none of its packages is imported."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tesazure.api.app import Application
from tesazure.backends.base import Backend
from tesazure.errors import ConfigurationError
from tesazure.settings import ALIASES, Settings, connection_string_of, quieten_azure_monitor
from tesazure.telemetry.attempts import TracedBackend
from tesazure.telemetry.requests import TracedRequests

if TYPE_CHECKING:
    from tesazure.telemetry.export import Export

_WHERE = (
    "otlp_endpoint",
    "applicationinsights_connection_string",
    "appinsights_instrumentationkey",
)
"""Settings that say where to send to."""


class Telemetry:
    """What of a server is traced; of none that exports nothing."""

    def __init__(self, export: Export | None, ratio: float) -> None:
        self._export = export
        self._ratio = ratio

    def of_attempts(self, backend: Backend) -> Backend:
        """The backend, its attempts traced."""
        if self._export is None:
            return backend
        return TracedBackend(backend, self._export.record, self._ratio)

    def serve(self, application: Application) -> None:
        """Trace the application's requests and send its metrics."""
        if self._export is not None:
            application.asgi = TracedRequests(application.asgi, self._export.record, self._ratio)
            self._export.start(application.metrics.families)


@contextlib.asynccontextmanager
async def telemetry_of(settings: Settings) -> AsyncIterator[Telemetry]:
    """On leaving, what is left is sent. Raises ConfigurationError without the packages."""
    if not (settings.otlp_endpoint or connection_string_of(settings)):
        yield Telemetry(None, 0.0)
        return
    export = _export(settings)
    try:
        yield Telemetry(export, settings.trace_ratio)
    finally:
        await export.stop()


def _export(settings: Settings) -> Export:
    insights = connection_string_of(settings)
    try:
        from tesazure.telemetry.export import Export, application_insights, otlp

        receivers = []
        if insights:
            quieten_azure_monitor()
            receivers.append(application_insights(insights, settings.ca_bundle))
        if settings.otlp_endpoint:
            pairs = (pair.partition("=") for pair in settings.otlp_headers)
            headers = {name: unquote(value) for name, _, value in pairs}
            receivers.append(otlp(settings.otlp_endpoint, headers, settings.ca_bundle))
    except ImportError as error:
        # The host may set these variables for all programs.
        given = " and ".join(ALIASES[name] for name in _WHERE if getattr(settings, name))
        missing = (
            f"{given}, or with APP_: to send there needs the extra `telemetry`, so either"
            f" pip install 'tesazure[telemetry]' or unset it ({error.name} is missing)"
        )
        raise ConfigurationError([missing]) from error
    return Export(receivers, settings.metrics_export_s, settings.environment)
