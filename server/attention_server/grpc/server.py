"""The choice of the server that gRPC is served by; each loads a library of its own."""

from typing import Literal

import structlog

from attention_server.grpc.port import GrpcServer, PortOptions
from attention_server.http2.errors import LibraryError
from attention_server.http2.library import check_library
from attention_server.service.service import Service

Kind = Literal["auto", "native", "grpcio"]

log = structlog.get_logger()


def make_grpc_server(kind: Kind, service: Service, options: PortOptions) -> GrpcServer:
    """Return a server that listens.

    Args:
        kind: `native` runs on `http2`, `grpcio` on gRPC's own server; `auto` is native where its library is installed.
        service: the core.
        options: where and how to serve.

    Raises:
        OSError: the address cannot be listened on.
        LibraryError: `native` needs a library that is missing.
    """
    if kind != "grpcio":
        try:
            check_library()
        except LibraryError as error:
            if kind == "native":
                raise
            log.warning("gRPC is served by grpcio, which is slower", reason=str(error))
        else:
            from attention_server.grpc.native import NativeServer  # noqa: PLC0415 # loads libnghttp2

            return NativeServer(service, options)
    from attention_server.grpc.grpcio import GrpcioServer  # noqa: PLC0415 # loads gRPC

    return GrpcioServer(service, options)
