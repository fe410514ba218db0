"""Sizes, quotas and prices, read with Microsoft's SDKs from stand-ins over TLS."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tesazure.azure_identity import Identity
from tesazure.backends.azure_batch.catalog import Catalog
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.prices import TRIES, Price, read_prices
from tesazure.backends.azure_batch.sizes import GIB, Quotas
from tesazure.backends.azure_batch.table import bundled
from tesazure.errors import BackendUnavailable
from tests.services.azure_cloud import AzureCloud
from tests.services.azure_cloud_groups import REGION, SUBSCRIPTION
from tests.services.entra_server import CLIENT, SECRET, TENANT, EntraServer
from tests.services.prices_server import PricesServer
from tests.services.tls_server import Refusal


class Cloud:
    """All that is asked, and settings to ask it."""

    def __init__(self, directory: Path, entra: EntraServer, arm: AzureCloud, prices: PricesServer):
        self.directory, self.entra, self.arm, self.prices = directory, entra, arm, prices
        bundle = directory / "authorities.pem"
        bundle.write_text("".join(Path(s.ca_bundle).read_text() for s in (arm, prices)))
        self.bundle = str(bundle)
        arm.register("Microsoft.Batch", "Microsoft.Compute")
        arm.add_group("lab")
        properties = {"accountEndpoint": "acc.eastus.batch.azure.com", **arm.batch.core_quotas}
        account = arm.place("lab", "Microsoft.Batch/batchAccounts", "acc", properties=properties)
        self.quotas = arm.state.resources[account.lower()].properties
        prices.sell("Standard_D2ads_v5", 0.2, 0.03)
        prices.sell("Standard_D4ads_v5", 0.4)
        prices.sell("Standard_E2ads_v5", 0.3, 0.02)

    def config(self, **more: Any) -> BatchConfig:
        identity = Identity(
            tenant=TENANT,
            client_id=CLIENT,
            secret=SECRET,
            authority=self.entra.authority,
            ca_bundle=self.bundle,
        )
        usual = BatchConfig(
            installation="abcdefgh",
            account="acc",
            url="https://acc.eastus.batch.azure.com",
            identity=identity,
            ca_bundle=self.bundle,
            storage_url="https://st.blob.core.windows.net",
            storage_account="st",
            runner_image="i",
            region=REGION,
            subscription=SUBSCRIPTION,
            resource_group="lab",
            arm_url=self.arm.url,
            prices_url=f"{self.prices.url}{self.prices.path}",
            cache_dir=self.directory / "cache",
        )
        return msgspec.structs.replace(usual, **more)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with (
        EntraServer(tmp_path / "entra") as entra,
        AzureCloud(tmp_path / "arm", entra) as arm,
        PricesServer(tmp_path / "prices") as prices,
    ):
        yield Cloud(tmp_path, entra, arm, prices)


@pytest.fixture
async def catalog(cloud: Cloud) -> AsyncIterator[Catalog]:
    found = Catalog(cloud.config())
    yield found
    await found.stop()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        await asyncio.sleep(0.02)


def names(catalog: Catalog) -> set[str]:
    return {size.name for size in catalog.sizes.items}


OURS = {"Standard_D2ads_v5", "Standard_D4ads_v5", "Standard_E2ads_v5"}


async def test_azures_lists_are_read(catalog: Catalog) -> None:
    assert await catalog.refresh()
    sizes = catalog.sizes
    assert (names(catalog), sizes.complete, sizes.source) == (OURS, True, "Azure's list of eastus")
    found = sizes.find("standard_d2ads_v5")
    assert found is not None
    assert (found.cores, found.ram_bytes, found.disk_bytes) == (2, 8 * GIB, 75 * GIB)
    assert (found.price_usd, found.spot_price_usd) == (0.2, 0.03)
    assert found.zones == ("1", "2", "3")
    assert found.encryption_at_host
    assert sizes.quotas == Quotas(
        dedicated_cores=100,
        spot_cores=50,
        family_cores={"standarddadsv5family": 20},
    )


async def test_families_count_only_when_they_are_enforced(cloud: Cloud, catalog: Catalog) -> None:
    cloud.quotas["dedicatedCoreQuotaPerVMFamilyEnforced"] = False
    await catalog.refresh()
    assert catalog.sizes.quotas.family_cores is None


async def test_without_a_subscription_only_prices_are_asked_for(cloud: Cloud) -> None:
    catalog = Catalog(cloud.config(subscription="", resource_group=""))
    assert await catalog.refresh()
    assert cloud.arm.asked == cloud.entra.asked == []
    # What has no price in the region is not sold there.
    assert names(catalog) == OURS
    assert not catalog.sizes.complete
    assert catalog.sizes.source == bundled().source
    assert catalog.sizes.quotas == Quotas()


async def test_without_prices_those_of_the_table_are_taken(cloud: Cloud) -> None:
    catalog = Catalog(cloud.config(prices_url=""))
    assert await catalog.refresh()
    await catalog.stop()
    assert cloud.prices.asked == []
    found = catalog.sizes.find("Standard_D2ads_v5")
    assert found is not None
    assert found.price_usd == 0.103


async def test_what_may_not_be_had_is_left_out(cloud: Cloud, catalog: Catalog) -> None:
    cloud.arm.sizes.restricted = {"Standard_E2ads_v5"}
    await catalog.refresh()
    assert names(catalog) == OURS - {"Standard_E2ads_v5"}


async def test_a_list_that_goes_on_elsewhere_is_not_followed(
    cloud: Cloud, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's token would go there."""
    with AzureCloud(cloud.directory / "elsewhere", cloud.entra) as elsewhere:
        cloud.arm.sizes.elsewhere = elsewhere.url
        with caplog.at_level(logging.WARNING):
            assert await catalog.refresh()
        assert elsewhere.asked == []
    assert names(catalog) == OURS
    assert f"goes on at another place than {cloud.arm.url}" in caplog.text


