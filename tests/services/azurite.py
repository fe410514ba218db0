"""Azurite, Microsoft's emulator of Azure Storage: its Blob service, over HTTP and over HTTPS."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import http.client
import re
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tesazure.access import Endpoints
from tests.services import base, certificates, npm

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient

ACCOUNT = "tesazuretest"
KEY = base64.b64encode(hashlib.sha512(b"a key for tests").digest()).decode()
_LISTENING = re.compile(r"successfully listens on https?://127\.0\.0\.1:(\d+)")


class Azurite(base.Service):
    """The Blob service of one account, addressed by path. Azurite checks signatures, their times
    and permissions; shared key and SAS."""

    name = "azurite"
    account = ACCOUNT
    key = KEY
    logs_requests = False
    """Whether `log` has a line for each request."""

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.root / "azurite.log"

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1."""
        found = _LISTENING.search(self.log.read_text())
        if found is None:
            raise base.StartFailed("Azurite does not listen yet")
        return int(found[1])

    @property
    def endpoint(self) -> str:
        """URL of the account's Blob service."""
        return f"http://127.0.0.1:{self.port}/{self.account}"

    @property
    def endpoints(self) -> Endpoints:
        """The settings with which the product finds it."""
        return Endpoints(blob=self.endpoint)

    def start(self) -> None:
        """Install if need be (20 s, once), and start (2 s)."""
        node = base.require_program("node", "nodejs")
        package = npm.installed("azurite") / "node_modules" / "azurite"
        program = package / "dist" / "src" / "blob" / "main.js"
        data = self.root / "data"
        data.mkdir(parents=True)
        options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--location", str(data)]
        # The SDKs are newer than any Azurite.
        options += ["--skipApiVersionCheck", "--disableTelemetry"]
        options += [] if self.logs_requests else ["--silent"]
        base.spawn(
            [node, program, *options, *self._more_options()],
            self.log,
            {"AZURITE_ACCOUNTS": f"{self.account}:{self.key}"},
        )
        base.wait_until(self._answers, "Azurite", self.log)

    def stop(self) -> None:
        """End it and delete its data."""
        base.end_processes_naming(self.root)
        base.remove_tree(self.root)

    def client(self) -> BlobServiceClient:
        """Microsoft's SDK with the account's key, to plant and look with."""
        from azure.storage.blob import BlobServiceClient

        credential = {"account_name": ACCOUNT, "account_key": KEY}
        trusted = self.endpoints.ca_bundle or True
        return BlobServiceClient(self.endpoint, credential, connection_verify=trusted)

    @contextlib.contextmanager
    def container(self, **options: Any) -> Iterator[str]:
        """The name of a new container, deleted at the end; `options` are the SDK's."""
        name = f"c-{uuid.uuid4().hex}"
        with self.client() as client:
            client.create_container(name, **options)
            yield name
            client.delete_container(name)

    def container_sas(self, container: str, permission: str = "rcwdl", minutes: int = 60) -> str:
        """A SAS for all blobs of a container; `minutes` from now, negative for an expired one."""
        from azure.storage.blob import generate_container_sas

        return generate_container_sas(
            ACCOUNT, container, KEY, permission=permission, **_times(minutes)
        )

    def blob_sas(self, container: str, blob: str, permission: str = "r", minutes: int = 60) -> str:
        """A SAS for one blob."""
        from azure.storage.blob import generate_blob_sas

        return generate_blob_sas(
            ACCOUNT, container, blob, account_key=KEY, permission=permission, **_times(minutes)
        )

    def _more_options(self) -> list[str]:
        return []

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)

    def _answers(self) -> bool:
        if not _LISTENING.search(self.log.read_text()):
            return False
        with contextlib.closing(self._connection()) as connection:
            try:
                connection.request("GET", f"/{self.account}?comp=list")
                connection.getresponse()
            except OSError:
                return False
        return True


class AzuriteTls(Azurite):
    """The same over HTTPS, which OAuth needs. It looks into bearer tokens (issuer, audience, times)
    but verifies no signature of theirs."""

    name = "azurite-tls"

    @property
    def ca(self) -> Path:
        """The authority that its certificate is from, PEM."""
        return self.root / "ca.pem"

    @property
    def endpoint(self) -> str:
        """URL of the account's Blob service."""
        return f"https://127.0.0.1:{self.port}/{self.account}"

    @property
    def endpoints(self) -> Endpoints:
        """The settings with which the product finds and trusts it."""
        return Endpoints(blob=self.endpoint, ca_bundle=str(self.ca))

    def _more_options(self) -> list[str]:
        made = certificates.make(self.root, "127.0.0.1", "localhost")
        return ["--oauth", "basic", "--cert", str(made.certificate), "--key", str(made.key)]

    def _connection(self) -> http.client.HTTPConnection:
        context = ssl.create_default_context(cafile=str(self.ca))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=context)


def _times(minutes: int) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC)
    return {
        "start": now - dt.timedelta(days=1),
        "expiry": now + dt.timedelta(minutes=minutes),
    }
