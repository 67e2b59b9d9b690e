"""The gRPC port on the package `http2`, on the loop that serves HTTP too.

The loop moves bytes, parses and writes messages, and lets the scheduler compute short requests in between
(`Scheduler.attach`), so that a short request never changes threads.
"""

from dataclasses import replace

from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates, common_name, grpc_context
from attention_server.budget.account import Lease
from attention_server.errors import Stopping
from attention_server.grpc.services import GrpcServices
from attention_server.grpc.stream import STREAMS
from attention_server.http2.lease import COPIES
from attention_server.http2.limits import Limits, Timeouts
from attention_server.http2.server import Server
from attention_server.service.service import SPARE_THREADS, Service
from attention_server.transport.inflate import inflate
from attention_server.transport.listener import Listener
from attention_server.transport.peer_turns import PeerTurns
from attention_server.transport.sockets import listen, max_connections, max_connections_of_host
from attention_server.transport.threads import Threads

TIMEOUTS = Timeouts()


class NativeServer:
    """Serves gRPC on the running loop.

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
        http2: its connections, calls and buffered bytes.

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
        self._socket = listen("gRPC", host, port)
        self.port: int = self._socket.getsockname()[1]
        self._certificates = certificates
        self._turns = PeerTurns()
        self._threads = Threads(requests + SPARE_THREADS, "grpc")
        self._services = GrpcServices(service, callers, self._threads)
        limits = Limits(
            message_bytes=max_message_bytes,
            concurrent_calls=requests + STREAMS + SPARE_THREADS,  # further calls wait at the client
            connections=max_connections(),
            connections_of_host=max_connections_of_host(max_connections()),
        )
        self.http2 = Server(
            self._services.on_call,
            limits,
            replace(TIMEOUTS, age=max_age, grace=grace),
            self._inflate,
            service.account.lease,
            common_name,
            self._turns,
        )

    async def start(self) -> None:
        """Begin to accept."""
        http2 = self.http2
        self._listener = Listener(
            self._socket,
            grpc_context(self._certificates) if self._certificates else None,
            http2.connect,
            lambda: len(http2.connections),
            http2.by_host,
            http2.limits.connections,
            self._turns,
        )
        self._listener.start()

    def set_serving(self, is_serving: bool) -> None:
        """Set the answer to health checks: SERVING or NOT_SERVING. Call it on the loop."""
        self._services.set_serving(is_serving)

    async def stop(self, grace: float) -> None:
        """Accept no more connections, and wait until all calls are answered.

        Args:
            grace: seconds, after which the remaining calls are stopped.
        """
        await self._listener.close()
        self.http2.begin_shutdown()
        self._services.end_streams()
        await self.http2.drain(grace, Stopping("the server is stopping, and its time is over"))
        self._threads.close()

    @property
    def is_idle(self) -> bool:
        """Whether no thread of the server runs anything."""
        return self._threads.is_idle

    async def _inflate(self, content: bytes, encoding: str, limit: int, lease: Lease) -> bytes:
        """Inflate a message in a thread. Raises as `inflate`, and Full when no thread or memory is free."""
        own = lease.sibling()

        def hold(count: int) -> None:
            own.grow(COPIES * count)

        try:
            inflated = await self._threads.run(
                lambda: inflate(content, encoding, limit, "message", "grpc-encoding", hold), own
            )
            lease.add(COPIES * len(inflated))
            return inflated
        finally:
            own.release()
