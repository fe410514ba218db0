"""Settings that all servers on this database share, as they are kept: secrets sealed."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, delete, func, insert, select

from tesazure.store.engine import Link, Prepared
from tesazure.store.records import KeptSetting
from tesazure.store.tables import settings
from tesazure.store.transaction import Transaction

_ALL = Prepared(
    select(settings.c.name, settings.c.value, settings.c.sealed, settings.c.version).order_by(
        settings.c.name
    )
)
_VERSION = Prepared(select(func.max(settings.c.version)))
_DELETE = Prepared(delete(settings).where(settings.c.name == bindparam("of")))
_INSERT = Prepared(insert(settings))


def every(link: Link) -> tuple[int, list[KeptSetting]]:
    """See Store.settings."""
    rows = link.rows(_ALL)
    kept = [
        KeptSetting(name, value, None if sealed is None else bytes(sealed))
        for name, value, sealed, _ in rows
        if value is not None or sealed is not None
    ]
    return max((row[3] for row in rows), default=0), kept


def version(link: Link) -> int:
    """See Store.settings_version."""
    row = link.row(_VERSION)
    return (row and row[0]) or 0


def keep(transaction: Transaction, kept: Sequence[KeptSetting]) -> int:
    """See Store.keep_settings."""
    link = transaction.link
    number = version(link) + 1
    for one in kept:
        # A row of neither stays in place of one that is forgotten: by it servers see the change.
        link.run(_DELETE, of=one.name)
        link.run(_INSERT, name=one.name, version=number, value=one.value, sealed=one.sealed)
    return number
