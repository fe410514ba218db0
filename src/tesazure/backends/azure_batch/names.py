"""What things of an installation are called in a Batch account and its storage. Pure.

All that an attempt leaves there is found again from its key: the names are made of the installation
(which keeps two servers with different databases on one account apart) and the key.
"""

from __future__ import annotations

import hashlib

ATTEMPTS = "attempts"
REPORTS = "reports"
STREAMS = "streams"


def installation_of(identity: str) -> str:
    """Eight characters for the store's identity, as part of names: lower-case letters, digits."""
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def scope_of(account: str, installation: str) -> str:
    """The scope of an installation's attempts in a Batch account."""
    return f"batch/{account}/{installation}"


def account_of(scope: str) -> str:
    """The Batch account of such a scope; empty if it is another backend's."""
    backend, _, rest = scope.partition("/")
    return rest.partition("/")[0] if backend == "batch" else ""


def prefix(installation: str) -> str:
    """What the ids of this installation's pools and jobs begin with."""
    return f"tesazure-{installation}-"


def attempt_blob(installation: str, key: str) -> str:
    """What a node is given: plan, configuration, access. After `release`: an empty tombstone."""
    return f"{installation}/{ATTEMPTS}/{key}"


def report_blob(installation: str, key: str) -> str:
    """The runner's report, an append blob, from its beginning until `release`."""
    return f"{installation}/{REPORTS}/{key}"


def stream_blob(installation: str, key: str, executor: int, stream: str) -> str:
    """An executor's whole stdout or stderr, an append blob, until `discard`."""
    return f"{installation}/{STREAMS}/{key}/{executor}.{stream}"