async def test_without_leave_to_read_compute_zones_are_not_known(
    cloud: Cloud, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.arm.fail("ResourceSkus_List", status=403)
    with caplog.at_level(logging.WARNING):
        assert await catalog.refresh()
    assert names(catalog) == OURS
    assert {size.zones for size in catalog.sizes.items} == {()}
    assert "zones and restrictions of VM sizes are not known" in caplog.text


@pytest.mark.parametrize("trouble", ["closed", 403])
async def test_azure_away_leaves_the_table_and_says_why_once(
    cloud: Cloud, caplog: pytest.LogCaptureFixture, trouble: Any
) -> None:
    cloud.arm.down(trouble)
    cloud.prices.down(trouble)
    catalog = Catalog(cloud.config())
    with caplog.at_level(logging.WARNING):
        assert not await catalog.refresh()
        cloud.prices.up()
        assert not await catalog.refresh()
    await catalog.stop()
    warned = [r.getMessage() for r in caplog.records if r.name.endswith("catalog")]
    assert [text.split()[0] for text in warned] == ["quotas", "sizes", "prices"]
    assert SECRET not in caplog.text
    assert not catalog.sizes.complete
    assert names(catalog) == OURS  # those that have a price


async def test_a_wrong_secret_is_told(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    identity = msgspec.structs.replace(cloud.config().identity, secret="wrong")
    catalog = Catalog(cloud.config(identity=identity))
    with caplog.at_level(logging.WARNING):
        assert not await catalog.refresh()
    await catalog.stop()
    assert "AADSTS7000215" in caplog.text
    assert cloud.arm.asked == []


async def test_what_was_read_serves_the_next_start_without_a_network(cloud: Cloud) -> None:
    first = Catalog(cloud.config())
    await first.refresh()
    await first.stop()
    cloud.arm.down()
    cloud.prices.down()
    second = Catalog(cloud.config())
    await second.start()
    assert names(second) == OURS
    assert second.sizes.quotas.dedicated_cores == 100
    assert second.sizes.find("Standard_D4ads_v5") == first.sizes.find("Standard_D4ads_v5")
    await second.stop()
    elsewhere = Catalog(cloud.config(region="westus", subscription="", prices_url=""))
    await elsewhere.start()
    assert len(elsewhere.sizes.items) == len(bundled().items)
    await elsewhere.stop()


async def test_fresh_lists_are_not_asked_for_again_but_quotas_are(
    cloud: Cloud, catalog: Catalog
) -> None:
    await catalog.refresh()
    cloud.arm.asked.clear()
    cloud.prices.asked.clear()
    known = catalog.sizes
    await catalog.refresh()
    assert catalog.sizes is known  # by which placements are remembered
    cloud.quotas["dedicatedCoreQuota"] = 99
    await catalog.refresh()
    assert len(cloud.arm.asked) == 2
    assert cloud.prices.asked == []
    assert catalog.sizes.quotas.dedicated_cores == 99


async def test_starting_asks_in_the_background(catalog: Catalog) -> None:
    await catalog.start()
    await catalog.start()
    assert not catalog.sizes.complete
    await until(lambda: catalog.sizes.complete)
    await catalog.stop()
    await catalog.stop()


async def test_a_spoilt_cache_is_not_used(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    path = cloud.directory / "cache" / "azure-sizes.json"
    path.parent.mkdir()
    path.write_text("{")
    catalog = Catalog(cloud.config(subscription="", prices_url=""))
    with caplog.at_level(logging.WARNING):
        await catalog.start()
    await catalog.stop()
    assert "is not used" in caplog.text
    assert len(catalog.sizes.items) == len(bundled().items)


async def test_a_cache_that_cannot_be_written_stops_nothing(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    (cloud.directory / "cache").write_text("a file")
    catalog = Catalog(cloud.config())
    with caplog.at_level(logging.WARNING):
        assert await catalog.refresh()
    await catalog.stop()
    assert "cannot be kept" in caplog.text


async def test_no_secret_is_in_the_cache(cloud: Cloud, catalog: Catalog) -> None:
    await catalog.refresh()
    text = (cloud.directory / "cache" / "azure-sizes.json").read_text()
    assert SECRET not in text
    assert set(json.loads(text)) <= {
        "region",
        "sizes",
        "sizes_at",
        "quotas",
        "prices",
        "prices_at",
    }


async def test_a_refused_size_is_left_out_for_a_while(catalog: Catalog) -> None:
    await catalog.refresh()
    catalog.refuse("Standard_D2ads_v5", "Batch said no")
    assert catalog.sizes.refused == {"standard_d2ads_v5": "Batch said no"}
    later, why = catalog._refused["standard_d2ads_v5"]
    catalog._refused["standard_d2ads_v5"] = (later - 7200, why)
    assert catalog.sizes.refused == {}


# -- prices


async def prices(cloud: Cloud) -> dict[str, Price]:
    config = cloud.config()
    return await read_prices(config.prices_url, REGION, cloud.bundle)


async def test_all_pages_are_read(cloud: Cloud) -> None:
    found = await prices(cloud)
    assert found["standard_e2ads_v5"] == Price(0.3, 0.02)
    assert len(cloud.prices.asked) == 3


async def test_throttling_is_waited_out(cloud: Cloud) -> None:
    cloud.prices.refusals = [Refusal(429, {}, {"Retry-After": "0"}), Refusal(500, {})]
    assert len(await prices(cloud)) == 3


async def test_what_does_not_pass_is_not_tried_again(cloud: Cloud) -> None:
    cloud.prices.refusals = [Refusal(400, {})] * TRIES
    with pytest.raises(BackendUnavailable, match="status 400"):
        await prices(cloud)
    assert len(cloud.prices.refusals) == TRIES - 1


async def test_pages_of_another_host_are_not_followed(cloud: Cloud) -> None:
    cloud.prices.refusals = [
        Refusal(200, {"Items": [], "NextPageLink": "https://elsewhere.example/prices"})
    ]
    with pytest.raises(BackendUnavailable, match="a page is elsewhere"):
        await prices(cloud)


async def test_an_answer_that_is_no_document(cloud: Cloud) -> None:
    cloud.prices.refusals = [Refusal(200, ["no object"])]
    with pytest.raises(BackendUnavailable, match="the answer is no object"):
        await prices(cloud)


async def test_an_untrusted_server_is_not_believed(cloud: Cloud) -> None:
    with pytest.raises((BackendUnavailable, ssl.SSLError), match="CERTIFICATE_VERIFY_FAILED"):
        await read_prices(cloud.config().prices_url, REGION)
    assert cloud.prices.asked == []
