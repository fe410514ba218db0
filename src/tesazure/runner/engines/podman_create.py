"""Creating a container in Podman, which for this alone is spoken to in its own API.

Podman turns the Docker-compatible body into command line options before it reads them: a comma in
a path begins another option there, so that `/a,source=/etc` would mount the host's /etc. Its own
API takes paths as they are. Source: the Libpod API, "Create a container" (SpecGenerator). Pure.
"""

from __future__ import annotations

from typing import Any

VERSION = "v4.0.0"
"""Of that API: every Podman since 4.0 speaks it."""

_PERIOD_US = 100_000


def specification(body: dict[str, Any], name: str, *, volumes: bool = True) -> dict[str, Any]:
    """A body for Docker's API, as far as we use that, as one for Podman's. `volumes`: whether the
    image's VOLUMEs are to be such."""
    host = body.get("HostConfig", {})
    specified = {
        "name": name,
        "image": body["Image"],
        "entrypoint": body["Entrypoint"],
        "command": body.get("Cmd", []),
        "env": dict(pair.split("=", 1) for pair in body.get("Env", [])),
        "labels": body["Labels"],
        "user": body.get("User", ""),
        "work_dir": body.get("WorkingDir", ""),
        "create_working_dir": True,
        "stdin": body.get("OpenStdin", False),
        "healthconfig": body.get("Healthcheck"),
        "mounts": [_mount(mount) for mount in host.get("Mounts", [])],
        "no_new_privileges": "no-new-privileges" in host.get("SecurityOpt", []),
        "image_volume_mode": "anonymous" if volumes else "ignore",
        "cap_drop": host.get("CapDrop", []),
        "cap_add": host.get("CapAdd", []),
        "resource_limits": _limits(host),
    }
    if "LogConfig" in host:
        specified["log_configuration"] = {"driver": host["LogConfig"]["Type"]}
    for namespace, mode in (("netns", "NetworkMode"), ("userns", "UsernsMode")):
        if mode in host:
            specified[namespace] = {"nsmode": host[mode]}
    return {key: value for key, value in specified.items() if value or key == "command"}


def _mount(mount: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": mount["Type"],
        "source": mount["Source"],
        "destination": mount["Target"],
        "options": ["rbind", "ro" if mount["ReadOnly"] else "rw"],
    }


def _limits(host: dict[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if "Memory" in host:
        limits["memory"] = {"limit": host["Memory"], "swap": host["MemorySwap"]}
    if "NanoCpus" in host:
        quota = host["NanoCpus"] * _PERIOD_US // 10**9
        limits["cpu"] = {"period": _PERIOD_US, "quota": quota}
    if "PidsLimit" in host:
        limits["pids"] = {"limit": host["PidsLimit"]}
    return limits
