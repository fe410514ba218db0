"""deploy/helm: the chart rendered by Helm's own library, Kubernetes' schemas, and its pod at work.

No cluster is at hand: what only an API server or a kubelet does is not seen here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

import tesazure
from tesazure import settings
from tests.clients import venvs
from tests.conftest import refuse
from tests.deploy.checkov import checked
from tests.service.server import until
from tests.services import base, project_images
from tests.services.docker_engine import DockerEngine

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/tesazure"
EXAMPLE = (CHART.parent / "values.example.yaml").read_text()
KUBERNETES = [f"1.{minor}.0" for minor in range(30, 38)]
IMAGE = "image: {repository: registry/tesazure/api}\n"
OPEN = f"{IMAGE}allowAnonymous: true\n"
OF_THE_CHART = {"COMPUTE_BACKEND", "DATA_DIR", "HOST", "PORT"}
SECRETS = {
    "DATABASE_URL": "postgresql://tes:s3cret@db.example.org/tes",
    "SECRETS_KEY": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=",
    "PRIVATE_DOCKER_REGISTRY_PASSWORD": "s3cret",
}
NOT_ASKED = {
    "CKV_K8S_15": "a version's image does not change, and `latest` is refused",
    "CKV_K8S_43": "a digest is for whoever has pushed the image to say: image.digest",
    "CKV_K8S_11": "a CPU limit would only slow the server down where there is CPU to be had",
    "CKV_K8S_35": "settings come as variables, which the server does not pass on to what it starts",
}

pytestmark = [pytest.mark.xdist_group("helm"), pytest.mark.timeout(600)]


def asked(values: str, name: str = "tesazure") -> dict[str, Any]:
    """Helm's answer."""
    try:
        python = venvs.python("helm")
    except base.Unavailable as error:
        refuse(str(error))
    done = subprocess.run(
        [python, Path(__file__).with_name("helm_chart.py"), CHART, *KUBERNETES],
        input=json.dumps({"values": values, "name": name}),
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def rendered(values: str, name: str = "tesazure") -> dict[str, dict[str, Any]]:
    """Kind -> manifest, of a chart with nothing wrong."""
    answer = asked(values, name)
    assert "refused" not in answer, answer["refused"]
    assert answer["invalid"] == []
    return {each["kind"]: each for each in answer["manifests"]}


def pod_of(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The specification of the server's pods."""
    pod: dict[str, Any] = manifests["Deployment"]["spec"]["template"]["spec"]
    return pod


def container_of(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The server's container."""
    (container,) = pod_of(manifests)["containers"]
    return dict(container)


def environment_of(container: dict[str, Any], secret: dict[str, str]) -> dict[str, str]:
    """What a kubelet makes of it; KeyError where it would not start the container."""
    made = {}
    for source in container.get("envFrom", []):
        made |= {source["prefix"] + name: value for name, value in secret.items()}
    for each in container["env"]:
        wanted = each.get("valueFrom")
        key = wanted["secretKeyRef"]["key"] if wanted else ""
        made[each["name"]] = secret[key] if wanted else each["value"]
    return made


@pytest.fixture(scope="module")
def example() -> dict[str, dict[str, Any]]:
    return rendered(EXAMPLE)


def test_helm_finds_nothing_to_say() -> None:
    answer = asked(EXAMPLE)
    assert answer["lint"] == ["icon is recommended"]
    assert answer["invalid"] == []
    assert "service/tesazure 8000:80" in answer["notes"]
    kinds = {each["kind"] for each in answer["manifests"]}
    assert kinds == {
        *("Deployment", "Service", "ServiceAccount", "Ingress", "NetworkPolicy"),
        "PodDisruptionBudget",
    }


def test_the_check_of_the_checks() -> None:
    """A field that Kubernetes does not know is found, in every version."""
    answer = asked(f"{OPEN}affinity: {{nodeAfinity: {{}}}}\n")
    assert len(answer["invalid"]) == len(KUBERNETES)
    assert "nodeAfinity" in answer["invalid"][0]


def test_it_is_of_this_version() -> None:
    chart = (CHART / "Chart.yaml").read_text()
    assert f"\nappVersion: {tesazure.__version__}\n" in chart
    oldest = KUBERNETES[0].rpartition(".")[0]
    assert f'\nkubeVersion: ">={oldest}.0-0"\n' in chart
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"  licenses: {project['license']}\n" in chart


def test_the_server_takes_the_settings(example: dict[str, dict[str, Any]]) -> None:
    found = settings.load(environment_of(container_of(example), SECRETS))
    assert found.warnings == ()
    given = found.settings
    assert given.compute_backend == "batch"
    assert given.aad_verify
    assert given.task_access_restrictions == "per-user"
    assert given.database_url == SECRETS["DATABASE_URL"]
    assert given.secrets_key == SECRETS["SECRETS_KEY"]
    assert given.private_docker_registry_password == "s3cret"
    assert settings.identity_of(given).default


@pytest.mark.parametrize("missing", ["DATABASE_URL", "SECRETS_KEY"])
def test_without_its_secrets_no_container_starts(
    example: dict[str, dict[str, Any]], missing: str
) -> None:
    """It would begin with an empty database of its own."""
    fewer = {name: value for name, value in SECRETS.items() if name != missing}
    with pytest.raises(KeyError, match=missing):
        environment_of(container_of(example), fewer)


def test_with_a_vault_and_an_identity_there_need_be_no_secret() -> None:
    values = f"""{OPEN}
secret: ""
settings:
  AZURE_IDENTITY: default
  DATABASE_AUTH: entra
  DATABASE_URL: postgresql://tesazure-api@db.postgres.database.azure.com/tesazure
  KEYVAULT_URL: https://mytes.vault.azure.net
"""
    container = container_of(rendered(values))
    assert "envFrom" not in container
    given = environment_of(container, {})
    assert given["APP_DATABASE_URL"].endswith("/tesazure")
    assert "APP_SECRETS_KEY" not in given


def test_values_are_passed_on_as_they_are_written() -> None:
    """Helm reads numbers as floating point, and would write them so."""
    written = "MAX_BODY_BYTES: 16777216, BATCH_SPOT: true, TRACE_RATIO: 0.25, BATCH_SUBNET_ID: ''"
    values = f"{OPEN}settings: {{{written}}}\n"
    given = environment_of(container_of(rendered(values)), SECRETS)
    assert given["APP_MAX_BODY_BYTES"] == "16777216"
    assert given["APP_BATCH_SPOT"] == "true"
    assert given["APP_TRACE_RATIO"] == "0.25"
    assert given["APP_BATCH_SUBNET_ID"] == ""


def test_settings_that_are_secret_are_for_the_secret() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    refused = schema["properties"]["settings"]["propertyNames"]["not"]["enum"]
    secret = {name.upper() for name in settings.FIELDS if settings.help_of(name).secret}
    # The database's URL is secret for the password in it, which the schema looks for.
    assert set(refused) == OF_THE_CHART | secret - {"DATABASE_URL"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("", "/image/repository"),
        (f"{OPEN}replica: 3\n", "'replica' not allowed"),
        (f"{OPEN}replicas: 0\n", "/replicas"),
        (f"{OPEN}settings: {{STORAGE_ACCOUNT_KEY: x}}\n", "'STORAGE_ACCOUNT_KEY'"),
        (f"{OPEN}settings: {{PORT: 1}}\n", "'PORT'"),
        (f"{OPEN}settings: {{app_log_level: x}}\n", "'app_log_level'"),
        (f"{OPEN}settings: {{BATCH_VM_SIZES: [a, b]}}\n", "/settings/BATCH_VM_SIZES"),
        (f"{OPEN}settings: {{DATABASE_URL: 'postgresql://a:b@c/d'}}\n", "/settings/DATABASE_URL"),
        (f"{OPEN}settings: {{DATABASE_URL: 'postgresql://a@c/d?password=b'}}\n", "DATABASE_URL"),
        (f"{OPEN}secret: ''\n", "DATABASE_URL and KEYVAULT_URL"),
        (f"{OPEN}secret: My_Secret\n", "/secret"),
        (IMAGE, "nobody would have to sign in"),
        (f"{IMAGE}settings: {{AAD_VERIFY: false}}\n", "nobody would have to sign in"),
        ("image: {repository: a/b, tag: latest}\nallowAnonymous: true\n", "/image/tag"),
        ("image: {repository: a/b, digest: 'sha256:1'}\nallowAnonymous: true\n", "/image/digest"),
        (f"{OPEN}ingress: {{enabled: true}}\n", "/ingress/host"),
        (f"{OPEN}workloadIdentity: {{clientId: mytes}}\n", "/workloadIdentity/clientId"),
        (f"{OPEN}service: {{port: 99999}}\n", "/service/port"),
        (f"{OPEN}service: {{type: ExternalName}}\n", "/service/type"),
        (f"{OPEN}scratch: much\n", "/scratch"),
        (f"{OPEN}strategy: {{type: BlueGreen}}\n", "/strategy/type"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: str, said: str) -> None:
    assert said in asked(values)["refused"]


@pytest.mark.parametrize("setting", ["AAD_VERIFY: true", "API_TOKENS: 'True'"])
def test_either_sign_in_is_one(setting: str) -> None:
    rendered(f"{IMAGE}settings: {{{setting}}}\n")


def test_every_value_can_be_given() -> None:
    digest = f"sha256:{'0' * 64}"
    values = f"""
allowAnonymous: true
image: {{repository: a/b, digest: '{digest}', pullSecrets: [registry]}}
replicas: 1
workloadIdentity: {{clientId: 00000000-0000-0000-0000-000000000001}}
serviceAccount: {{annotations: {{a: b}}}}
service: {{type: LoadBalancer, port: 8080, annotations: {{a: b}}}}
ingress: {{enabled: true, host: tes.example.org, annotations: {{a: b}}}}
networkPolicy:
  from: [{{namespaceSelector: {{}}}}]
  egress: [{{ports: [{{port: 4318}}]}}]
  databasePort: 6432
strategy: {{type: RollingUpdate, rollingUpdate: {{maxUnavailable: 0}}}}
podAnnotations: {{a: b}}
podLabels: {{a: b}}
nodeSelector: {{a: b}}
tolerations: [{{key: a, operator: Exists}}]
affinity: {{podAntiAffinity: {{}}}}
"""
    found = rendered(values, "mine")
    assert {each["metadata"]["name"] for each in found.values()} == {"mine-tesazure"}
    assert "PodDisruptionBudget" not in found, "of one replica it would keep a node for ever"
    pod = pod_of(found)
    assert container_of(found)["image"] == f"a/b@{digest}"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"a": "b"}
    template = found["Deployment"]["spec"]["template"]["metadata"]
    assert template["labels"]["azure.workload.identity/use"] == "true"
    assert template["labels"]["a"] == template["annotations"]["a"] == "b"
    assert found["ServiceAccount"]["metadata"]["annotations"] == {
        "azure.workload.identity/client-id": "00000000-0000-0000-0000-000000000001",
        "a": "b",
    }
    policy = found["NetworkPolicy"]["spec"]
    assert policy["ingress"][0]["from"] == [{"namespaceSelector": {}}]
    ports = [each["port"] for rule in policy["egress"] for each in rule["ports"]]
    assert ports == [53, 53, 443, 6432, 4318]


def test_the_parts_find_each_other(example: dict[str, dict[str, Any]]) -> None:
    labels = example["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        example["Deployment"]["spec"]["selector"]["matchLabels"],
        example["Service"]["spec"]["selector"],
        example["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        example["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    (path,) = example["Ingress"]["spec"]["rules"][0]["http"]["paths"]
    (port,) = example["Service"]["spec"]["ports"]
    assert path["backend"]["service"]["name"] == example["Service"]["metadata"]["name"]
    assert path["backend"]["service"]["port"]["name"] == port["name"]
    assert port["targetPort"] == container_of(example)["ports"][0]["name"]
    assert pod_of(example)["serviceAccountName"] == example["ServiceAccount"]["metadata"]["name"]


def test_names_of_other_services_pass_for_no_settings(example: dict[str, dict[str, Any]]) -> None:
    """For a Service that is called app, Kubernetes sets APP_PORT=tcp://10.0.0.1:80 in every pod."""
    assert pod_of(example)["enableServiceLinks"] is False


def test_checkov_finds_nothing_that_is_not_explained(
    tmp_path: Path, example: dict[str, dict[str, Any]]
) -> None:
    for kind, manifest in example.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps(manifest))
    answer = checked("kubernetes", tmp_path)
    assert answer["summary"]["passed"] > 50
    failed = {each["check_id"] for each in answer["results"]["failed_checks"]}
    assert failed == NOT_ASKED.keys()


def test_the_page_tells_of_every_value() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    for name in re.findall(r"^(\w+):", (CHART / "values.yaml").read_text(), re.MULTILINE):
        assert f"`{name}" in page, name


# ------------------------------------------------------------------------ the pod at work


@contextlib.contextmanager
def replica(
    client: docker.DockerClient,
    image: str,
    manifests: dict[str, dict[str, Any]],
    secret: dict[str, str],
    volumes: Path,
) -> Iterator[tuple[docker.models.containers.Container, httpx.Client]]:
    """The chart's pod as a kubelet would run it, but on this machine's network and a port there."""
    pod, spec, port = pod_of(manifests), container_of(manifests), base.free_port()
    mounts = []
    for each in spec["volumeMounts"]:
        # An emptyDir: root's, and everybody may write to it; with fsGroup, the group's.
        directory = volumes / each["name"]
        directory.mkdir(parents=True)
        os.chown(directory, 0, pod["securityContext"]["fsGroup"])
        directory.chmod(0o2777)
        mounts.append(f"{directory}:{each['mountPath']}")
    may = spec["securityContext"]
    assert may["allowPrivilegeEscalation"] is False
    container = client.containers.run(
        image,
        detach=True,
        network_mode="host",
        user=f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}",
        read_only=may["readOnlyRootFilesystem"],
        cap_drop=may["capabilities"]["drop"],
        security_opt=["no-new-privileges:true"],
        volumes=mounts,
        environment=environment_of(spec, secret) | {"APP_PORT": str(port)},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            yield container, http
    finally:
        container.remove(force=True, v=True)


@pytest.fixture
def nobody() -> Iterator[str]:
    """Origin where nobody listens."""
    with base.nobodys_port() as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.docker
@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_replicas_start_together_on_an_empty_database_and_say_what_is_missing(
    docker_engine: DockerEngine, api_image: str, postgres_url: str, short_dir: Path, nobody: str
) -> None:
    if docker_engine.offered is not None:
        pytest.skip("the engine that DOCKER_HOST names has its directories elsewhere")
    values = f"""{OPEN}
settings:
  BATCH_ACCOUNT_NAME: mytes
  BATCH_ACCOUNT_URL: {nobody}
  FILETRANSFER_CONTAINER_IMAGE: registry/tesazure/container-filetransfer:1
  STORAGE_ACCOUNT_NAME: mytes
  STORAGE_BLOB_ENDPOINT: {nobody}/mytes
  RETAIL_PRICES_URL: {nobody}
"""
    key = SECRETS["SECRETS_KEY"]
    keys = dict.fromkeys(("SECRETS_KEY", "BATCH_ACCOUNT_KEY", "STORAGE_ACCOUNT_KEY"), key)
    secret = {"DATABASE_URL": postgres_url, **keys}
    manifests = rendered(values)
    spec = container_of(manifests)
    probes = {
        spec[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")
    }
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(project_images.connected(docker_engine))
        replicas = [
            stack.enter_context(
                replica(client, api_image, manifests, secret, short_dir / str(number))
            )
            for number in range(manifests["Deployment"]["spec"]["replicas"])
        ]
        assert len(replicas) == 2
        for container, http in replicas:
            for path in (*probes, "/v1/tasks/service-info", "/ga4gh/tes/v1/service-info"):
                try:
                    until(lambda http=http, path=path: answers(http, path), 120)
                except AssertionError as error:
                    raise AssertionError(container.logs().decode()) from error
            until(lambda http=http: tells(http, "backend"), 60)
            checks = {each["name"]: each["ok"] for each in http.get("/readyz").json()["checks"]}
            assert checks["store"]
        for container, _ in replicas:
            container.kill("SIGTERM")
        patience = pod_of(manifests)["terminationGracePeriodSeconds"]
        for container, _ in replicas:
            assert container.wait(timeout=patience)["StatusCode"] == 0
            assert "Traceback" not in container.logs().decode()


def answers(http: httpx.Client, path: str) -> bool:
    """Whether it does, and well."""
    with contextlib.suppress(httpx.TransportError):
        return http.get(path).status_code == 200
    return False


def tells(http: httpx.Client, name: str) -> bool:
    """Whether it is not ready, and says that it is for this."""
    reply = http.get("/readyz")
    bad = [each for each in reply.json()["checks"] if not each["ok"]]
    return reply.status_code == 503 and any(each["name"] == name and each["detail"] for each in bad)
