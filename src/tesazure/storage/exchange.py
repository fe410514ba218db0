"""One HTTP request and its answer over libcurl, on a connection that is kept for the next one."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pycurl

from tesazure.errors import PermissionDenied, StorageError
from tesazure.storage.base import Progress
from tesazure.storage.guard import Guard
from tesazure.storage.wire import Again, Answer, FilePart, Sink, Target, content_length

TICK_S = 0.2
"""The longest time without a call of the Progress."""
BUFFER = 512 * 2**10
"""Bytes that libcurl hands over, or asks for, at once."""
_LONGEST_BODY = 64 * 2**20
_LONGEST_REFUSAL = 64 * 2**10
_IDLE_S = 60
"""Connections without a request for longer are not used again: most servers close them."""
_SAYS_WHAT_HAPPENED = frozenset(
    {pycurl.E_SSL_CONNECT_ERROR, pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR, pycurl.E_GOT_NOTHING}
)
"""Failures whose description by libcurl is of use and quotes nothing of the URL."""

_STATUS = re.compile(r"HTTP/\S+ ([0-9]{3,9})(?: (.*))?")
_END_OF_SENTENCE = re.compile(r"\.(?: .*)?$")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e]*")
"""As RFC 9110 (5.5 and 5.6.2) has them, but for bytes that are not ASCII."""
_VERDICT = re.compile(r".*(?:verify result|problem): (.*?)(?: \(\d+\))?")


class Manner(msgspec.Struct, frozen=True):
    """How connections are made. Times in seconds."""

    guard: Guard
    connect_s: float
    read_s: float
    ca_file: str
    ca_directory: str
    names: Mapping[str, str]
    """`host:port` -> IP addresses, separated by commas, in place of asking a name server."""


class Request(msgspec.Struct, frozen=True):
    """One request, without redirects."""

    method: str
    target: Target
    headers: Mapping[str, str]
    body: bytes | FilePart | None
    what: str
    """Names it in messages."""


class Line:
    """A curl handle and, between requests, its open connection. For one thread at a time."""

    def __init__(self) -> None:
        self.origin = ""
        """Where its connection leads."""
        self._curl = pycurl.Curl()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, 1)

    def exchange(
        self, request: Request, manner: Manner, sink: Sink | None, progress: Progress | None
    ) -> Answer:
        """The answer. Raises what `sink` and `progress` raise, and as Transport.send does."""
        self.origin = request.target.origin
        talk = _Talk(self._curl, request, manner, sink, progress)
        self._multi.add_handle(self._curl)
        try:
            code, text = self._run(talk)
        finally:
            self._multi.remove_handle(self._curl)
            self._curl.reset()
            talk.let_go()
        return talk.conclude(code, text)

    def close(self) -> None:
        """Close the connection."""
        self._curl.close()
        self._multi.close()

    def _run(self, talk: _Talk) -> tuple[int, str]:
        """How it ended: one of libcurl's codes, and its words."""
        while True:
            looked = time.monotonic()
            _, active = self._multi.perform()
            if talk.caught is not None:
                raise talk.caught
            if not active:
                break
            talk.tick(looked)
            if self._multi.select(TICK_S) < 0:
                time.sleep(0.01)  # there is no socket to wait for yet
        _, _, failed = self._multi.info_read()
        return (failed[0][1], failed[0][2]) if failed else (pycurl.E_OK, "")


