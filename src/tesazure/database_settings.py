"""Settings that all servers on one database share, kept in it; the secret ones sealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tesazure.errors import ConfigurationError
from tesazure.sealing import Seal
from tesazure.settings import FIELDS, help_of
from tesazure.store.base import Store
from tesazure.store.records import KeptSetting


class DatabaseSettings:
    """Those of one database. Names in lower case."""

    def __init__(self, store: Store, seal: Seal) -> None:
        self._store = store
        self._seal = seal
        self._taken = 0
        """The version that was read to be taken up."""

    async def read(self) -> dict[str, str]:
        """All of them. Raises ConfigurationError when a sealed one cannot be opened,
        StoreUnavailable."""
        _, kept = await self._store.settings()
        return opened(kept, self._seal)

    async def take(self) -> dict[str, str]:
        """As `read`, to be taken up."""
        # Also when they cannot be read: they are not read again until they change.
        self._taken, kept = await self._store.settings()
        return opened(kept, self._seal)

    async def changed(self) -> bool:
        """See settings.reloading.Changed."""
        return await self._store.settings_version() != self._taken

    async def keep(self, values: Mapping[str, str]) -> None:
        """Keep these, in place of former values; an empty one is forgotten. All servers take them
        up. Raises StoreUnavailable."""
        await self._store.keep_settings([self._kept(*item) for item in sorted(values.items())])

    async def reseal(self) -> None:
        """Seal anew what an older key sealed, which may then be given up."""
        _, kept = await self._store.settings()
        old = [one for one in kept if one.sealed and not self._seal.is_newest(one.sealed)]
        if old:
            await self._store.keep_settings(
                [self._kept(one.name, _value(one, self._seal)) for one in old]
            )

    def _kept(self, name: str, value: str) -> KeptSetting:
        if not value:
            return KeptSetting(name)
        # What this version does not know might be a secret.
        if name in FIELDS and not help_of(name).secret:
            return KeptSetting(name, value)
        return KeptSetting(name, sealed=self._seal.close(_sealed_for(name), {name: value}))


def opened(kept: Sequence[KeptSetting], seal: Seal) -> dict[str, str]:
    """Names and values. Raises ConfigurationError when one cannot be opened."""
    return {one.name: _value(one, seal) for one in kept}


def _value(one: KeptSetting, seal: Seal) -> str:
    if one.sealed is None:
        return one.value or ""
    try:
        return seal.open(_sealed_for(one.name), one.sealed)[one.name]
    except (ConfigurationError, KeyError):
        name = one.name.upper()
        problem = (
            f"database setting {name}: is sealed with a key that this server does not have, or was"
            " altered; set SECRETS_KEY to the same on all its servers (a key that is being"
            f" replaced after the new one), or forget it: tesazure config --forget {name}"
        )
        raise ConfigurationError([problem]) from None


def _sealed_for(name: str) -> str:
    """Authenticated along: no other setting's value, and no task's secrets, can be put there."""
    return f"setting {name}"
