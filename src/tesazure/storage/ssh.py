"""SSH connections for SFTP: to known servers only. paramiko is imported when one is made."""

from __future__ import annotations

import io
import logging
import socket
from typing import TYPE_CHECKING, NamedTuple

from tesazure.errors import PermissionDenied, StorageError, UnsupportedUrl
from tesazure.storage.known_hosts import KnownKeys, known_keys, name_of
from tesazure.storage.patience import Again, Patience
from tesazure.storage.sftp_session import SftpSession

if TYPE_CHECKING:
    import paramiko

_SETTING = "SFTP_KNOWN_HOSTS"
_RSA = ("rsa-sha2-512", "rsa-sha2-256")


class Login(NamedTuple):
    """Whom to be on which server. Without a password, the private key counts."""

    host: str
    port: int
    user: str
    password: str


def require_paramiko() -> None:
    """Raises UnsupportedUrl where paramiko is not installed."""
    try:
        import paramiko
    except ImportError:
        raise UnsupportedUrl(
            "sftp:// needs paramiko, which is not installed: pip install tesazure[sftp]"
        ) from None
    # It logs refused keys and broken connections as errors, which all are told of otherwise.
    logging.getLogger(paramiko.__name__).setLevel(logging.CRITICAL)


def opened(
    connected: socket.socket, login: Login, key: str, known_hosts: str, patience: Patience
) -> SftpSession:
    """An SFTP session over a connected socket.

    The server must show a key that `known_hosts` (the file's text) has for it. Raises
    PermissionDenied when it does not, or when it refuses the user; Again when it breaks off.
    """
    import paramiko

    known = known_keys(known_hosts, login.host, login.port)
    try:
        transport = paramiko.Transport(connected)
    except BaseException:
        connected.close()
        raise
    try:
        transport.daemon = True
        transport.banner_timeout = transport.handshake_timeout = patience.connect_s
        transport.auth_timeout = transport.channel_timeout = patience.read_s
        _prefer(transport, known)
        transport.start_client(timeout=patience.connect_s)
        _verify(transport, known, login)
        _log_in(transport, login, key)
        channel = transport.open_session(timeout=patience.connect_s)
        channel.invoke_subsystem("sftp")
        session = SftpSession(transport, channel, patience)
        session.begin()
    except paramiko.ssh_exception.IncompatiblePeer as error:
        transport.close()
        raise StorageError(f"no way to encrypt that both sides know: {error}") from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        transport.close()
        raise Again(str(error) or "the server closed the connection") from error
    except BaseException:
        transport.close()
        raise
    return session


def _prefer(transport: paramiko.Transport, known: KnownKeys) -> None:
    """Ask the server for a key of a type that is known of it, and for the fastest cipher."""
    types = {kind for kind, _ in known.trusted}
    if "ssh-rsa" in types:
        types.update(_RSA)
    options = transport.get_security_options()
    options.key_types = sorted(options.key_types, key=lambda kind: kind not in types)
    options.ciphers = sorted(options.ciphers, key=lambda cipher: "gcm" not in cipher)


def _verify(transport: paramiko.Transport, known: KnownKeys, login: Login) -> None:
    shown = transport.get_remote_server_key()
    key = (shown.get_name(), shown.get_base64())
    if key in known.trusted:
        return
    name = name_of(login.host, login.port)
    if key in known.revoked:
        raise PermissionDenied(
            f"the server shows a host key that is revoked in the file of the setting {_SETTING}:"
            f" {key[0]} {shown.fingerprint}"
        )
    if known.trusted:
        raise PermissionDenied(
            f"the server shows another host key than the file of the setting {_SETTING} has for"
            f" {name}: {key[0]} {shown.fingerprint}; somebody may be in between"
        )
    raise PermissionDenied(
        f"the server's host key is not known. If {shown.fingerprint} is right, add this line to the"
        f" file that the setting {_SETTING} names: {name} {key[0]} {key[1]}"
    )


def _log_in(transport: paramiko.Transport, login: Login, key: str) -> None:
    import paramiko

    try:
        if login.password:
            transport.auth_password(login.user, login.password)
            return
        if not key:
            raise PermissionDenied(
                "neither a password in the URL nor a private key (the setting SFTP_KEY_FILE)"
            )
        left = transport.auth_publickey(login.user, _private_key(key))
        if left:
            raise PermissionDenied(f"the server wants more than a key: {', '.join(left)}")
    except paramiko.BadAuthenticationType as error:
        way = "a password" if login.password else "a key"
        allowed = ", ".join(error.allowed_types)
        raise PermissionDenied(
            f"the server does not let the user {login.user} in by {way}, but by {allowed}"
        ) from None
    except paramiko.AuthenticationException as error:
        what = "password" if login.password else "private key"
        if "imeout" in str(error):
            raise Again(str(error)) from error
        raise PermissionDenied(
            f"the server does not let the user {login.user} in with this {what}"
        ) from None


def _private_key(text: str) -> paramiko.PKey:
    """Raises PermissionDenied for what is no private key without a passphrase."""
    import paramiko

    kinds: tuple[type[paramiko.PKey], ...] = (
        paramiko.Ed25519Key,
        paramiko.ECDSAKey,
        paramiko.RSAKey,
    )
    for kind in kinds:
        try:
            return kind.from_private_key(io.StringIO(text))
        except paramiko.PasswordRequiredException:
            raise PermissionDenied(
                "the private key (the setting SFTP_KEY_FILE) needs a passphrase; use one without"
            ) from None
        except (paramiko.SSHException, ValueError, IndexError):
            continue
    raise PermissionDenied(
        "the private key (the setting SFTP_KEY_FILE) is none of Ed25519, ECDSA, RSA in OpenSSH's or"
        " PEM format"
    )
