"""Which VM an attempt goes to, and how many share it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.shapes import OS_DISKS_GIB, Placement, Shape, place
from tesazure.backends.azure_batch.sizes import GIB, Quotas, Sizes, VmSize
from tesazure.backends.azure_batch.table import bundled
from tesazure.errors import Unplaceable
from tesazure.plan import GB, Limits, Plan


def config(**more: object) -> BatchConfig:
    needed = {
        "installation": "abcdefgh",
        "account": "acc",
        "url": "https://acc.eastus.batch.azure.com",
        "storage_url": "https://st.blob.core.windows.net",
        "storage_account": "st",
        "runner_image": "reg.azurecr.io/tesazure/runner:1",
        "cache_dir": Path(),
    }
    return msgspec.convert(needed | more, BatchConfig)


@dataclass
class Asked:
    """What a task asks for: cores, GB."""

    cpu: float | None = 1
    ram: float | None = 2
    disk: float = 10
    preemptible: bool | None = None
    zones: list[str] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)

    def plan(self) -> Plan:
        limits = Limits(
            cpu_cores=self.cpu,
            ram_bytes=None if self.ram is None else int(self.ram * GB),
            reserved_cpu_cores=self.cpu or 1,
            reserved_ram_bytes=int((self.ram or 2) * GB),
            reserved_disk_bytes=int(self.disk * GB),
        )
        return Plan(
            task_id="t",
            downloads=[],
            steps=[],
            uploads=[],
            volumes=[],
            shared=[],
            limits=limits,
            max_runtime_s=0,
            backend_parameters=self.parameters,
            preemptible=self.preemptible,
            zones=self.zones,
        )


def size(name: str, cores: int, ram: float, price: float | None, **more: object) -> VmSize:
    usual = {"family": "standardFamily", "disk_bytes": 100 * GIB * cores}
    return VmSize(
        name=f"Standard_{name}",
        cores=cores,
        ram_bytes=int(ram * GIB),
        price_usd=price,
        **(usual | more),  # type: ignore[arg-type]
    )


SIZES = Sizes(
    items=(
        size("D2x", 2, 8, 0.10, spot_price_usd=0.02, zones=("1", "2")),
        size("D4x", 4, 16, 0.20, spot_price_usd=0.03),
        size("D16x", 16, 64, 0.80),
        size("E2x", 2, 16, 0.13, spot_price_usd=0.05),
        size("NC4x", 4, 28, 0.01, gpus=1),
        size("B2ms", 2, 8, 0.001),
    ),
    source="a list",
    date="2026-11-01",
    complete=True,
    region="eastus",
)


def placed(
    asked: Asked, among: Sizes = SIZES, short: Collection[Shape] = (), **more: object
) -> Placement:
    return place(asked.plan(), among, config(**more), short)


def refused(asked: Asked, among: Sizes = SIZES, **more: object) -> str:
    with pytest.raises(Unplaceable) as error:
        placed(asked, among, **more)
    return str(error.value)


def with_quotas(**quotas: object) -> Sizes:
    return msgspec.structs.replace(SIZES, quotas=msgspec.convert(quotas, Quotas))


def test_small_tasks_share_the_cheapest_node() -> None:
    found = placed(Asked(cpu=1, ram=2))
    assert found.shape == Shape(vm_size="Standard_D2x", slots=2)
    assert (found.slots, found.share, found.price_per_hour_usd) == (1, 0.5, 0.10)


def test_a_task_that_takes_most_of_a_node_has_it_for_itself() -> None:
    assert placed(Asked(cpu=2, ram=6)).shape == Shape(vm_size="Standard_D2x", slots=1)
    assert placed(Asked(cpu=16, ram=8)).shape == Shape(vm_size="Standard_D16x", slots=1)


def test_the_node_keeps_some_memory_for_itself() -> None:
    assert placed(Asked(cpu=2, ram=7.6)).shape.vm_size == "Standard_D2x"
    assert placed(Asked(cpu=2, ram=8)).shape.vm_size == "Standard_E2x"


def test_a_node_that_can_be_shared_is_taken_when_a_lone_task_costs_little_more_on_it() -> None:
    near = size("C2x", 2, 4, 0.09)  # holds one
    among = msgspec.structs.replace(SIZES, items=(*SIZES.items, near))
    assert placed(Asked(cpu=1, ram=2), among).shape == Shape(vm_size="Standard_D2x", slots=2)
    far = size("C2x", 2, 4, 0.07)
    among = msgspec.structs.replace(SIZES, items=(*SIZES.items, far))
    assert placed(Asked(cpu=1, ram=2), among).shape == Shape(vm_size="Standard_C2x", slots=1)


def test_tasks_that_differ_a_little_share_a_pool() -> None:
    big = {"sizes": ["*D16x"]}
    shapes = {placed(Asked(cpu=cpu, ram=2), **big).shape for cpu in (1.2, 1.25, 1.3)}
    assert [shape.slots for shape in shapes] == [12]
    assert placed(Asked(cpu=3, ram=2), **big).shape.slots == 4
    assert placed(Asked(cpu=0.01, ram=0.01, disk=0.1), **big).shape.slots == 64  # four a core


@pytest.mark.parametrize("asked", [Asked(cpu=17), Asked(ram=65), Asked(disk=5000)])
def test_what_fits_nothing_is_unplaceable(asked: Asked) -> None:
    said = refused(asked)
    assert "no VM size that may be used has" in said
    assert "Standard_D16x with 16 cores" in said
    assert "BATCH_VM_SIZES" in said


def test_gpus_and_old_series_are_taken_only_by_name() -> None:
    assert placed(Asked()).shape.vm_size == "Standard_D2x"
    named = Asked(parameters={"vm_size": "standard_nc4x"})
    assert placed(named).shape == Shape(vm_size="Standard_NC4x", slots=1)
    assert placed(Asked(), sizes=["Standard_NC*"]).shape.vm_size == "Standard_NC4x"
    assert placed(Asked(), sizes=["Standard_B2ms"]).shape.vm_size == "Standard_B2ms"


def test_a_named_size_is_for_the_task_alone() -> None:
    asked = Asked(cpu=1, ram=1, parameters={"vm_size": "Standard_D16x"})
    found = placed(asked)
    assert found.shape == Shape(vm_size="Standard_D16x", slots=1)
    assert found.price_per_hour_usd == 0.80


def test_a_named_size_must_hold_what_was_asked_for() -> None:
    asked = Asked(cpu=4, parameters={"vm_size": "Standard_D2x"})
    assert "too small for 4 cores" in refused(asked)
    unasked = Asked(cpu=None, ram=None, parameters={"vm_size": "Standard_D2x"})
    assert placed(unasked).shape.vm_size == "Standard_D2x"


def test_an_unknown_size_names_those_that_may_be_meant() -> None:
    said = refused(Asked(parameters={"vm_size": "Standard_D17x"}))
    assert said.startswith("vm_size Standard_D17x is none that Azure Batch has in eastus, but ")
    assert "Standard_D16x" in said


def test_an_unknown_size_is_taken_when_the_list_is_not_azures_and_the_operator_names_it() -> None:
    ours = msgspec.structs.replace(SIZES, complete=False)
    asked = Asked(parameters={"vm_size": "Standard_D2s_v9"})
    assert "name it in BATCH_VM_SIZES" in refused(asked, ours)
    found = placed(asked, ours, sizes=["Standard_D*", "standard_d2s_v9"])
    assert found.shape == Shape(vm_size="standard_d2s_v9", slots=1, os_disk_gib=128)
    assert found.price_per_hour_usd is None


def test_lists_of_sizes() -> None:
    assert placed(Asked(), sizes=["standard_d4x"]).shape.vm_size == "Standard_D4x"
    assert placed(Asked(), sizes_denied=["*D2x", "*E2x"]).shape.vm_size == "Standard_D4x"
    named = Asked(parameters={"vm_size": "Standard_D2x"})
    assert "may not be used; allowed are *_E2x" in refused(named, sizes=["*_E2x"])
    assert "allowed are all but *_D2x" in refused(named, sizes_denied=["*_D2x"])
    assert "leave no VM size" in refused(Asked(), sizes=["Standard_Z*"])


def test_spot_when_asked_for_or_usual() -> None:
    assert placed(Asked(preemptible=True)).shape.spot
    assert placed(Asked(preemptible=True)).price_per_hour_usd == 0.02
    assert placed(Asked(), spot=True).shape.spot
    assert not placed(Asked(preemptible=False), spot=True).shape.spot
    assert not placed(Asked()).shape.spot


def test_spot_nodes_are_chosen_by_their_own_price() -> None:
    cheap = size("E2y", 2, 16, 0.5, spot_price_usd=0.01)
    among = msgspec.structs.replace(SIZES, items=(*SIZES.items, cheap))
    assert placed(Asked(preemptible=True), among).shape.vm_size == "Standard_E2y"
    assert placed(Asked(), among).shape.vm_size == "Standard_D2x"


def test_dedicated_while_spot_is_short_by_policy() -> None:
    asked = Asked(preemptible=True)
    short = {placed(asked).shape}
    found = placed(asked, short=short)
    assert found.shape == Shape(vm_size="Standard_D2x", slots=2)
    assert found.price_per_hour_usd == 0.10
    assert placed(asked, short=short, spot_fallback=False).shape in short


def test_sizes_that_cannot_be_spot() -> None:
    only = msgspec.structs.replace(SIZES, items=(size("H2x", 2, 8, 0.1, can_be_spot=False),))
    assert not placed(Asked(preemptible=True), only).shape.spot
    said = refused(Asked(preemptible=True), only, spot_fallback=False)
    assert "Azure has no Spot nodes of Standard_H2x" in said


def test_quotas_leave_sizes_out_that_have_no_core() -> None:
    two = with_quotas(dedicated_cores=2)
    assert placed(Asked(cpu=2, ram=4), two).shape.vm_size == "Standard_D2x"
    assert "quota" in refused(Asked(cpu=4, ram=4), two)
    none = with_quotas(family_cores={"standardfamily": 0})
    said = refused(Asked(), none)
    assert "quota for the family standardFamily is 0 cores" in said
    assert "portal" in said
    assert placed(Asked(preemptible=True), none).shape.spot
    spotless = with_quotas(spot_cores=0)
    assert not placed(Asked(preemptible=True), spotless).shape.spot
    assert "Spot nodes is 0 cores" in refused(
        Asked(preemptible=True), spotless, spot_fallback=False
    )


def test_a_size_that_batch_refused_is_left_out() -> None:
    sizes = msgspec.structs.replace(SIZES, refused={"standard_d2x": "Batch said no"})
    assert placed(Asked(), sizes).shape.vm_size != "Standard_D2x"
    said = refused(Asked(parameters={"vm_size": "Standard_D2x"}), sizes)
    assert said == "vm_size Standard_D2x cannot be had: Batch said no"


@pytest.mark.parametrize(
    ("zones", "zonal"),
    [
        ([], False),
        (["1"], True),
        (["eastus-2"], True),
        (["EastUS-2"], True),
        (["us-central1-a"], False),
        (["westus-1"], False),
        (["eastus"], False),
    ],
)
def test_zones_spread_nodes_where_they_are_ours(zones: list[str], zonal: bool) -> None:
    assert placed(Asked(zones=zones)).shape.zonal is zonal


def test_zones_are_nothing_to_a_size_without() -> None:
    asked = Asked(zones=["1"], parameters={"vm_size": "Standard_D4x"})
    assert not placed(asked).shape.zonal


def test_an_existing_pool_is_taken_as_it_is() -> None:
    asked = Asked(cpu=1000, parameters={"pool_id": "MINE"})
    found = placed(asked, override_pool="other", pool_ids=["yours", "mine"])
    assert found.shape == Shape(vm_size="", pool="mine")
    assert placed(Asked(), override_pool="other").shape.pool == "other"
    named = Asked(parameters={"pool_id": "other"})
    assert placed(named, override_pool="other").shape.pool == "other"


@pytest.mark.parametrize("pool", ["theirs", "tesazure-abcdefgh-d2x-ded-0123456789"])
def test_no_task_names_a_pool_that_the_operator_has_not_listed(pool: str) -> None:
    asked = Asked(parameters={"pool_id": pool})
    said = refused(asked)
    assert f"pool_id {pool} is none of the pools that tasks may name (there are none)" in said
    assert "BATCH_POOL_IDS" in said
    assert "may name (a, b); leave it out" in refused(asked, pool_ids=["a", "b"])
    assert refused(asked, override_pool="other")


def test_vms_without_a_temporary_disk_get_an_os_disk_that_holds_their_tasks() -> None:
    bare = msgspec.structs.replace(SIZES, items=(size("D2x", 2, 8, 0.1, disk_bytes=0),))
    assert placed(Asked(disk=10), bare).shape == Shape(
        vm_size="Standard_D2x", slots=2, os_disk_gib=128
    )
    assert placed(Asked(disk=300), bare).shape.os_disk_gib == 1024
    assert placed(Asked(disk=1500), bare).shape == Shape(
        vm_size="Standard_D2x", slots=1, os_disk_gib=2048
    )
    assert "2199 GB of disk" in refused(Asked(disk=2200), bare)


def test_what_has_no_price_is_estimated() -> None:
    known = size("D2x", 2, 8, 0.10)
    unknown = size("Z2x", 2, 64, None)
    sizes = msgspec.structs.replace(SIZES, items=(unknown, known))
    assert placed(Asked(), sizes).shape.vm_size == "Standard_D2x"
    assert placed(Asked(ram=30), sizes).price_per_hour_usd is None


@pytest.mark.parametrize("cpu", [0.5, 1, 2, 3, 4, 8, 15, 32, 64])
@pytest.mark.parametrize("ram", [1, 4, 15, 60, 250])
@pytest.mark.parametrize("disk", [10, 200, 1000])
def test_by_the_packages_table_tasks_fit_the_node_that_they_share(
    cpu: float, ram: float, disk: float
) -> None:
    found = placed(Asked(cpu=cpu, ram=ram, disk=disk), bundled())
    shape = found.shape
    vm = bundled().find(shape.vm_size)
    assert vm is not None
    assert shape.slots * cpu <= vm.cores + 1e-6
    assert shape.slots * ram * GB < vm.ram_bytes * 0.95
    room = vm.disk_bytes or shape.os_disk_gib * GIB
    assert shape.slots * disk * GB < room
    assert bool(shape.os_disk_gib) is not bool(vm.disk_bytes)
    assert shape.os_disk_gib in (0, *OS_DISKS_GIB)
    assert 1 <= shape.slots <= min(256, 4 * vm.cores)
    assert found.price_per_hour_usd
    assert not vm.gpus
