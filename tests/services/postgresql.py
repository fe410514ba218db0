"""A PostgreSQL server for tests: a cluster in a directory, a fresh database for each test."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import uuid
from pathlib import Path

from tests.services import base


class PostgreSQL(base.Service):
    """A cluster on a loopback port, fsync on, no passwords."""

    name = "postgresql"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.data = root / "data"
        # The server refuses to run as root.
        self.user = "postgres" if os.geteuid() == 0 else None

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1."""
        return int((self.root / "port").read_text())

    def start(self) -> None:
        """initdb and start (about 3 s)."""
        pg_ctl = program("pg_ctl")
        self.root.mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            require_user(self.user)
            shutil.chown(self.root, self.user)
        port = base.free_port()
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k '' -c max_connections=300"
        log = self.root / "postgresql.log"
        self._make_data()
        base.run(
            [pg_ctl, "--pgdata", self.data, "--log", log, "--options", options, "--wait", "start"],
            user=self.user,
        )
        (self.root / "port").write_text(str(port))

    def _make_data(self) -> None:
        base.run(
            [
                *(program("initdb"), "--pgdata", self.data, "--username=postgres", "--auth=trust"),
                *("--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            user=self.user,
        )

    def stop(self) -> None:
        """Stop at once and delete the cluster."""
        if not self.root.exists():
            return
        with contextlib.suppress(base.Unavailable, base.StartFailed):
            command = [program("pg_ctl"), "--pgdata", self.data, "--mode=immediate", "stop"]
            base.run(command, user=self.user)
        base.end_processes_naming(self.root)
        base.remove_tree(self.root)

    def restart(self, *, mode: str = "immediate") -> None:
        """Stop and start on the same port; `immediate` is as good as a crash."""
        command = [program("pg_ctl"), "--pgdata", self.data, f"--mode={mode}", "--wait", "restart"]
        base.run([*command, "--log", self.root / "postgresql.log"], user=self.user)

    def create_database(self) -> str:
        """URL of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Delete a database that `create_database` made, with whoever is connected to it."""
        name = url.rpartition("/")[2]
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def url(self, database: str = "postgres") -> str:
        """URL of a database of this cluster."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        """Run one statement outside a transaction, as the superuser."""
        import psycopg
        from psycopg.sql import SQL

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(SQL(statement))


class Standby(PostgreSQL):
    """A hot standby of another cluster: it can be read, and written once it was promoted."""

    name = "postgresql-standby"

    def __init__(self, root: Path, primary: PostgreSQL) -> None:
        super().__init__(root)
        self._primary = primary

    def _make_data(self) -> None:
        base.run(
            [
                *(program("pg_basebackup"), "--pgdata", self.data, "--checkpoint=fast"),
                *("--no-sync", "--write-recovery-conf", "--dbname", self._primary.url()),
            ],
            user=self.user,
        )

    def promote(self) -> None:
        """Make it a primary, whatever the former one does."""
        command = [program("pg_ctl"), "--pgdata", self.data, "--wait", "promote"]
        base.run(command, user=self.user)


def program(name: str) -> Path:
    """A PostgreSQL server program, of the newest version installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"),
        key=lambda path: int(path.parts[-3]),
    )
    if found:
        return found[-1]
    return Path(base.require_program(name, "postgresql"))


def require_user(name: str) -> None:
    """Raises Unavailable unless the system user exists."""
    try:
        pwd.getpwnam(name)
    except KeyError as error:
        raise base.Unavailable(f"there is no system user {name!r} to run PostgreSQL as") from error
