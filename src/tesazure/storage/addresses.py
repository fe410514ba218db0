"""Which IP addresses nothing is fetched from."""

from __future__ import annotations

import ipaddress

from tesazure.errors import PermissionDenied

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local: the metadata services of Azure, AWS and Google
        "168.63.129.16/32",  # Azure, "What is IP address 168.63.129.16?"
        "100.100.100.200/32",  # Alibaba Cloud
        "fe80::/10",  # link-local
        "fd00:ec2::/32",  # AWS: metadata, time, name servers
        "fd20:ce::254/128",  # Google
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
_COMPATIBLE = ipaddress.ip_network("::/96")  # RFC 4291, 2.5.5.1


def refusal(address: str, *, allow_private: bool) -> str:
    """Why nothing may be fetched from an IP address; empty when it may be."""
    given = ipaddress.ip_address(address.partition("%")[0])
    ip = _unwrapped(given)
    for meant in (ip, *_perhaps(given)):
        if any(meant in network for network in _METADATA if network.version == meant.version):
            return f"{meant} is a link-local or instance metadata address, which is never allowed"
    if not allow_private and not ip.is_global:
        return f"{ip} is a private address, which this server does not allow"
    return ""


def _unwrapped(ip: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 1):
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        return ip.ipv4_mapped or ip.sixtofour or ip
    return ip


def _perhaps(ip: Address) -> list[Address]:
    """What an address of a network's own NAT64 may stand for: how long the translator's prefix is,
    which tells where in it the IPv4 address lies, only that network knows (RFC 6052, 2.2)."""
    if ip not in _LOCAL_NAT64:
        return []
    octets = ip.packed
    places = ((12, 13, 14, 15), (9, 10, 11, 12), (7, 9, 10, 11), (6, 7, 9, 10))
    return [ipaddress.IPv4Address(bytes(octets[place] for place in four)) for four in places]


def check_host(host: str, *, allow_private: bool) -> None:
    """Raises PermissionDenied for a host that is a refused IP address; knows nothing of names."""
    try:
        reason = refusal(host, allow_private=allow_private)
    except ValueError:
        return
    if reason:
        raise PermissionDenied(reason)
