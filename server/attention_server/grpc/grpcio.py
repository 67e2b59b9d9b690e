"""The gRPC port on gRPC's own asyncio server, `grpc.aio`: the same interceptor and services as on `http2`.

It needs no system library, so the service runs wherever pip installs. Inside gRPC's C core a call changes threads
several times; the native server saves that. Messages over the limit and oversized metadata are refused by the
C core in its own words, before a call reaches the interceptor. A message is counted in the account of bytes when it is
read, since the C core gathers it first; so do the bytes of connections, which the C core alone knows.
"""

import asyncio

import grpc
import grpc.aio

from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates
from attention_server.errors import Stopping
from attention_server.grpc.grpcio_call import GrpcioHandlers
from attention_server.grpc.services import GrpcServices
from attention_server.grpc.stream import STREAMS
from attention_server.http2.limits import HEADER_BYTES, Timeouts
from attention_server.service.service import SPARE_THREADS, Service
from attention_server.transport.threads import Threads

STOP_SECONDS = 1.0  # for calls that were told to stop to end with a status


class GrpcioServer:
    """Serves gRPC on the running loop by `grpc.aio`.

    Args:
        service: the core.
        host, port: where to listen; port 0 picks a free one.
        requests: how many requests can be running and queued.
        max_message_bytes: the largest request.
        max_age: seconds that a connection lasts; 0 for any.
        grace: seconds that its calls have from then.
        callers: the known callers.
        certificates: of TLS; None speaks without.

    Attributes:
        port: where it listens.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(
        self,
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
    ) -> None:
        self._threads = Threads(requests + SPARE_THREADS, "grpc")
        self._services = GrpcServices(service, callers, self._threads)
        self._handlers = GrpcioHandlers(self._services.on_call, service.account.lease)
        self._server = grpc.aio.server(options=_options(requests, max_message_bytes, max_age, grace))
        self._server.add_generic_rpc_handlers((self._handlers,))
        self.port = self._listen(host, port, certificates)

    async def start(self) -> None:
        """Begin to accept."""
        await self._server.start()

    def set_serving(self, is_serving: bool) -> None:
        """Set the answer to health checks: SERVING or NOT_SERVING. Call it on the loop."""
        self._services.set_serving(is_serving)

    async def stop(self, grace: float) -> None:
        """Accept no more calls, and wait for accepted ones.

        Args:
            grace: seconds after which the rest is cut off.
        """
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

    @property
    def is_idle(self) -> bool:
        """Whether no thread of the server runs anything."""
        return self._threads.is_idle

    def _listen(self, host: str, port: int, certificates: Certificates | None) -> int:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if certificates is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, _credentials(certificates))
        except RuntimeError as error:
            raise OSError(f"cannot listen for gRPC on {host}:{port}") from error


def _options(requests: int, max_message_bytes: int, max_age: float, grace: float) -> list[tuple[str, int]]:
    timeouts = Timeouts()
    age = [("grpc.max_connection_age_ms", int(max_age * 1000)), ("grpc.max_connection_age_grace_ms", int(grace * 1000))]
    return [
        *(age if max_age else ()),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", requests + STREAMS + SPARE_THREADS),
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
