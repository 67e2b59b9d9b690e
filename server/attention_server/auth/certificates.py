"""TLS contexts of both ports, made anew when the files of certificates change."""

import ssl
from asyncio import BaseTransport
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attention_server.auth.expiry import expiry
from attention_server.auth.file_watcher import FileWatcher


@dataclass(frozen=True, slots=True)
class PemFiles:
    """The contents of the files: the key, the server's chain, and the authorities of callers; None without TLS."""

    key: bytes
    chain: bytes
    authorities: bytes | None


@dataclass(frozen=True, slots=True)
class TlsContexts:
    """A TLS context for each port, and the files as gRPC's own server takes them.

    Attributes:
        expires: when the server's certificate expires, in seconds since 1970.
    """

    http: ssl.SSLContext
    grpc: ssl.SSLContext
    files: PemFiles
    expires: float


class Certificates:
    """The server's certificate and the authorities of client certificates, read again when the files change.

    Args:
        cert: the server's certificate chain, PEM.
        key: the certificate's private key, PEM, without a password.
        client_ca: the authorities of client certificates, PEM; None for TLS without client certificates.

    Raises:
        OSError, ValueError: a file cannot be read, or key and certificate do not match.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self.mutual = client_ca is not None
        paths = (cert, key) if client_ca is None else (cert, key, client_ca)
        self._contexts = FileWatcher("certificates", paths, lambda: _read(cert, key, client_ca))

    def current(self) -> TlsContexts:
        """Return the contexts of the current files."""
        return self._contexts.get()


def grpc_context(certificates: Certificates) -> ssl.SSLContext:
    """Return the TLS context of a gRPC port.

    With mutual TLS every connection needs a client certificate, for health checks too.
    """
    return _renewed(ssl.CERT_REQUIRED if certificates.mutual else ssl.CERT_NONE, lambda: certificates.current().grpc)


def http_context(certificates: Certificates) -> ssl.SSLContext:
    """Return the TLS context of an HTTP port.

    With mutual TLS a client certificate is verified if there is one. The middleware refuses requests without one,
    except for liveness and readiness.
    """
    return _renewed(ssl.CERT_OPTIONAL if certificates.mutual else ssl.CERT_NONE, lambda: certificates.current().http)


def common_name(transport: BaseTransport) -> str | None:
    """Return the common name in a peer's certificate; empty if it has none, None without a certificate."""
    connection = transport.get_extra_info("ssl_object")
    certificate = connection.getpeercert() if connection else None
    if not certificate:
        return None
    return next((value for part in certificate["subject"] for key, value in part if key == "commonName"), "")


def _renewed(mode: ssl.VerifyMode, current: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    def renew(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        connection.context = current()

    # This context begins each handshake; the callback replaces it with the current one.
    context = _context(mode)
    context.sni_callback = renew
    return context


def _context(mode: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = mode
    if mode is not ssl.CERT_NONE:
        # A session resumed by a ticket is not verified again, even if its authority has been removed.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _read(cert: Path, key: Path, client_ca: Path | None) -> TlsContexts:
    contexts = [_context(ssl.CERT_NONE if client_ca is None else ssl.CERT_OPTIONAL) for _ in range(2)]
    try:
        for context in contexts:
            context.load_cert_chain(cert, key, password="")  # without a password OpenSSL would prompt on the terminal
            if client_ca is not None:
                context.load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise ValueError(f"{cert} and {key}: no certificate with its key: {error.reason or error}") from error
    http, grpc = contexts
    grpc.set_alpn_protocols(["h2"])
    authorities = None if client_ca is None else client_ca.read_bytes()
    chain = cert.read_bytes()
    try:
        expires = expiry(chain)
    except ValueError as error:
        raise ValueError(f"{cert}: {error}") from error
    return TlsContexts(http, grpc, PemFiles(key.read_bytes(), chain, authorities), expires)
