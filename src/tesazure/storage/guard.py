"""Connections that cannot be led to a cloud's metadata service, whatever a URL, a redirect or a
name server says: every address is looked at right before it is connected to."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from tesazure.errors import PermissionDenied
from tesazure.storage.addresses import refusal


class Guard:
    """Tells which addresses may be connected to, for all systems of a process."""

    def __init__(self, *, allow_private: bool = True, trusted: Collection[str] = ()) -> None:
        """`trusted`: `host:port` of endpoints that an operator configured, which may be private
        whatever `allow_private` says. Link-local and metadata addresses never are."""
        self._allow_private = allow_private
        self._trusted = frozenset(name.lower() for name in trusted)

    def refusal(self, address: str, host: str, port: int) -> str:
        """Why the IP address, which `host` led to, may not be connected to; else empty."""
        private = self._allow_private or f"{host.lower()}:{port}" in self._trusted
        reason = refusal(address, allow_private=private)
        return reason if not reason or address == host else f"{host}: {reason}"

    def check(self, host: str, port: int) -> None:
        """Raises PermissionDenied for a host that is a refused IP address; asks no name server."""
        with contextlib.suppress(ValueError):
            if reason := self.refusal(host, host, port):
                raise PermissionDenied(reason)
