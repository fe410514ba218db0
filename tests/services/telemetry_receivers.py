"""What takes telemetry, on loopback: an OpenTelemetry collector, and Application Insights.

Both check what they get against their standard and keep it. Sources: "OTLP Specification 1.9",
OTLP/HTTP; Application Insights' data schemas (its repository ApplicationInsights-Home,
EndpointSpecs/Schemas/Bond), as they come to `/v2.1/track`.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable
from email.message import Message as HttpHeaders
from http import HTTPStatus
from typing import Any

from google.protobuf.message import (  # type: ignore[import-untyped]
    DecodeError,
    Message,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.services.certificates import Certificate
from tests.services.loopback_http import LoopbackHttp, QuietHandler

_MOST_BYTES = 16 * 2**20


class _Receiving(QuietHandler):
    owner: _Receiver

    def do_POST(self) -> None:
        """Take a message."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        with self.owner.changed:
            self.owner.asked.append(self.path)
            if self.owner.refusals:
                self.reply(self.owner.refusals.pop(0))
                return
        try:
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            kind, answer = self.owner.take(self.path, self.headers, body)
        except Exception as wrong:
            with self.owner.changed:
                self.owner.wrong.append(f"{type(wrong).__name__}: {wrong}")
            self.reply(HTTPStatus.BAD_REQUEST, str(wrong).encode())
            return
        with self.owner.changed:
            self.owner.changed.notify_all()
        self.reply(HTTPStatus.OK, answer, {"Content-Type": kind})


class _Wrong(Exception):
    """What was sent is not what the standard says."""


class _Receiver(LoopbackHttp):
    """Takes what is sent. `wrong` has what broke the standard."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        super().__init__(_Receiving, certificate)
        self.changed = threading.Condition()
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.refusals: list[int] = []
        """Statuses to answer the next requests with."""

    def take(self, path: str, headers: HttpHeaders, body: bytes) -> tuple[str, bytes]:
        """Keep what a request brings; content type and body of the answer. Raises _Wrong."""
        raise AssertionError("each kind has its own")

    def until(self, found: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """What `found` returns once that is true."""
        result: Any = None

        def is_there() -> bool:
            nonlocal result
            result = found()
            return bool(result)

        with self.changed:
            assert self.changed.wait_for(is_there, timeout_s), (self.asked, self.wrong)
        return result


class Collector(_Receiver):
    """An OpenTelemetry collector. `spans` and `metrics` have what came, each as (resource
    attributes, message)."""

    def __init__(
        self, certificate: Certificate | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """`headers` must come with every request."""
        super().__init__(certificate)
        self._headers = headers or {}
        self.spans: list[tuple[dict[str, Any], Span]] = []
        self.metrics: list[tuple[dict[str, Any], Any]] = []

    def take(self, path: str, headers: HttpHeaders, body: bytes) -> tuple[str, bytes]:
        """Keep spans or metrics."""
        _demand(headers.get("Content-Type") == "application/x-protobuf", "its content type")
        for name, value in self._headers.items():
            _demand(headers.get(name) == value, f"the header {name}")
        answer: Message
        if path == "/v1/traces":
            self._take_spans(_parsed(ExportTraceServiceRequest(), body))
            answer = ExportTraceServiceResponse()
        elif path == "/v1/metrics":
            self._take_metrics(_parsed(ExportMetricsServiceRequest(), body))
            answer = ExportMetricsServiceResponse()
        else:
            raise _Wrong(f"nothing is taken at {path}")
        return "application/x-protobuf", answer.SerializeToString()

    def _take_spans(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            about = attributes(resource.resource.attributes)
            _demand("service.name" in about, "the name of the service")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    _demand(len(span.trace_id) == 16 and any(span.trace_id), "a trace id")
                    _demand(len(span.span_id) == 8 and any(span.span_id), "a span id")
                    _demand(len(span.parent_span_id) in (0, 8), "the parent's id")
                    _demand(0 < span.start_time_unix_nano <= span.end_time_unix_nano, "its times")
                    self.spans.append((about, span))

    def _take_metrics(self, request: ExportMetricsServiceRequest) -> None:
        for resource in request.resource_metrics:
            about = attributes(resource.resource.attributes)
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    _demand(metric.WhichOneof("data") is not None, f"data of {metric.name}")
                    data = getattr(metric, str(metric.WhichOneof("data")))
                    for point in data.data_points:
                        _demand(point.time_unix_nano > 0, f"a time of {metric.name}")
                    if metric.HasField("histogram"):
                        for point in data.data_points:
                            whole = len(point.explicit_bounds) + 1 == len(point.bucket_counts)
                            _demand(whole, f"a count for each bucket of {metric.name}")
                            total = sum(point.bucket_counts)
                            _demand(total == point.count, f"the count of {metric.name}")
                    self.metrics.append((about, metric))

    def of_trace(self, trace_id: str) -> dict[str, Span]:
        """The spans of a trace by name; of several of a name, with a number after it."""
        found: dict[str, Span] = {}
        for _, span in self.spans:
            if span.trace_id.hex() == trace_id:
                same = sum(name.split(" #")[0] == span.name for name in found)
                found[f"{span.name} #{same}" if same else span.name] = span
        return found

    def values(self, name: str) -> dict[tuple[tuple[str, Any], ...], float]:
        """The last values of a gauge or a sum, by attributes."""
        found = {}
        for _, metric in self.metrics:
            if metric.name == name:
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    key = tuple(sorted(attributes(point.attributes).items()))
                    found[key] = point.as_double or float(point.as_int)
        return found


def attributes(pairs: Any) -> dict[str, Any]:
    """OTLP's attributes as plain values."""
    found = {}
    for pair in pairs:
        assert isinstance(pair, KeyValue)
        found[pair.key] = getattr(pair.value, str(pair.value.WhichOneof("value")))
    return found


