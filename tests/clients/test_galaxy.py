"""pydantic-tes, the client in Galaxy and Pulsar, against a running server.

It knows TES 1.0 alone and refuses the state CANCELING, so it is pointed at the server's root, as in
the `job_conf.yml` of docs/clients.md. Pulsar itself, which needs a message queue, is not run: the
task has the shape of one of its jobs.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import ClientPython, Server
from tests.clients.documented import snippet

SCRIPT = Path(__file__).parent / "scripts" / "galaxy_session.py"


@pytest.mark.clients
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_galaxy_session(client_python: ClientPython, server: Server) -> None:
    python = client_python("galaxy")
    here = {"http://127.0.0.1:8000": server.url}
    (url,) = re.findall(r"tes_url: (.*)", snippet("Galaxy and Pulsar", "tes_url", here))
    done = subprocess.run(
        [python, SCRIPT, url, server.image, server.allowed],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr + server.account()
    seen = json.loads(done.stdout)
    assert seen["service_info"]["type"]["version"] == "1.0.0"
    assert seen["job"]["states"][-1] == "COMPLETE"
    assert (server.allowed / "out.txt").read_text().split() == [str(len("staged by pulsar\n"))]
    full = seen["job"]["FULL"]
    assert full["tags"] == {"galaxy_job": "42"}
    assert [entry["size_bytes"] for entry in full["logs"][0]["outputs"]] == ["3"]
    assert seen["sleeps"]["states"][-1] == "CANCELED"
    assert seen["list"] == [seen["sleeps"]["id"], seen["job"]["id"]]
