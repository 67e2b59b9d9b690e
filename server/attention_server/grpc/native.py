"""The gRPC port on the package `http2`, on the loop that serves HTTP too.

The loop moves bytes, parses and writes messages, and lets the scheduler compute short requests in between
(`Scheduler.attach`), so that a short request never changes threads.
"""

from dataclasses import replace

from attention_server.auth.certificates import common_name, grpc_context
from attention_server.budget.account import Lease
from attention_server.errors import Stopping
from attention_server.grpc.port import GrpcServer, PortOptions
from attention_server.http2.lease import COPIES
from attention_server.http2.limits import Limits, Timeouts
from attention_server.http2.server import Server
from attention_server.service.service import Service
from attention_server.transport.inflate import inflate
from attention_server.transport.listener import Listener
from attention_server.transport.peer_turns import PeerTurns
from attention_server.transport.sockets import listen, max_connections, max_connections_of_host

TIMEOUTS = Timeouts()


class NativeServer(GrpcServer):
    """The server on `http2`; arguments and errors are those of `GrpcServer`.

    Attributes:
        http2: its connections, calls and buffered bytes.
    """

    def __init__(self, service: Service, options: PortOptions) -> None:
        super().__init__(service, options)
        self._socket = listen("gRPC", options.host, options.port)
        self.port = self._socket.getsockname()[1]
        self._certificates = options.certificates
        self._turns = PeerTurns()
        limits = Limits(
            message_bytes=options.max_message_bytes,
            concurrent_calls=options.concurrent_calls,
            connections=max_connections(),
            connections_of_host=max_connections_of_host(max_connections()),
        )
        self.http2 = Server(
            self._services.on_call,
            limits,
            replace(TIMEOUTS, age=options.max_age, grace=options.grace),
            self._inflate,
            service.account.lease,
            common_name,
            self._turns,
        )

    async def start(self) -> None:
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

    async def stop(self, grace: float) -> None:
        await self._listener.close()
        self.http2.begin_shutdown()
        self._services.end_streams()
        await self.http2.drain(grace, Stopping("the server is stopping, and its time is over"))
        self._threads.close()

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
