"""A real web server: nginx on loopback, which takes PUT as well (WebDAV)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.services import base

_CONFIG = """\
daemon off;
{user}
worker_processes 1;
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    client_max_body_size 0;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {files};
        merge_slashes off;
        dav_methods PUT;
        create_full_put_path on;
    }}
}}
"""


class Nginx(base.Service):
    """Serves the directory `files`, and writes to it what is PUT."""

    name = "nginx"

    @property
    def files(self) -> Path:
        """The directory at its root."""
        return self.root / "files"

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1."""
        return int((self.root / "port").read_text())

    @property
    def origin(self) -> str:
        """Its URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it (at once)."""
        nginx = base.require_program("nginx", "nginx-light")
        self.files.mkdir(parents=True)
        (self.root / "port").write_text(str(base.free_port()))
        user = "user root;" if os.geteuid() == 0 else ""
        config = self.root / "nginx.conf"
        config.write_text(
            _CONFIG.format(user=user, root=self.root, files=self.files, port=self.port)
        )
        log = self.root / "error.log"
        base.spawn([nginx, "-e", log, "-c", config], log)
        base.wait_until(self._answers, "nginx", log)

    def stop(self) -> None:
        """End it and delete its files."""
        base.end_processes_naming(self.root)
        base.remove_tree(self.root)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
