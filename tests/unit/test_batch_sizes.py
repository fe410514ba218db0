"""The package's table of VM sizes, images, prices, and what Azure's own lists are read as."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from azure.batch import models
from azure.mgmt.batch import models as batch_models

from tesazure.backends.azure_batch import images
from tesazure.backends.azure_batch.arm import size_of
from tesazure.backends.azure_batch.prices import Price, add
from tesazure.backends.azure_batch.resource_skus import ResourceSku, same_origin
from tesazure.backends.azure_batch.sizes import GIB, Quotas, VmSize, may_use
from tesazure.backends.azure_batch.table import bundled
from tesazure.errors import BackendUnavailable
from tests.services.batch_images import IMAGES

TABLE = bundled()
CURRENT = {
    "Standard_D2s_v5",
    "Standard_D4ds_v5",
    "Standard_D8as_v5",
    "Standard_D16ads_v5",
    "Standard_D128s_v6",
    "Standard_E2s_v5",
    "Standard_E64as_v5",
    "Standard_E96ads_v5",
    "Standard_E8as_v6",
    "Standard_F4as_v6",
    "Standard_FX12mds",
    "Standard_HB120rs_v3",
    "Standard_HX176rs",
    "Standard_L8s_v3",
    "Standard_M128ms",
    "Standard_NC4as_T4_v3",
    "Standard_NC24ads_A100_v4",
    "Standard_NC40ads_H100_v5",
}


def test_the_table_has_current_families_once_each() -> None:
    names = [size.name for size in TABLE.items]
    assert len(names) == len(set(names)) > 150
    assert set(names) >= CURRENT


def test_the_table_says_of_when_it_is_and_that_it_is_not_azures() -> None:
    assert date.fromisoformat(TABLE.date) <= date(2027, 1, 1)
    assert TABLE.date in TABLE.source
    assert not TABLE.complete


def test_nothing_in_the_table_is_retiring() -> None:
    assert [size.name for size in TABLE.items if size.is_retiring] == []


@pytest.mark.parametrize("size", TABLE.items, ids=lambda size: size.name)
def test_what_the_table_says_is_possible(size: VmSize) -> None:
    assert 1 <= size.cores <= 256
    assert GIB <= size.ram_bytes / size.cores <= 32 * GIB
    assert size.price_usd is not None
    assert 0.02 <= size.price_usd / size.cores < 2
    assert size.spot_price_usd is None
    assert size.family
    assert str(size.cores) in size.name


@pytest.mark.parametrize(
    ("name", "is_retiring"),
    [
        ("Standard_A2_v2", True),
        ("Standard_B2ms", True),
        ("Standard_B2as_v2", False),
        ("Standard_D2_v2", True),
        ("Standard_DS11-1_v2", True),
        ("Standard_D2s_v3", False),
        ("Standard_F4s_v2", True),
        ("Standard_F4as_v6", False),
        ("Standard_L8s_v2", True),
        ("Standard_L8s_v3", False),
        ("Standard_NC6s_v3", True),
        ("Standard_NC4as_T4_v3", False),
        ("Standard_NV12s_v3", True),
        ("Standard_NV36ads_A10_v5", False),
        ("Standard_M192is_v2", True),
        ("Standard_M64s", False),
    ],
)
def test_series_whose_end_is_announced(name: str, is_retiring: bool) -> None:
    assert VmSize(name=name, cores=1, ram_bytes=1).is_retiring is is_retiring


def test_wildcards() -> None:
    assert may_use("Standard_D2s_v5", ["standard_d*s_V5"], [])
    assert not may_use("Standard_D2s_v5", ["Standard_D2s_v5"], ["*_v5"])
    assert may_use("Standard_D2s_v5", [], ["*_v6"])
    assert not may_use("Standard_D2s_v5", ["Standard_D?_v5"], [])


def test_quotas() -> None:
    size = VmSize(name="Standard_D4s_v5", cores=4, ram_bytes=1, family="standardDSv5Family")
    assert Quotas().nodes(size, spot=False) is None
    assert Quotas(dedicated_cores=10, spot_cores=7).nodes(size, spot=False) == 2
    assert Quotas(dedicated_cores=10, spot_cores=7).nodes(size, spot=True) == 1
    by_family = Quotas(dedicated_cores=100, family_cores={"standarddsv5family": 8})
    assert by_family.nodes(size, spot=False) == 2
    # A family that is not listed is not limited by itself.
    assert Quotas(dedicated_cores=100, family_cores={}).nodes(size, spot=False) == 25


# -- images


def supported() -> list[models.BatchSupportedImage]:
    return [models.BatchSupportedImage(each) for each in IMAGES]


NOW = datetime(2026, 11, 22, tzinfo=UTC)


def test_the_usual_image_is_known_without_asking() -> None:
    found = images.pinned("microsoft-dsvm:ubuntu-hpc:2404:latest", "")
    assert found is not None
    assert (found.agent, found.version) == ("batch.node.ubuntu 24.04", "latest")
    assert images.pinned("microsoft-dsvm:ubuntu-hpc:2204:latest", "") is None
    given = images.pinned("a:b:c:d", "batch.node.x")
    assert given is not None
    assert (given.name, given.agent) == ("a:b:c:d", "batch.node.x")
    assert images.pinned("", "") is None


def test_a_named_image_gets_its_agent_from_the_list() -> None:
    found = images.choose(supported(), "Microsoft-DSVM:ubuntu-hpc:2204:2024.1", NOW)
    assert (found.sku, found.version, found.agent) == ("2204", "2024.1", "batch.node.ubuntu 22.04")


def test_without_a_name_the_newest_verified_ubuntu_is_taken() -> None:
    found = images.choose(supported(), "", NOW)
    assert found.name == "microsoft-dsvm:ubuntu-hpc:2404:latest"


@pytest.mark.parametrize(
    "name",
    [
        "canonical:ubuntu-24_04-lts:server:latest",  # cannot run containers
        "microsoft-dsvm:ubuntu-hpc:2004:latest",  # is past its end
        "microsoftwindowsserver:windowsserver:2022-datacenter-with-containers-smalldisk:latest",
        "no:such:image:latest",
    ],
)
def test_an_image_that_will_not_do_is_refused_with_some_that_will(name: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"BATCH_IMAGE.*microsoft-dsvm:ubuntu-hpc:2404"):
        images.choose(supported(), name, NOW)


def test_no_image_at_all() -> None:
    with pytest.raises(BackendUnavailable, match="no verified Linux image"):
        images.choose([], "", NOW)


# -- prices


def item(name: str, price: float, **more: Any) -> dict[str, Any]:
    usual = {
        "armSkuName": name,
        "retailPrice": price,
        "skuName": name.removeprefix("Standard_"),
        "productName": "Virtual Machines Dsv5 Series",
        "type": "Consumption",
        "unitOfMeasure": "1 Hour",
    }
    return usual | more


def test_prices_of_linux_by_the_hour_are_read() -> None:
    found = add(
        {"standard_old": Price(1.0)},
        [
            item("Standard_D2s_v5", 0.096),
            item("Standard_D2s_v5", 0.02, skuName="D2s v5 Spot"),
            item("Standard_D2s_v5", 0.01, skuName="D2s v5 Low Priority"),
            item("Standard_D2s_v5", 0.188, productName="Virtual Machines Dsv5 Series Windows"),
            item("Standard_D2s_v5", 500, type="Reservation"),
            item("Standard_D2s_v5", 70, unitOfMeasure="1 Month"),
            item("Standard_D2s_v5", 0.2, productName="Dsv5 Cloud Services"),
            item("Standard_D2s_v5", 0),
            item("", 3),
            item("Standard_D4s_v5", 0.05, skuName="D4s v5 Spot"),
        ],
    )
    assert found == {
        "standard_old": Price(1.0),
        "standard_d2s_v5": Price(0.096, 0.02),
        "standard_d4s_v5": Price(None, 0.05),
    }


# -- Azure's lists


def sku(name: str, **capabilities: object) -> batch_models.SupportedSku:
    usual = {
        "vCPUs": 4,
        "MemoryGB": 16,
        "MaxResourceVolumeMB": 153600,
        "HyperVGenerations": "V1,V2",
    }
    told = [{"name": n, "value": str(v)} for n, v in (usual | capabilities).items()]
    return batch_models.SupportedSku(
        {"name": name, "familyName": "standardDDSv5Family", "capabilities": told}
    )


def resource(*restrictions: dict[str, Any], **capabilities: object) -> ResourceSku:
    told = [{"name": name, "value": str(value)} for name, value in capabilities.items()]
    document = {
        "resourceType": "virtualMachines",
        "name": "Standard_D4ds_v5",
        "capabilities": told,
        "locationInfo": [{"location": "EastUS", "zones": ["3", "1"]}],
        "restrictions": list(restrictions),
    }
    return msgspec.convert(document, ResourceSku)


def test_a_size_as_azure_lists_it() -> None:
    found = size_of(
        sku("Standard_D4ds_v5", LowPriorityCapable="True"),
        resource(EncryptionAtHostSupported="True"),
        "eastus",
    )
    assert found == VmSize(
        name="Standard_D4ds_v5",
        cores=4,
        ram_bytes=16 * GIB,
        disk_bytes=150 * GIB,
        family="standardDDSv5Family",
        zones=("1", "3"),
        encryption_at_host=True,
    )


def test_constrained_cores_and_gpus_count() -> None:
    found = size_of(sku("Standard_E8-4s_v5", vCPUs=8, vCPUsAvailable=4, GPUs=2), None, "eastus")
    assert found is not None
    assert (found.cores, found.gpus, found.zones) == (4, 2, ())


@pytest.mark.parametrize(
    "capabilities",
    [
        {"CpuArchitectureType": "Arm64"},
        {"ConfidentialComputingType": "SNP"},
        {"HyperVGenerations": "V1"},
        {"vCPUs": "many"},
    ],
)
def test_sizes_that_cannot_be_used(capabilities: dict[str, object]) -> None:
    assert size_of(sku("Standard_X", **capabilities), None, "eastus") is None


def test_a_size_is_taken_by_name_until_its_end_at_batch() -> None:
    def ending(days: float) -> VmSize | None:
        told = SimpleNamespace(
            name="Standard_X",
            family_name="f",
            capabilities=sku("Standard_X").capabilities,
            batch_support_end_of_life=datetime.now(UTC) + timedelta(days=days),
        )
        return size_of(told, None, "eastus")

    found = ending(+1)
    assert found is not None
    assert found.is_retiring
    assert ending(-1) is None


def test_restrictions_of_the_subscription() -> None:
    place = {
        "type": "Location",
        "values": ["eastus"],
        "reasonCode": "NotAvailableForSubscription",
    }
    assert size_of(sku("Standard_X"), resource(place), "eastus") is None
    assert size_of(sku("Standard_X"), resource(place), "westus") is not None
    zone = {"type": "Zone", "values": ["eastus"], "restrictionInfo": {"zones": ["1"]}}
    found = size_of(sku("Standard_X"), resource(zone), "eastus")
    assert found is not None
    assert found.zones == ("3",)


@pytest.mark.parametrize(
    ("link", "same"),
    [
        ("https://management.azure.com/subscriptions/1?$skiptoken=2", True),
        ("https://Management.Azure.com:443/subscriptions/1", True),
        ("https://management.azure.com.example.org/subscriptions/1", False),
        ("https://management.azure.com@example.org/subscriptions/1", False),
        ("https://management.azure.com:444/subscriptions/1", False),
        ("http://management.azure.com:443/subscriptions/1", False),
        ("https://management.azure.com:x/subscriptions/1", False),
        ("/subscriptions/1", False),
    ],
)
def test_a_token_goes_to_one_server_alone(link: str, same: bool) -> None:
    assert same_origin(link, "https://management.azure.com") == same
