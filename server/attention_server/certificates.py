"""TLS of both ports: a certificate, its key and the authorities of callers' certificates, renewed without a restart."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from attention_server.reloaded import Reloaded


@dataclass(frozen=True, slots=True)
class Pem:
    """What the files hold, in the forms of the two ports.

    Attributes:
        context: for HTTP.
        grpc: for gRPC.
    """

    context: ssl.SSLContext
    grpc: grpc.ServerCertificateConfiguration


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
        self._pem = Reloaded("certificates", paths, lambda: _read(cert, key, client_ca))

    def current(self) -> Pem:
        """Return what the files say now."""
        return self._pem.get()


def grpc_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Return what a gRPC port is opened with.

    With authorities of callers, there is no connection without a certificate, for health neither.
    """
    return grpc.dynamic_ssl_server_credentials(
        certificates.current().grpc,
        lambda: certificates.current().grpc,
        require_client_authentication=certificates.mutual,
    )


def http_context(certificates: Certificates) -> ssl.SSLContext:
    """Return what an HTTP port is opened with.

    With authorities of callers, a certificate of theirs is verified; that there is one is asked for later, for
    liveness and readiness need none.
    """

    def renew(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        connection.context = certificates.current().context

    # The first context only begins the handshake; which certificate is shown is chosen then.
    context = _context(certificates.mutual)
    context.sni_callback = renew
    return context


def _context(mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if mutual:
        context.verify_mode = ssl.CERT_OPTIONAL
        # A session resumed by a ticket would not be verified again, by an authority that is one no longer.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _read(cert: Path, key: Path, client_ca: Path | None) -> Pem:
    context = _context(client_ca is not None)
    try:
        context.load_cert_chain(cert, key, password="")  # or OpenSSL would ask for one on the terminal
        if client_ca is not None:
            context.load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise ValueError(f"{cert} and {key}: no certificate with its key: {error.reason or error}") from error
    authorities = None if client_ca is None else client_ca.read_bytes()
    pair = (key.read_bytes(), cert.read_bytes())
    return Pem(context, grpc.ssl_server_certificate_configuration([pair], authorities))
