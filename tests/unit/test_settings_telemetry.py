"""Settings of telemetry: what cannot work is said at once, and no secret is shown."""

from __future__ import annotations

import pytest

from tesazure import settings
from tesazure.settings import connection_string_of, passed_on
from tests.unit.test_settings_storage import PLANTED, problems

INGESTION = "https://westeurope-5.in.applicationinsights.azure.com/"
KEY = "0f2a6e52-5c1c-4f0e-9d0b-0c5b8a4f7e11"


def of(**given: object) -> settings.Effective:
    return settings.load({f"APP_{name.upper()}": str(value) for name, value in given.items()})


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, ""),
        ({"appinsights_instrumentationkey": KEY.upper()}, f"instrumentationkey={KEY}"),
        (
            {"applicationinsights_connection_string": f"InstrumentationKey={KEY.upper()};"},
            f"instrumentationkey={KEY}",
        ),
        (
            {
                "applicationinsights_connection_string": f" InstrumentationKey = {KEY} ;"
                f"IngestionEndpoint={INGESTION}",
                "appinsights_instrumentationkey": "another",
            },
            f"instrumentationkey={KEY};ingestionendpoint={INGESTION}",
        ),
    ],
)
def test_what_application_insights_is_reached_by(given: dict[str, str], taken: str) -> None:
    assert connection_string_of(of(**given).settings) == taken


def test_the_key_alone_is_cautioned_against() -> None:
    assert "no longer supports" in of(appinsights_instrumentationkey=KEY).warnings[0]
    whole = f"InstrumentationKey={KEY}"
    assert of(applicationinsights_connection_string=whole).warnings == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"applicationinsights_connection_string": PLANTED}, "name=value"),
        ({"applicationinsights_connection_string": f"x={PLANTED}"}, "InstrumentationKey="),
        ({"applicationinsights_connection_string": f"InstrumentationKey={PLANTED}"}, "a GUID"),
        (
            {
                "applicationinsights_connection_string": f"InstrumentationKey={KEY};"
                "Authorization=aad"
            },
            "must be ikey",
        ),
        (
            {
                "applicationinsights_connection_string": f"InstrumentationKey={KEY};"
                f"IngestionEndpoint={PLANTED}"
            },
            "https://host",
        ),
        ({"appinsights_instrumentationkey": PLANTED}, "is no key"),
        ({"otlp_endpoint": PLANTED}, "must be a URL such as https://host[:port][/path]"),
        ({"otlp_endpoint": f"grpc://{PLANTED}"}, "must be a URL"),
        ({"otlp_endpoint": f"http://me:{PLANTED}@host"}, "no user, password"),
        ({"otlp_headers": f"a={PLANTED}"}, "set OTLP_ENDPOINT"),
        ({"otlp_endpoint": "http://c", "otlp_headers": f"a=b,{PLANTED}"}, "entry 2 must be"),
        ({"otlp_endpoint": "http://c", "otlp_headers": f"a={PLANTED}\r\nb: c"}, "entry 1 must"),
        ({"trace_ratio": 1.5}, "from 0 to 1"),
        ({"trace_ratio": "nan"}, "must be a number"),
        ({"metrics_export_s": 0.5}, "METRICS_EXPORT_S: must be at least 1"),
    ],
)
def test_what_cannot_work_is_said_without_the_value(given: dict[str, object], said: str) -> None:
    [problem] = problems(**given)
    assert said in problem
    assert PLANTED not in problem


def test_tasks_get_none_of_it() -> None:
    environ = {
        "APPLICATIONINSIGHTS_CONNECTION_STRING": "x",
        "APPINSIGHTS_INSTRUMENTATIONKEY": "x",
        "OTEL_EXPORTER_OTLP_HEADERS": "x",
        "OTEL_SERVICE_NAME": "x",
        "PATH": "/bin",
    }
    assert passed_on(environ) == {"PATH": "/bin"}
