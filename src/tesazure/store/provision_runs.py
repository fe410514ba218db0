"""Runs of the provisioner: compare-and-set on a version, and a lease for whoever works on one."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from sqlalchemy import Double, bindparam, cast, func, insert, literal, select, update

from tesazure.errors import StaleVersion
from tesazure.provisioning import UNENDED, Run, StoredRun, demand_no_rival
from tesazure.store.engine import Link, Prepared
from tesazure.store.tables import provision_runs as runs
from tesazure.store.transaction import Transaction

_NOW = Prepared(select(cast(func.extract("epoch", func.clock_timestamp()), Double)))
_ALL = Prepared(select(runs.c.version, runs.c.lease_until, runs.c.document))
_ONE = Prepared(
    select(runs.c.version, runs.c.lease_until, runs.c.document).where(runs.c.id == bindparam("of"))
)
_INSERT = Prepared(insert(runs))
_UPDATE = Prepared(
    update(runs)
    .where(runs.c.id == bindparam("of"))
    .values(
        version=runs.c.version + literal(1),
        lease_until=bindparam("until"),
        document=bindparam("doc"),
    )
)
_decode = msgspec.json.Decoder(Run).decode


def put(transaction: Transaction, run: Run, version: int, lease_s: float) -> int:
    """See Store.put_provision_run."""
    link = transaction.link
    row = link.row(_ONE, of=run.id)
    if (row[0] if row else 0) != version:
        raise StaleVersion(f"run {run.id} is not at version {version} any more")
    begins = row is None or _decode(row[2]).state not in UNENDED
    if begins and run.state in UNENDED:
        # Nobody else writes meanwhile: of two servers that come to this at once, one finds the
        # other's run.
        demand_no_rival(run.id, run.request, (_decode(each[2]) for each in link.rows(_ALL)))
    until = transaction.now() + lease_s if lease_s else 0.0
    document = msgspec.json.encode(run)
    if row is None:
        link.run(_INSERT, id=run.id, version=1, lease_until=until, document=document)
    else:
        link.run(_UPDATE, of=run.id, until=until, doc=document)
    return version + 1


def one(link: Link, run_id: str) -> StoredRun | None:
    """A run, if there is one."""
    row = link.row(_ONE, of=run_id)
    return _stored(row, _now(link)) if row else None


def every(link: Link) -> list[StoredRun]:
    """All runs, the newest first."""
    now = _now(link)
    found = [_stored(row, now) for row in link.rows(_ALL)]
    return sorted(found, key=lambda stored: (-stored.run.created, stored.run.id))


def _stored(row: tuple[Any, ...], now: float) -> StoredRun:
    version, lease_until, document = row
    return StoredRun(_decode(document), version, lease_until > now)


def _now(link: Link) -> float:
    """The database's clock, by which leases are."""
    if link.core.dialect.name == "sqlite":
        return time.time()
    [(now,)] = link.rows(_NOW)
    return float(now)
