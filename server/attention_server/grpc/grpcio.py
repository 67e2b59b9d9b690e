"""The gRPC port on gRPC's own asyncio server, `grpc.aio`: the same interceptor and services as on `http2`.

It needs no system library, so the service runs wherever pip installs. Inside gRPC's C core a call changes threads
several times; the native server saves that. Messages over the limit and oversized metadata are refused by the
C core in its own words, before a call reaches the interceptor. A message is counted in the account of bytes when it is
read, since the C core gathers it first; so do the bytes of connections, which the C core alone knows.
"""

import asyncio

import grpc
import grpc.aio

from attention_server.auth.certificates import Certificates
from attention_server.errors import Stopping
from attention_server.grpc.grpcio_call import GrpcioHandlers
from attention_server.grpc.port import GrpcServer, PortOptions
from attention_server.http2.limits import HEADER_BYTES, Timeouts
from attention_server.service.service import Service

STOP_SECONDS = 1.0  # for calls that were told to stop to end with a status


class GrpcioServer(GrpcServer):
    """The server on `grpc.aio`; arguments and errors are those of `GrpcServer`."""

    def __init__(self, service: Service, options: PortOptions) -> None:
        super().__init__(service, options)
        self._handlers = GrpcioHandlers(self._services.on_call, service.account.lease)
        self._server = grpc.aio.server(options=_channel_options(options))
        self._server.add_generic_rpc_handlers((self._handlers,))
        self.port = self._listen(options)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace: float) -> None:
        stopped = asyncio.ensure_future(self._server.stop(grace + STOP_SECONDS))
        self._services.end_streams()
        await asyncio.wait([stopped], timeout=grace)
        for call in list(self._handlers.calls):
            call.stop(Stopping("the server is stopping, and its time is over"))
        await stopped
        answering = [call.task for call in self._handlers.calls if call.task]
        if answering:  # gRPC cancels its handlers, and does not wait for the end of these
            await asyncio.wait(answering, timeout=STOP_SECONDS)
        self._threads.close()

    def _listen(self, options: PortOptions) -> int:
        host, port = options.host, options.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if options.certificates is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, _credentials(options.certificates))
        except RuntimeError as error:
            raise OSError(f"cannot listen for gRPC on {host}:{port}") from error


def _channel_options(options: PortOptions) -> list[tuple[str, int]]:
    timeouts = Timeouts()
    age = [
        ("grpc.max_connection_age_ms", int(options.max_age * 1000)),
        ("grpc.max_connection_age_grace_ms", int(options.grace * 1000)),
    ]
    return [
        *(age if options.max_age else ()),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", options.concurrent_calls),
        ("grpc.max_metadata_size", HEADER_BYTES),
        ("grpc.absolute_max_metadata_size", HEADER_BYTES),
        ("grpc.max_connection_idle_ms", int(timeouts.idle * 1000)),
        ("grpc.keepalive_time_ms", int(timeouts.quiet * 1000)),
        ("grpc.so_reuseport", 0),  # a second server on the port is an error, and does not share it
    ]


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    def current() -> grpc.ServerCertificateConfiguration:
        files = certificates.current().files
        return grpc.ssl_server_certificate_configuration([(files.key, files.chain)], files.authorities)

    return grpc.dynamic_ssl_server_credentials(current(), current, certificates.mutual)
