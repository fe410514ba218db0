"""Galaxy's tasks, which Pulsar sends. Source: galaxyproject/pulsar from 0.15 to 0.16, client/tes.py
and client/coexecution.py (before: client/client.py).

A task is named `pulsar-{instance}-{job}`. Its first executor is `pulsar-submit` with `--base64` and
`--app_conf_base64`, on a volume `/pulsar_staging/`; where the tool has a container, two more
follow: `sh -c` and `pulsar-finish`.

Nothing in clear says of which workflow or tool the job is; what comes in base64 holds keys.
"""

from __future__ import annotations

from tesazure.model import Task
from tesazure.submitters.submitter import Submitter

_GALAXY = Submitter("galaxy")


def submitter(task: Task) -> Submitter | None:
    """What Galaxy's task tells; None of a task that is not Galaxy's."""
    first, *others = task.executors
    if first.command[0] != "pulsar-submit" or task.volumes != ["/pulsar_staging/"]:
        return None
    if not {"--base64", "--app_conf_base64"} <= {*first.command}:
        return None
    if not (task.name or "").startswith("pulsar-"):
        return None
    if others and not (
        len(others) == 2
        and others[0].command[:2] == ["sh", "-c"]
        and others[1].command[0] == "pulsar-finish"
    ):
        return None
    return _GALAXY
