"""Every setting once: name, type, default, help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from tesazure.settings.batch_declarations import BatchSettings
from tesazure.settings.help import Help

PREFIX = "APP_"
LONGEST_RUNTIME_S = 10 * 365 * 86400
"""No time limit may be longer: ten years. Far larger numbers are beyond what clocks can add."""
LONGEST_CREDENTIAL_H = 168
"""Azure, "Create a user delegation SAS": its key is good for seven days at most."""


class Settings(BatchSettings, frozen=True, kw_only=True):
    """All settings, validated together. Sizes named `_gb` are in units of 10^9 bytes."""

    host: Annotated[str, Help("Address the server listens on.")] = "127.0.0.1"
    port: Annotated[int, Help("Port the server listens on; 0 lets the system choose one.")] = 8000
    data_dir: Annotated[
        Path, Help("Directory for the embedded database, the tasks' work files and streams.")
    ] = Path("tesazure-data")
    allow_dir: Annotated[
        tuple[Path, ...],
        Help("Directories whose files tasks may read and write by file:// and bare paths."),
    ] = ()
    mount_dir: Annotated[
        tuple[Path, ...],
        Help(
            "Directories, in those of ALLOW_DIR, for workflow engines that share files with their"
            " tasks: an input of type DIRECTORY that lies directly in one is not copied but"
            " mounted, and the task writes in it itself."
        ),
    ] = ()
    database_url: Annotated[
        str,
        Help(
            "PostgreSQL as postgresql://user:password@host/name; empty: SQLite in the data"
            " directory.",
            secret=True,
        ),
    ] = ""
    database_auth: Annotated[
        Literal["password", "entra"],
        Help(
            "How the server signs in to PostgreSQL: entra: to Azure Database for PostgreSQL, with a"
            " token that it gets as AZURE_CLIENT_ID or AZURE_IDENTITY, and over verified TLS."
        ),
    ] = "password"
    compute_backend: Annotated[
        Literal["local", "batch"],
        Help(
            "Where tasks run. Unless it is given: batch if there is a Batch account, else local.",
            live=True,
        ),
    ] = "local"
    cloud: Annotated[
        Literal["AzurePublic", "AzureUSGovernment", "AzureChina"],
        Help("Which of Microsoft's clouds; other defaults follow from it, see below.", live=True),
    ] = "AzurePublic"
    arm_endpoint: Annotated[str, Help("URL of Azure Resource Manager.", live=True)] = (
        "https://management.azure.com"
    )
    keyvault_url: Annotated[
        str,
        Help(
            "Key Vault that holds further settings: its URL or, with KEYVAULT_ENDPOINT_SUFFIX, its"
            " name. Read as AZURE_CLIENT_ID or AZURE_IDENTITY says.",
            live=True,
        ),
    ] = ""
    keyvault_endpoint_suffix: Annotated[
        str, Help("What Key Vaults' hosts end in, after the vault's name.", live=True)
    ] = "vault.azure.net"
    keyvault_refresh_s: Annotated[
        float,
        Help(
            "Seconds between looks at what the Key Vault holds now; 0: only at SIGHUP.", live=True
        ),
    ] = 300
    keyvault_verify_challenge: Annotated[
        bool,
        Help(
            "Whether the vault's host must lie in the domain that it wants a token for.", live=True
        ),
    ] = True
    local_engine: Annotated[
        Literal["auto", "docker", "podman", "sandbox"],
        Help("What runs the containers; auto takes the first of docker, podman, sandbox."),
    ] = "auto"
    docker_host: Annotated[
        str, Help("Docker's API, as DOCKER_HOST; empty: DOCKER_HOST, else the usual socket.")
    ] = ""
    podman_host: Annotated[
        str, Help("Podman's Docker-compatible API socket; empty: CONTAINER_HOST, else the usual.")
    ] = ""
    local_cpu_cores: Annotated[
        float, Help("Cores that tasks may use together; 0: all of the machine's.")
    ] = 0
    local_ram_gb: Annotated[float, Help("Memory that tasks may use together; 0: all.")] = 0
    local_disk_gb: Annotated[
        float,
        Help("Disk that tasks may use together, as far as it is free; 0: the whole file system."),
    ] = 0
    shared_global_dir: Annotated[
        str, Help("Host directory seen as /tes-wd/shared-global; empty: one in the data directory.")
    ] = ""
    task_network: Annotated[bool, Help("Whether tasks have a network.")] = True
    allow_private_addresses: Annotated[
        bool,
        Help(
            "Whether URLs of inputs and outputs may lead to private addresses, this machine's own"
            " among them; metadata services of clouds are always refused."
        ),
    ] = True
    storage_account_name: Annotated[
        str,
        Help(
            "Azure storage account that az:// URLs mean and whose key or identity we have.",
            live=True,
        ),
    ] = ""
    storage_account_key: Annotated[
        str,
        Help(
            "One of that account's keys. It stays with the server: tasks get signatures made with"
            " it, each for their own files.",
            secret=True,
            live=True,
        ),
    ] = ""
    storage_endpoint_suffix: Annotated[
        str,
        Help("What storage hosts of this cloud end in, after blob. and file.", live=True),
    ] = "core.windows.net"
    storage_blob_endpoint: Annotated[
        str,
        Help(
            "URL of the account's Blob service, as in a connection string; empty: by name and"
            " suffix. With the account as its path where that is not in the host (Azurite).",
            live=True,
        ),
    ] = ""
    storage_file_endpoint: Annotated[
        str, Help("URL of the account's Azure Files service, likewise.", live=True)
    ] = ""
    azure_client_id: Annotated[
        str,
        Help(
            "Service principal that reads the Key Vault, and that signs for Azure storage where"
            " there is no account key; with AZURE_IDENTITY=default and without AZURE_SECRET, a"
            " managed identity.",
            live=True,
        ),
    ] = ""
    azure_secret: Annotated[
        str, Help("Client secret of the service principal.", secret=True, live=True)
    ] = ""
    azure_tenant: Annotated[str, Help("Tenant of the service principal.", live=True)] = ""
    azure_authority_host: Annotated[
        str, Help("URL of the service that issues tokens to this server.", live=True)
    ] = "https://login.microsoftonline.com"
    azure_identity: Annotated[
        Literal["none", "default"],
        Help(
            "default: without a service principal, take the identity of wherever the server runs"
            " (managed or workload identity, az login), as DefaultAzureCredential finds it.",
            live=True,
        ),
    ] = "none"
    aad_verify: Annotated[
        bool, Help("Whether callers must sign in, with a token of Entra ID.", live=True)
    ] = False
    aad_audience: Annotated[
        tuple[str, ...],
        Help(
            "Whom tokens must be for: the client id of the API's app registration, its application"
            " ID URI.",
            live=True,
        ),
    ] = ()
    aad_tenant_id: Annotated[
        tuple[str, ...], Help("Tenants whose users and applications may sign in.", live=True)
    ] = ()
    aad_roles_required: Annotated[
        bool,
        Help(
            "Whether a user's token without the claim roles is refused (403). If not, it may submit"
            " and cancel tasks. An application's always is.",
            live=True,
        ),
    ] = False
    aad_client_id: Annotated[
        str,
        Help(
            "Application that `tesazure login` signs users in with, a public client; empty: the one"
            " of AAD_AUDIENCE, which users otherwise name by --audience.",
            live=True,
        ),
    ] = ""
    aad_authority: Annotated[
        str, Help("URL of Entra ID, whose tokens callers bring.", live=True)
    ] = "https://login.microsoftonline.com"
    aad_issuer: Annotated[
        str,
        Help(
            "URL of another OpenID Connect provider whose tokens are taken, besides or instead of"
            " those of AAD_TENANT_ID.",
            live=True,
        ),
    ] = ""
    api_tokens: Annotated[
        bool,
        Help(
            "Whether callers may sign in with tokens of this installation's own (`tesazure token`),"
            " also as the password of HTTP Basic; without AAD_VERIFY they must.",
            live=True,
        ),
    ] = False
    task_access_restrictions: Annotated[
        Literal["none", "per-user", "per-tenant"],
        Help(
            "Whose tasks a caller sees: everybody's, only their own, or their tenant's. Admins see"
            " all. None, as a word, is none.",
            live=True,
        ),
    ] = "none"
    metrics_open: Annotated[bool, Help("Whether /metrics is answered without signing in.")] = False
    cromwell_storage_container_name: Annotated[
        str,
        Help(
            "Container of the storage account that Cromwell's working files are kept in: for its"
            " tasks, a path below /tes-wd/shared means a blob there, named by the path from shared"
            " on. Empty: none does.",
            live=True,
        ),
    ] = ""
    cromwell_map_shared_global: Annotated[
        bool,
        Help(
            "Whether paths of Cromwell's tasks below /tes-wd/shared-global mean blobs there, too,"
            " and not files of the directory that all tasks share.",
            live=True,
        ),
    ] = False
    private_docker_registry_url: Annotated[
        str,
        Help(
            "Container registry that the next two are for, as host, host:port or URL; they are used"
            " for its images alone. On Azure Batch, BATCH_POOL_IDENTITY_ID can be in their place.",
            live=True,
        ),
    ] = ""
    private_docker_registry_username: Annotated[
        str, Help("User to pull images from it as.", live=True)
    ] = ""
    private_docker_registry_password: Annotated[
        str, Help("That user's password or token.", secret=True, live=True)
    ] = ""
    credential_hours: Annotated[
        float,
        Help(
            "Hours that credentials last at most which the server makes for a task; those for one"
            " without a time limit do, and all on Azure Batch, where tasks wait for a node with"
            " them. At most 168. A task that takes longer cannot write its outputs.",
            live=True,
        ),
    ] = 168
    s3_endpoint_url: Annotated[
        str, Help("URL of an S3 service other than AWS, which s3:// URLs then mean.", live=True)
    ] = ""
    s3_region: Annotated[str, Help("Region that S3 requests are signed for.", live=True)] = (
        "us-east-1"
    )
    s3_access_key_id: Annotated[str, Help("Access key of the S3 service.", live=True)] = ""
    s3_secret_access_key: Annotated[str, Help("Its secret.", secret=True, live=True)] = ""
    s3_session_token: Annotated[
        str, Help("Session token, where the access key is a temporary one.", secret=True, live=True)
    ] = ""
    gcs_endpoint_url: Annotated[
        str, Help("URL of a Google Cloud Storage service other than Google's own.", live=True)
    ] = ""
    gcs_credentials_file: Annotated[
        str, Help("JSON file with the key of a Google service account, for gs:// URLs.", live=True)
    ] = ""
    drs_tokens: Annotated[
        tuple[str, ...],
        Help(
            "Bearer tokens for DRS servers: host=token, host:port=token, …", secret=True, live=True
        ),
    ] = ()
    sftp_known_hosts: Annotated[
        str,
        Help(
            "OpenSSH known_hosts file with the keys of the servers that sftp:// may reach.",
            live=True,
        ),
    ] = ""
    sftp_key_file: Annotated[
        str,
        Help(
            "Private key file for sftp:// URLs without a password; it has no passphrase.", live=True
        ),
    ] = ""
    ca_bundle: Annotated[
        str,
        Help(
            "PEM file of the authorities that TLS connections to Azure, to who issues tokens and to"
            " storage trust; empty: the system's."
        ),
    ] = ""
    input_cache_gb: Annotated[
        float,
        Help("Size of each node's cache of inputs that several tasks read; 0: there is none."),
    ] = 0
    secrets_key: Annotated[
        str,
        Help(
            "Key, 32 bytes in base64, that seals the signatures and passwords of submitted URLs in"
            " the database; the same for all servers on one database. Empty: secrets.key in the"
            " data directory. Keys that it replaces may follow it, after commas.",
            secret=True,
        ),
    ] = ""
    default_cpu_cores: Annotated[float, Help("Cores reserved for a task that names none.")] = 1
    default_ram_gb: Annotated[float, Help("Memory reserved for a task that names none.")] = 0.5
    default_disk_gb: Annotated[float, Help("Disk reserved for a task that names none.")] = 0.1
    max_runtime_s: Annotated[
        float,
        Help(
            "Time limit of an attempt, from its first input to the end of its last executor, unless"
            " backend_parameters has max_runtime_s; 0: none. Outputs are written beyond it."
        ),
    ] = 0
    max_retries: Annotated[
        int, Help("Further attempts after a failure of the backend, never of the task's command.")
    ] = 2
    retry_delay_s: Annotated[float, Help("Seconds before another attempt.")] = 1
    backfill_s: Annotated[
        float,
        Help("Seconds for which smaller tasks may overtake the oldest one that does not fit yet."),
    ] = 30
    provision_token: Annotated[
        str,
        Help(
            "Where nobody signs in: what the header X-Provision-Token must hold for provisioning to"
            " be asked for from another machine. At least 16 characters; empty: nobody may from"
            " there.",
            secret=True,
        ),
    ] = ""
    budgets: Annotated[
        tuple[str, ...],
        Help(
            "What tasks may cost, as estimated, in US dollars: all=5000/month, owner=50/month,"
            " tag:project=1000, tag:project:covid=200/day, … Each owner, or value of the tag, has"
            " the amount, unless one is named; with /day or /month (UTC) anew.",
            live=True,
        ),
    ] = ()
    budget_action: Annotated[
        Literal["queue", "refuse"],
        Help(
            "What becomes of tasks whose budget is spent: they wait; or submissions are refused"
            " (403), and only those that were accepted before wait.",
            live=True,
        ),
    ] = "queue"
    scheduler: Annotated[
        bool, Help("Whether this process places and watches tasks; false: it only answers HTTP.")
    ] = True
    lease_s: Annotated[
        float, Help("Seconds after which another server takes over a silent server's tasks.")
    ] = 30
    log_tail_bytes: Annotated[
        int, Help("How much of an executor's stdout and stderr a FULL view shows.")
    ] = 65536
    work_retention_hours: Annotated[
        float,
        Help("Hours that finished tasks' work files and streams are kept; 0: for ever.", live=True),
    ] = 24
    task_retention_days: Annotated[
        float, Help("Days that finished tasks' records are kept; 0: for ever.", live=True)
    ] = 0
    max_body_bytes: Annotated[int, Help("Largest request body.")] = 16 * 2**20
    request_timeout_s: Annotated[
        float, Help("Seconds that a client may take to send its request.")
    ] = 30
    max_connections: Annotated[int, Help("Connections served at once; more are refused.")] = 4096
    cors_origins: Annotated[
        tuple[str, ...], Help("Origins that browsers may call the API from; * for all.")
    ] = ()
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Help("What to log.", live=True)
    ] = "info"
    applicationinsights_connection_string: Annotated[
        str,
        Help(
            "Application Insights resource that traces and metrics are sent to, as the portal shows"
            " it: InstrumentationKey=…;IngestionEndpoint=https://…. Empty: they are not.",
            secret=True,
        ),
    ] = ""
    appinsights_instrumentationkey: Annotated[
        str,
        Help(
            "The key alone, as in 2019: sends to Microsoft's global endpoint. Not used with"
            " APPLICATIONINSIGHTS_CONNECTION_STRING.",
            secret=True,
        ),
    ] = ""
    otlp_endpoint: Annotated[
        str,
        Help(
            "URL that traces and metrics are sent to by OTLP over HTTP (protobuf, not gRPC), such"
            " as http://collector:4318; /v1/traces and /v1/metrics are added. Empty: they are not."
        ),
    ] = ""
    otlp_headers: Annotated[
        tuple[str, ...],
        Help("Headers to send there: name=value, …; special characters as %XX.", secret=True),
    ] = ()
    trace_ratio: Annotated[
        float,
        Help(
            "Share of traces that are sent, from 0 to 1; of those that a client began, all that it"
            " marked as sampled."
        ),
    ] = 1
    metrics_export_s: Annotated[float, Help("Seconds between two sendings of metrics.")] = 60
    service_id: Annotated[str, Help("service-info: id, in reverse domain notation.")] = (
        "org.tesazure.local"
    )
    service_name: Annotated[str, Help("service-info: name.")] = "tesazure"
    service_description: Annotated[str, Help("service-info: description.")] = (
        "A GA4GH Task Execution Service"
    )
    organization_name: Annotated[str, Help("service-info: name of who runs it.")] = "tesazure"
    organization_url: Annotated[str, Help("service-info: web site of who runs it.")] = (
        "https://github.com/tesazure/tesazure"
    )
    contact_url: Annotated[str, Help("service-info: where to ask, a URL or mailto:.")] = ""
    environment: Annotated[str, Help("service-info: production, test, …")] = "production"

    def __repr__(self) -> str:
        return "Settings(…)"


FIELDS: dict[str, Any] = get_type_hints(Settings, include_extras=True)
"""Setting name (lower case) -> its annotated type."""

ALIASES = {
    "docker_host": "DOCKER_HOST",
    "podman_host": "CONTAINER_HOST",
    "applicationinsights_connection_string": "APPLICATIONINSIGHTS_CONNECTION_STRING",
    "appinsights_instrumentationkey": "APPINSIGHTS_INSTRUMENTATIONKEY",
    "otlp_endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT",
    "otlp_headers": "OTEL_EXPORTER_OTLP_HEADERS",
}
"""Setting name -> a variable of other programs that is read as well; `APP_` ones win."""


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line needs to reach a server; variables begin with `TESAZURE_`."""

    server: Annotated[
        str, Help("URL of the server, with or without /ga4gh/tes/v1; also --server.")
    ] = "http://127.0.0.1:8000"
    token: Annotated[
        str, Help("Bearer token sent with every request; also --token.", secret=True)
    ] = ""
    provision_token: Annotated[
        str,
        Help("`provision`: the server's PROVISION_TOKEN, where nobody signs in.", secret=True),
    ] = ""
    principal_secret: Annotated[
        str, Help("`provision`: the service principal's secret; else it is asked for.", secret=True)
    ] = ""

    def __repr__(self) -> str:
        return f"Client({self.server})"


CLIENT_PREFIX = "TESAZURE_"
CLIENT_FIELDS: dict[str, Any] = get_type_hints(Client, include_extras=True)


def help_of(name: str) -> Help:
    """The help of a setting."""
    found: Help = FIELDS[name].__metadata__[0]
    return found
