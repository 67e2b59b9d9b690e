"""TLS of both ports: a certificate, its key and the authorities of callers' certificates, renewed without a restart."""

import ssl
from asyncio import BaseTransport
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attention_server.auth.file_watcher import FileWatcher


@dataclass(frozen=True, slots=True)
class TlsContexts:
    """What the files hold, in the forms of the two ports."""

    http: ssl.SSLContext
    grpc: ssl.SSLContext


class Certificates:
    """The files of a certificate, looked at anew when a connection is made.

    Args:
        cert: the server's certificate and those that lead to its authority, PEM.
        key: its key, PEM, without a password.
        client_ca: the authorities of callers' certificates; None asks for no certificate.

    Raises:
        OSError, ValueError: they cannot be used.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self.mutual = client_ca is not None
        paths = (cert, key) if client_ca is None else (cert, key, client_ca)
        self._contexts = FileWatcher("certificates", paths, lambda: _read(cert, key, client_ca))

    def current(self) -> TlsContexts:
        """Return what the files say now."""
        return self._contexts.get()


def grpc_context(certificates: Certificates) -> ssl.SSLContext:
    """Return what a gRPC port is opened with.

    With authorities of callers, there is no connection without a certificate, for health neither.
    """
    return _renewed(ssl.CERT_REQUIRED if certificates.mutual else ssl.CERT_NONE, lambda: certificates.current().grpc)


def http_context(certificates: Certificates) -> ssl.SSLContext:
    """Return what an HTTP port is opened with.

    With authorities of callers, a certificate of theirs is verified; that there is one is asked for later, for
    liveness and readiness need none.
    """
    return _renewed(ssl.CERT_OPTIONAL if certificates.mutual else ssl.CERT_NONE, lambda: certificates.current().http)


def common_name(transport: BaseTransport) -> str | None:
    """Return the common name in a peer's certificate, empty where it has none; None without a certificate."""
    connection = transport.get_extra_info("ssl_object")
    certificate = connection.getpeercert() if connection else None
    if not certificate:
        return None
    return next((value for part in certificate["subject"] for key, value in part if key == "commonName"), "")


def _renewed(mode: ssl.VerifyMode, current: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    def renew(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        connection.context = current()

    # The first context only begins the handshake; which certificate is shown is chosen then.
    context = _context(mode)
    context.sni_callback = renew
    return context


def _context(mode: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = mode
    if mode is not ssl.CERT_NONE:
        # A session resumed by a ticket would not be verified again, by an authority that is one no longer.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _read(cert: Path, key: Path, client_ca: Path | None) -> TlsContexts:
    contexts = [_context(ssl.CERT_NONE if client_ca is None else ssl.CERT_OPTIONAL) for _ in range(2)]
    try:
        for context in contexts:
            context.load_cert_chain(cert, key, password="")  # or OpenSSL would ask for one on the terminal
            if client_ca is not None:
                context.load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise ValueError(f"{cert} and {key}: no certificate with its key: {error.reason or error}") from error
    http, grpc = contexts
    grpc.set_alpn_protocols(["h2"])
    return TlsContexts(http, grpc)
