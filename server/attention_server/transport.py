"""Parts that both transports share: sockets, threads for long work, futures on an event loop, and inflation."""

import asyncio
import resource
import socket
import ssl
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from attention_server.domain.call import CallContext
from attention_server.domain.messages import Request
from attention_server.errors import DeadlineExceeded, Full, InvalidRequest, TooLarge
from attention_server.scheduling.future import Future

log = structlog.get_logger()

S = TypeVar("S")
LATE = "the deadline passed while the request waited or ran"

T = TypeVar("T")

ENCODINGS = ("gzip", "deflate")
HANDSHAKE_SECONDS = 10.0  # of TLS
SHUTDOWN_SECONDS = 1.0  # of TLS
ACCEPT_RETRY_SECONDS = 1.0  # where the process may open no further file
EITHER_HEADER = zlib.MAX_WBITS | 32  # zlib tells gzip's header from its own

# Up to these sizes a message is parsed, converted or written on the event loop, within a few milliseconds.
INLINE_BYTES = 4 * 1024 * 1024
INLINE_SEQUENCES = 64
INLINE_TEXT_BYTES = 16 * 1024  # of a message with text, which is tokenized
INLINE_JSON_BYTES = 128 * 1024  # weighted, see `is_large_json`
INLINE_JSON_TENSOR_BYTES = 256 * 1024  # of tensors that are written as JSON


