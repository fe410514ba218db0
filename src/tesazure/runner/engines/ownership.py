"""Gives what containers wrote to this process's user, who may be anyone with access to the engine.

A container writes as root or as its image's user. Where this process is not root itself, it cannot
take such files over; a container can, with programs of the host, so that no image is needed.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import docker
from docker.errors import ImageNotFound

from tesazure.errors import EngineError
from tesazure.runner.engines.base import Mount
from tesazure.runner.engines.docker_client import create, remove
from tesazure.runner.engines.docker_create import bind, container_name, labels

EMPTY_IMAGE = "tesazure/empty:1"
_PROGRAMS = ("/usr", "/bin", "/lib", "/lib64")

# Other executors may run as other users and still have to work on these files: what their owner
# could do, everybody can from now on. The attempt's directory keeps strangers out.
_SCRIPT = (
    'find /tree ! -type l ! -user "$1" -exec chmod u+rwX,o+rwX {} + && '
    'find /tree ! -user "$1" -exec chown --no-dereference "$1:$2" {} +'
)


def take_over(client: docker.APIClient, engine: str, root: Path, key: str) -> None:
    """Make all below `root` this process's, links themselves and not what they point to.

    Does nothing as root, nor where all is ours already. Raises EngineError if it does not work.
    """
    if os.geteuid() == 0 or not has_foreign(root):
        return
    rootless = any("rootless" in option for option in client.info()["SecurityOptions"] or ())
    # In a rootless engine's containers, its own user is root.
    user, group = ("0", "0") if rootless else (str(os.geteuid()), str(os.getegid()))
    body = _body(root, key, user, group)
    name = f"{container_name(key, 0)}-own"
    try:
        container = create(client, engine, body, name)
    except ImageNotFound:
        _import_empty_image(client)
        container = create(client, engine, body, name)
    try:
        client.start(container)
        status = client.wait(container)["StatusCode"]
        said = client.logs(container).decode("utf-8", "replace") if status else ""
    finally:
        remove(client, container)
    if status:
        raise EngineError(f"cannot take over the files below {root}: {said.strip()}")


def has_foreign(root: Path) -> bool:
    """Whether anything below `root` is another user's, or cannot be looked into."""
    us = os.geteuid()
    pending = [os.fspath(root)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_uid != us:
                        return True
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
        except FileNotFoundError:
            continue
        except PermissionError:
            return True
    return False


def _body(root: Path, key: str, user: str, group: str) -> dict[str, Any]:
    programs = [
        Mount(Path(path), path, read_only=True) for path in _PROGRAMS if Path(path).exists()
    ]
    return {
        "Image": EMPTY_IMAGE,
        "Entrypoint": ["/bin/sh", "-c", _SCRIPT, "take-over"],
        "Cmd": [user, group],
        "User": "0:0",
        "Labels": labels(key, "take-over"),
        "HostConfig": {
            "Mounts": [bind(mount) for mount in (*programs, Mount(root, "/tree"))],
            "NetworkMode": "none",
            "CapDrop": ["ALL"],
            "CapAdd": ["CHOWN", "DAC_OVERRIDE", "FOWNER"],
            "SecurityOpt": ["no-new-privileges"],
            "UsernsMode": "host",  # to see the host's user ids where the engine remaps them
        },
    }


def _import_empty_image(client: docker.APIClient) -> None:
    nothing = io.BytesIO()
    tarfile.open(fileobj=nothing, mode="w").close()
    repository, _, tag = EMPTY_IMAGE.partition(":")
    client.import_image_from_data(nothing.getvalue(), repository, tag)
