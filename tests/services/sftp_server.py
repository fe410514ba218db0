"""A real SFTP server: OpenSSH's sshd on loopback, with keys and a configuration of its own."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

from tests.services import base

_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {root}/host_key
PidFile none
AuthorizedKeysFile {root}/user_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 200
Subsystem sftp internal-sftp
"""


class SftpServer(base.Service):
    """Lets the user who runs the tests in, by the key `user_key`, to all files of the machine."""

    name = "sftp"

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1."""
        return int((self.root / "port").read_text())

    @property
    def user(self) -> str:
        """Who is let in."""
        return getpass.getuser()

    @property
    def key(self) -> str:
        """The user's private key, in OpenSSH's format."""
        return (self.root / "user_key").read_text()

    @property
    def host_key(self) -> str:
        """The server's public key: type and base64."""
        return " ".join((self.root / "host_key.pub").read_text().split()[:2])

    def known_hosts(self, port: int | None = None) -> str:
        """A known_hosts file with the server's key, seen at another port if given."""
        return f"[127.0.0.1]:{port or self.port} {self.host_key}\n"

    def start(self) -> None:
        """Make keys and start sshd (under a second)."""
        sshd = base.require_program("sshd", "openssh-server")
        keygen = base.require_program("ssh-keygen", "openssh-client")
        self.root.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "user_key"):
            base.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", self.root / name])
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks itself in
        port = base.free_port()
        (self.root / "port").write_text(str(port))
        config, log = self.root / "sshd_config", self.root / "sshd.log"
        config.write_text(_CONFIG.format(port=port, root=self.root))
        base.spawn([sshd, "-D", "-e", "-f", str(config)], log)
        base.wait_until(self._answers, "sshd", log)

    def stop(self) -> None:
        """End sshd and delete its keys."""
        base.end_processes_naming(self.root)
        base.remove_tree(self.root)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as client:
                return client.recv(4) == b"SSH-"
        except OSError:
            return False
