"""VM sizes, what they cost, and which of them an account may have. Pure.

Sources: "Sizes for virtual machines in Azure"; "Retired Azure VM size series" for what is left out.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence

import msgspec

MIB, GIB = 1 << 20, 1 << 30

_RETIRING = re.compile(
    r"Basic_.*"
    r"|Standard_A\d+m?(_v2)?"
    r"|Standard_B\d+(l|m|ms|s|ls)?"
    r"|Standard_DS?\d+(-\d+)?(_v2)?(_Promo)?"
    r"|Standard_F\d+s?(_v2)?"
    r"|Standard_GS?\d+(-\d+)?"
    r"|Standard_L\d+s(_v2)?"
    r"|Standard_M192i\w*_v2"
    r"|Standard_NC\d+r?s?(_v2|_v3)?|Standard_ND\d+r?s?"
    r"|Standard_NV\d+(s_v2|s_v3|as_v4)?",
    re.IGNORECASE,
)
"""Series whose end Microsoft has announced (as of 2026-11) are taken only by name."""


class VmSize(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One size in one region."""

    name: str
    """Such as Standard_D4ads_v5, in Azure's spelling."""
    cores: int
    ram_bytes: int
    disk_bytes: int = 0
    """Its temporary disk, on which Batch puts the tasks' files; 0: none, they are on the OS disk.
    NVMe disks do not count: they come without a file system."""
    family: str = ""
    """By which quotas are counted, such as standardDADSv5Family."""
    gpus: int = 0
    zones: tuple[str, ...] = ()
    """Availability zones that have it; empty: none, or not known."""
    can_be_spot: bool = True
    encryption_at_host: bool = False
    price_usd: float | None = None
    """Dedicated, Linux, per hour; None: not known."""
    spot_price_usd: float | None = None
    """Spot, Linux, per hour, when it was asked for: it changes; None: not known."""
    ends: bool = False
    """Whether Batch has told the day after which it supports the size no more."""

    @property
    def is_retiring(self) -> bool:
        """Whether Microsoft has announced its end."""
        return self.ends or _RETIRING.fullmatch(self.name) is not None

    def price(self, spot: bool) -> float | None:
        """USD per hour; None: not known."""
        return self.spot_price_usd if spot else self.price_usd


class Quotas(msgspec.Struct, frozen=True, kw_only=True):
    """What a Batch account may have (Batch Account - Get); None: Batch does not say, such as in the
    pool allocation mode `user subscription`."""

    dedicated_cores: int | None = None
    spot_cores: int | None = None
    family_cores: dict[str, int] | None = None
    """Dedicated cores by family in lower case; None: they are not limited by family."""

    def cores(self, size: VmSize, spot: bool) -> int | None:
        """How many cores of a size there may be; None: not limited here."""
        if spot:
            return self.spot_cores
        limits = [self.dedicated_cores]
        if self.family_cores is not None and size.family:
            limits.append(self.family_cores.get(size.family.lower()))
        known = [limit for limit in limits if limit is not None]
        return min(known) if known else None

    def nodes(self, size: VmSize, spot: bool) -> int | None:
        """How many nodes of a size there may be; None: not limited here."""
        cores = self.cores(size, spot)
        return None if cores is None else cores // max(1, size.cores)


class Sizes(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The sizes of a region, and where that was read. Equal to itself alone: what was found among
    them is kept by it."""

    items: tuple[VmSize, ...]
    source: str
    """For people: where the list is from."""
    date: str
    """Of the list, YYYY-MM-DD."""
    complete: bool = False
    """Whether a size that is not among them cannot be had."""
    region: str = ""
    quotas: Quotas = Quotas()
    refused: Mapping[str, str] = {}
    """Name in lower case -> what Batch said when it refused a pool of that size."""

    def find(self, name: str) -> VmSize | None:
        """By its name in any case."""
        wanted = name.lower()
        return next((size for size in self.items if size.name.lower() == wanted), None)


def may_use(name: str, allowed: Sequence[str], denied: Sequence[str]) -> bool:
    """Whether settings let a size be used: lists of names with the wildcards `*` and `?`, in any
    case; nothing allowed by name means that all are."""
    return (not allowed or _matches(name, allowed)) and not _matches(name, denied)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)
