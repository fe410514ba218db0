"""An S3 server for tests: Moto's, behind a check of signatures and checksums."""

from __future__ import annotations

import contextlib
import http.client
import json
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from tesazure.access import Endpoints, S3Key
from tests.clients import venvs
from tests.services import base

PROGRAM = Path(venvs.__file__).parent / "scripts" / "s3_signed.py"
KEY = S3Key("AKIDTESAZURETEST", "secret/of+the=tests", "session+token/of=the=tests")


class S3Server(base.Service):
    """One service with one key, addressed by path. See s3_signed.py for its special buckets."""

    name = "s3"
    key = KEY

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1."""
        return int((self.root / "port").read_text())

    @property
    def endpoints(self) -> Endpoints:
        """The settings with which the product finds it."""
        return Endpoints(s3=f"http://127.0.0.1:{self.port}")

    def start(self) -> None:
        """Install if need be (15 s, once), and start (3 s)."""
        python = venvs.python("s3-server")
        self.root.mkdir(parents=True)
        log = self.root / "s3.log"
        (self.root / "key").write_text("\n".join((KEY.key_id, KEY.secret, KEY.session_token)))
        base.spawn([python, PROGRAM, self.root], log)
        base.wait_until((self.root / "port").exists, "the S3 server", log)

    def stop(self) -> None:
        """End it; it keeps nothing on disk."""
        base.end_processes_naming(self.root)
        base.remove_tree(self.root)

    def bucket(self, prefix: str = "b-") -> str:
        """The name of a new bucket."""
        name = f"{prefix}{uuid.uuid4().hex}"
        self.ask("PUT", f"/{name}")
        return name

    def plant(self, bucket: str, key: str, content: bytes, **headers: str) -> None:
        """Make an object; `headers` with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.ask("PUT", f"/{bucket}/{quote(key, safe='')}", content, named)

    def planted(self, bucket: str, key: str) -> bytes | None:
        """What an object holds, None if there is none."""
        status, content, _ = self._exchange("GET", f"/{bucket}/{quote(key, safe='')}")
        return content if status == 200 else None

    def headers_of(self, bucket: str, key: str) -> Mapping[str, str]:
        """An object's headers, names in lower case."""
        return self._exchange("HEAD", f"/{bucket}/{quote(key, safe='')}")[2]

    def uploads(self, bucket: str) -> int:
        """How many uploads in parts have neither been completed nor aborted."""
        listed = ET.fromstring(self.ask("GET", f"/{bucket}?uploads"))
        return len(listed.findall("{*}Upload"))

    def fail(self, bucket: str, failures: Sequence[Sequence[object]]) -> None:
        """Have requests fail, as s3_signed.py says."""
        self.ask("POST", f"/_fail/{bucket}", json.dumps(failures).encode())

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> bytes:
        """The answer to a request of the test's own, which must succeed."""
        status, content, _ = self._exchange(method, path, body, headers)
        assert status < 300, (method, path, status, content)
        return content

    def _exchange(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            # Moto wants to see some key.
            always = {"X-Plant": "yes", "Authorization": "AWS any:"}
            connection.request(method, path, body, {**always, **(headers or {})})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, answer.read(), found
