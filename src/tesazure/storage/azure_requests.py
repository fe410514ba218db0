"""Requests to Azure Storage, and the lists that come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

from tesazure.errors import StorageError
from tesazure.storage.azure_answers import accept
from tesazure.storage.azure_urls import AzureUrl
from tesazure.storage.base import Progress
from tesazure.storage.transport import Transport
from tesazure.storage.urls import redact
from tesazure.storage.wire import Answer, FilePart

VERSION = {"x-ms-version": "2024-11-04"}
"""Newer than all that is used here (the newest is Azure Files' dot at the end, 2022-11-02), and
known to all clouds and to the emulator."""


_LONGEST_PAGE = 64 * 2**20
"""Bytes: more than 5000 of the longest names take with all the metadata that there may be."""


class Requests:
    """Asks one service, with the headers that all of its requests need."""

    def __init__(self, transport: Transport, headers: Mapping[str, str] = VERSION) -> None:
        self.transport = transport
        self.headers = headers

    def ask(
        self,
        method: str,
        target: AzureUrl,
        parameters: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | FilePart | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """The answer, whatever its status, after as many tries as the transport makes."""
        return self.transport.ask(
            method,
            target.asking(parameters),
            headers={**self.headers, **(headers or {})},
            body=body,
            progress=progress,
        )

    def listed(self, target: AzureUrl, parameters: str, items: str) -> Iterator[Element]:
        """What lies at the path `items` of a list's pages; one page is in memory at a time."""
        marker = ""
        while True:
            more = f"&marker={quote(marker, safe='')}" if marker else ""
            page = self._page(target, parameters + more)
            yield from page.iterfind(items)
            marker = page.findtext("NextMarker") or ""
            if not marker:
                return

    def _page(self, target: AzureUrl, parameters: str) -> Element:
        url = target.asking(parameters)

        def once() -> tuple[Answer, bytes]:
            # Not for the progress, which counts the bytes of files.
            body = bytearray()

            def take(data: bytes) -> None:
                if len(body) + len(data) > _LONGEST_PAGE:
                    raise StorageError("LIST: the answer is longer than any list of Azure's")
                body.extend(data)

            answer = self.transport.send("GET", url, headers=self.headers, sink=lambda _: take)
            return answer, bytes(body)

        answer, body = self.transport.persist(f"LIST {redact(url)}", once)
        accept(answer, "LIST", target)
        if b"<!DOCTYPE" in body:  # which could make expat's memory grow without end
            raise StorageError("LIST: the answer has a document type, as no list of Azure's has")
        try:
            return ET.fromstring(body.decode("utf-8-sig"))  # noqa: S314 - see above
        except (ET.ParseError, UnicodeDecodeError):
            raise StorageError("LIST: the answer is not a list as Azure's are") from None


def name_of(item: Element) -> str:
    """The name of a list's item; encoded where XML could not hold it ("List Blobs", remarks)."""
    found = item.find("Name")
    if found is None or not found.text:
        return ""
    return unquote(found.text) if found.get("Encoded") == "true" else found.text
