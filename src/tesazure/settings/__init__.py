"""Settings: one validated object. Declared once, read from four sources, checked together."""

from tesazure.settings.declarations import (
    ALIASES,
    CLIENT_FIELDS,
    CLIENT_PREFIX,
    FIELDS,
    LONGEST_RUNTIME_S,
    PREFIX,
    Client,
    Help,
    Settings,
    help_of,
)
from tesazure.settings.sources import Effective, Source, load, load_client, passed_on, shown

__all__ = [
    "ALIASES",
    "CLIENT_FIELDS",
    "CLIENT_PREFIX",
    "FIELDS",
    "LONGEST_RUNTIME_S",
    "PREFIX",
    "Client",
    "Effective",
    "Help",
    "Settings",
    "Source",
    "help_of",
    "load",
    "load_client",
    "passed_on",
    "shown",
]
