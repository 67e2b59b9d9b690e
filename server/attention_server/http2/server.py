"""A server of gRPC over HTTP/2: its connections and calls, from the first to an orderly end."""

import asyncio
from collections.abc import Callable

from attention_server.http2.call import Call, Inflate
from attention_server.http2.connection import Connection, ServerState
from attention_server.http2.lease import OpenLease
from attention_server.http2.limits import Limits, Timeouts
from attention_server.http2.share import OpenTurns, Turns

TURNS = 3  # of the loop, in which a stopped call sends its status


class Server(ServerState):
    """A server. `connect` is the protocol factory for `loop.create_server`.

    Args:
        on_call: receives a call when its headers have arrived; it starts, fails or refuses the call.
        limits: of the server.
        timeouts: of its connections.
        inflate: inflates a compressed message.
        lease: opens the lease of a call or connection.
        certificate_name: returns the name in the certificate of a transport's peer; None without one.
        turns: of the event loop, which the addresses of peers share; None for no bound.
    """

    def __init__(
        self,
        on_call: Callable[[Call], None],
        limits: Limits,
        timeouts: Timeouts,
        inflate: Inflate,
        lease: OpenLease,
        certificate_name: Callable[[asyncio.BaseTransport], str | None] = lambda _: None,
        turns: Turns | None = None,
    ) -> None:
        super().__init__(on_call, limits, timeouts, inflate, lease, certificate_name, turns or OpenTurns())

    def connect(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self)

    def begin_shutdown(self) -> None:
        """Ask all peers to send further calls elsewhere, and accept no further connection."""
        self.is_stopping = True
        for connection in list(self.connections):
            connection.begin_shutdown()

    async def drain(self, grace: float, reason: Exception) -> None:
        """Wait until all calls are answered and all connections closed.

        Args:
            grace: seconds, after which the rest is stopped.
            reason: of stopping the rest.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        # A connection closes by itself when its calls are answered and the answers are sent.
        while (self.calls or self.connections) and loop.time() < end:
            await self._wait_for_an_end(end - loop.time())
        for call in list(self.calls):
            call.stop(reason)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        for connection in list(self.connections):
            connection.close()
        await asyncio.sleep(0)
        for connection in list(self.connections):
            connection.abort()

    async def _wait_for_an_end(self, seconds: float) -> None:
        self.something_ended.clear()
        try:
            async with asyncio.timeout(seconds):
                await self.something_ended.wait()
        except TimeoutError:
            pass
