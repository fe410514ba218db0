"""deploy/terraform: the real Terraform checks, plans and applies it, on what Azure would tell.

The provider has azurerm's schema alone (azurerm_provider.py): this finds arguments that do not
exist or are missing, wrong types and references, and what variables refuse. It does not find values
that only Azure refuses.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tesazure import settings
from tests.conftest import refuse
from tests.deploy import terraform
from tests.deploy.checkov import checked
from tests.deploy.terraform import SOURCE, Terraform
from tests.services import base

pytestmark = [pytest.mark.xdist_group("terraform"), pytest.mark.timeout(600)]

ROOT = SOURCE.parents[1]
PASSWORD = "var.acr_login_password"
VARIABLE = re.compile(r'^variable "(\w+)" \{$(.*?)^\}$', re.MULTILINE | re.DOTALL)
SKIP = re.compile(r"#checkov:skip=(\w+): (.{10,})$", re.MULTILINE)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Terraform]:
    """Terraform in a copy of deploy/terraform."""
    with tempfile.TemporaryDirectory(prefix="tz-") as directory:
        try:
            with terraform.at(Path(directory)) as started:
                yield started
        except base.Unavailable as error:
            refuse(str(error))


@dataclass(frozen=True)
class State:
    """What a run of Terraform's own tests has made; or, of one that plans, what it would change."""

    resources: list[dict[str, Any]]
    outputs: dict[str, Any]
    changes: dict[str, list[str]]
    """Address of a resource -> what would be done to it."""

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """What is known of each resource of a type."""
        return [each["values"] for each in self.resources if each["type"] == kind]


@pytest.fixture(scope="module")
def applied(deployment: Terraform) -> dict[str, State]:
    """Run of the tests in deploy/terraform/tests -> its state. All runs have passed."""
    said = deployment.told("test", "-verbose")
    (summary,) = [line["test_summary"] for line in said if "test_summary" in line]
    wrong = [line for line in said if line["@level"] == "error"]
    assert summary["status"] == "pass", wrong
    assert not summary["failed"] + summary["errored"] + summary["skipped"], wrong
    states = {}
    for line in said:
        run = line.get("@testrun", "")
        if "test_state" in line:
            made = line["test_state"]
            outputs = {name: output["value"] for name, output in made["outputs"].items()}
            states[run] = State(made["root_module"]["resources"], outputs, {})
        if "test_plan" in line:
            planned = line["test_plan"].get("resource_changes", [])
            changes = {each["address"]: each["change"]["actions"] for each in planned}
            states[run] = State([], {}, changes)
    return states


def app_environment(state: State) -> dict[str, str]:
    """The environment of the server's container."""
    (app,) = state.of_type("azurerm_container_app")
    return {each["name"]: each["value"] for each in app["template"][0]["container"][0]["env"]}


def test_it_is_formatted(deployment: Terraform) -> None:
    done = deployment.run("fmt", "-check", "-recursive", "-diff")
    assert done.returncode == 0, done.stdout


def test_it_is_valid(deployment: Terraform) -> None:
    done = deployment.run("validate", "-json")
    answer = json.loads(done.stdout)
    assert answer["valid"], answer["diagnostics"]
    assert not answer["diagnostics"]


def test_its_own_tests_pass(applied: dict[str, State]) -> None:
    assert {"images", "default", "again", "private", "own_registry_with_deployer"} <= applied.keys()


def test_the_examples_are_for_this(deployment: Terraform) -> None:
    backend = deployment.directory / "backend.tf"
    given = deployment.directory / "terraform.tfvars"
    backend.write_text((SOURCE / "backend.tf.example").read_text())
    given.write_text((SOURCE / "terraform.tfvars.example").read_text())
    try:
        formatted = deployment.run("fmt", "-check", "-diff")
        answer = json.loads(deployment.run("validate", "-json").stdout)
        names = re.findall(r"^(\w+) +=", given.read_text(), re.MULTILINE)
    finally:
        backend.unlink()
        given.unlink()
    assert formatted.returncode == 0, formatted.stdout
    assert answer["valid"], answer["diagnostics"]
    known = {name for name, _ in VARIABLE.findall((SOURCE / "variables.tf").read_text())}
    assert set(names) <= known


