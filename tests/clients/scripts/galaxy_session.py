"""What Galaxy and Pulsar do through pydantic-tes; runs in pydantic-tes' own venv.

    python galaxy_session.py URL IMAGE DIRECTORY

Prints what the client saw as JSON.
"""

import json
import sys
import time

from pydantictes.api import TesClient
from pydantictes.models import TesExecutor, TesInput, TesOutput, TesResources, TesTask

TERMINAL = ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED")


def pulsar_task(image, directory):
    """A staging container, then the tool, then another staging container, as Pulsar makes them."""

    def step(script, **more):
        return TesExecutor(image=image, command=["sh", "-c", script], workdir="/tmp/job", **more)

    return TesTask(
        name="galaxy job",
        inputs=[TesInput(path="/tmp/job/tool.sh", type="FILE", content="wc -c < in.txt > out.txt")],
        outputs=[
            TesOutput(url=f"file://{directory}/out.txt", path="/tmp/job/out.txt", type="FILE")
        ],
        executors=[
            step("echo staged by pulsar > in.txt"),
            step("sh tool.sh", env={"GALAXY_SLOTS": "1"}),
            step("test -s out.txt && echo collected", stdout="/tmp/job/collected"),
        ],
        resources=TesResources(cpu_cores=1, ram_gb=0.25, disk_gb=0.1),
        volumes=["/tmp/job"],
        tags={"galaxy_job": "42"},
    )


def watch(client, task):
    """The states seen until the task has ended, each once, in order.

    In FULL views, as pydantic-tes cannot read the MINIMAL view of one task.
    """
    seen = []
    deadline = time.monotonic() + 60
    while not seen or seen[-1] not in TERMINAL:
        if time.monotonic() > deadline:
            raise SystemExit(f"task {task.id}: {seen}, and then nothing for a minute")
        state = client.get_task(task, "FULL").state.value
        if seen[-1:] != [state]:
            seen.append(state)
        time.sleep(0.05)
    return seen


def main(url, image, directory):
    """One session: service info, a task, a cancel, a list."""
    client = TesClient(url)
    seen = {"service_info": client.service_info().model_dump(mode="json")}

    task = client.create_task(pulsar_task(image, directory))
    seen["job"] = {"id": task.id, "states": watch(client, task)}
    seen["job"]["FULL"] = client.get_task(task, "FULL").model_dump(mode="json")

    sleep = TesTask(executors=[TesExecutor(image=image, command=["sleep", "600"])])
    sleeping = client.create_task(sleep)
    client.cancel_task(sleeping)
    seen["sleeps"] = {"id": sleeping.id, "states": watch(client, sleeping)}

    seen["list"] = [task.id for task in client.list_tasks().tasks]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
