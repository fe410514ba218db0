"""Which pool an attempt belongs in: pure.

An attempt goes to the cheapest size that it fits. As many attempts of its kind share a node as fit
on it, so a pool's node has slots of one width and each attempt takes one: Batch packs them without
gaps, and how many nodes a queue needs is a division.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Iterable

import msgspec

from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.sizes import GIB, Sizes, VmSize, may_use
from tesazure.errors import Unplaceable
from tesazure.plan import GB, Limits, Plan

KEPT_RAM = 0.05
KEPT_RAM_BYTES = GB // 2
"""Of a VM's memory, tasks do not get a twentieth, which kernel and firmware take before Linux
counts, nor half a GB, for Batch's agent, Docker and the runners."""
KEPT_DISK_BYTES = 10 * GB
"""Of a temporary disk: for Batch's agent and the images of containers."""
KEPT_OS_DISK_BYTES = 60 * GB
"""Of an OS disk, on which the node's image is besides."""
OS_DISKS_GIB = (128, 256, 512, 1024, 2048)
"""Sizes of OS disks, for VMs without a temporary one: those that are priced, E10 to E40
("Azure managed disk types")."""
OS_DISK_USD = 0.000105
"""About what a GiB of an OS disk (Standard SSD) costs per hour; only to compare VMs."""
SLOTS_PER_CORE = 4
MOST_SLOTS = 256
""""Run tasks concurrently to maximize usage of Batch compute nodes"."""
SPREAD = 1.25
"""A VM is taken that several attempts of a kind can share, rather than the very cheapest, while a
lone one costs at most so many times as much on it."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What all nodes of a pool have in common. Equal shapes share a pool."""

    vm_size: str
    spot: bool = False
    slots: int = 1
    """taskSlotsPerNode"""
    zonal: bool = False
    """Nodes are spread over availability zones."""
    os_disk_gib: int = 0
    """0: as large as the node's image has it."""
    pool: str = ""
    """Id of an existing pool, which is neither made nor changed nor deleted."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where an attempt goes, and what it costs there."""

    shape: Shape
    slots: int = 1
    """requiredSlots of the attempt."""
    price_per_hour_usd: float | None = None
    """Of the whole VM; None: unknown."""
    cpu_cores: float | None = None
    ram_bytes: int | None = None
    """What the attempt's part of the VM has; None: unknown."""

    @property
    def share(self) -> float:
        """Which part of the VM it takes."""
        return min(1.0, self.slots / self.shape.slots)

    def bounded(self, limits: Limits) -> Limits:
        """On a VM for several attempts, each is kept to its part where it did not say what it
        needs: the others may be other people's."""
        if self.shape.slots == 1:
            return limits
        return msgspec.structs.replace(
            limits,
            cpu_cores=limits.cpu_cores or self.cpu_cores,
            ram_bytes=limits.ram_bytes or self.ram_bytes,
        )


class _Fit(msgspec.Struct, frozen=True):
    """A size that an attempt fits, how many of its kind do, and the OS disk that takes."""

    size: VmSize
    count: int
    os_disk_gib: int

    def cost(self, spot: bool) -> float:
        """Of the node, in USD per hour, for comparison. What is not known is estimated from what
        is, and from what such cores and memory usually cost."""
        size = self.size
        price = size.price(spot)
        if price is None:
            price = size.price_usd
        if price is None:
            price = 0.035 * size.cores + 0.004 * size.ram_bytes / GIB + 3 * size.gpus
        return price + self.os_disk_gib * OS_DISK_USD


def place(plan: Plan, sizes: Sizes, config: BatchConfig, short: Collection[Shape]) -> Placement:
    """Where a plan's attempts run now. `short`: Spot shapes that cannot be had at the moment.

    Raises Unplaceable when no size fits that may be used.
    """
    pool = _existing_pool(plan.backend_parameters.get("pool_id", ""), config)
    if pool:
        return Placement(shape=Shape(vm_size="", pool=pool))
    spot = config.spot if plan.preemptible is None else plan.preemptible
    find = functools.partial(
        _find,
        plan.limits,
        plan.backend_parameters.get("vm_size", ""),
        _asks_for_zones(plan.zones, sizes.region),
        sizes,
        config.sizes,
        config.sizes_denied,
    )
    placement = find(spot)
    is_short = placement is None or placement.shape in short
    if spot and is_short and config.spot_fallback:
        placement = find(False) or placement
    if placement is None:
        raise Unplaceable(_why_not(plan, sizes, config, spot))
    return placement


