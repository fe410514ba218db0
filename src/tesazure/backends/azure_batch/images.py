"""Which image nodes have, and the agent that goes with it: from what Batch lists as supported."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from tesazure.errors import BackendUnavailable

if TYPE_CHECKING:
    from azure.batch import models

CONTAINERS = "DockerCompatible"
"""The capability of images whose nodes can run containers."""
PINNED_AGENTS = {("microsoft-dsvm", "ubuntu-hpc", "2404"): "batch.node.ubuntu 24.04"}
"""Taken without asking, as the list is not readable everywhere that pools may be made."""


class NodeImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image of the Marketplace, and the id of its node agent."""

    publisher: str
    offer: str
    sku: str
    version: str
    agent: str

    @property
    def name(self) -> str:
        """publisher:offer:sku:version"""
        return f"{self.publisher}:{self.offer}:{self.sku}:{self.version}"


def pinned(image: str, agent: str) -> NodeImage | None:
    """The image that settings name, if its agent is known without asking."""
    parts = image.split(":")
    if len(parts) != 4:
        return None
    publisher, offer, sku, version = parts
    agent = agent or PINNED_AGENTS.get((publisher.lower(), offer.lower(), sku.lower()), "")
    if not agent:
        return None
    return NodeImage(publisher=publisher, offer=offer, sku=sku, version=version, agent=agent)


def choose(
    supported: Iterable[models.BatchSupportedImage], image: str, now: datetime | None = None
) -> NodeImage:
    """`image` (publisher:offer:sku:version) with its agent, or, when empty, the newest Ubuntu that
    Batch has verified for containers. Raises BackendUnavailable when there is none.

    Source: "Account - List Supported Images".
    """
    now = now or datetime.now(UTC)
    usable = [each for each in supported if _runs_containers(each, now)]
    if image:
        wanted = image.lower().split(":")[:3]
        named = [each for each in usable if _names(each) == wanted]
        if not named:
            others = sorted({":".join(_names(each)) for each in usable if _is_verified(each)})
            raise BackendUnavailable(
                f"BATCH_IMAGE: {image} is none of the images that Azure Batch supports for"
                f" containers, such as {', '.join(others[:5]) or '(none)'}"
            )
        return _found(max(named, key=_is_verified), image.split(":")[3])
    verified = [each for each in usable if _is_verified(each)]
    ubuntu = [each for each in verified if "ubuntu" in str(each.node_agent_sku_id).lower()]
    if not (ubuntu or verified):
        raise BackendUnavailable("Azure Batch lists no verified Linux image that runs containers")
    newest = max(ubuntu or verified, key=lambda each: (each.node_agent_sku_id, _names(each)))
    return _found(newest, "latest")


def _runs_containers(image: models.BatchSupportedImage, now: datetime) -> bool:
    end = image.batch_support_end_of_life
    return (
        str(getattr(image.os_type, "value", image.os_type)).lower() == "linux"
        and CONTAINERS in (image.capabilities or ())
        and (end is None or end > now)
    )


def _is_verified(image: models.BatchSupportedImage) -> bool:
    return str(getattr(image.verification_type, "value", image.verification_type)) == "verified"


def _names(image: models.BatchSupportedImage) -> list[str]:
    reference = image.image_reference
    return [str(part).lower() for part in (reference.publisher, reference.offer, reference.sku)]


def _found(image: models.BatchSupportedImage, version: str) -> NodeImage:
    reference = image.image_reference
    return NodeImage(
        publisher=reference.publisher or "",
        offer=reference.offer or "",
        sku=reference.sku or "",
        version=version,
        agent=image.node_agent_sku_id,
    )