def test_every_validation_has_a_test_that_it_refuses() -> None:
    refusals = (SOURCE / "tests" / "refusals.tftest.hcl").read_text()
    for name, body in VARIABLE.findall((SOURCE / "variables.tf").read_text()):
        expected = len(re.findall(rf"expect_failures = \[var\.{name}\]", refusals))
        assert expected >= body.count("validation {"), f"{name} has rules that nothing breaks"


def test_every_variable_says_what_it_is() -> None:
    variables = VARIABLE.findall((SOURCE / "variables.tf").read_text())
    assert len(variables) > 20
    for name, body in variables:
        assert re.search(r'^  description = "[^"]{10,}', body, re.MULTILINE), name
        assert re.search(r"^  type +=", body, re.MULTILINE), name


@pytest.mark.parametrize("run", ["default", "private"])
def test_the_server_takes_the_settings(applied: dict[str, State], run: str) -> None:
    """With the secrets that it finds in the vault besides."""
    given = app_environment(applied[run])
    secrets = {each["name"] for each in applied[run].of_type("azurerm_key_vault_secret")}
    secrets.add("TESAZURE-PRIVATE-DOCKER-REGISTRY-PASSWORD")  # by hand where the registry is new
    for name in secrets:
        setting = name.removeprefix("TESAZURE-").replace("-", "_")
        assert setting.lower() in settings.FIELDS
        given[f"APP_{setting}"] = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ="
    # The vault itself cannot be asked here.
    vault = given.pop("APP_KEYVAULT_URL")
    assert vault == "https://tesazure5d3c8f1a.vault.azure.net/"
    found = settings.load(given)
    assert found.warnings == ()
    assert found.settings.compute_backend == "batch"
    assert found.settings.aad_verify
    assert found.settings.database_auth == "entra"
    assert found.settings.task_access_restrictions == "per-user"
    host = "tesazure5d3c8f1a.postgres.database.azure.com"
    assert found.settings.database_url == f"postgresql://tesazure-api@{host}/tesazure"
    assert found.settings.batch_public_addresses == (run == "default")
    assert bool(found.settings.batch_subnet_id) == (run == "private")


def test_no_secret_is_in_the_state(applied: dict[str, State]) -> None:
    """What azurerm itself keeps of a resource is not ours to choose; what we pass on is."""
    state = applied["private"]
    assert "not-a-real-password" not in json.dumps([state.resources, state.outputs])
    written = state.of_type("azurerm_key_vault_secret")
    assert {each["name"] for each in written} == {
        "TESAZURE-SECRETS-KEY",
        "TESAZURE-STORAGE-ACCOUNT-KEY",
        "TESAZURE-PRIVATE-DOCKER-REGISTRY-PASSWORD",
    }
    for each in written:
        assert each["value_wo"] is None
        assert each["value_wo_version"] == 1


def test_the_settings_have_no_secret(applied: dict[str, State]) -> None:
    for run in ("default", "private"):
        for name in app_environment(applied[run]):
            field = name.removeprefix("APP_").lower()
            # It has a role's name in it, and no password.
            secret = field in settings.FIELDS and settings.help_of(field).secret
            assert not secret or field in {"database_url", "applicationinsights_connection_string"}


@pytest.mark.parametrize("run", ["again", "somebody_else"])
def test_a_second_apply_changes_nothing(applied: dict[str, State], run: str) -> None:
    changes = applied[run].changes
    assert len(changes) > 20
    assert {name: done for name, done in changes.items() if done not in (["no-op"], ["read"])} == {}


def test_settings_that_are_secret_are_for_the_vault() -> None:
    variables = dict(VARIABLE.findall((SOURCE / "variables.tf").read_text()))
    (refused,) = re.findall(r"setintersection\(.*?\[(.*?)\]", variables["app_settings"], re.DOTALL)
    secret = {name.upper() for name in settings.FIELDS if settings.help_of(name).secret}
    # The database's URL is secret for a password in it, which the next rule refuses.
    assert set(re.findall(r'"(\w+)"', refused)) == secret - {"DATABASE_URL"}


