"""Settings: one validated object. Declared once, read from six sources, checked together."""

from tesazure.settings.clouds import (
    CLOUDS,
    batch_scope_of,
    batch_url_of,
    database_scope_of,
    identity_of,
    vault_url_of,
)
from tesazure.settings.declarations import (
    ALIASES,
    CLIENT_FIELDS,
    CLIENT_PREFIX,
    FIELDS,
    LONGEST_RUNTIME_S,
    PREFIX,
    Client,
    Settings,
    help_of,
)
from tesazure.settings.help import Help
from tesazure.settings.loading import Effective, Sources, load, shown
from tesazure.settings.sources import (
    Source,
    convert,
    load_client,
    passed_on,
    quieten_azure_monitor,
    state_dir,
)
from tesazure.settings.telemetry_checks import connection_string_of

__all__ = [
    "ALIASES",
    "CLIENT_FIELDS",
    "CLIENT_PREFIX",
    "CLOUDS",
    "FIELDS",
    "LONGEST_RUNTIME_S",
    "PREFIX",
    "Client",
    "Effective",
    "Help",
    "Settings",
    "Source",
    "Sources",
    "batch_scope_of",
    "batch_url_of",
    "connection_string_of",
    "convert",
    "database_scope_of",
    "help_of",
    "identity_of",
    "load",
    "load_client",
    "passed_on",
    "quieten_azure_monitor",
    "shown",
    "state_dir",
    "vault_url_of",
]
