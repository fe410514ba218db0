"""Files of the Batch stand-in's tasks: resource files that come, output files that go, both really.

Sources: "Batch service REST API reference": ResourceFile, OutputFile; "Batch Status and Error
Codes", for the codes of failures.
"""

from __future__ import annotations

import mimetypes
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from tests.services.batch_wire import format_time

_TIMEOUT_S = 30
_TICKS_PER_NS = 100


@dataclass
class Failed(Exception):
    """A task cannot begin, or is a failure: Batch's code and words."""

    code: str
    said: str
    category: str = "usererror"
    details: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The TaskFailureInformation."""
        details = [{"name": name, "value": value} for name, value in self.details.items()]
        found: dict[str, Any] = {
            "category": self.category,
            "code": self.code,
            "message": self.said,
        }
        return found | ({"details": details} if details else {})


class Transfers:
    """Downloads and uploads by HTTP. `ca_bundle`: PEM file of the authorities that TLS trusts."""

    def __init__(self, ca_bundle: str = "") -> None:
        context = ssl.create_default_context(cafile=ca_bundle or None)
        # As a node: what proxies the machine has is no matter of Batch's.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def fetch(self, resource: dict[str, Any]) -> bytes:
        """The content of a resource file. Raises Failed."""
        url = resource.get("httpUrl")
        if url is None:
            said = "The stand-in downloads resource files of httpUrl alone."
            raise Failed("ContainerInvalidSettings", said)
        details = {"FilePath": resource.get("filePath", ""), "HttpUrl": url.partition("?")[0]}
        try:
            with self._opener.open(url, timeout=_TIMEOUT_S) as reply:
                return bytes(reply.read())
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                said = "One of the specified Azure Blob(s) is not found"
                raise Failed("BlobNotFound", said, details=details) from error
            if error.code in (401, 403):
                said = "Access for one of the specified Azure Blob(s) is denied"
                raise Failed("BlobAccessDenied", said, details=details) from error
            said = "Miscellaneous error encountered while downloading one of the specified Blob(s)"
            raise Failed("BlobDownloadMiscError", said, "servererror", details) from error
        except TimeoutError as error:
            said = "Timeout encountered while downloading one of the specified Azure Blob(s)"
            raise Failed("BlobDownloadTimedOut", said, "servererror", details) from error
        except OSError as error:
            said = "Miscellaneous error encountered while downloading one of the specified Blob(s)"
            raise Failed("BlobDownloadMiscError", said, "servererror", details) from error

    def bring(self, task: dict[str, Any], working: Path) -> None:
        """Put a task's resource files into its working directory. Raises Failed."""
        for resource in task.get("resourceFiles", []):
            target = _below(working, resource["filePath"])
            content = self.fetch(resource)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(int(resource.get("fileMode", "0770"), 8))

    def take(self, task: dict[str, Any], working: Path, succeeded: bool) -> None:
        """Upload a task's output files. Raises Failed."""
        for output in task.get("outputFiles", []):
            wanted = output["uploadOptions"]["uploadCondition"].lower()
            if wanted not in ("taskcompletion", "tasksuccess" if succeeded else "taskfailure"):
                continue
            pattern = output["filePattern"]
            container = output["destination"]["container"]
            for file in sorted(working.glob(pattern)):
                if file.is_file():
                    literal = not set(pattern) & set("*?[")
                    self._upload(container, file, file.relative_to(working), literal)

    def _upload(self, container: dict[str, Any], file: Path, relative: Path, literal: bool) -> None:
        path = container.get("path", "").strip("/")
        name = path if literal and path else "/".join(filter(None, (path, str(relative))))
        parts = urlsplit(container["containerUrl"])
        url = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
        headers = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2021-12-02"}
        body = file.read_bytes()
        request = urllib.request.Request(url, body, headers, method="PUT")
        try:
            self._opener.open(request, timeout=_TIMEOUT_S).close()
        except urllib.error.HTTPError as error:
            error.close()
            codes = {404: "FileUploadContainerNotFound", 403: "FileUploadAccessDenied"}
            code = codes.get(error.code, "FileUploadMiscError")
            raise Failed(code, "An error occurred while uploading an output file") from error
        except OSError as error:
            said = "An error occurred while uploading an output file"
            raise Failed("FileUploadMiscError", said, "servererror") from error


def _below(directory: Path, name: str) -> Path:
    target = (directory / name).resolve()
    if not target.is_relative_to(directory.resolve()):
        said = "Failure encountered creating resource directory for the task."
        raise Failed("ResourceDirectoryCreateFailed", said)
    return target


def list_files(directory: Path, recursive: bool, url: Callable[[str], str]) -> Iterator[Any]:
    """The NodeFiles of a directory, in the order of their names."""
    found = directory.rglob("*") if recursive else directory.iterdir()
    for file in sorted(found):
        name = str(file.relative_to(directory))
        item: dict[str, Any] = {"name": name, "url": url(name), "isDirectory": file.is_dir()}
        if not file.is_dir():
            item["properties"] = properties(file)
        yield item


def properties(file: Path) -> dict[str, Any]:
    """The FileProperties."""
    status = file.stat()
    return {
        "creationTime": format_time(status.st_ctime_ns // _TICKS_PER_NS),
        "lastModified": format_time(status.st_mtime_ns // _TICKS_PER_NS),
        "contentLength": status.st_size,
        "contentType": mimetypes.guess_type(file.name)[0] or "application/octet-stream",
        "fileMode": f"0o{status.st_mode:o}",
    }


def remove(directory: Path) -> None:
    """Delete a directory, if it is there."""
    shutil.rmtree(directory, ignore_errors=True)
