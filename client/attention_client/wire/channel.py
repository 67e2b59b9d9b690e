"""The setup of a channel to the service: balancing, message sizes, retries, keep-alive, credentials."""

import json
import re
from pathlib import Path
from typing import Any

import grpc

try:
    from opentelemetry.propagate import inject
except ImportError:
    inject = None  # type: ignore[assignment]

Metadata = tuple[tuple[str, str], ...]

UNLIMITED = -1
_SERVICE = "attention.v1.AttentionService"
_IPV4_AND_PORT = re.compile(r"\d{1,3}(\.\d{1,3}){3}:\d+")

SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            # Every method may be repeated: the same memory created twice is one (a second deletion is NOT_FOUND).
            # gRPC caps attempts at 5.
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # A stopping server cancels the calls that arrive at that moment; the caller's own cancellation is not
                # repeated.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
}

OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    # gRPC keeps a request for its retries up to this size, by default 256 KiB; a larger one is silently not retried.
    ("grpc.per_rpc_retry_buffer_size", 2**31 - 1),
    # Weights grow with the square of the length: the server, which knows its memory, sets the limits.
    ("grpc.max_send_message_length", UNLIMITED),
    ("grpc.max_receive_message_length", UNLIMITED),
    # While a call waits, pings detect a peer that vanished, and the call is retried at another address.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A server that restarts is found again within seconds; the default backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def uri(target: str) -> str:
    """Return the URI that gRPC connects to.

    Args:
        target: `HOST:PORT`, where calls are balanced over all addresses the name resolves to; several IPv4 addresses
            `A:PORT,B:PORT`; or any name gRPC understands, as `unix:/PATH`.
    """
    addresses = target.replace(" ", "").split(",")
    if all(_IPV4_AND_PORT.fullmatch(address) for address in addresses):
        return "ipv4:" + ",".join(addresses)
    return target


def method(name: str) -> str:
    """Return the path by which gRPC calls a method of the service."""
    return f"/{_SERVICE}/{name}"


def metadata(token: str | None) -> Metadata:
    """Return the metadata of each call: the caller's token."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def traced(metadata: Metadata) -> Metadata:
    """Return the metadata and the current trace, where OpenTelemetry is installed and a trace is current."""
    if inject is None:
        return metadata
    trace: dict[str, str] = {}
    inject(trace)
    return (*metadata, *trace.items())


def tls(ca: Path | None = None, cert: Path | None = None, key: Path | None = None) -> grpc.ChannelCredentials:
    """Return the credentials of TLS, from PEM files.

    Args:
        ca: the authorities that a server's certificate may come from; the public ones when absent.
        cert: the caller's own certificate, where the server asks for one.
        key: that certificate's key.

    Raises:
        OSError: a file cannot be read.
    """
    root, private, chain = (path.read_bytes() if path else None for path in (ca, key, cert))
    return grpc.ssl_channel_credentials(root, private, chain)
