"""What /metrics tells, as OpenTelemetry has it: the same names, without the suffix `_total`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Sample

_Series = tuple[str, tuple[tuple[str, str], ...]]


class Measures:
    """Turns families into data, one time after the other. With `changes_only`, counters tell what
    they grew by since the time before, as Application Insights adds them up by itself; the first
    time they tell nothing."""

    def __init__(
        self, resource: Resource, scope: InstrumentationScope, begun: float, *, changes_only: bool
    ) -> None:
        self._resource = resource
        self._scope = scope
        self._begun = int(begun * 1e9)
        self._before: dict[_Series, list[float]] | None = {} if changes_only else None
        self._is_first = True
        self._temporality = (
            AggregationTemporality.DELTA if changes_only else AggregationTemporality.CUMULATIVE
        )

    def of(self, families: Iterable[Family], now: float) -> MetricsData:
        """As of `now`, in seconds since the epoch."""
        time = int(now * 1e9)
        metrics = [
            Metric(family.name, family.documentation, "", data)
            for family in families
            if (data := self._data(family, time)) is not None
        ]
        if self._before is not None:
            self._begun = time
        self._is_first = False
        scoped = ScopeMetrics(self._scope, metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scoped], "")])

    def _data(self, family: Family, time: int) -> Gauge | Sum | Histogram | None:
        match family.type:
            case "gauge":
                found = [(sample, [sample.value]) for sample in family.samples]
                return Gauge(self._numbers(found, time)) if found else None
            case "counter":
                found = [(s, [s.value]) for s in family.samples if s.name.endswith("_total")]
                numbers = self._numbers(self._grown(found), time)
                return Sum(numbers, self._temporality, is_monotonic=True) if numbers else None
            case "histogram":
                points = self._histograms(family.samples, time)
                return Histogram(points, self._temporality) if points else None
            case _:
                return None

    def _numbers(
        self, found: Iterable[tuple[Sample, list[float]]], time: int
    ) -> list[NumberDataPoint]:
        return [
            NumberDataPoint(dict(sample.labels), self._begun, time, values[0])
            for sample, values in found
        ]

    def _grown(
        self, found: Sequence[tuple[Sample, list[float]]]
    ) -> list[tuple[Sample, list[float]]]:
        """The values, or what they grew by."""
        if self._before is None:
            return list(found)
        grown = []
        for sample, values in found:
            series = sample.name, tuple(sorted(sample.labels.items()))
            before = self._before.get(series, [0.0] * len(values))
            self._before[series] = values
            if not self._is_first:
                # What is less than before began anew.
                pairs = zip(values, before, strict=True)
                grown.append((sample, [now - then if now >= then else now for now, then in pairs]))
        return grown

    def _histograms(self, samples: Sequence[Sample], time: int) -> list[HistogramDataPoint]:
        series: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
        for sample in samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            series.setdefault(tuple(sorted(labels.items())), []).append(sample)
        found = []
        for parts in series.values():
            buckets = [sample for sample in parts if sample.name.endswith("_bucket")]
            [total] = [sample for sample in parts if sample.name.endswith("_sum")]
            bounds = [float(sample.labels["le"]) for sample in buckets]
            separate = [s.value - low for s, low in zip(buckets, _below(buckets), strict=True)]
            found.append((bounds[:-1], (total, [total.value, *separate])))
        grown = self._grown([values for _, values in found])
        bounds_of = [bounds for bounds, _ in found]
        return [
            self._point(sample, values, bounds, time)
            for (sample, values), bounds in zip(grown, bounds_of, strict=False)
            if self._before is None or any(values)
        ]

    def _point(
        self, sample: Sample, values: list[float], bounds: list[float], time: int
    ) -> HistogramDataPoint:
        total, *counts = values
        least, most = _range(counts, bounds, total)
        return HistogramDataPoint(
            attributes=dict(sample.labels),
            start_time_unix_nano=self._begun,
            time_unix_nano=time,
            count=int(sum(counts)),
            sum=total,
            bucket_counts=[int(count) for count in counts],
            explicit_bounds=bounds,
            min=least,
            max=most,
        )


def _below(buckets: Sequence[Sample]) -> list[float]:
    """Of each bucket what those below it hold: the format counts them in."""
    return [0.0, *(sample.value for sample in buckets[:-1])]


def _range(counts: list[float], bounds: list[float], total: float) -> tuple[float, float]:
    """The least and the most that there may have been, as the buckets have it."""
    limits = [0.0, *bounds, max(total, bounds[-1])]
    used = [place for place, count in enumerate(counts) if count]
    if not used:
        return 0.0, 0.0
    return limits[used[0]], limits[used[-1] + 1]
