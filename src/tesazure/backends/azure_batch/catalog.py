"""The sizes and quotas of an account, kept current beside the server and between its starts.

What Azure says is taken before what was read of it last, that before the package's table.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tesazure.backends.azure_batch.arm import Arm
from tesazure.backends.azure_batch.config import BatchConfig
from tesazure.backends.azure_batch.prices import Price, read_prices
from tesazure.backends.azure_batch.sizes import Quotas, Sizes, VmSize
from tesazure.backends.azure_batch.table import bundled
from tesazure.errors import BackendUnavailable

log = logging.getLogger(__name__)

FRESH_S = 86400.0
"""How old lists of sizes and prices may become."""
EVERY_S = 3600.0
"""Between looks at quotas, which people have raised while tasks wait."""
AGAIN_S = 600.0
"""Until another try where one failed."""
REFUSED_S = 3600.0
"""How long a size is left out of which Batch refused a pool."""


class Read(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was read of Azure; what the cache's file holds."""

    region: str = ""
    sizes: tuple[VmSize, ...] = ()
    sizes_at: float = 0.0
    """Seconds since the epoch; 0: never."""
    quotas: Quotas = Quotas()
    prices: dict[str, Price] = {}
    """Name in lower case -> price."""
    prices_at: float = 0.0


class Catalog:
    """Knows sizes from the beginning, better ones once Azure has been asked."""

    def __init__(self, config: BatchConfig) -> None:
        self._config = config
        self._read = Read(region=config.region)
        self._refused: dict[str, tuple[float, str]] = {}
        self._sizes: Sizes | None = None
        self._said: dict[str, str] = {}
        self._loop: asyncio.Task[None] | None = None
        self._arm: Arm | None = None

    async def start(self) -> None:
        """Load what was read last, and begin to ask. Waits for no network. May be called twice."""
        if self._loop is None:
            self._read = await asyncio.to_thread(self._load)
            self._sizes = None
            self._loop = asyncio.create_task(self._run(), name="azure-batch-catalog")

    async def stop(self) -> None:
        """End. May be called twice."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop
        arm, self._arm = self._arm, None
        if arm is not None:
            await asyncio.to_thread(arm.close)

    @property
    def sizes(self) -> Sizes:
        """As known now."""
        now = time.monotonic()
        current = {name: each for name, each in self._refused.items() if each[0] > now}
        if self._sizes is None or len(current) != len(self._refused):
            self._refused = current
            refused = {name: why for name, (_, why) in current.items()}
            self._sizes = merged(self._read, refused, self._config.region)
        return self._sizes

    def refuse(self, vm_size: str, why: str) -> None:
        """Batch would make no pool of a size: another is to be taken for a while."""
        self._refused[vm_size.lower()] = (time.monotonic() + REFUSED_S, why)
        self._sizes = None

    async def refresh(self) -> bool:
        """Ask Azure now for what is old; whether all of it was told. What was not, and why, is
        logged, and what is known stays."""
        config, now, before = self._config, time.time(), self._read
        well = True
        if config.subscription and config.resource_group and config.identity.exists:
            well = await self._ask("quotas", self._read_quotas) and well
            if now - self._read.sizes_at > FRESH_S:
                well = await self._ask("sizes", self._read_sizes) and well
        if config.prices_url and config.region and now - self._read.prices_at > FRESH_S:
            well = await self._ask("prices", self._read_prices) and well
        if self._read is not before:
            await asyncio.to_thread(self._save)
        return well

    async def _run(self) -> None:
        while True:
            well = await self.refresh()
            await asyncio.sleep(EVERY_S if well else AGAIN_S)

    async def _ask(self, what: str, read: Callable[[], Awaitable[Read]]) -> bool:
        said = ""
        try:
            found = await read()
            if found != self._read:  # else what was found among the sizes is still true
                self._read, self._sizes = found, None
        except BackendUnavailable as error:
            said = str(error)
        except Exception as error:
            log.exception("%s of VMs could not be read", what)
            said = f"{type(error).__name__}: {error}"
        if said and said != self._said.get(what):
            log.warning("%s of VMs are those known before: %s", what, said)
        self._said[what] = said
        return not said

    async def _read_quotas(self) -> Read:
        arm = await self.arm()
        return msgspec.structs.replace(self._read, quotas=await asyncio.to_thread(arm.quotas))

    async def _read_sizes(self) -> Read:
        arm = await self.arm()
        sizes = await asyncio.to_thread(arm.sizes)
        if not sizes:
            raise BackendUnavailable(f"Azure lists no VM sizes for Batch in {self._config.region}")
        return msgspec.structs.replace(self._read, sizes=sizes, sizes_at=time.time())

    async def _read_prices(self) -> Read:
        config = self._config
        prices = await read_prices(config.prices_url, config.region, config.ca_bundle)
        if not prices:
            raise BackendUnavailable(f"Azure has no prices of VMs in {config.region}")
        return msgspec.structs.replace(self._read, prices=prices, prices_at=time.time())

    async def arm(self) -> Arm:
        """The client of Azure Resource Manager, until `stop`."""
        if self._arm is None:
            self._arm = await asyncio.to_thread(Arm, self._config)
        return self._arm

    # -- the cache ------------------------------------------------------------------------------

    def _path(self) -> Path | None:
        directory = self._config.cache_dir
        return None if directory == Path() else directory / "azure-sizes.json"

    def _load(self) -> Read:
        path = self._path()
        empty = Read(region=self._config.region)
        if path is None:
            return empty
        try:
            read = msgspec.json.decode(path.read_bytes(), type=Read)
        except FileNotFoundError:
            return empty
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s is not used: %s", path, error)
            return empty
        return read if read.region == self._config.region else empty

    def _save(self) -> None:
        path = self._path()
        if path is None:
            return
        written = path.with_suffix(".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            written.write_bytes(msgspec.json.encode(self._read))
            written.replace(path)
        except OSError as error:
            log.warning("sizes and prices of VMs cannot be kept in %s: %s", path, error)


def merged(read: Read, refused: Mapping[str, str], region: str) -> Sizes:
    """The sizes that were read, else those of the table, with the prices that were read, else those
    of the table."""
    table = bundled()
    items, source, date = table.items, table.source, table.date
    if read.sizes:
        items, source, date = read.sizes, f"Azure's list of {region}", _day(read.sizes_at)
    if read.prices:
        if not read.sizes:
            # What has no price in a region is not sold there.
            items = tuple(size for size in items if size.name.lower() in read.prices)
        items = tuple(_priced(size, read.prices.get(size.name.lower())) for size in items)
    elif read.sizes:
        known = {size.name.lower(): Price(size.price_usd) for size in table.items}
        items = tuple(_priced(size, known.get(size.name.lower())) for size in items)
    return Sizes(
        items=items,
        source=source,
        date=date,
        complete=bool(read.sizes),
        region=region,
        quotas=read.quotas,
        refused=refused,
    )


def _priced(size: VmSize, price: Price | None) -> VmSize:
    if price is None:
        return msgspec.structs.replace(size, price_usd=None, spot_price_usd=None)
    return msgspec.structs.replace(size, price_usd=price.dedicated, spot_price_usd=price.spot)


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
