"""What a user of py-tes does, written against its documentation; runs in py-tes' own venv.

    python py_tes_session.py URL IMAGE DIRECTORY

Prints what the client saw as JSON. Works with py-tes 0.4 and 1.x.
"""

import json
import sys
import time

import tes

TERMINAL = ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED", "PREEMPTED")


def count_task(image, directory):
    """Two executors that share a volume; one input inline, one from a file."""
    return tes.Task(
        name="py-tes count",
        description="sums and counts",
        inputs=[
            tes.Input(path="/data/in/greeting.txt", type="FILE", content="hello tes\n"),
            tes.Input(path="/data/in/reads.fq", url="file://" + directory + "/reads.fq"),
        ],
        outputs=[
            tes.Output(path="/data/out/sums", url="file://" + directory + "/out/sums"),
            tes.Output(path="/data/out/lines", url=directory + "/out/lines", type="FILE"),
            tes.Output(
                path="/data/more", url="file://" + directory + "/out/more", type="DIRECTORY"
            ),
        ],
        resources=tes.Resources(cpu_cores=1, ram_gb=0.25, disk_gb=0.5, preemptible=False),
        executors=[
            tes.Executor(
                image=image,
                command=["sh", "-c", 'md5sum *; echo "$LABEL" >&2; cp reads.fq /scratch/kept'],
                workdir="/data/in",
                env={"LABEL": "läbel with $HOME and 'quotes'"},
                stdout="/data/out/sums",
            ),
            tes.Executor(
                image=image,
                command=["sh", "-c", "wc -l; mkdir /data/more/deep; echo x > /data/more/deep/f"],
                stdin="/scratch/kept",
                stdout="/data/out/lines",
                stderr="/data/out/errors",
            ),
        ],
        volumes=["/scratch"],
        tags={"project": "lambda", "empty": ""},
    )


def plain_task(image, name, *command):
    """One executor, nothing else."""
    executors = [tes.Executor(image=image, command=list(command))]
    return tes.Task(name=name, executors=executors)


def watch(client, task_id, until):
    """The states seen until one of `until`, each once, in order."""
    seen = []
    deadline = time.monotonic() + 60
    while not seen or seen[-1] not in until:
        if time.monotonic() > deadline:
            raise SystemExit(f"task {task_id}: {seen}, and then nothing for a minute")
        state = client.get_task(task_id, view="MINIMAL").state
        if seen[-1:] != [state]:
            seen.append(state)
        time.sleep(0.05)
    return seen


def pages(client, size):
    """Ids of the tasks on each page of a list."""
    found, token = [], None
    while True:
        page = client.list_tasks(view="MINIMAL", page_size=size, page_token=token)
        found.append([task.id for task in page.tasks])
        token = page.next_page_token
        if not token:
            return found


def main(url, image, directory):
    """One session: service info, a task and its views, a failure, a cancel, a list."""
    client = tes.HTTPClient(url, timeout=10, token="not-checked")
    seen = {"service_info": client.get_service_info().as_dict()}

    count = client.create_task(count_task(image, directory))
    seen["count"] = {"id": count, "states": watch(client, count, TERMINAL)}
    for view in ("MINIMAL", "BASIC", "FULL"):
        seen["count"][view] = client.get_task(count, view=view).as_dict()
    seen["count"]["waited"] = client.wait(count, timeout=5).state

    failing = client.create_task(plain_task(image, "fails", "sh", "-c", "echo why >&2; exit 3"))
    seen["fails"] = {"id": failing, "states": watch(client, failing, TERMINAL)}
    seen["fails"]["FULL"] = client.get_task(failing, view="FULL").as_dict()

    sleeping = client.create_task(plain_task(image, "sleeps", "sleep", "600"))
    watch(client, sleeping, ("RUNNING", *TERMINAL))
    client.cancel_task(sleeping)
    seen["sleeps"] = {"id": sleeping, "states": watch(client, sleeping, TERMINAL)}
    client.cancel_task(sleeping)

    trivial = [client.create_task(plain_task(image, f"t{i}", "true")) for i in range(5)]
    seen["trivial"] = trivial
    seen["pages"] = pages(client, 3)
    for task_id in trivial:
        watch(client, task_id, TERMINAL)

    try:
        client.get_task("no-such-task")
    except Exception as error:
        seen["unknown"] = error.response.status_code
    try:
        client.create_task(plain_task(image, "refused"))
    except Exception as error:
        seen["refused"] = [error.response.status_code, error.response.json()]
    print(json.dumps(seen, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
