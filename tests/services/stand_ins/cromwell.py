"""In place of Cromwell's image: a server that runs one workflow of its own, whatever is submitted.

It reads what Cromwell's image would be told (the argument `server`, JAVA_OPTS, the configuration
there) and answers as Cromwell's REST API: POST /api/workflows/v1 of a form with a workflow, GET
…/{id}/status and …/outputs.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.clients.cromwell.double import Call, Configuration, Workflow
from tests.clients.cromwell.places import OnDisk


def configuration() -> Configuration:
    """As the file says that JAVA_OPTS names; its own lines win over those that it includes."""
    [path] = re.findall(r"-Dconfig\.file=(\S+)", os.environ["JAVA_OPTS"])
    text = Path(path).read_text()
    [included] = re.findall(r'include required\(file\("(.+)"\)\)', text)
    found = dict(re.findall(r'^ *(\w+) = "(.*)"$', Path(included).read_text(), re.MULTILINE))
    for name, value in re.findall(r"^backend\.providers\.TES\.config\.(\w+) = (.*)$", text, re.M):
        replaced = re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], value)
        found[name] = replaced.replace('"', "")
    return Configuration(found["endpoint"], found["root"], found["dockerRoot"])


class Runs:
    """The workflows, by id: status and outputs."""

    def __init__(self) -> None:
        self.configuration = configuration()
        self.status: dict[str, str] = {}
        self.outputs: dict[str, dict[str, str]] = {}

    def start(self) -> str:
        """Begin another one; its id."""
        client = httpx.Client(timeout=60)
        place = OnDisk(Path("/"), "/")
        workflow = Workflow(client, place, self.configuration, 92, name="hello")
        self.status[workflow.id] = "Running"
        threading.Thread(target=self._run, args=(workflow,), daemon=True).start()
        return workflow.id

    def _run(self, workflow: Workflow) -> None:
        try:
            self.outputs[workflow.id] = {"hello.all": hello(workflow)}
            self.status[workflow.id] = "Succeeded"
        except BaseException:
            self.status[workflow.id] = "Failed"
            raise


def hello(workflow: Workflow) -> str:
    """Scatter, and gather with a table that Cromwell writes; the path of what that gives."""
    words = [
        workflow.run(Call("say", f"echo hello {word} > said", outputs=("said",), shard=number))
        for number, word in enumerate(("one", "two"))
    ]
    said = [each.outputs["said"] for each in words]
    command = "cat {said} {created} > all"
    joined = workflow.run(Call("join", command, {"said": said}, ("all",), table="of a table\n"))
    return joined.outputs["all"]


class Handler(BaseHTTPRequestHandler):
    """Cromwell's paths."""

    runs: Runs

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        form = self.headers.get("Content-Type", "").startswith("multipart/form-data")
        if self.path != "/api/workflows/v1":
            self.reply({"status": "error"}, 404)
        elif not form or b'name="workflowSource"' not in body or b"\nworkflow " not in body:
            self.reply({"status": "fail", "message": "no workflow"}, 400)
        else:
            self.reply({"id": self.runs.start(), "status": "Submitted"}, 201)

    def do_GET(self) -> None:
        *_, workflow, what = self.path.split("/")
        if what == "version":
            self.reply({"cromwell": "stand-in"})
        elif what == "status":
            self.reply({"id": workflow, "status": self.runs.status[workflow]})
        else:
            self.reply({"id": workflow, "outputs": self.runs.outputs[workflow]})

    def reply(self, document: object, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    assert sys.argv[1:] == ["server"], sys.argv
    Handler.runs = Runs()
    ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
