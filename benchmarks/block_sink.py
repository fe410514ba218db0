"""nginx as a store on loopback: it serves files, and really keeps the blocks that it is sent.

Its WebDAV PUT stores a body. A rewrite gives each block of a blob (Azure's "Put Block": a PUT with
`?comp=block&blockid=…`), and the list of them ("Put Block List", `?comp=blocklist`), a file of its
own, so that what uploads to Azure Blob uploads here, at nginx's speed. It checks no signature.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

from benchmarks.load import free_port, wait_for

ACCOUNT = "sink"

_CONFIG = """
daemon off;
worker_processes 2;
pid {root}/nginx.pid;
error_log {root}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_max_body_size 0;
    client_body_buffer_size 256k;
    client_body_temp_path {root}/bodies;
    proxy_temp_path {root}/unused; fastcgi_temp_path {root}/unused;
    uwsgi_temp_path {root}/unused; scgi_temp_path {root}/unused;
    map $arg_comp $stored_as {{
        block      /blocks$uri/$arg_blockid;
        blocklist  /lists$uri;
        default    /whole$uri;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=512;
        location = / {{ return 204; }}
        location /files/ {{ root {root}; }}
        location /sink/ {{
            root {root}/stored;
            rewrite ^ $stored_as break;
            dav_methods PUT;
            create_full_put_path on;
            add_header ETag '"stored"' always;
        }}
    }}
}}
"""


class BlockSink:
    """nginx below `root`, a directory that is there. `files` are served as `/files/…`; blobs go to
    `/sink/CONTAINER/…`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = root / "files"
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> BlockSink:
        self.files.mkdir()
        (self.root / "stored").mkdir()
        config = self.root / "nginx.conf"
        config.write_text(_CONFIG.format(root=self.root, port=self.port))
        if os.geteuid() == 0:
            # Its workers write as root too: no other user may enter a benchmark's directory.
            config.write_text("user root;\n" + config.read_text())
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        command = ["nginx", "-p", str(self.root), "-c", str(config), "-e", "stderr"]
        self._child = subprocess.Popen(command, env={**os.environ, "PATH": path})
        wait_for(self.base, self._child)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        self._child.wait(10)

    def forget(self) -> None:
        """Delete all that was stored."""
        for one in (self.root / "stored").iterdir():
            shutil.rmtree(one)

    def sha256(self, blob: str) -> str:
        """Of what was stored as `CONTAINER/NAME`: its blocks in the order of its list, or whole.

        Raises FileNotFoundError when a block of the list, or everything, is missing.
        """
        digest = hashlib.sha256()
        for part in self._parts(f"{ACCOUNT}/{blob}"):
            with part.open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        return digest.hexdigest()

    def _parts(self, name: str) -> list[Path]:
        listed = self.root / "stored" / "lists" / name
        if not listed.exists():
            return [self.root / "stored" / "whole" / name]
        identifiers = re.findall(r"<(?:Latest|Uncommitted)>([^<]+)</", listed.read_text())
        folder = self.root / "stored" / "blocks" / name
        stored = {urllib.parse.unquote(path.name): path for path in folder.iterdir()}
        missing = [one for one in identifiers if one not in stored]
        if missing:
            raise FileNotFoundError(f"{len(missing)} blocks of {name} were not stored")
        return [stored[one] for one in identifiers]
