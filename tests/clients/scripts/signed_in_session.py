"""What a user of py-tes or pydantic-tes does who signs in; runs in that client's own venv.

    python signed_in_session.py py-tes|pydantic-tes < JSON

The JSON has `url`, and `sign_in`: arguments of the client. Prints as JSON what the client saw.
"""

import json
import sys
import time


class PyTes:
    """py-tes, both lines of it."""

    def __init__(self, url, sign_in):
        import tes

        self.tes = tes
        self.client = tes.HTTPClient(url, timeout=10, **sign_in)

    def create(self):
        executors = [self.tes.Executor(image="any", command=["echo", "signed in"])]
        return self.client.create_task(self.tes.Task(executors=executors))

    def get(self, task_id):
        task = self.client.get_task(task_id, view="FULL")
        return task.state, task.logs and task.logs[-1].logs and task.logs[-1].logs[0].stdout

    def listed(self):
        return [task.id for task in self.client.list_tasks().tasks]

    def cancel(self, task_id):
        self.client.cancel_task(task_id)


class PydanticTes:
    """pydantic-tes, of Galaxy and Pulsar."""

    def __init__(self, url, sign_in):
        from pydantictes.api import TesClient

        self.client = TesClient(url, **sign_in)

    def create(self):
        from pydantictes.models import TesExecutor, TesTask

        executors = [TesExecutor(image="any", command=["echo", "signed in"])]
        return self.client.create_task(TesTask(executors=executors)).id

    def get(self, task_id):
        task = self.client.get_task(task_id, "FULL")
        return task.state.value, task.logs and task.logs[-1].logs and task.logs[-1].logs[0].stdout

    def listed(self):
        return [task.id for task in self.client.list_tasks().tasks]

    def cancel(self, task_id):
        self.client.cancel_task(task_id)


def main(name, given):
    """Create a task, wait for it, list, cancel; or tell what the server said instead."""
    kind = {"py-tes": PyTes, "pydantic-tes": PydanticTes}[name]
    client = kind(given["url"], given["sign_in"])
    try:
        task_id = client.create()
    except Exception as error:
        return {"refused": f"{error!r} {error.__cause__!r}"}
    deadline = time.monotonic() + 60
    state, stdout = client.get(task_id)
    while state not in ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR"):
        if time.monotonic() > deadline:
            raise SystemExit(f"task {task_id} is {state} after a minute")
        time.sleep(0.05)
        state, stdout = client.get(task_id)
    client.cancel(task_id)
    return {"id": task_id, "state": state, "stdout": stdout, "listed": client.listed()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.load(sys.stdin))))
