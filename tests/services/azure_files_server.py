"""A stand-in for Azure Files' REST interface, for which there is no emulator: it checks SAS tokens,
really keeps files, and answers and refuses as the definition says.

Sources: "Operations on Files", "Operations on Directories", "Azure Files error codes" (Microsoft).
What is known of Azure beyond these: conditional headers are refused, an empty file's range is 416.
"""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from tesazure.access import Endpoints
from tests.services import azure_sas
from tests.services.azure_sas import Refusal
from tests.services.certificates import Certificate
from tests.services.entra_server import TENANT
from tests.services.loopback_http import LoopbackHttp, QuietHandler

ACCOUNT = "tesazurefiles"
KEY = base64.b64encode(hashlib.sha512(b"another key for tests").digest()).decode()
MOST_PER_RANGE = 4 * 2**20
_CONDITIONS = ("If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_TIMES = ("Start", "Expiry")
_NUMBERS = itertools.count(1)


@dataclass
class File:
    """A file. Its identity stays when it is renamed."""

    name: str
    content: bytearray
    content_type: str
    md5: str
    identity: int = field(default_factory=lambda: next(_NUMBERS))
    version: int = field(default_factory=lambda: next(_NUMBERS))
    attributes: str = "None"


@dataclass
class Directory:
    """A directory; names differ by more than their case, as with SMB."""

    name: str = ""
    children: dict[str, File | Directory] = field(default_factory=dict)


class AzureFilesServer(LoopbackHttp):
    """One account, on loopback, as a context manager.

    `lose` names operations whose next answer is lost after they were done. `requests` are all
    requests as (operation, path). With a `certificate` it speaks https, and gives a user delegation
    key to bearers of a token; `keys_given` counts how often.
    """

    def __init__(self, certificate: Certificate | None = None) -> None:
        super().__init__(_Handler, certificate)
        self.delegation_key = ""
        self.keys_given = 0
        self.shares: dict[str, Directory] = {}
        self.requests: list[tuple[str, str]] = []
        self.lose: set[str] = set()
        self.lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        """URL of the account's Files service."""
        return f"{self.origin}/{ACCOUNT}"

    @property
    def endpoints(self) -> Endpoints:
        """The settings with which the product finds it."""
        return Endpoints(file=self.endpoint)

    def share_sas(self, share: str, permission: str = "rcwdl", minutes: int = 60) -> str:
        """A SAS for a share, made by Microsoft's SDK; `minutes` from now, negative if expired."""
        from azure.storage.fileshare import generate_share_sas

        return generate_share_sas(ACCOUNT, share, KEY, permission=permission, **_times(minutes))

    def file_sas(self, share: str, path: str, permission: str = "r", minutes: int = 60) -> str:
        """A SAS for one file, likewise."""
        from azure.storage.fileshare import generate_file_sas

        parts = path.split("/")
        return generate_file_sas(
            ACCOUNT, share, parts, KEY, permission=permission, **_times(minutes)
        )

    def make_share(self, name: str) -> None:
        """An empty share."""
        self.shares[name] = Directory()

    def plant(self, share: str, path: str, content: bytes) -> None:
        """Make or replace a file, with its directories."""
        with self.lock:
            directory = self.shares.setdefault(share, Directory())
            *parents, name = path.split("/")
            for parent in parents:
                below = directory.children.setdefault(parent.lower(), Directory(parent))
                assert isinstance(below, Directory)
                directory = below
            md5 = _md5(content)
            directory.children[name.lower()] = File(name, bytearray(content), "text/plain", md5)

    def found(self, share: str, path: str) -> File | Directory | None:
        """What lies at a path."""
        node: File | Directory | None = self.shares.get(share)
        for part in filter(None, path.split("/")):
            node = node.children.get(part.lower()) if isinstance(node, Directory) else None
        return node


def _times(minutes: int) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC)
    return {"start": now - dt.timedelta(days=1), "expiry": now + dt.timedelta(minutes=minutes)}


def _md5(content: bytes | bytearray) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


