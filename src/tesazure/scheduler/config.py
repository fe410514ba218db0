"""What the scheduler needs of the settings."""

from __future__ import annotations

import msgspec

from tesazure.budgets import Budgets
from tesazure.lifecycle import Policy
from tesazure.plan import Defaults
from tesazure.scheduler.retention import Kept


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds."""

    policy: Policy = Policy()
    defaults: Defaults = Defaults(cpu_cores=1, ram_gb=0.5, disk_gb=0.1, max_runtime_s=0)
    kept: Kept = Kept()
    budgets: Budgets = msgspec.field(default_factory=Budgets)
    """Tasks wait of which one is spent."""
    backfill_s: float = 30.0
    lease_s: float = 30.0
    unseen_s: float = 20.0
    """How long an attempt may be left out of what the backend tells before its task is held up: the
    first look at many may take long."""
    grant_tries: int = 8
    """How often an attempt's access to its files is asked for, in a minute all in all; an attempt
    that waits for it keeps others from its room."""
    window: int = 512
    """How many queued tasks, the oldest, are looked at together."""
