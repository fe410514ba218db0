"""/metrics as OpenTelemetry has it."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Sum
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tesazure.api.metrics import Latencies
from tesazure.telemetry.measures import Measures

BEGUN = 1000.0


def measures(*, changes_only: bool) -> Measures:
    return Measures(Resource({}), InstrumentationScope("t"), BEGUN, changes_only=changes_only)


def told(sender: Measures, families: list[Metric], now: float) -> dict[str, Any]:
    [resource] = sender.of(families, now).resource_metrics
    [scope] = resource.scope_metrics
    return {metric.name: metric.data for metric in scope.metrics}


def counter(value: float, **labels: str) -> CounterMetricFamily:
    family = CounterMetricFamily("ends", "…", labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def latencies(*seconds: float) -> Latencies:
    made = Latencies()
    for each in seconds:
        made.observe("/x", "GET", 200, each)
    return made


def test_a_gauge_is_a_gauge() -> None:
    family = GaugeMetricFamily("tasks", "…", labels=["state"])
    family.add_metric(["QUEUED"], 3)
    data = told(measures(changes_only=True), [family], 1010)["tasks"]
    assert isinstance(data, Gauge)
    [point] = data.data_points
    assert (point.attributes, point.value, point.time_unix_nano) == (
        {"state": "QUEUED"},
        3,
        1010 * 10**9,
    )


def test_a_family_without_values_is_left_out() -> None:
    assert told(measures(changes_only=False), [GaugeMetricFamily("x", "…", labels=["a"])], 1) == {}


def test_a_counter_adds_up_since_the_beginning() -> None:
    sender = measures(changes_only=False)
    for now, value in ((1010, 2), (1020, 5)):
        data = told(sender, [counter(value)], now)["ends"]
        assert isinstance(data, Sum)
        [point] = data.data_points
        assert point.value == value
        assert (point.start_time_unix_nano, point.time_unix_nano) == (BEGUN * 1e9, now * 1e9)
        assert data.is_monotonic
        assert data.aggregation_temporality is AggregationTemporality.CUMULATIVE


def test_of_a_counter_its_growth_is_told_where_it_is_added_up_elsewhere() -> None:
    sender = measures(changes_only=True)
    assert told(sender, [counter(100, a="x")], 1010) == {}  # from before this server
    found = [
        [point.value for point in told(sender, [family], now)["ends"].data_points]
        for now, family in (
            (1020, counter(103, a="x")),
            (1030, counter(103, a="x")),
            (1040, counter(2, a="x")),  # the database was restored
            (1050, counter(7, a="new")),
        )
    ]
    assert found == [[3], [0], [2], [7]]
    [point] = told(sender, [counter(9, a="new")], 1060)["ends"].data_points
    assert (point.start_time_unix_nano, point.time_unix_nano) == (1050 * 10**9, 1060 * 10**9)


def test_a_histogram_counts_each_bucket_by_itself() -> None:
    made = latencies(0.0001, 0.003, 0.004, 100.0)
    data = told(measures(changes_only=False), [made.family()], 1010)[
        "tesazure_http_request_duration_seconds"
    ]
    assert isinstance(data, Histogram)
    [point] = data.data_points
    assert point.attributes == {"route": "/x", "method": "GET", "status": "2xx"}
    assert point.count == sum(point.bucket_counts) == 4
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert (point.bucket_counts[0], point.bucket_counts[3], point.bucket_counts[-1]) == (1, 2, 1)
    assert point.sum == pytest.approx(100.0071)
    assert (point.min, point.max) == (0.0, pytest.approx(100.0071))


def test_of_a_histogram_too_only_the_growth() -> None:
    sender, made = measures(changes_only=True), latencies(0.003)
    name = "tesazure_http_request_duration_seconds"
    assert name not in told(sender, [made.family()], 1010)
    made.observe("/x", "GET", 200, 0.004)
    made.observe("/y", "POST", 200, 0.2)
    points = told(sender, [made.family()], 1020)[name].data_points
    assert [(p.attributes["route"], p.count, p.sum) for p in points] == [
        ("/x", 1, pytest.approx(0.004)),
        ("/y", 1, pytest.approx(0.2)),
    ]
    assert (points[0].min, points[0].max) == (0.0025, 0.005)
    assert name not in told(sender, [made.family()], 1030)  # nothing came