class _Handler(QuietHandler):
    """One connection."""

    owner: AzureFilesServer
    operations: ClassVar[dict[tuple[str, str, str], tuple[str, str]]] = {
        # method, restype, comp -> operation, what the SAS must permit one of
        ("GET", "", ""): ("get_file", "r"),
        ("HEAD", "", ""): ("file_properties", "r"),
        ("PUT", "", ""): ("create_file", "cw"),
        ("DELETE", "", ""): ("delete_file", "d"),
        ("PUT", "", "range"): ("put_range", "w"),
        ("PUT", "", "properties"): ("set_properties", "w"),
        ("PUT", "", "rename"): ("rename_file", "w"),
        ("GET", "directory", "list"): ("list", "l"),
        ("PUT", "directory", ""): ("create_directory", "cw"),
        ("HEAD", "directory", ""): ("directory_properties", "r"),
        ("GET", "directory", ""): ("directory_properties", "r"),
    }

    def do_GET(self) -> None:
        """Answer."""
        self._serve()

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._serve()

    def do_PUT(self) -> None:
        """Make or change something."""
        self._serve()

    def do_POST(self) -> None:
        """Get User Delegation Key."""
        self._serve()

    def do_DELETE(self) -> None:
        """Delete something."""
        self._serve()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if len(self.body) < length:
            self.close_connection = True
            return
        try:
            self._dispatch()
        except Refusal as refusal:
            self._refuse(refusal)

    def _dispatch(self) -> None:
        owner = self.owner
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        key = (self.command, self.query.get("restype", ""), self.query.get("comp", ""))
        if key == ("POST", "service", "userdelegationkey"):
            self._answer(200, {"Content-Type": "application/xml"}, self._delegation_key())
            return
        operation, needs = self.operations.get(key, ("", ""))
        if not operation:
            raise Refusal(400, "InvalidQueryParameterValue", "The operation is not known here.")
        self.share, self.place = self._authorised(parts.path, self.query, needs)
        owner.requests.append((operation, f"{self.share}/{self.place}"))
        self._header("x-ms-version")
        for name in _CONDITIONS:
            if name in self.headers:
                message = "Condition headers are not supported."
                raise Refusal(400, "ConditionHeadersNotSupported", message)
        act: Callable[[], tuple[int, dict[str, str], bytes]] = getattr(self, f"_{operation}")
        with owner.lock:
            status, headers, body = act()
            if operation in owner.lose:
                owner.lose.discard(operation)
                self.close_connection = True
                return
        self._answer(status, headers, body)

    def _authorised(self, path: str, query: dict[str, str], needs: str) -> tuple[str, str]:
        """Share and path below it, if the SAS is for these."""
        account, _, rest = path.lstrip("/").partition("/")
        if account != ACCOUNT:
            raise Refusal(404, "ResourceNotFound", "The specified resource does not exist.")
        share, _, place = unquote(rest).partition("/")
        azure_sas.check(
            query,
            account=ACCOUNT,
            key=KEY,
            delegation_key=self.owner.delegation_key,
            share=share,
            path=place,
            needs=needs,
            scheme=self.owner.scheme,
        )
        if share not in self.owner.shares:
            raise Refusal(404, "ShareNotFound", "The specified share does not exist.")
        return share, place

    def _delegation_key(self) -> bytes:
        """The answer with the key, to who has a token for storage that is still good."""
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        try:
            claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        except (IndexError, ValueError):
            claims = {}
        is_good = (claims.get("aud"), claims.get("tid")) == ("https://storage.azure.com", TENANT)
        if kind != "Bearer" or not is_good or claims["exp"] < time.time():
            raise Refusal(401, "InvalidAuthenticationInfo", "Authentication information is wrong.")
        asked = {
            name: re.search(f"<{name}>([^<]+)</{name}>", self.body.decode()) for name in _TIMES
        }
        start, expiry = (found[1] if found else "" for found in asked.values())
        lasts = dt.datetime.fromisoformat(expiry) - dt.datetime.now(dt.UTC)
        if lasts > dt.timedelta(days=7):
            raise Refusal(400, "InvalidXmlNodeValue", "The expiry is too far away.")
        owner = self.owner
        owner.keys_given += 1
        owner.delegation_key = KEY[::-1].replace("=", "A")
        fields = {
            "SignedOid": claims["oid"],
            "SignedTid": TENANT,
            "SignedStart": start,
            "SignedExpiry": expiry,
            "SignedService": "f",
            "SignedVersion": self._header("x-ms-version"),
            "Value": owner.delegation_key,
        }
        inside = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
        text = f'<?xml version="1.0" encoding="utf-8"?><UserDelegationKey>{inside}'
        return f"{text}</UserDelegationKey>".encode()

    def _header(self, name: str) -> str:
        value: str | None = self.headers.get(name)
        if value is None:
            message = "An HTTP header that's mandatory for this request is not specified."
            raise Refusal(400, "MissingRequiredHeader", message, name)
        return value

    def _parent(self, place: str) -> tuple[Directory, str]:
        parent, _, name = place.rpartition("/")
        directory = self.owner.found(self.share, parent)
        if not isinstance(directory, Directory):
            raise Refusal(404, "ParentNotFound", "The specified parent path does not exist.")
        return directory, name

    def _file(self, place: str) -> File:
        found = self.owner.found(self.share, place)
        if not isinstance(found, File):
            self._parent(place)
            raise Refusal(404, "ResourceNotFound", "The specified resource does not exist.")
        return found

    def _directory(self) -> Directory:
        found = self.owner.found(self.share, self.place)
        if found is None:
            raise Refusal(404, "ResourceNotFound", "The specified resource does not exist.")
        if isinstance(found, File):
            raise _mismatch()
        return found

    def _describe(self, file: File) -> dict[str, str]:
        return {
            "ETag": f'"0x8D{file.version:013X}"',
            "Last-Modified": email.utils.formatdate(usegmt=True),
            "x-ms-file-id": str(file.identity),
            "x-ms-file-attributes": file.attributes,
        }

    def _properties(self, file: File) -> dict[str, str]:
        return {
            **self._describe(file),
            "Content-Type": file.content_type,
            "x-ms-type": "File",
            "Accept-Ranges": "bytes",
        }

    # Operations: status, headers and body.

    def _get_file(self) -> tuple[int, dict[str, str], bytes]:
        file = self._file(self.place)
        headers = self._properties(file)
        asked = _RANGE.fullmatch(self.headers.get("x-ms-range") or self.headers.get("Range") or "")
        if asked is None:
            if file.md5:
                headers["Content-MD5"] = file.md5
            return 200, headers, bytes(file.content)
        size, start = len(file.content), int(asked[1])
        end = min(int(asked[2] or size), size - 1)
        if start >= size:
            message = "The range specified is invalid for the current size of the resource."
            raise Refusal(416, "InvalidRange", message)
        if file.md5:
            headers["x-ms-content-md5"] = file.md5
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        return 206, headers, bytes(file.content[start : end + 1])

    def _file_properties(self) -> tuple[int, dict[str, str], bytes]:
        file = self._file(self.place)
        headers = {**self._properties(file), **({"Content-MD5": file.md5} if file.md5 else {})}
        return 200, headers, bytes(file.content)

    def _create_file(self) -> tuple[int, dict[str, str], bytes]:
        directory, name = self._parent(self.place)
        if self._header("x-ms-type") != "file" or re.search(r'["\\:|<>*?]', name):
            message = "The specified resource name contains invalid characters."
            raise Refusal(400, "InvalidResourceName", message)
        if isinstance(directory.children.get(name.lower()), Directory):
            raise _mismatch()
        content_type = self.headers.get("x-ms-content-type", "application/octet-stream")
        content = bytearray(int(self._header("x-ms-content-length")))
        file = File(name, content, content_type, self.headers.get("x-ms-content-md5", ""))
        directory.children[name.lower()] = file
        return 201, self._describe(file), b""

    def _delete_file(self) -> tuple[int, dict[str, str], bytes]:
        self._file(self.place)
        directory, name = self._parent(self.place)
        del directory.children[name.lower()]
        return 202, {}, b""

    def _put_range(self) -> tuple[int, dict[str, str], bytes]:
        file = self._file(self.place)
        asked = _RANGE.fullmatch(self.headers.get("x-ms-range") or self._header("Range"))
        if asked is None or self._header("x-ms-write") != "update":
            raise Refusal(400, "InvalidHeaderValue", "The value of a header is not right.")
        start, end = int(asked[1]), int(asked[2]) + 1
        if end - start > MOST_PER_RANGE:
            raise Refusal(413, "RequestBodyTooLarge", "The request body is too large.")
        if end - start != len(self.body) or end > len(file.content):
            raise Refusal(416, "InvalidRange", "The range is not right for body or file.")
        if self.headers.get("Content-MD5", _md5(self.body)) != _md5(self.body):
            raise Refusal(400, "Md5Mismatch", "The MD5 value specified did not match.")
        file.content[start:end] = self.body
        file.version = next(_NUMBERS)
        return 201, {**self._describe(file), "Content-MD5": _md5(self.body)}, b""

    def _set_properties(self) -> tuple[int, dict[str, str], bytes]:
        file = self._file(self.place)
        file.md5 = self.headers.get("x-ms-content-md5", "")
        file.content_type = self.headers.get("x-ms-content-type", "application/octet-stream")
        file.version = next(_NUMBERS)
        return 200, self._describe(file), b""

    def _rename_file(self) -> tuple[int, dict[str, str], bytes]:
        source = urlsplit(self._header("x-ms-file-rename-source"))
        query = dict(parse_qsl(source.query))
        share, place = self._authorised(source.path, query, "d")
        if share != self.share:
            raise Refusal(400, "InvalidHeaderValue", "The source is in another share.")
        file = self._file(place)
        directory, name = self._parent(self.place)
        there = directory.children.get(name.lower())
        if isinstance(there, Directory):
            raise _mismatch()
        if there and self.headers.get("x-ms-file-rename-replace-if-exists") != "true":
            raise Refusal(409, "ResourceAlreadyExists", "The specified resource already exists.")
        ignoring = self.headers.get("x-ms-file-rename-ignore-readonly") == "true"
        if there and there.attributes == "ReadOnly" and not ignoring:
            raise Refusal(409, "ReadOnlyAttribute", "The file is read-only.")
        old, old_name = self._parent(place)
        del old.children[old_name.lower()]
        directory.children[name.lower()] = file
        file.name = name
        return 200, self._describe(file), b""

    def _list(self) -> tuple[int, dict[str, str], bytes]:
        children = sorted(self._directory().children.items())
        marker, most = self.query.get("marker", ""), int(self.query.get("maxresults", "5000"))
        page = [child for key, child in children if not marker or key >= marker]
        rest = page[most:]
        entries = "".join(map(_entry, page[:most]))
        after = escape(rest[0].name.lower()) if rest else ""
        body = (
            f'\ufeff<?xml version="1.0" encoding="utf-8"?><EnumerationResults'
            f' ShareName="{self.share}"><MaxResults>{most}</MaxResults>'
            f"<Entries>{entries}</Entries><NextMarker>{after}</NextMarker></EnumerationResults>"
        )
        return 200, {"Content-Type": "application/xml"}, body.encode()

    def _create_directory(self) -> tuple[int, dict[str, str], bytes]:
        directory, name = self._parent(self.place)
        if name.lower() in directory.children or not name:
            raise Refusal(409, "ResourceAlreadyExists", "The specified resource already exists.")
        directory.children[name.lower()] = Directory(name)
        return 201, {}, b""

    def _directory_properties(self) -> tuple[int, dict[str, str], bytes]:
        self._directory()
        return 200, {"x-ms-type": "Directory"}, b""

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        version = {"x-ms-version": self.headers.get("x-ms-version", "")}
        self.reply(status, body, headers | version)

    def _refuse(self, refusal: Refusal) -> None:
        detail = ""
        if refusal.detail:
            name = "AuthenticationErrorDetail" if refusal.status == 403 else "HeaderName"
            detail = f"<{name}>{escape(refusal.detail)}</{name}>"
        body = (
            f'\ufeff<?xml version="1.0" encoding="utf-8"?><Error><Code>{refusal.code}</Code>'
            f"<Message>{escape(refusal.message)}</Message>{detail}</Error>"
        )
        headers = {"x-ms-error-code": refusal.code, "Content-Type": "application/xml"}
        self._answer(refusal.status, headers, body.encode())


def _mismatch() -> Refusal:
    message = "The specified resource type does not match the type of the existing resource."
    return Refusal(409, "ResourceTypeMismatch", message)


def _entry(child: File | Directory) -> str:
    name = f"<Name>{escape(child.name)}</Name>"
    if isinstance(child, Directory):
        return f"<Directory>{name}<Properties /></Directory>"
    size = f"<Content-Length>{len(child.content)}</Content-Length>"
    return f"<File>{name}<Properties>{size}</Properties></File>"
