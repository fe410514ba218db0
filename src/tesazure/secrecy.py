"""What is secret in the URLs of a task: found, cut out, kept out of texts. Pure.

A URL may carry what gives access to what it names: a signature (a SAS of Azure, a presigned URL of
S3 or Google), a token, a password. Such a URL is stored and shown with `***` in that place; the
whole one travels apart from the task (`access.Access`), and at rest only sealed (`sealing`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import unquote, unquote_plus

from tesazure.access import Access
from tesazure.model import Input, Output, Task

HIDDEN = "***"
"""What stands where a secret was."""

NAMES = frozenset(
    (
        *("auth", "authorization", "awsaccesskeyid", "bearer", "code", "credential", "credentials"),
        *("hdnea", "hdntl", "hdnts", "hmac", "jwt", "pass", "passphrase", "passwd", "pwd", "sas"),
        *("session", "sessionid", "ticket", "xamzcredential", "xgoogcredential"),
        *("md5", "qak", "qsign", "sign", "verify"),
    )
)
"""Parameters that hold secrets, in lower case and without what separates words."""

ENDINGS = ("auth", "key", "password", "secret", "sig", "signature", "token")
"""And all whose names end so: tempauth, X-Amz-Signature, X-Amz-Security-Token, access_token, …"""

_TOO_SHORT = 6
"""Secrets of fewer characters are not looked for in texts, which hold them by chance."""

_BEGINNING = re.compile(r"(?:(?:([^/?#@:]*):)?//)?([^?#]*)")
_NAMES_USERS = frozenset({"ftp", "sftp"})
"""Schemes with a user's name in their URLs that is no secret."""
_LEADING = re.compile(r"[\s\x00-\x20]*")
_NAME = re.compile(r"[?#&;]([^?#&;=]+)=")
_VALUE = re.compile(r"[^#&]*")
_SEPARATORS = re.compile(r"[^0-9a-z]+")


@functools.lru_cache(256)
def is_secret(name: str) -> bool:
    """Whether the value of a query parameter of this name is taken for a secret."""
    plain = _SEPARATORS.sub("", unquote_plus(name).lower())
    return plain in NAMES or plain.endswith(ENDINGS)


def hide(url: str) -> str:
    """The URL with `***` in place of every secret: values of parameters that `is_secret` names, and
    user information: with ftp and sftp its password, else all of it, as the user often is a token.
    Absolute paths and file URLs have no such parts and stay as they are."""
    if not _may_hold(url):
        return url
    shown, place = "", 0
    for start, end in _secrets(url):
        shown += url[place:start] + HIDDEN
        place = end
    return shown + url[place:]


def is_hidden(url: str) -> bool:
    """Whether the URL is one that was shown, with its secrets cut out: nothing can use it."""
    return HIDDEN in url and any(
        url[start:end] == HIDDEN or url[start:end].endswith(f":{HIDDEN}")
        for start, end in _secrets(url)
    )


def is_of_this_machine(url: str) -> bool:
    """Whether a URL is an absolute path or a file URL, which have no user, query or fragment. What
    else is no URL is taken for one that was written wrong, and may hold a secret all the same."""
    return (url.startswith("/") and not url.startswith("//")) or url[:5].lower() == "file:"


def begin(url: str) -> int:
    """Where a URL begins: behind the spaces in front of it."""
    found = _LEADING.match(url)
    return found.end() if found else 0


def may_hold_secrets(task: Task) -> bool:
    """Whether any URL of the task has what comes before a secret. Most tasks have none: this is
    quick."""
    items: tuple[Input | Output, ...] = (*(task.inputs or ()), *(task.outputs or ()))
    return _may_hold("".join([item.url or "" for item in items]))


def cut(task: Task) -> dict[str, str]:
    """Hides the secrets of all URLs of the task, in place. Returns the whole URLs of those that
    held any and are needed, by `inputs.0`, `outputs.2` and so on: inputs with content need none."""
    whole: dict[str, str] = {}
    fields: tuple[tuple[str, Sequence[Input | Output]], ...] = (
        ("inputs", task.inputs or ()),
        ("outputs", task.outputs or ()),
    )
    for field, items in fields:
        for index, item in enumerate(items):
            url = item.url
            if url and _may_hold(url):
                item.url = hide(url)
                if item.url != url and not (isinstance(item, Input) and item.content):
                    whole[f"{field}.{index}"] = url
    return whole


def of_field(whole: Mapping[str, str], field: str) -> dict[int, str]:
    """Of what `cut` returned, that of `inputs` or `outputs`: index -> whole URL."""
    return {
        int(name.removeprefix(f"{field}.")): url
        for name, url in whole.items()
        if name.startswith(f"{field}.")
    }


class Censor:
    """Keeps the secrets of an attempt out of texts: messages of libraries and of servers may quote
    what these were asked."""

    def __init__(self, urls: Iterable[str] = (), others: Iterable[str] = ()) -> None:
        """`urls` hold secrets, `others` are some."""
        found = {url[start:end] for url in urls for start, end in _secrets(url)} | set(others)
        forms = {form for secret in found for form in _forms(secret) if len(form) >= _TOO_SHORT}
        # The longest first: one may be the beginning of another.
        self._words = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text with `***` in place of every secret."""
        for word in self._words:
            text = text.replace(word, HIDDEN)
        return text


def censor_of(access: Access) -> Censor:
    """One that knows all secrets of an Access."""
    s3 = (access.s3.secret, access.s3.session_token) if access.s3 else ()
    tokens = (access.gcs_token, *access.drs_tokens.values(), *access.sftp_key.splitlines())
    registry = (access.registry.password,) if access.registry else ()
    return Censor([*access.inputs.values(), *access.outputs.values()], [*s3, *tokens, *registry])


def _may_hold(url: str) -> bool:
    """Whether a URL has any of what comes before its secrets. Most have not: this is quick."""
    return "?" in url or "@" in url or "#" in url


def _secrets(url: str) -> Iterator[tuple[int, int]]:
    """Where in the URL its secrets begin and end, from left to right."""
    found = None if is_of_this_machine(url) else _BEGINNING.match(url, begin(url))
    if found is None:
        return
    start, authority = found.start(2), found[2].partition("/")[0]
    user = authority[: max(authority.rfind("@"), 0)]
    if (found[1] or "").lower() in _NAMES_USERS:
        name, colon, user = user.partition(":")
        start += len(name) + len(colon)
    if user:
        yield start, start + len(user)
    place = found.end()
    while parameter := _NAME.search(url, place):
        place = parameter.end()
        if is_secret(parameter[1]):
            value = _VALUE.match(url, place)
            end = value.end() if value else place
            if end > place:
                yield place, end
            place = end


def _forms(secret: str) -> set[str]:
    """A secret as it is written in its URL, and as what it means."""
    return {secret, unquote(secret), unquote_plus(secret)}
