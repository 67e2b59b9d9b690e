"""Accepts connections of TLS, and bounds handshakes in time and number."""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping

import structlog

from attention_server.transport.sockets import max_connections_of_host

log = structlog.get_logger()

HANDSHAKE_SECONDS = 10.0  # of TLS
SHUTDOWN_SECONDS = 1.0  # of TLS
ACCEPT_RETRY_SECONDS = 1.0  # where the process may open no further file


class TlsListener:
    """Accepts connections of TLS, and counts each from the moment that it is accepted.

    asyncio's own server reports a connection when its handshake is complete; a silent peer would be counted by nothing.

    Args:
        listening: the socket to accept from.
        context: of TLS.
        protocol: makes the protocol of a connection after its handshake.
        open_connections: returns how many of those are open.
        open_by_host: how many each address has open.
        max_connections: connections, open or in a handshake; a further one is closed when it is accepted.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        protocol: Callable[[], asyncio.BaseProtocol],
        open_connections: Callable[[], int],
        open_by_host: Mapping[str, int],
        max_connections: int,
    ) -> None:
        self._listening = listening
        self._context = context
        self._protocol = protocol
        self._open_connections = open_connections
        self._open_by_host = open_by_host
        self._hands: Counter[str] = Counter()  # handshakes by address
        self._max_connections = max_connections
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to accept, on the running loop."""
        self._listening.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Accept no more; end the handshakes that are not complete."""
        if self._accepting:
            self._accepting.cancel()
        for handshake in self._handshakes:
            handshake.cancel()
        self._listening.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, address = await loop.sock_accept(self._listening)
            except OSError as error:
                log.warning("a connection could not be accepted", reason=str(error))
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            host = str(address[0])
            if not self._has_room(host):
                peer.close()
                continue
            handshake = loop.create_task(self._shake_hands(peer, host))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    def _has_room(self, host: str) -> bool:
        own = self._hands[host] + self._open_by_host.get(host, 0)
        is_full = len(self._handshakes) + self._open_connections() >= self._max_connections
        return not is_full and own < max_connections_of_host(self._max_connections)

    async def _shake_hands(self, peer: socket.socket, host: str) -> None:
        self._hands[host] += 1
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                peer,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
        except OSError as error:  # of TLS too, and a timeout
            log.debug("a handshake of TLS failed", reason=str(error))
        finally:
            self._hands[host] -= 1
            if not self._hands[host]:
                del self._hands[host]
