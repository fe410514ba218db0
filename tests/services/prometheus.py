"""A real Prometheus on loopback, which scrapes what it is told to once a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from tests.services import base

_open = build_opener(ProxyHandler({})).open


class Prometheus(base.Service):
    """Scrapes `targets` (host:port) under the job `tesazure`."""

    name = "prometheus"

    def __init__(self, root: Path, targets: list[str]) -> None:
        super().__init__(root)
        self._targets = targets

    @property
    def origin(self) -> str:
        """Its URL, without a slash at the end."""
        return f"http://127.0.0.1:{(self.root / 'port').read_text()}"

    def start(self) -> None:
        """Start it (a second or two)."""
        program = base.require_program("prometheus", "prometheus")
        self.root.mkdir(parents=True, exist_ok=True)
        port = base.free_port()
        (self.root / "port").write_text(str(port))
        job = {"job_name": "tesazure", "static_configs": [{"targets": self._targets}]}
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
        file, log = self.root / "prometheus.yml", self.root / "prometheus.log"
        file.write_text(json.dumps(config))  # YAML, too
        options = [
            f"--config.file={file}",
            f"--storage.tsdb.path={self.root / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        base.spawn([program, *options], log)
        base.wait_until(self._answers, "prometheus", log)

    def stop(self) -> None:
        """End it and delete its data."""
        base.end_processes_naming(self.root)
        base.remove_tree(self.root)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query: labels as `metric`, and `value`. Raises URLError for what
        is no PromQL."""
        query = urlencode({"query": expression})
        with _open(f"{self.origin}/api/v1/query?{query}", timeout=30) as reply:
            data = json.load(reply)["data"]
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        return list(data["result"])

    def _answers(self) -> bool:
        try:
            with _open(f"{self.origin}/-/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except (URLError, OSError):
            return False
