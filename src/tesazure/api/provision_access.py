"""Who may provision on a server where nobody signs in: whoever is at the machine, or has a token.

What is decided here is whose Azure subscription gets all tasks, with their files. So a request is
not "from this machine" when a proxy sent it on, nor when a page in a browser made the browser send
it, which needs no consent of whoever sits there.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request

from tesazure.errors import NotAllowed

HEADER = "X-Provision-Token"
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_HOW = (
    "on a server without sign-in, provisioning is asked for on its own machine (over loopback,"
    f" without a proxy), or with the setting PROVISION_TOKEN in the header {HEADER}"
)


def demand(request: Request, token: str, shares_loopback: bool = False) -> None:
    """Raises NotAllowed, which says how, unless the request has the token or comes from this
    machine. `token`: the setting; empty: there is none. `shares_loopback`: tasks run here that
    reach the server over loopback, so whoever submitted one may be the one who asks."""
    given = request.headers.get(HEADER)
    if given is not None:
        if token and hmac.compare_digest(given.encode(), token.encode()):
            return
        raise NotAllowed(f"{HEADER} is not the setting PROVISION_TOKEN; {_HOW}")
    why = _why_not_local(request)
    if not why and shares_loopback:
        why = "tasks in the sandbox have this machine's network, and could ask, too"
    if why:
        raise NotAllowed(f"{why}; {_HOW}")


def _why_not_local(request: Request) -> str:
    """Why a request does not count as made on this machine; empty: it does."""
    client = request.scope.get("client")
    if not client or not _is_loopback(client[0]):
        return "the request comes from another machine"
    forwarded = next((name for name in _FORWARDED if name in request.headers), "")
    if forwarded:
        return f"a proxy sent the request on (it has the header {forwarded.title()})"
    if request.scope.get("http_version") == "1.0":
        # As nginx, which adds no header and names the server as it was told to reach it.
        return "a proxy sent the request on (it is of HTTP/1.0)"
    host = request.headers.get("host", "").lower()
    # A page whose own name was made to mean this machine (DNS rebinding) sends that name.
    if not _is_loopback(_name(host)):
        return "the request names the server otherwise than by localhost or a loopback address"
    origin = request.headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
        return "a web page of another origin made a browser send the request"
    return ""


def _name(host: str) -> str:
    """The host without its port; empty if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