def test_its_roles_are_those_of_the_documentation(
    applied: dict[str, State],
) -> None:
    page = (ROOT / "docs" / "batch.md").read_text()
    documented = json.loads(re.findall(r"^```json\n(.*?)^```", page, re.M | re.S)[0])
    roles = applied["default"].of_type("azurerm_role_definition")
    (batch,) = [role for role in roles if role["name"].endswith("Batch user")]
    assert batch["permissions"][0]["actions"] == documented["Actions"]
    assert set(batch["permissions"][0]["data_actions"]) == set(documented["DataActions"])
    (sizes,) = [role for role in roles if role["name"].endswith("VM size reader")]
    assert all(action in page for action in sizes["permissions"][0]["actions"])


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ('resource "azurerm_resource_group" "x" {\n name = "x"\n}', "Missing required argument"),
        (
            'resource "azurerm_resource_group" "x" {\n name = "x"\n location = "y"\n sise = 1\n}',
            "Unsupported argument",
        ),
        ('resource "azurerm_no_such_thing" "x" {}', "Invalid resource type"),
        ('output "x" {\n value = azurerm_key_vault.this.vault_url\n}', "Unsupported attribute"),
        (
            'resource "azurerm_resource_group" "x" {\n name = ["x"]\n location = "y"\n}',
            "Incorrect attribute value type",
        ),
        (
            f'resource "azurerm_resource_group" "x" {{\n name = {PASSWORD}\n location = "y"\n}}',
            "Invalid use of ephemeral value",
        ),
    ],
)
def test_mistakes_are_found(deployment: Terraform, mistake: str, said: str) -> None:
    """The check of the checks: without it, a provider that accepts all would pass them."""
    file = deployment.directory / "mistake.tf"
    file.write_text(mistake)
    try:
        answer = json.loads(deployment.run("validate", "-json").stdout)
    finally:
        file.unlink()
    assert not answer["valid"]
    assert said in {each["summary"] for each in answer["diagnostics"]}


def test_a_secret_that_would_be_shown_is_found(deployment: Terraform) -> None:
    file = deployment.directory / "mistake.tf"
    file.write_text('output "x" {\n value = azurerm_storage_account.this.primary_access_key\n}')
    try:
        said = deployment.told("test", "-filter=tests/default.tftest.hcl")
    finally:
        file.unlink()
    summaries = [line["diagnostic"]["summary"] for line in said if "diagnostic" in line]
    assert "Output refers to sensitive values" in summaries


def test_the_next_steps_can_be_taken(applied: dict[str, State]) -> None:
    steps = applied["images"].outputs["next_steps"]
    assert applied["images"].of_type("azurerm_container_app") == []
    commands = [line.strip() for line in steps.splitlines() if line.startswith("   ")]
    assert len(commands) == 5
    for command in commands:
        subprocess.run(["sh", "-n"], input=command, text=True, check=True, timeout=10)
    for file in re.findall(r"-f (\S+)", steps):
        assert (ROOT / file).is_file()
    built = set(re.findall(r"-t (\S+)", steps))
    assert built == set(re.findall(r"docker push (\S+)", steps))
    server = app_environment(applied["default"])
    (app,) = applied["default"].of_type("azurerm_container_app")
    image = app["template"][0]["container"][0]["image"]
    assert built == {image, server["APP_FILETRANSFER_CONTAINER_IMAGE"]}
    assert "TESAZURE-PRIVATE-DOCKER-REGISTRY-PASSWORD" in steps


def test_checkov_finds_nothing_that_is_not_explained() -> None:
    answer = checked("terraform", SOURCE)
    assert [(c["check_id"], c["resource"]) for c in answer["results"]["failed_checks"]] == []
    assert answer["summary"]["passed"] > 15
    skipped = {each["check_id"] for each in answer["results"]["skipped_checks"]}
    text = "\n".join(path.read_text() for path in SOURCE.glob("*.tf"))
    explained = dict(SKIP.findall(text))
    assert len(re.findall("checkov:skip", text)) == len(SKIP.findall(text)), "a skip has its reason"
    assert explained.keys() == skipped, "a skip that skips nothing is gone"