class ApplicationInsights(_Receiver):
    """Application Insights' ingestion. `items` has the envelopes that came."""

    def __init__(self, key: str, certificate: Certificate | None = None) -> None:
        super().__init__(certificate)
        self.key = key
        self.items: list[dict[str, Any]] = []

    @property
    def connection_string(self) -> str:
        """For a client."""
        return f"InstrumentationKey={self.key};IngestionEndpoint={self.origin}/"

    def take(self, path: str, headers: HttpHeaders, body: bytes) -> tuple[str, bytes]:
        """Keep envelopes: a JSON array, or one JSON object on each line."""
        _demand(path == "/v2.1/track", f"a known path, not {path}")
        text = body.decode()
        try:
            found = json.loads(text) if text.startswith("[") else _lines(text)
        except ValueError as error:
            raise _Wrong("JSON") from error
        for item in found:
            self._check(item)
        self.items += found
        answer = {"itemsReceived": len(found), "itemsAccepted": len(found), "errors": []}
        return "application/json", json.dumps(answer).encode()

    def _check(self, item: dict[str, Any]) -> None:
        _demand(item.get("iKey") == self.key, "its key")
        _demand(bool(re.match(r"\d{4}-\d\d-\d\dT.*Z$", item.get("time", ""))), "a time")
        data = item["data"]["baseData"]
        match item["data"]["baseType"]:
            case "RequestData":
                needed = {"id", "duration", "responseCode", "success"}
            case "RemoteDependencyData":
                needed = {"name", "duration"}
            case "MetricData":
                needed = {"metrics"}
                _demand(all(isinstance(m["value"], int | float) for m in data["metrics"]), "values")
            case kind:
                raise _Wrong(f"a known kind, not {kind}")
        _demand(data.get("ver") == 2 and needed <= data.keys(), f"{needed} in {data}")

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """What came of a kind, such as RequestData: its data, with the envelope's `tags`."""
        found = [item for item in self.items if item["data"]["baseType"] == kind]
        return [{**item["data"]["baseData"], "tags": item["tags"]} for item in found]

    def value(self, name: str) -> list[float]:
        """What came of a metric, in order."""
        sent = [metric for data in self.of_kind("MetricData") for metric in data["metrics"]]
        return [metric["value"] for metric in sent if metric["name"] == name]


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line]


def _parsed(message: Any, body: bytes) -> Any:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise _Wrong("protobuf") from error
    return message


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise _Wrong(f"the request lacks {what}")
