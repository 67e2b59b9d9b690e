"""A line between a caller and a server that can be slow, cut messages into single bytes, and break."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Line:
    """Carries bytes both ways.

    Args:
        target: `HOST:PORT` of the server.
        piece: bytes that are sent on at once.
        pause: seconds between two pieces.
    """

    def __init__(self, target: str, piece: int = 65536, pause: float = 0.0) -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        self._piece = piece
        self._pause = pause
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Break every connection there is; return how many. New ones can be made."""
        with self._lock:
            cut, self._open = self._open, set()
        for each in cut:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        return len(cut) // 2

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                for each in (near, far):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open |= {near, far}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        waiter = threading.Event()
        try:
            while content := one.recv(65536):
                for i in range(0, len(content), self._piece):
                    other.sendall(content[i : i + self._piece])
                    if self._pause:
                        waiter.wait(self._pause)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)
        one.close()  # the thread of the opposite way closes the second one


@contextmanager
def line(target: str, piece: int = 65536, pause: float = 0.0) -> Iterator[Line]:
    made = Line(target, piece, pause)
    try:
        yield made
    finally:
        made.close()
