"""Connections that cannot be led to a cloud's metadata service, whatever a URL, a redirect or a
name server says: a host is resolved once, every address is looked at, and the connection goes to
the address that was looked at."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Iterator

import httpcore
import httpx

from tesazure.errors import PermissionDenied
from tesazure.storage.addresses import refusal

Resolve = Callable[[str, int], list[str]]
"""The IP addresses of a host, for a port. Raises httpcore.ConnectError."""


def resolve(host: str, port: int) -> list[str]:
    """What the machine's resolver says."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"cannot resolve {host}: {error}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedBackend(httpcore.NetworkBackend):
    """Resolves, checks, and connects to what was checked. TLS still names and verifies the host."""

    def __init__(self, *, allow_private: bool, resolve: Resolve) -> None:
        self._allow_private = allow_private
        self._resolve = resolve
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address of `host` that answers. Raises PermissionDenied when
        any of its addresses is refused, httpcore.ConnectError when none answers."""
        addresses = self._resolve(host, port)
        for address in addresses:
            reason = refusal(address, allow_private=self._allow_private)
            if reason:
                raise PermissionDenied(reason if address == host else f"{host}: {reason}")
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return self._plain.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class GuardedTransport(httpx.BaseTransport):
    """HTTP/1.1 over a `GuardedBackend`, for an `httpx.Client`. Errors are httpcore's."""

    def __init__(self, *, allow_private: bool, resolve: Resolve = resolve) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=_tls_context(),
            max_connections=64,
            max_keepalive_connections=16,
            keepalive_expiry=15,
            network_backend=GuardedBackend(allow_private=allow_private, resolve=resolve),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """One request, without redirects."""
        url = request.url
        response = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=request.headers.raw,
                content=b"",
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


def _tls_context() -> ssl.SSLContext:
    """Certificates are verified against the bundled authorities and the machine's own."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context
