"""Which authorities TLS connections trust, for libraries that bring a list of their own."""

from __future__ import annotations

from pathlib import Path


def authorities(ca_bundle: str = "") -> str:
    """The PEM file, or the directory that OpenSSL finds certificates in: `ca_bundle`, else those of
    this machine (SSL_CERT_FILE and SSL_CERT_DIR, else where OpenSSL looks for them), else the file
    that comes with Python packages."""
    if ca_bundle:
        return ca_bundle
    import ssl  # none of this is needed for tasks without TLS

    system = ssl.get_default_verify_paths()
    if system.cafile:
        return system.cafile
    if system.capath and any(Path(system.capath).iterdir()):
        return system.capath
    import certifi

    return certifi.where()


def authorities_file(ca_bundle: str = "") -> str:
    """The same, for libraries that read a file and no directory."""
    found = Path(authorities(ca_bundle))
    if not found.is_dir():
        return str(found)
    of_debian = found / "ca-certificates.crt"
    if of_debian.is_file():
        return str(of_debian)
    import certifi

    return certifi.where()