def _existing_pool(asked: str, config: BatchConfig) -> str:
    """The pool of somebody else's that an attempt runs on; empty: none. Raises Unplaceable for one
    that tasks may not name: it may have an identity, or be another's."""
    if not asked:
        return config.override_pool
    # Batch's ids are the same in any case.
    for allowed in (*config.pool_ids, config.override_pool):
        if asked.lower() == allowed.lower():
            return allowed
    named = ", ".join(config.pool_ids)
    raise Unplaceable(
        f"pool_id {asked} is none of the pools that tasks may name"
        f" ({named or 'there are none'}); leave it out, or have the operator add it to"
        " BATCH_POOL_IDS"
    )


@functools.lru_cache(maxsize=256)
def _find(
    limits: Limits,
    name: str,
    zonal: bool,
    sizes: Sizes,
    allowed: tuple[str, ...],
    denied: tuple[str, ...],
    spot: bool,
) -> Placement | None:
    """Kept, as thousands of tasks ask for the same."""
    fits = [
        fit
        for size in _candidates(name, sizes, allowed, denied)
        if _may_be_had(size, sizes, spot=spot)
        and (fit := _fit(size, limits, alone=bool(name))) is not None
    ]
    if not fits:
        return None
    best = _cheapest(fits, spot)
    size = best.size
    shape = Shape(
        vm_size=size.name,
        spot=spot,
        slots=best.count,
        zonal=zonal and bool(size.zones),
        os_disk_gib=best.os_disk_gib,
    )
    return Placement(
        shape=shape,
        price_per_hour_usd=size.price(spot),
        cpu_cores=size.cores / best.count or None,
        ram_bytes=_ram_for_tasks(size) // best.count or None,
    )


def _candidates(
    name: str, sizes: Sizes, allowed: tuple[str, ...], denied: tuple[str, ...]
) -> list[VmSize]:
    if name:
        found = sizes.find(name) or _vouched_for(name, sizes, allowed)
        named = [found] if found is not None else []
        return [size for size in named if may_use(size.name, allowed, denied)]
    usable = [size for size in sizes.items if may_use(size.name, allowed, denied)]
    # What nobody asked for is not taken: GPUs, unless nothing else is allowed, and old series,
    # unless some are allowed.
    usable = [size for size in usable if allowed or not size.is_retiring]
    return [size for size in usable if not size.gpus] or (usable if allowed else [])


def _vouched_for(name: str, sizes: Sizes, allowed: tuple[str, ...]) -> VmSize | None:
    """A size that the package's table lacks and the operator allows by its very name."""
    listed = next((each for each in allowed if each.lower() == name.lower()), None)
    if listed is None or sizes.complete:
        return None
    return VmSize(name=listed, cores=0, ram_bytes=0)


def _may_be_had(size: VmSize, sizes: Sizes, *, spot: bool) -> bool:
    if size.name.lower() in sizes.refused or (spot and not size.can_be_spot):
        return False
    return sizes.quotas.nodes(size, spot) != 0


