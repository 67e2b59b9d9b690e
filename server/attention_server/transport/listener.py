"""Accepts the connections of a port, many in a turn of the event loop, and bounds TLS handshakes in time and number."""

import asyncio
import functools
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from attention_server.transport.peer_turns import CONNECTION, PeerTurns
from attention_server.transport.sockets import max_connections_of_host

log = structlog.get_logger()

ACCEPTED_OF_A_TURN = 256  # connections; uvloop's own server accepts one, behind which further peers wait
HANDSHAKE_SECONDS = 10.0  # of TLS
SHUTDOWN_SECONDS = 1.0  # of TLS
ACCEPT_RETRY_SECONDS = 1.0  # where the process may open no further file


class Listener:
    """Accepts connections, and counts each from the moment that it is accepted.

    asyncio's own server reports a connection when its handshake is complete; a silent peer would be counted by nothing.

    Args:
        listening: the socket to accept from.
        context: of TLS; None for none.
        protocol: makes the protocol of a connection after its handshake.
        open_connections: returns how many of those are open.
        open_by_host: how many each address has open.
        max_connections: connections, open or in a handshake; a further one is closed when it is accepted.
        turns: of the event loop, in which the connections of one address begin.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext | None,
        protocol: Callable[[], asyncio.BaseProtocol],
        open_connections: Callable[[], int],
        open_by_host: Mapping[str, int],
        max_connections: int,
        turns: PeerTurns,
    ) -> None:
        self._listening = listening
        self._context = context
        self._protocol = protocol
        self._open_connections = open_connections
        self._open_by_host = open_by_host
        self._hands: Counter[str] = Counter()  # handshakes by address
        self._max_connections = max_connections
        self._turns = turns
        self._accepted: set[socket.socket] = set()  # that wait for their turn
        self._handshakes: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._listening.setblocking(False)
        self._loop.add_reader(self._listening, self._accept)

    async def close(self) -> None:
        """Accept no more; end the handshakes of TLS that are not complete."""
        if self._retry:
            self._retry.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for peer in self._accepted:
            peer.close()
        self._accepted.clear()
        for handshake in self._handshakes if self._context else ():
            handshake.cancel()
        # A connection that begins after the port has closed its connections would stay.
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _accept(self) -> None:
        """Accept the connections that wait, as many as one turn of the loop may have."""
        for _ in range(ACCEPTED_OF_A_TURN):
            try:
                peer, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("a connection could not be accepted", reason=str(error))
                self._loop.remove_reader(self._listening)
                self._retry = self._loop.call_later(ACCEPT_RETRY_SECONDS, self.start)
                return
            host = str(address[0])
            if not self._has_room(host):
                peer.close()
                continue
            peer.setblocking(False)
            self._hands[host] += 1
            if self._turns.take(host, CONNECTION):
                self._begin(peer, host)
            else:  # it is not read before its turn
                self._accepted.add(peer)
                self._turns.wait_to_begin(host, functools.partial(self._begin_accepted, peer, host))

    def _begin_accepted(self, peer: socket.socket, host: str) -> None:
        self._turns.add(host, CONNECTION)
        if peer in self._accepted:
            self._accepted.remove(peer)
            self._begin(peer, host)

    def _begin(self, peer: socket.socket, host: str) -> None:
        handshake = self._loop.create_task(self._shake_hands(peer, host))
        self._handshakes.add(handshake)
        handshake.add_done_callback(self._handshakes.discard)

    def _has_room(self, host: str) -> bool:
        own = self._hands[host] + self._open_by_host.get(host, 0)
        begun = len(self._accepted) + len(self._handshakes) + self._open_connections()
        is_full = begun >= self._max_connections
        return not is_full and own < max_connections_of_host(self._max_connections)

    async def _shake_hands(self, peer: socket.socket, host: str) -> None:
        times: dict[str, Any] = {"ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": SHUTDOWN_SECONDS}
        try:
            await self._loop.connect_accepted_socket(
                self._protocol, peer, ssl=self._context, **(times if self._context else {})
            )
        except OSError as error:  # of TLS too, and a timeout
            log.debug("a handshake of TLS failed", reason=str(error))
        finally:
            self._hands[host] -= 1
            if not self._hands[host]:
                del self._hands[host]
