"""The sizes that the package knows by itself, for servers that cannot ask Azure."""

from __future__ import annotations

import functools
from importlib import resources

import msgspec

from tesazure.backends.azure_batch.sizes import MIB, Sizes, VmSize


class _Series(msgspec.Struct, frozen=True):
    """Sizes that are multiples of one core's share."""

    name: str
    """With `#` in place of the number of cores."""
    family: str
    cores: list[int]
    ram_gib: float
    """Per core."""
    price_usd: float | None
    """Per core and hour, dedicated; None: not known."""
    disk_gib: float = 0
    """Of temporary disk, per core."""
    gpus: dict[str, int] = {}
    """Number of cores -> GPUs."""
    encryption_at_host: bool = True


class _Table(msgspec.Struct, frozen=True):
    date: str
    series: list[_Series]


@functools.cache
def bundled() -> Sizes:
    """The table."""
    text = resources.files(__package__).joinpath("sizes.json").read_bytes()
    table = msgspec.json.decode(text, type=_Table, strict=True)
    return Sizes(
        items=tuple(size for series in table.series for size in _sizes(series)),
        source=f"the package's table of {table.date}",
        date=table.date,
    )


def _sizes(series: _Series) -> list[VmSize]:
    return [
        VmSize(
            name=series.name.replace("#", str(cores)),
            cores=cores,
            ram_bytes=_bytes(series.ram_gib * cores),
            disk_bytes=_bytes(series.disk_gib * cores),
            family=series.family,
            gpus=series.gpus.get(str(cores), 0),
            encryption_at_host=series.encryption_at_host,
            price_usd=None if series.price_usd is None else round(series.price_usd * cores, 4),
        )
        for cores in series.cores
    ]


def _bytes(gib: float) -> int:
    """Whole MiB, as a share per core may be no whole number."""
    return round(gib * 1024) * MIB
