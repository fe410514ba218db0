"""One instance of each service for a whole test run, shared by the run's worker processes.

The process that pytest was started in makes a directory and names it in an environment variable
which its workers inherit. Whoever needs a service first starts it there, under a lock; the first
process stops them all at its end, and sweeps up after runs that were killed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import TypeVar

from tests.services import base
from tests.services.azurite import Azurite, AzuriteTls
from tests.services.docker_engine import DockerEngine
from tests.services.nginx import Nginx
from tests.services.podman_service import PodmanService
from tests.services.postgresql import PostgreSQL
from tests.services.s3_server import S3Server
from tests.services.sftp_server import SftpServer

VARIABLE = "TESAZURE_TEST_SERVICES"
PREFIX = "tesazure-test-"
SHARED: tuple[type[base.Service], ...] = (
    Azurite,
    AzuriteTls,
    DockerEngine,
    Nginx,
    PodmanService,
    PostgreSQL,
    S3Server,
    SftpServer,
)

Shared = TypeVar("Shared", bound=base.Service)


def open_session() -> None:
    """Make this run's directory, unless this process is a worker of a run that has one."""
    if VARIABLE in os.environ:
        return
    temporary = Path(tempfile.gettempdir())
    for left in temporary.glob(f"{PREFIX}*"):
        owner = left.name.removeprefix(PREFIX)
        # Process ids come again: first of all in containers, where they begin anew.
        if owner.isdigit() and (int(owner) == os.getpid() or not base.is_alive(int(owner))):
            stop_all(left)
    directory = temporary / f"{PREFIX}{os.getpid()}"
    directory.mkdir(mode=0o755)
    os.environ[VARIABLE] = str(directory)


def close_session() -> None:
    """Stop everything, if this process opened the session."""
    directory = Path(os.environ.get(VARIABLE, "/nonexistent"))
    if directory.name == f"{PREFIX}{os.getpid()}":
        del os.environ[VARIABLE]
        stop_all(directory)


def stop_all(directory: Path) -> None:
    """Stop the services of a session and remove its directory."""
    for kind in SHARED:
        kind(directory / kind.name).stop()
    base.remove_tree(directory)


def shared(kind: type[Shared]) -> Shared:
    """The run's instance of a service, started by the first who asks.

    Raises Unavailable or StartFailed; later callers get the same refusal without another try.
    """
    directory = Path(os.environ[VARIABLE])
    ready, refused = directory / f"{kind.name}.ready", directory / f"{kind.name}.refused"
    service = kind(directory / kind.name)
    with (directory / f"{kind.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if refused.exists():
            raise base.Unavailable(refused.read_text())
        if not ready.exists():
            try:
                service.start()
            except Exception as error:
                service.stop()
                refused.write_text(str(error))
                raise
            ready.touch()
    return service
