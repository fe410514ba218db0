"""Settings: sources and their order, and messages that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tesazure import settings
from tesazure.errors import ConfigurationError


def problems(*arguments: Any, **more: Any) -> list[str]:
    """What `load` finds wrong."""
    with pytest.raises(ConfigurationError) as caught:
        settings.load(*arguments, **more)
    return list(caught.value.problems)


def config_file(directory: Path, text: str) -> Path:
    path = directory / "tesazure.toml"
    path.write_text(text)
    return path


def test_defaults_are_what_the_struct_says() -> None:
    effective = settings.load({})
    assert effective.settings == settings.Settings()
    assert set(effective.sources.values()) == {"default"}


def test_later_sources_win(tmp_path: Path) -> None:
    config = config_file(tmp_path, 'port = 1\nhost = "1.1.1.1"\nlog_level = "debug"\n')
    environ = {"APP_PORT": "2", "APP_HOST": "2.2.2.2"}
    effective = settings.load(environ, {"port": 3, "host": None}, config)
    assert (effective.settings.port, effective.sources["port"]) == (3, "command line")
    assert (effective.settings.host, effective.sources["host"]) == ("2.2.2.2", "environment")
    assert (effective.settings.log_level, effective.sources["log_level"]) == ("debug", "file")
    assert effective.sources["data_dir"] == "default"


def test_an_empty_variable_is_not_given() -> None:
    assert settings.load({"APP_PORT": "", "APP_LOCAL_ENGINE": ""}).sources["port"] == "default"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "0", 0),
        ("TASK_NETWORK", "false", False),
        ("TASK_NETWORK", "1", True),
        ("LOCAL_RAM_GB", "1.5", 1.5),
        ("LOCAL_CPU_CORES", "2", 2.0),
        ("DATA_DIR", "some/where", Path("some/where")),
        ("CORS_ORIGINS", "https://a.org, https://b.org", ("https://a.org", "https://b.org")),
        ("LOCAL_ENGINE", "podman", "podman"),
        ("METRICS_OPEN", "True", True),
        ("TASK_ACCESS_RESTRICTIONS", "None", "none"),
    ],
)
def test_text_becomes_the_settings_type(name: str, text: str, value: object) -> None:
    found = getattr(settings.load({f"APP_{name}": text}).settings, name.lower())
    assert found == value
    assert type(found) is type(value)


def test_directories_are_separated_by_colons(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    (tmp_path / "c").mkdir()
    effective = settings.load({"APP_ALLOW_DIR": f"{tmp_path}/a,b:{tmp_path}/c:"})
    assert effective.settings.allow_dir == (tmp_path / "a,b", tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("PORT", "http", "must be a whole number"),
        ("PORT", "1.5", "must be a whole number"),
        ("PORT", "-1", "must not be negative"),
        ("LEASE_S", "nan", "must be a number"),
        ("LEASE_S", "inf", "must be a number"),
        ("TASK_NETWORK", "maybe", "must be true or false"),
        ("LOCAL_ENGINE", "dokcer", "must be one of auto, docker, podman, sandbox; did you mean do"),
        ("COMPUTE_BACKEND", "btach", "must be one of local, batch; did you mean batch?"),
        ("LOG_LEVEL", "INFO", "must be one of debug, info, warning, error"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(name: str, text: str, message: str) -> None:
    (problem,) = problems({f"APP_{name}": text})
    assert problem.startswith(f"APP_{name}: {message}")
    assert repr(text) in problem


def test_a_wrong_value_of_the_command_line_is_named_as_it_came() -> None:
    for values, name in (
        ({"azure_identity": "managed"}, "--set APP_AZURE_IDENTITY: must be one of"),
        ({"local_engine": "dokcer"}, "--engine: must be one of"),
        ({"log_level": "INFO"}, "--log-level: must be one of"),
    ):
        (problem,) = problems({}, values)
        assert problem.startswith(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = true", "port: must be a whole number (given: True)"),
        ('host = ["a"]', "host: must be a string"),
        ("data_dir = 1", "data_dir: must be a path"),
        ("prot = 1", "unknown setting prot; did you mean PORT?"),
        ("port = ", "Invalid value"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = problems({}, config=config_file(tmp_path, text))
    assert message in problem
    assert str(tmp_path) in problem


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    environ = {
        "APP_ALOW_DIR": "/",
        "APP_PORT": "70000",
        "APP_LEASE_S": "0",
        "APP_MAX_RETRIES": "x",
        "APP_ALLOW_DIR": f"relative:{tmp_path}/none",
        "APP_DATABASE_URL": "mysql://me:secret@host/db",
    }
    found = problems(environ)
    assert [problem.split(":", maxsplit=1)[0] for problem in found] == [
        "unknown setting APP_ALOW_DIR; did you mean APP_ALLOW_DIR?",
        "APP_MAX_RETRIES",
        "PORT",
        "DATABASE_URL",
        "ALLOW_DIR",
        "ALLOW_DIR",
        "LEASE_S",
    ]
    assert "secret" not in str(found)


def test_secrets_are_never_shown() -> None:
    effective = settings.load({"APP_DATABASE_URL": "postgresql://me:secret@host/db"})
    assert ("DATABASE_URL", "***", "environment") in settings.shown(effective)
    assert "secret" not in str(settings.shown(effective))


def test_usual_variables_of_engines_are_read_and_ours_win() -> None:
    assert settings.load({"DOCKER_HOST": "tcp://a:1"}).settings.docker_host == "tcp://a:1"
    both = {"DOCKER_HOST": "tcp://a:1", "APP_DOCKER_HOST": "tcp://b:2"}
    assert settings.load(both).settings.docker_host == "tcp://b:2"


def test_the_client_takes_arguments_over_the_environment() -> None:
    environ = {"TESAZURE_SERVER": "http://a", "TESAZURE_TOKEN": "t"}
    assert settings.load_client({}).server == "http://127.0.0.1:8000"
    assert settings.load_client(environ) == settings.Client(server="http://a", token="t")
    assert settings.load_client(environ, server="http://b").server == "http://b"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p[x@h/db",
        "postgresql://u:secret@h:port/db",
        "postgresql://u:secret@h:99999/db",
        "mysql://u:secret@h/db",
    ],
)
def test_a_database_url_that_cannot_be_read_is_not_shown(url: str) -> None:
    [problem] = problems({"APP_DATABASE_URL": url})
    assert problem.startswith("DATABASE_URL: ")
    assert "postgresql://" in problem
    assert "secret" not in problem
    assert "p[x" not in problem


def test_a_time_limit_of_more_than_ten_years_is_refused() -> None:
    assert settings.load({"APP_MAX_RUNTIME_S": "315360000"}).settings.max_runtime_s == 315360000
    [problem] = problems({"APP_MAX_RUNTIME_S": "315360001"})
    assert "MAX_RUNTIME_S: must be at most 315360000" in problem