def _fit(size: VmSize, limits: Limits, *, alone: bool) -> _Fit | None:
    """How many attempts of a kind fit a size; `alone`: the VM is for one, be it smaller."""
    disk = max(1, limits.reserved_disk_bytes)
    count = 1
    if size.cores:
        # A hair more than exact, for 1.0 / 0.1 and the like.
        by_cores = int(size.cores / limits.reserved_cpu_cores + 1e-6)
        count = min(by_cores, _ram_for_tasks(size) // max(1, limits.reserved_ram_bytes))
        count = min(count, size.cores * SLOTS_PER_CORE, MOST_SLOTS)
    if alone:
        # Whoever names a size knows better, but what was asked for must be there.
        asked = any((limits.cpu_cores, limits.ram_bytes))
        count = 1 if count > 0 or not asked else 0
    if size.disk_bytes:
        room = size.disk_bytes - KEPT_DISK_BYTES
        count = _rounded(min(count, room // disk))
        return _Fit(size, count, 0) if count else None
    count = _rounded(min(count, (OS_DISKS_GIB[-1] * GIB - KEPT_OS_DISK_BYTES) // disk))
    if not count:
        return None
    needed = count * disk + KEPT_OS_DISK_BYTES
    return _Fit(size, count, next(each for each in OS_DISKS_GIB if each * GIB >= needed))


def _ram_for_tasks(size: VmSize) -> int:
    return max(0, int(size.ram_bytes * (1 - KEPT_RAM)) - KEPT_RAM_BYTES)


def _rounded(count: int) -> int:
    """Down to 1, 2, 3, 4, 6, 8, 12, 16, …: attempts that differ a little share a pool, and at most
    a third of a node stays free."""
    if count < 2:
        return max(0, count)
    power = 1 << (count.bit_length() - 1)
    return power + power // 2 if count >= power + power // 2 else power


def _cheapest(fits: Iterable[_Fit], spot: bool) -> _Fit:
    fits = list(fits)
    lone = min(fit.cost(spot) for fit in fits)
    near = [fit for fit in fits if fit.cost(spot) <= SPREAD * lone]
    # To a hundredth of a cent, so that equal prices per attempt are: then the smaller VM.
    return min(
        near,
        key=lambda fit: (round(fit.cost(spot) / fit.count, 4), fit.cost(spot), fit.size.name),
    )


def _asks_for_zones(zones: Collection[str], region: str) -> bool:
    """Batch spreads a pool over zones or does not; it cannot be told which. Zones of other places,
    as portable workflows name them, are nothing to us."""
    own = region.lower()
    return any(
        zone.strip() in ("1", "2", "3") or (own and zone.strip().lower().startswith(f"{own}-"))
        for zone in zones
    )


def _why_not(plan: Plan, sizes: Sizes, config: BatchConfig, spot: bool) -> str:
    name = plan.backend_parameters.get("vm_size", "")
    limits = plan.limits
    needs = (
        f"{limits.reserved_cpu_cores:g} cores, {limits.reserved_ram_bytes / GB:g} GB of memory"
        f" and {limits.reserved_disk_bytes / GB:g} GB of disk"
    )
    if name:
        return _why_not_named(name, needs, sizes, config, spot)
    allowed = _candidates("", sizes, config.sizes, config.sizes_denied)
    if not allowed:
        return "BATCH_VM_SIZES and BATCH_VM_SIZES_DENIED leave no VM size that Azure Batch has here"
    fitting = [s for s in allowed if _fit(s, limits, alone=False) is not None]
    if fitting:
        return f"the VM sizes for {needs} cannot be had: {_obstacle(fitting[0], sizes, spot)}"
    largest = max(allowed, key=lambda size: (size.ram_bytes, size.cores))
    return (
        f"no VM size that may be used has {needs} for a task; the one with the most memory is"
        f" {_described(largest)}; ask for less, or see BATCH_VM_SIZES"
    )


def _why_not_named(name: str, needs: str, sizes: Sizes, config: BatchConfig, spot: bool) -> str:
    size = sizes.find(name) or _vouched_for(name, sizes, config.sizes)
    if not may_use(name, config.sizes, config.sizes_denied):
        allowed = ", ".join(config.sizes) or f"all but {', '.join(config.sizes_denied)}"
        return f"vm_size {name} may not be used; allowed are {allowed} (BATCH_VM_SIZES)"
    if size is None:
        names = {each.name.lower(): each.name for each in sizes.items}
        near = difflib.get_close_matches(name.lower(), list(names), 3, 0.5)
        meant = f", but {', '.join(names[each] for each in near)}" if near else ""
        if sizes.complete:
            return f"vm_size {name} is none that Azure Batch has in {sizes.region}{meant}"
        return (
            f"vm_size {name} is not in {sizes.source}{meant}; if Azure has it, name it in"
            " BATCH_VM_SIZES, or set AZURE_SUBSCRIPTION_ID and BATCH_RESOURCE_GROUP, and the list"
            " is Azure's"
        )
    if not _may_be_had(size, sizes, spot=spot):
        return f"vm_size {size.name} cannot be had: {_obstacle(size, sizes, spot)}"
    return f"vm_size {_described(size)} is too small for {needs}"


def _obstacle(size: VmSize, sizes: Sizes, spot: bool) -> str:
    said = sizes.refused.get(size.name.lower())
    if said is not None:
        return said
    if spot and not size.can_be_spot:
        return f"Azure has no Spot nodes of {size.name}"
    cores = sizes.quotas.cores(size, spot)
    kind = "Spot nodes" if spot else f"the family {size.family or 'of ' + size.name}"
    return (
        f"the Batch account's quota for {kind} is {cores} cores, and {size.name} has"
        f" {size.cores}; ask for more in the portal, under Quotas of the account"
    )


def _described(size: VmSize) -> str:
    disk = size.disk_bytes or OS_DISKS_GIB[-1] * GIB
    return (
        f"{size.name} with {size.cores} cores, {size.ram_bytes / GB:.0f} GB of memory and"
        f" {disk / GB:.0f} GB of disk, of which the node itself takes a part"
    )
