"""A PostgreSQL server that takes tokens of Entra ID for passwords, over TLS, as Azure's does.

The real PostgreSQL; who may come in it asks a stand-in that verifies signature, audience and times
of each token. Source: "Microsoft Entra authentication with Azure Database for PostgreSQL".
"""

from __future__ import annotations

import shutil
from pathlib import Path

import jwt

from tests.services import base, certificates
from tests.services.entra_server import EntraServer
from tests.services.ldap_door import LdapDoor
from tests.services.postgresql import PostgreSQL, program

RESOURCE = "https://ossrdbms-aad.database.windows.net"
"""What tokens for it are for."""
ROLE = "tesazure-api"


class EntraPostgreSQL(PostgreSQL):
    """`ROLE` may sign in from this machine, over TLS, with a token.

    `verdicts` has the outcome of each attempt: ok, or why not.
    """

    def __init__(self, root: Path, entra: EntraServer) -> None:
        super().__init__(root)
        self._entra = entra
        self._door = LdapDoor(self._is_good)
        self.verdicts: list[str] = []

    @property
    def ca_bundle(self) -> Path:
        """PEM file of the authority that it shows itself by."""
        return self.root / "tls" / "ca.pem"

    def create_database_of_role(self) -> str:
        """URL of a new, empty database that `ROLE` owns, with its name and no password."""
        made = self.create_database()
        self.execute(f'ALTER DATABASE "{made.rpartition("/")[2]}" OWNER TO "{ROLE}"')
        return made.replace("//postgres@", f"//{ROLE}@")

    def start(self) -> None:
        """As PostgreSQL, and then with TLS and tokens."""
        super().start()
        self._door.__enter__()
        made = certificates.make(_directory(self.root / "tls"), "127.0.0.1")
        for file in (made.certificate, made.key):
            if self.user is not None:
                shutil.chown(file, self.user)
        self.execute(f'CREATE ROLE "{ROLE}" LOGIN')
        for name, value in {
            "ssl": "on",
            "ssl_cert_file": made.certificate,
            "ssl_key_file": made.key,
        }.items():
            self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        door = f'ldap ldapserver=127.0.0.1 ldapport={self._door.port} ldapprefix="cn="'
        (self.data / "pg_hba.conf").write_text(
            f'hostssl all "{ROLE}" 127.0.0.1/32 {door}\n'
            f'hostnossl all "{ROLE}" 127.0.0.1/32 reject\n'
            "host all postgres 127.0.0.1/32 trust\n"
        )
        base.run([program("pg_ctl"), "--pgdata", self.data, "reload"], user=self.user)

    def stop(self) -> None:
        """As PostgreSQL."""
        super().stop()
        self._door.__exit__()

    def _is_good(self, name: str, password: str) -> bool:
        try:
            self._entra.verify(password, RESOURCE)
        except jwt.PyJWTError as error:
            self.verdicts.append(str(error))
            return False
        self.verdicts.append("ok")
        return name == f"cn={ROLE}"


def _directory(path: Path) -> Path:
    path.mkdir(mode=0o755, exist_ok=True)
    return path
