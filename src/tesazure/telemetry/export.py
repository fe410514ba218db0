"""Where spans and metrics are sent: Application Insights, and whatever takes OTLP over HTTP.

Needs the packages of the extra `telemetry`. All sending is done in threads: what cannot be sent is
kept for a while and then dropped, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from prometheus_client.core import Metric as Family

from tesazure import __version__
from tesazure.daemon_threads import DaemonThreads
from tesazure.telemetry.measures import Measures
from tesazure.telemetry.spans import Span
from tesazure.trace import Context
from tesazure.trust import authorities

Families = Callable[[], Awaitable[Iterable[Family]]]
"""What /metrics tells now. Raises StoreUnavailable."""

_MOST_WAITING = 16384
"""Spans that wait to be sent; the oldest beyond that are dropped."""
_BATCH = 512
_DELAY_S = 5.0
"""Seconds that a span waits for others to be sent with."""
_SEND_S = 10.0
"""Seconds that sending may take, all tries together."""
_END_S = 5.0
"""Seconds that what is left gets to be sent when the server stops."""
_SAY_S = 60.0
"""Seconds between two warnings that something cannot be sent."""
_SCOPE = InstrumentationScope("tesazure", __version__)
_log = logging.getLogger(__name__)


class Receiver(NamedTuple):
    """Somewhere to send to."""

    spans: SpanExporter
    metrics: MetricExporter
    adds_up: bool
    """Whether it adds counters up by itself."""


def otlp(
    endpoint: str, headers: Mapping[str, str], ca_bundle: str, send_s: float = _SEND_S
) -> Receiver:
    """A collector, or a service that takes the same (OpenTelemetry, "OTLP/HTTP Request"). `send_s`:
    seconds that sending may take, all tries together."""
    import requests
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    base = endpoint.rstrip("/")

    def options() -> dict[str, Any]:
        session = requests.Session()
        # As storage has it: no proxies and no authorities but those of our settings.
        session.trust_env = False
        return {
            "certificate_file": authorities(ca_bundle),
            "headers": dict(headers),
            "timeout": send_s,
            "compression": Compression.Gzip,
            "session": session,
        }

    return Receiver(
        OTLPSpanExporter(f"{base}/v1/traces", **options()),
        OTLPMetricExporter(f"{base}/v1/metrics", **options()),
        adds_up=False,
    )


def application_insights(
    connection_string: str, ca_bundle: str, send_s: float = _SEND_S
) -> Receiver:
    """Application Insights. Nothing of what could not be sent is kept in files. `send_s`: as of
    `otlp`; an answer may take as long again."""
    from azure.core.pipeline.transport import RequestsTransport
    from azure.monitor.opentelemetry.exporter import (
        AzureMonitorMetricExporter,
        AzureMonitorTraceExporter,
    )

    def options() -> dict[str, Any]:
        return {
            "connection_string": connection_string,
            "disable_offline_storage": True,
            "retry_total": 2,
            "timeout": send_s,
            "transport": RequestsTransport(
                use_env_settings=False,
                connection_verify=authorities(ca_bundle),
                connection_timeout=send_s,
                read_timeout=send_s,  # else it is 5 minutes, whatever `timeout` says
            ),
        }

    return Receiver(
        AzureMonitorTraceExporter(**options()),
        AzureMonitorMetricExporter(**options()),
        adds_up=True,
    )


class _Seldom(logging.Handler):
    """Passes on, of what the SDKs say, one warning a minute: they say each try, and this server
    can do nothing about it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._due = -math.inf

    def emit(self, record: logging.LogRecord) -> None:
        """Log it, if it is time."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _SAY_S
            logging.getLogger().handle(record)


def _quieten(*names: str) -> None:
    for logger in map(logging.getLogger, names):
        logger.handlers, logger.propagate = [_Seldom()], False


class Export:
    """Sends to all receivers, metrics every `every_s` seconds, as of an `environment` such as
    production."""

    def __init__(self, receivers: Iterable[Receiver], every_s: float, environment: str) -> None:
        _quieten("opentelemetry", "azure.monitor")
        self._every_s = every_s
        self._receivers = list(receivers)
        self._environment = environment
        self._resource = _resource("tesazure", socket.gethostname(), environment)
        self._queues = [
            BatchSpanProcessor(
                receiver.spans,
                max_queue_size=_MOST_WAITING,
                schedule_delay_millis=_DELAY_S * 1000,
                max_export_batch_size=_BATCH,
            )
            for receiver in self._receivers
        ]
        begun = time.time()
        self._measures = [
            Measures(self._resource, _SCOPE, begun, changes_only=receiver.adds_up)
            for receiver in self._receivers
        ]
        self._threads = DaemonThreads("telemetry", 2 * len(self._receivers), 2 * _SEND_S)
        self._pump: asyncio.Task[None] | None = None
        self._families: Families | None = None

    def record(self, span: Span) -> None:
        """Have a span sent."""
        resource = self._resource
        if span.node:
            resource = _resource("tesazure-runner", span.node, self._environment)
        made = _readable(span, resource)
        for queue in self._queues:
            queue.on_end(made)

    def start(self, families: Families) -> None:
        """Send metrics from now on."""
        self._families = families
        self._pump = asyncio.create_task(self._run(), name="telemetry")

    async def stop(self) -> None:
        """Send what is left, as far as it can be in a few seconds."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                ends = [self._threads.run(queue.shutdown) for queue in self._queues]
                await asyncio.gather(self._send_metrics(), *ends, return_exceptions=True)
        self._threads.close()

    async def _run(self) -> None:
        while True:
            await self._send_metrics()
            await asyncio.sleep(self._every_s)

    async def _send_metrics(self) -> None:
        try:
            families, now = list(await self._families()) if self._families else [], time.time()
            sending = [
                self._threads.run(partial(receiver.metrics.export, measures.of(families, now)))
                for receiver, measures in zip(self._receivers, self._measures, strict=True)
            ]
            await asyncio.gather(*sending)
        except Exception as error:
            # The next time comes; the SDK has said why what it had could not be sent.
            _log.warning("metrics were not sent: %s: %s", type(error).__name__, error)


@lru_cache(4096)
def _resource(service: str, host: str, environment: str) -> Resource:
    return Resource.create(
        {
            "service.name": service,
            "service.version": __version__,
            "service.instance.id": host,
            "host.name": host,
            "deployment.environment.name": environment,
        }
    )


def _readable(span: Span, resource: Resource) -> ReadableSpan:
    context = span.context
    return ReadableSpan(
        name=span.name,
        context=_context(context, is_remote=False),
        parent=_context(context.at(span.parent), is_remote=True) if span.parent else None,
        resource=resource,
        attributes=span.attributes,
        kind=SpanKind[span.kind.upper()],
        instrumentation_scope=_SCOPE,
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
        start_time=int(span.start * 1e9),
        end_time=int(span.end * 1e9),
    )


def _context(context: Context, *, is_remote: bool) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote, flags)
