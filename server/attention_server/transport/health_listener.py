"""Liveness and readiness on a port and a thread of their own, which no peer of the other ports can keep waiting."""

import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from attention_server.transport.sockets import listen

REQUEST_BYTES = 4096
CONNECTIONS = 256  # at once; of more the oldest is closed
ACCEPT_RETRY_SECONDS = 0.1
SECONDS = 2.0  # that a peer has to send its request
Checks = Mapping[str, Callable[[], bool]]


class HealthListener:
    """Answers `GET PATH` with 200 or 503 in a thread.

    Args:
        host, port: where to listen; port 0 picks a free one.
        checks: by path.

    Attributes:
        port: where it listens.

    Raises:
        OSError: the address is not available.
    """

    def __init__(self, host: str, port: int, checks: Checks) -> None:
        self._socket = listen("health", host, port)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._checks = checks
        self._peers: dict[socket.socket, float] = {}  # by arrival
        self._selector = selectors.DefaultSelector()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for key, _ in self._selector.select(0.1):
                if key.fileobj is self._socket:
                    self._accept()
                else:
                    self._answer(key.fileobj)  # type: ignore[arg-type] # it is a socket
            self._close_late()
        for peer in [*self._peers, self._socket]:
            peer.close()

    def _accept(self) -> None:
        try:
            peer, _ = self._socket.accept()
        except OSError:  # such as no file left for it: the socket stays ready, and asking at once would spin
            self._stopping.wait(ACCEPT_RETRY_SECONDS)
            return
        peer.setblocking(False)
        self._peers[peer] = time.monotonic()
        self._selector.register(peer, selectors.EVENT_READ)

    def _answer(self, peer: socket.socket) -> None:
        with suppress(OSError, IndexError):
            path = peer.recv(REQUEST_BYTES).split()[1].decode("latin-1")
            check = self._checks.get(path)
            status = "404 Not Found" if check is None else "200 OK" if check() else "503 Service Unavailable"
            peer.send(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        self._close(peer)

    def _close_late(self) -> None:
        now = time.monotonic()
        for peer, since in list(self._peers.items()):
            if since > now - SECONDS and len(self._peers) <= CONNECTIONS:
                return
            self._close(peer)

    def _close(self, peer: socket.socket) -> None:
        self._peers.pop(peer, None)
        self._selector.unregister(peer)
        peer.close()
