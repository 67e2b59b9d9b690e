"""Tokens and certificates of both ports, opened from the settings."""

from dataclasses import dataclass

import structlog

from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates
from attention_server.auth.hosts import is_loopback
from attention_server.settings import Settings

log = structlog.get_logger()


class AccessError(Exception):
    """The files of tokens or certificates cannot be used."""


@dataclass(frozen=True, slots=True)
class Access:
    """The callers and certificates of both ports; `certificates` is None without TLS."""

    callers: Callers
    certificates: Certificates | None


def open_access(settings: Settings) -> Access:
    """Read tokens and certificates; warn if the settings let further machines in without tokens.

    Raises:
        AccessError: a file cannot be used.
    """
    try:
        certificates = _certificates(settings)
        callers = Callers(settings.tokens)
    except (OSError, ValueError) as error:
        raise AccessError(str(error)) from error
    if not is_loopback(settings.host):
        _warn(settings)
    return Access(callers, certificates)


def _certificates(settings: Settings) -> Certificates | None:
    if settings.tls_cert and settings.tls_key:
        return Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    if settings.tls_cert or settings.tls_key or settings.tls_client_ca:
        raise ValueError("TLS needs both --tls-cert and --tls-key")
    return None


def _warn(settings: Settings) -> None:
    if settings.tokens is None and settings.tls_client_ca is None:
        log.warning(
            "whoever reaches this address may do everything: give --tokens or --tls-client-ca, or listen on 127.0.0.1",
            host=settings.host,
        )
    elif settings.tls_cert is None:
        log.warning(
            "tokens travel in the clear: give --tls-cert and --tls-key, or let a proxy speak TLS", host=settings.host
        )
