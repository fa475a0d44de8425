"""TLS from files: what a server shows, what a client shows, and whom both believe.

Files are read when a server or a connection is made, and never again: a renewed certificate counts from the restart on.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path


class TlsError(Exception):
    """The files cannot be used. ``str()`` names them and what is wrong, for the operator; no key is in it."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. ``cert``: ours, with its chain; ``key``: its private key, not encrypted; ``ca``: whom we believe.

    With ``ca`` TLS is mutual: a server takes only clients whose certificate that authority signed. Without it, only a
    public server can be made of them.
    """

    cert: Path
    key: Path
    ca: Path | None = None


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For an asyncio or aiohttp server of HTTP/1.1. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _show(context, files)
    if files.ca is not None:
        _believe(context, files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For a client that shows its own certificate and checks the server's, host name included. Raises TlsError."""
    context = trusting(_authority(files))
    _show(context, files)
    return context


def trusting(ca: Path) -> ssl.SSLContext:
    """For a client that shows nothing and believes only ``ca``, host name included. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _believe(context, ca)
    return context


def read(files: TlsFiles) -> tuple[bytes, bytes, bytes]:
    """(key, certificate, authority) for gRPC, which takes texts and would say of bad ones only that a handshake failed.

    Raises TlsError.
    """
    ca = _authority(files)
    client_context(files)
    return files.key.read_bytes(), files.cert.read_bytes(), ca.read_bytes()


def read_public(files: TlsFiles) -> tuple[bytes, bytes]:
    """(key, certificate) of a server that asks its clients for none, as :func:`read`. Raises TlsError."""
    server_context(files)
    return files.key.read_bytes(), files.cert.read_bytes()


def _authority(files: TlsFiles) -> Path:
    if files.ca is None:
        raise TlsError(f"{files.cert}: mutual TLS needs the certificate of the authority too")
    return files.ca


def _show(context: ssl.SSLContext, files: TlsFiles) -> None:
    def encrypted() -> str:  # without it OpenSSL would ask on the terminal
        raise TlsError(f"{files.key} is encrypted; give a key without a passphrase, readable by this service only")

    try:
        context.load_cert_chain(files.cert, files.key, password=encrypted)
    except OSError as error:
        raise TlsError(f"{files.cert} and {files.key} are not a certificate and its key: {_why(error)}") from None


def _believe(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(ca)
    except OSError as error:
        raise TlsError(f"{ca} is not the certificate of an authority: {_why(error)}") from None


def _why(error: OSError) -> str:
    """ssl's errors are OSErrors with a reason instead of a system message."""
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).lower().replace("_", " ")
