"""The gRPC port, as the application sees it."""

from typing import Protocol

from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates
from attention_server.service.service import Service


class GrpcServer(Protocol):
    """Serves gRPC on the running loop.

    Attributes:
        port: where it listens.
    """

    port: int

    async def start(self) -> None:
        """Begin to accept."""

    def set_serving(self, is_serving: bool) -> None:
        """Tell health checks whether requests are answered; from the loop."""

    async def stop(self, grace: float) -> None:
        """Accept no more connections, and answer all calls; after `grace` seconds stop the rest."""

    @property
    def is_idle(self) -> bool:
        """Whether no thread of the server runs anything."""


def make_grpc_server(
    service: Service,
    host: str,
    port: int,
    *,
    requests: int,
    max_message_bytes: int,
    callers: Callers,
    certificates: Certificates | None = None,
) -> GrpcServer:
    """Return a server that listens.

    Args:
        service: the core.
        host: where to listen.
        port: where to listen; 0 picks a free one.
        requests: how many requests can be running and queued.
        max_message_bytes: the largest request.
        callers: the known callers.
        certificates: of TLS; None speaks without.

    Raises:
        OSError: the address cannot be listened on.
        LibraryError: the library that it needs is missing.
    """
    from attention_server.grpc.native import NativeServer  # noqa: PLC0415 # it loads libnghttp2

    return NativeServer(
        service,
        host,
        port,
        requests=requests,
        max_message_bytes=max_message_bytes,
        callers=callers,
        certificates=certificates,
    )
