"""What operators watch of a Batch account: quotas, and what stands in the way of more nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tesazure.backends.azure_batch.pool_words import Look
from tesazure.backends.azure_batch.sizes import Sizes
from tesazure.backends.base import Gauge

_QUOTA = "QuotaReached"
"""In Batch's codes ("Azure Batch pool and node errors", resize errors)."""


def gauges(sizes: Sizes, looks: Iterable[Look]) -> Iterator[Gauge]:
    """From what is known of the account, and from looks that are not old."""
    quotas = {"dedicated": sizes.quotas.dedicated_cores, "spot": sizes.quotas.spot_cores}
    used = dict.fromkeys(quotas, 0)
    at_quota = 0
    for look in looks:
        size = sizes.find(look.vm_size)
        if size is not None:
            used["spot" if look.spot else "dedicated"] += size.cores * look.good
        at_quota += any(_QUOTA in code for code, _ in look.obstacles)
    for kind, cores in quotas.items():
        if cores is not None:
            text = "Cores that the Batch account may have."
            yield Gauge("tesazure_quota_cores", text, cores, {"kind": kind})
        text = "Cores of nodes in pools that attempts wait for."
        yield Gauge("tesazure_pool_cores", text, used[kind], {"kind": kind})
    text = "Pools that cannot grow because a quota of the Batch account is used up."
    yield Gauge("tesazure_pools_at_quota", text, at_quota)