class _Talk:
    """The state of one exchange, which libcurl calls back."""

    def __init__(
        self,
        curl: pycurl.Curl,
        request: Request,
        manner: Manner,
        sink: Sink | None,
        progress: Progress | None,
    ) -> None:
        self.caught: BaseException | None = None
        """What one of our own functions raised."""
        self._curl = curl
        self._request = request
        self._manner = manner
        self._sink = sink
        self._progress = progress
        self._take: Callable[[bytes], None] | None = None
        self._answer = Answer(0, "", {}, b"", request.target.url)
        self._complete = False
        """Whether the headers are."""
        self._body: list[bytes] = []
        self._received = 0
        self._is_cut = False
        self._sent = 0
        self._refused = ""
        self._connected = False
        self._sockets: list[socket.socket] = []
        self._moved = self._told = time.monotonic()
        self._set_up()

    def _set_up(self) -> None:
        curl, request, manner = self._curl, self._request, self._manner
        curl.setopt(pycurl.URL, request.target.url)
        for option, value in (
            (pycurl.NOSIGNAL, 1),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.PROXY, ""),  # whatever the environment says
            (pycurl.PATH_AS_IS, 1),  # an object's name may hold `/../`
            (pycurl.BUFFERSIZE, BUFFER),
            (pycurl.UPLOAD_BUFFERSIZE, BUFFER),
            (pycurl.CONNECTTIMEOUT_MS, max(1, int(manner.connect_s * 1000))),
            (pycurl.MAXAGE_CONN, _IDLE_S),
            (pycurl.TCP_KEEPALIVE, 1),
            (pycurl.HEADERFUNCTION, self._on_header),
            (pycurl.WRITEFUNCTION, self._on_body),
            (pycurl.OPENSOCKETFUNCTION, self._on_socket),
            (pycurl.SOCKOPTFUNCTION, self._on_copy),
        ):
            curl.setopt(option, value)
        if manner.ca_file:
            curl.setopt(pycurl.CAINFO, manner.ca_file)
        if manner.ca_directory:
            curl.setopt(pycurl.CAPATH, manner.ca_directory)
        if manner.names:
            curl.setopt(pycurl.RESOLVE, [f"{name}:{at}" for name, at in manner.names.items()])
        if request.target.user is not None:
            self._log_in(request.target.user)
        headers = {"Accept-Encoding": "identity", "User-Agent": "tesazure", **request.headers}
        if not all(_HEADER.fullmatch(f"{name}:{value}") for name, value in headers.items()):
            raise StorageError(f"{request.what}: a header holds a character that none may hold")
        self._set_method()
        curl.setopt(
            pycurl.HTTPHEADER,
            # libcurl's notation for an empty value, and for no such header.
            [f"{name}: {value}" if value else f"{name};" for name, value in headers.items()]
            + ["Expect:"],
        )

    def _log_in(self, user: str) -> None:
        from urllib.parse import unquote

        name, _, password = user.partition(":")
        self._curl.setopt(pycurl.HTTPAUTH, pycurl.HTTPAUTH_BASIC)
        self._curl.setopt(pycurl.USERNAME, unquote(name).encode())
        self._curl.setopt(pycurl.PASSWORD, unquote(password).encode())

    def _set_method(self) -> None:
        curl, method, body = self._curl, self._request.method, self._request.body
        if method == "HEAD":
            curl.setopt(pycurl.NOBODY, 1)
        elif method != "GET" or body is not None:
            curl.setopt(pycurl.CUSTOMREQUEST, method)
        if body is None and method not in ("PUT", "POST", "PATCH"):
            return
        curl.setopt(pycurl.UPLOAD, 1)
        curl.setopt(pycurl.INFILESIZE_LARGE, _size_of(body))
        curl.setopt(pycurl.READFUNCTION, self._on_more)
        curl.setopt(pycurl.SEEKFUNCTION, self._on_rewind)

    def tick(self, now: float) -> None:
        """Gives the Progress its chance. Raises Again for a connection that has stalled. `now`:
        when libcurl last began to look what there is, on the monotonic clock. What comes while this
        process has no processor has not stalled."""
        if self._progress and now - self._told >= TICK_S:
            self._told = now
            self._progress(0)
        if not self._connected:
            self._connected = self._curl.getinfo(pycurl.PRETRANSFER_TIME) > 0
            self._moved = now  # until then libcurl's own time limit counts
        elif now - self._moved > self._manner.read_s:
            raise Again("the connection stalled")

    def let_go(self) -> None:
        """Close what libcurl has copies of."""
        for opened in self._sockets:
            opened.close()

    def conclude(self, code: int, text: str) -> Answer:
        """The answer, if the exchange came to its end. Raises as Transport.send does."""
        what = self._request.what
        if self._refused and not self._connected and not self._complete:
            raise PermissionDenied(f"{what}: {self._refused}")
        if code == pycurl.E_OK or self._is_cut:
            answer = self._answer
            return Answer(
                answer.status, answer.reason, answer.headers, b"".join(self._body), answer.url
            )
        if code == pycurl.E_PEER_FAILED_VERIFICATION:
            found = _VERDICT.fullmatch(text)
            raise StorageError(
                f"{what}: the certificate is not valid: {found[1] if found else text}"
            )
        if code in (pycurl.E_SSL_CACERT_BADFILE, pycurl.E_SSL_ENGINE_NOTFOUND):
            raise StorageError(f"{what}: the file of trusted certificates cannot be used")
        if code == pycurl.E_URL_MALFORMAT:
            raise StorageError(f"{what}: not a URL of http or https")
        raise Again(self._in_words(code, text))

    def _in_words(self, code: int, text: str) -> str:
        host = self._request.target.host
        announced = content_length(self._answer)
        if code == pycurl.E_COULDNT_RESOLVE_HOST:
            return f"cannot resolve {host}"
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return "no connection within the time limit"
        if code == pycurl.E_COULDNT_CONNECT:
            number = self._curl.getinfo(pycurl.OS_ERRNO)
            return os.strerror(number) if number else f"cannot connect to {host}"
        if code == pycurl.E_PARTIAL_FILE and announced is not None:
            return f"{self._received} bytes came of {announced} announced"
        if code in _SAYS_WHAT_HAPPENED and text:
            return text
        return f"the answer broke off or makes no sense (libcurl's error {code})"

    # Below: called by libcurl, which must not see an exception.

    def _on_socket(self, _: int, address: Any) -> socket.socket | int:
        try:
            target = self._request.target
            place = str(address.addr[0])
            self._connected = False
            reason = self._manner.guard.refusal(place, target.host, target.port)
            if reason:
                self._refused = reason
                return pycurl.SOCKET_BAD
            made = socket.socket(address.family, address.socktype, address.protocol)
            self._sockets.append(made)
        except BaseException as error:
            self.caught = error
            return pycurl.SOCKET_BAD
        return made

    def _on_copy(self, descriptor: int, _: int) -> int:
        """libcurl uses a copy of the socket, which no program that is started is to have."""
        os.set_inheritable(descriptor, False)
        return pycurl.SOCKOPT_OK

    def _on_header(self, line: bytes) -> int | None:
        try:
            self._moved = time.monotonic()
            self._hear(line.decode("latin-1").rstrip("\r\n"))
        except BaseException as error:
            self.caught = error
            return -1
        return None

    def _hear(self, line: str) -> None:
        if self._complete:
            return  # a trailer
        if line.startswith("HTTP/") and (found := _STATUS.fullmatch(line)):
            # Azure's are several sentences, of which the first one says it.
            reason = _END_OF_SENTENCE.sub("", "".join(filter(str.isprintable, found[2] or "")))
            self._answer = Answer(int(found[1]), reason[:100], {}, b"", self._request.target.url)
            return
        if line:
            name, _, value = line.partition(":")
            name, value = name.strip().lower(), value.strip()
            before = self._answer.headers.get(name)
            self._answer.headers[name] = f"{before}, {value}" if before else value
        elif self._answer.status >= 200:
            self._complete = True
            if self._sink and self._answer.succeeded:
                self._take = self._sink(self._answer)

    def _on_body(self, data: bytes) -> int | None:
        try:
            self._received += len(data)
            if self._take:
                self._take(data)
                self._tell(len(data))
                return None
            self._moved = time.monotonic()
            self._body.append(data)
            if self._received > _LONGEST_REFUSAL and not self._answer.succeeded:
                self._is_cut = True
                return -1
            if self._received > _LONGEST_BODY:
                raise StorageError(f"{self._request.what}: the answer is longer than any should be")
        except BaseException as error:
            self.caught = error
            return -1
        return None

    def _on_more(self, wanted: int) -> bytes | int:
        try:
            body = self._request.body
            if isinstance(body, FilePart):
                left = body.length - self._sent
                data = os.pread(body.descriptor, min(wanted, left), body.offset + self._sent)
                if left and not data:
                    raise StorageError(f"{self._request.what}: the file was cut short meanwhile")
            else:
                data = (body or b"")[self._sent : self._sent + wanted]
            self._sent += len(data)
            self._tell(len(data))
        except BaseException as error:
            self.caught = error
            return pycurl.READFUNC_ABORT
        return data

    def _on_rewind(self, offset: int, origin: int) -> int:
        """A connection that was kept had been closed by the server, and the body begins anew."""
        if origin != os.SEEK_SET:
            return pycurl.SEEKFUNC_CANTSEEK
        self._sent = offset
        return pycurl.SEEKFUNC_OK

    def _tell(self, moved: int) -> None:
        self._connected = True
        self._moved = self._told = time.monotonic()
        if self._progress and moved:
            self._progress(moved)
            self._moved = time.monotonic()  # nothing was looked for meanwhile


def _size_of(body: bytes | FilePart | None) -> int:
    return body.length if isinstance(body, FilePart) else len(body or b"")