def listen(protocol: str, host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        protocol: name of the protocol, for errors.
        host: address.
        port: port; 0 for a free one.

    Raises:
        OSError: the address is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen for {protocol} on {host}:{port}: {error.strerror}") from error


def most_connections() -> int:
    """Return the maximum number of connections of a port: half of the files that the process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


class TlsListener:
    """Accepts connections of TLS, and counts each from the moment that it is accepted.

    asyncio's own server reports a connection when its handshake is complete; a silent peer would be counted by nothing.

    Args:
        listening: the socket to accept from.
        context: of TLS.
        protocol: makes the protocol of a connection whose handshake is complete.
        open_connections: returns how many of those are open.
        max_connections: connections, open or in a handshake; a further one is closed when it is accepted.
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
    """A pool of threads without a queue: work is refused while all threads are busy.

    Args:
        count: number of threads.
        name: prefix of the threads' names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._count = self._idle = count

    def check_idle(self) -> None:
        """Check that a thread is idle.

        Raises:
            Full: all threads are busy.
        """
        if not self._idle:
            raise Full("more requests are here than can be answered")

    def run(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Run a function in a thread; call this on the event loop.

        Raises:
            Full: all threads are busy.
        """
        self.check_idle()
        self._idle -= 1
        loop = asyncio.get_running_loop()
        done = self._pool.submit(work)
        # The returned future may be cancelled while the thread is still busy: only the thread's own end counts.
        done.add_done_callback(lambda _: self._notify_idle(loop))
        result = asyncio.wrap_future(done)
        result.add_done_callback(_retrieve_exception)
        return result

    @property
    def is_idle(self) -> bool:
        """Whether all threads are idle."""
        return self._idle == self._count

    def close(self) -> None:
        """End each thread after its current work."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _notify_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._add_idle)

    def _add_idle(self) -> None:
        self._idle += 1


def _retrieve_exception(result: "asyncio.Future[Any]") -> None:
    """Retrieve the exception of a future that nothing may await any more: asyncio would log it."""
    if not result.cancelled():
        result.exception()


class Offloader:
    """Runs short work on the event loop, and long work in a thread, so that the loop serves further callers.

    Args:
        threads: for long work.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in a thread.

        Raises:
            Full: all threads are busy.
            Exception: the function's.
        """
        return await self._threads.run(work)

    async def run_if(self, condition: bool, work: Callable[[], T]) -> T:
        """Run a function in a thread if a condition holds, else on the loop. Raises as `run`."""
        return await self._threads.run(work) if condition else work()

    async def submit(
        self, decode: Callable[[], S], submit: Callable[[S], T], *, is_large: bool, takes_long: Callable[[S], bool]
    ) -> T:
        """Decode a message and submit its request, in a thread from where it takes long.

        Args:
            decode: decodes the message.
            submit: validates and submits the decoded request.
            is_large: whether decoding takes long.
            takes_long: whether submitting the decoded request takes long.

        Raises:
            Full: all threads are busy.
            Exception: that of `decode` or `submit`.
        """
        if is_large:
            return await self._threads.run(lambda: submit(decode()))
        decoded = decode()
        if takes_long(decoded):
            return await self._threads.run(lambda: submit(decoded))
        return submit(decoded)


def should_offload(size: int, sequences: int, *, text: bool = False) -> bool:
    """Return whether converting and validating a message takes long.

    Args:
        size: bytes of the message.
        sequences: number of sequences that are converted one by one.
        text: whether there is text to tokenize.
    """
    return size > (INLINE_TEXT_BYTES if text else INLINE_BYTES) or sequences > INLINE_SEQUENCES


def should_offload_request(request: Request, size: int) -> bool:
    """Return whether validating a request takes long; `size` is the bytes of its message."""
    text = any(each.text is not None or each.memory_text is not None for each in request.inputs)
    return should_offload(size, len(request.inputs), text=text)


def is_large_json(document: bytes) -> bool:
    """Return whether decoding a JSON document takes long: a row or object takes as long as many bytes of numbers."""
    size = len(document)
    return (
        size > INLINE_JSON_BYTES or size + 128 * document.count(b"[") + 1024 * document.count(b"{") > INLINE_JSON_BYTES
    )


async def wait_for(future: "Future[T]", call: CallContext) -> T:
    """Wait on the event loop for the future of a call's job; cancelling the wait cancels the call.

    Raises:
        DeadlineExceeded: the job ended after the deadline.
        asyncio.CancelledError: the job was cancelled.
        Exception: the job's.
    """
    try:
        answer = await on_loop(future)
    except asyncio.CancelledError:
        call.cancel()
        raise
    finally:
        call.detach()
    if call.is_expired:
        raise DeadlineExceeded(LATE)
    return answer


async def wait_until_deadline(future: "Future[T]", call: CallContext) -> T:
    """Wait as `wait_for`, and no longer than until the call's deadline, which the request itself may have shortened.

    Raises:
        DeadlineExceeded: the deadline passed.
        Exception: as `wait_for`.
    """
    try:
        async with asyncio.timeout(call.remaining()) as limit:
            return await wait_for(future, call)
    except TimeoutError as error:
        if limit.expired():
            raise DeadlineExceeded(LATE) from error
        raise


def on_loop(future: "Future[T]") -> "asyncio.Future[T]":
    """Return an awaitable of a job's future; a job that ends in the loop's thread settles it without a detour."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    awaitable: asyncio.Future[T] = loop.create_future()

    def settle() -> None:
        if awaitable.done():
            return
        if future.cancelled():
            awaitable.cancel()
        elif error := future.exception():
            awaitable.set_exception(error)
        else:
            awaitable.set_result(future.result())

    def done(_: "Future[T]") -> None:
        if threading.get_ident() == thread:
            settle()
        else:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle)

    future.add_done_callback(done)
    return awaitable


def inflate(content: bytes, encoding: str, limit: int, what: str, field: str) -> bytes:
    """Inflate compressed bytes. Gzip of several members is refused: only the first would be read.

    Args:
        content: the bytes.
        encoding: `gzip` or `deflate`; empty or `identity` for bytes that are not compressed.
        limit: maximum number of inflated bytes.
        what: name of the content, for errors.
        field: field or header of the encoding, for errors.

    Raises:
        InvalidRequest: the encoding is unknown, or the content is not of the encoding.
        TooLarge: the inflated bytes are over the limit; inflation stops there.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return content
    if name not in ENCODINGS:
        raise InvalidRequest(f"must be one of {', '.join(ENCODINGS)}, not {encoding[:64]!r}", field=field)
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
