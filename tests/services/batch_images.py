"""Images of the Batch stand-in's account, in the form of ListSupportedImages.

Names and agents are real ones; the list is shorter than Azure's, and has what a chooser must see:
an image that cannot run containers, one past its end, one unverified, one of Windows.
"""

from __future__ import annotations

import re
from typing import Any

from tests.services.batch_odata import bad_query

_COLUMNS = ("osType", "verificationType", "nodeAgentSKUId")


def _image(
    publisher: str,
    offer: str,
    sku: str,
    agent: str,
    *capabilities: str,
    **more: Any,
) -> dict[str, Any]:
    reference = {"publisher": publisher, "offer": offer, "sku": sku, "version": "latest"}
    found = {
        "nodeAgentSKUId": agent,
        "imageReference": reference,
        "osType": "linux",
        "verificationType": "verified",
        "capabilities": list(capabilities),
    }
    return found | more


IMAGES: list[dict[str, Any]] = [
    _image(
        "microsoft-dsvm",
        "ubuntu-hpc",
        "2004",
        "batch.node.ubuntu 20.04",
        "DockerCompatible",
        "NvidiaTeslaDriverInstalled",
        batchSupportEndOfLife="2025-04-22T00:00:00Z",
    ),
    _image(
        "microsoft-dsvm",
        "ubuntu-hpc",
        "2204",
        "batch.node.ubuntu 22.04",
        "DockerCompatible",
        "NvidiaTeslaDriverInstalled",
        batchSupportEndOfLife="2027-04-30T00:00:00Z",
    ),
    _image(
        "microsoft-dsvm",
        "ubuntu-hpc",
        "2404",
        "batch.node.ubuntu 24.04",
        "DockerCompatible",
        "NvidiaTeslaDriverInstalled",
    ),
    _image("canonical", "ubuntu-24_04-lts", "server", "batch.node.ubuntu 24.04"),
    _image(
        "almalinux",
        "almalinux-hpc",
        "8_10-hpc-gen2",
        "batch.node.el 8",
        "DockerCompatible",
        verificationType="unverified",
    ),
    _image(
        "microsoftwindowsserver",
        "windowsserver",
        "2022-datacenter-with-containers-smalldisk",
        "batch.node.windows amd64",
        "DockerCompatible",
        osType="windows",
    ),
]


def supported_images(text: str | None) -> list[dict[str, Any]]:
    """Those that pass a $filter, `osType eq 'linux' and …`. Raises Refused."""
    found = IMAGES
    for part in re.split(r"\s+and\s+", text or ""):
        if not part:
            continue
        compared = re.fullmatch(r"(\w+) (eq|ne) '([^']*)'", part.strip())
        if compared is None or compared[1] not in _COLUMNS:
            raise bad_query("$filter", text or "", f"{part} cannot be filtered on")
        name, equal, wanted = compared[1], compared[2] == "eq", compared[3].lower()
        found = [image for image in found if (image[name].lower() == wanted) == equal]
    return found
