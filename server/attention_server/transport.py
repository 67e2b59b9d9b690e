"""What both ports need: a socket to listen on, a bound on connections, threads, and what compressed bytes were."""

import asyncio
import resource
import socket
import ssl
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from attention_server.errors import Full, InvalidRequest, TooLarge

log = structlog.get_logger()

T = TypeVar("T")

INFLATED = ("gzip", "deflate")
HANDSHAKE_SECONDS = 10.0  # of TLS
SHUTDOWN_SECONDS = 1.0  # of TLS
ACCEPT_RETRY_SECONDS = 1.0  # where the process may open no further file
EITHER_HEADER = zlib.MAX_WBITS | 32  # zlib tells gzip's header from its own


def listen(protocol: str, host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 picks a free one.

    Raises:
        OSError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen for {protocol} on {host}:{port}: {error.strerror}") from error


def most_connections() -> int:
    """Return how many connections a port may have: half of the files that the process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


class TlsListener:
    """Accepts connections of TLS, and counts each from the moment that it is accepted.

    asyncio's own server reports a connection when its handshake is complete; a silent peer would be counted by nothing.

    Args:
        listening: the socket to accept from.
        context: of TLS.
        protocol: makes the protocol of a connection whose handshake is complete.
        open_connections: returns how many of those are open.
        max_connections: open, and in their handshake; a further one is closed when it is accepted.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        protocol: Callable[[], asyncio.BaseProtocol],
        open_connections: Callable[[], int],
        max_connections: int,
    ) -> None:
        self._listening = listening
        self._context = context
        self._protocol = protocol
        self._open_connections = open_connections
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
                peer, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                log.warning("a connection could not be accepted", reason=str(error))
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            if len(self._handshakes) + self._open_connections() >= self._max_connections:
                peer.close()
                continue
            handshake = loop.create_task(self._shake_hands(peer))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, peer: socket.socket) -> None:
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


class Threads:
    """Threads for what would hold up a loop. None waits for one: what comes when all are busy is refused.

    Args:
        count: how many.
        name: theirs.
    """

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._count = self._idle = count

    def check_idle(self) -> None:
        """Refuse what no thread is free for; a pool's own queue has no bound.

        Raises:
            Full: all are busy.
        """
        if not self._idle:
            raise Full("more requests are here than can be answered")

    def run(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Do something in a thread; from the loop.

        Raises:
            Full: all are busy.
        """
        self.check_idle()
        self._idle -= 1
        loop = asyncio.get_running_loop()
        done = self._pool.submit(work)
        # Whoever waits may leave meanwhile: a thread is idle when it is, not when nobody waits for it.
        done.add_done_callback(lambda _: self._tell(loop))
        found = asyncio.wrap_future(done)
        found.add_done_callback(_seen)
        return found

    @property
    def is_idle(self) -> bool:
        """Whether none does anything."""
        return self._idle == self._count

    def close(self) -> None:
        """End the threads when they have done what they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._one_is_idle)

    def _one_is_idle(self) -> None:
        self._idle += 1


def _seen(found: "asyncio.Future[Any]") -> None:
    """Take note of a failure, where nobody waits for it any more."""
    if not found.cancelled():
        found.exception()


def inflate(content: bytes, encoding: str, limit: int, what: str, field: str) -> bytes:
    """Return bytes as they were before they were compressed.

    Args:
        content: as it was sent.
        encoding: `gzip`, `deflate`; empty or `identity` when it is not compressed.
        limit: how many bytes it may have.
        what: it is, for errors.
        field: what says the encoding, for errors.

    Raises:
        InvalidRequest: the encoding is unknown, or the content is not of it.
        TooLarge: it has more; no more than that is inflated.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return content
    if name not in INFLATED:
        raise InvalidRequest(f"must be one of {', '.join(INFLATED)}, not {encoding[:64]!r}", field=field)
    stream = zlib.decompressobj(EITHER_HEADER)
    try:
        inflated = stream.decompress(content, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the {what} is no {name}: {error}", field=field) from error
    if len(inflated) > limit:
        raise TooLarge(f"the {what} inflates to over {limit} bytes, the largest that is read")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(f"the {what} is no {name}: it ends too early or too late", field=field)
    return inflated
