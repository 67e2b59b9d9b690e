"""The gRPC port, as the application sees it."""

from typing import TYPE_CHECKING, Literal, Protocol

import structlog

from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates
from attention_server.http2.errors import LibraryError
from attention_server.http2.library import check_library
from attention_server.service.service import Service

if TYPE_CHECKING:
    from attention_server.grpc.grpcio import GrpcioServer
    from attention_server.grpc.native import NativeServer

Kind = Literal["auto", "native", "grpcio"]

log = structlog.get_logger()


class GrpcServer(Protocol):
    """Serves gRPC on the running loop.

    Attributes:
        port: where it listens.
    """

    port: int

    async def start(self) -> None:
        """Begin to accept."""

    def set_serving(self, is_serving: bool) -> None:
        """Set the answer to health checks: SERVING or NOT_SERVING. Call it on the loop."""

    async def stop(self, grace: float) -> None:
        """Accept no more connections, and answer all calls; after `grace` seconds stop the rest."""

    @property
    def is_idle(self) -> bool:
        """Whether no thread of the server runs anything."""


def make_grpc_server(
    kind: Kind,
    service: Service,
    host: str,
    port: int,
    *,
    requests: int,
    max_message_bytes: int,
    max_age: float,
    grace: float,
    callers: Callers,
    certificates: Certificates | None = None,
) -> GrpcServer:
    """Return a server that listens.

    Args:
        kind: `native` runs on `http2`, `grpcio` on gRPC's own server; `auto` is native where its library is installed.
        service: the core.
        host: where to listen.
        port: where to listen; 0 picks a free one.
        requests: how many requests can be running and queued.
        max_message_bytes: the largest request.
        max_age: seconds that a connection lasts; 0 for any.
        grace: seconds that its calls have from then.
        callers: the known callers.
        certificates: of TLS; None speaks without.

    Raises:
        OSError: the address cannot be listened on.
        LibraryError: `native` needs a library that is missing.
    """
    return _server_class(kind)(
        service,
        host,
        port,
        requests=requests,
        max_message_bytes=max_message_bytes,
        max_age=max_age,
        grace=grace,
        callers=callers,
        certificates=certificates,
    )


def _server_class(kind: Kind) -> "type[NativeServer | GrpcioServer]":
    """Import the server of a kind; each loads a library of its own."""
    if kind != "grpcio":
        try:
            check_library()
        except LibraryError as error:
            if kind == "native":
                raise
            log.warning("gRPC is served by grpcio, which is slower", reason=str(error))
        else:
            from attention_server.grpc.native import NativeServer  # noqa: PLC0415 # loads libnghttp2

            return NativeServer
    from attention_server.grpc.grpcio import GrpcioServer  # noqa: PLC0415 # loads gRPC

    return GrpcioServer
