"""One gRPC call: messages are read from the request's bytes; messages and a status are written to the response."""

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol
from urllib.parse import quote

import structlog

from attention_server.http2.callbacks import Buffer
from attention_server.http2.errors import (
    BrokenProtocol,
    CallError,
    Cancelled,
    DeadlineExceeded,
    HeadersTooLarge,
    InvalidMessage,
    Stalled,
    UnknownEncoding,
)
from attention_server.http2.headers import Header, Headers
from attention_server.http2.lease import COPIES
from attention_server.http2.library import CANCEL
from attention_server.http2.lifetime import CallLifetime
from attention_server.http2.limits import HEADER_BYTES, HEADER_COUNT, STREAM_WINDOW
from attention_server.http2.messages import PREFIX, MessageReader
from attention_server.http2.session import Session

CREDIT = STREAM_WINDOW // 4  # bytes of room that are returned at once; nghttp2 tells the peer at half a window
COPIED = 16 * 1024  # a message of at most so many bytes is copied behind its prefix, not sent as a second piece
ENCODINGS = ("deflate", "gzip")
LONGEST = 365 * 86_400.0  # seconds; a longer timeout is none
TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
OK: Header = (b"grpc-status", b"0")
RESPONSE: tuple[Header, ...] = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", ", ".join(("identity", *ENCODINGS)).encode()),
)
RESPONSE_HEADERS = Headers(RESPONSE)
INTERNAL, INTERNAL_ERROR = 13, "internal error"
UNQUOTED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # of `grpc-message`

Inflate = Callable[[bytes, str, int, Any], Awaitable[bytes]]
"""Inflates a message: its bytes, `gzip` or `deflate`, the largest result, and the lease, which grows by
COPIES times the result. `Call.read` raises its exceptions.
"""

log = structlog.get_logger()


class CallConnection(Protocol):
    """The connection of a call."""

    session: Session
    host: str
    certificate: str

    def flush(self) -> None:
        """Send the session's unsent frames."""

    def forget(self, call: "Call") -> None:
        """Note that the call's task has ended."""


class Call(CallLifetime):
    """One gRPC call.

    Args:
        connection: the connection that it came by.
        stream: its number there.
        headers: by name in lower case.
        fit: False where headers over the limits were dropped.
        message_bytes: of the largest message, as it is sent and as it is when inflated.
        lease: a `Lease`; holds the call, its headers and the messages that are received, up to the one read last.
        inflating: acquired while a message is inflated.
        inflate: inflates compressed messages.

    Attributes:
        headers, lease: as given.
        headers_error: why some headers are missing, or cannot be read; None where all are.
        method: the path, `/package.Service/Method`.
        timeout: seconds that the caller waits; None without a limit.
        is_closed: nothing more of it can be sent.
    """

    def __init__(
        self,
        connection: CallConnection,
        stream: int,
        headers: dict[bytes, bytes],
        *,
        fit: bool,
        message_bytes: int,
        lease: Any,
        inflating: asyncio.Semaphore,
        inflate: Inflate,
    ) -> None:
        super().__init__()
        self.headers = headers
        self.headers_error: CallError | None = None if fit else _headers_error()
        self.method = headers.get(b":path", b"").decode("latin-1")
        self.timeout: float | None = None
        try:
            self.timeout = _parse_timeout(headers.get(b"grpc-timeout"))
        except InvalidMessage as error:
            self.headers_error = error.with_traceback(None)
        self.is_closed = False
        self._connection = connection
        self._stream = stream
        self.lease = lease
        self._hold = lease.grow
        self._inflating = inflating
        self._inflate = inflate
        self._messages = MessageReader(message_bytes)
        self._held = 0  # bytes in `_messages`, and of the message read last
        self._read_bytes = 0  # of the message read last, which the reader works on
        self._credit = 0  # bytes that the peer has sent and was not given room for again
        self._is_complete = False  # the request
        self._receive_error: Exception | None = None
        self._received: asyncio.Future[None] | None = None  # a reader waits for it
        self._has_headers = False  # the response was begun
        self._moved: int | None = None  # at the last check
        self._received_bytes = 0
        self._is_finished = False  # the response has its status
        self._timer: asyncio.TimerHandle | None = None

    @property
    def host(self) -> str:
        """The peer's address, without the port."""
        return self._connection.host

    @property
    def certificate(self) -> str:
        """The name in the peer's certificate; empty without one."""
        return self._connection.certificate

    @property
    def is_transferring(self) -> bool:
        """Whether the peer has begun a message and not ended it, or has not taken a finished response."""
        messages = self._messages
        return self._is_finished or (messages.has_begun and not messages.complete and not self._is_complete)

    def check_progress(self, least: int) -> None:
        """End the call if a transfer is under way, and fewer bytes than the least have moved since the last check."""
        if not self.is_transferring:
            self._moved = None
            return
        session, before = self._connection.session, self._moved
        self._moved = moved = self._received_bytes - session.unsent_of(self._stream)
        if before is None or moved >= before + least:
            return
        if self._is_finished:
            session.reset(self._stream, CANCEL)
        elif self.task is None:
            self.refuse([(b":status", b"408")])
        else:
            self._fail_receiving(Stalled(f"less than {least} bytes of the message came in some seconds"))
            self._wake_reader()
        self._connection.flush()

    @property
    def is_started(self) -> bool:
        """Whether `start` was called: a task answers the call."""
        return self.task is not None

    # --- lifetime ---

    def start(self, answer: Coroutine[Any, Any, None], /, *, must_run: bool = False) -> None:
        """Run a coroutine that answers the call, until the caller's timeout."""
        super().start(answer, must_run=must_run)
        if self.timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(self.timeout, self._on_timeout)

    def on_closed(self) -> None:
        """Note that the stream is over: it was answered, reset, or its connection is lost."""
        self.is_closed = True
        self._messages.complete.clear()
        self._messages.drop()
        if not self._is_finished:
            self.abandon(Cancelled("the caller has gone"))
        if self.task is None:
            self.lease.release()

    def _on_timeout(self) -> None:
        self.stop(DeadlineExceeded("the deadline passed before the request could be answered"))

    def _on_answered(self, error: BaseException | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._connection.forget(self)
        self.task = None
        if self.is_closed:
            self.lease.release()
        if error or not (self._is_finished or self.is_closed):
            log.error("a call ends without a status, for a fault of ours", exc_info=error)
            self.fail(INTERNAL, INTERNAL_ERROR)

    # --- the request ---

    def limit_message(self, count: int) -> None:
        """Lower the largest message's bytes, before one has arrived; so few are held in any case."""
        self._messages.max_bytes = count
        self._hold = self.lease.add

    def on_data(self, content: memoryview) -> None:
        """Take received bytes, which are valid during the call only."""
        self._credit += len(content)
        self._received_bytes += len(content)
        if self._receive_error is None:
            try:
                self._hold(COPIES * len(content))
                self._held += len(content)
                self._messages.feed(content)
            except Exception as error:  # noqa: BLE001 # of the lease too; `read` raises it
                self._fail_receiving(error)
            self._wake_reader()
        self._return_credit()

    def on_end(self) -> None:
        """Note that the request is complete."""
        self._is_complete = True
        self._wake_reader()

    async def read(self) -> Buffer | None:
        """Return the next message; None behind the last.

        The peer is given no room for more while messages wait here. The message stays in the lease until the next is
        read, or the call is over.

        Raises:
            InvalidMessage: the bytes are not messages.
            MessageTooLarge: a message is over the limit.
            UnknownEncoding: the message is compressed by an encoding that is not supported.
            Exception: the lease's, which has no room for the bytes.
        """
        messages = self._messages
        self._release(self._read_bytes)
        self._read_bytes = 0
        while not messages.complete:
            if self._receive_error is not None:
                raise self._receive_error
            if self._is_complete:
                if messages.incomplete_bytes:
                    raise InvalidMessage("the bytes end within a message")
                return None
            self._received = asyncio.get_running_loop().create_future()
            await self._received
        compressed, content = messages.complete.popleft()
        self._read_bytes = len(content) + PREFIX
        if not messages.complete and self._receive_error is None:
            try:
                if messages.split():
                    await asyncio.sleep(0)  # many small messages do not block the loop
            except CallError as error:
                self._fail_receiving(error)
        self._return_credit()
        return await self._inflated(content) if compressed else content

    async def _inflated(self, content: Buffer) -> bytes:
        encoding = self.headers.get(b"grpc-encoding", b"").decode("latin-1")
        if encoding in ("", "identity"):
            raise BrokenProtocol("a message is compressed, and this does not say how", field="grpc-encoding")
        if encoding not in ENCODINGS:
            raise UnknownEncoding(f"messages may be compressed by {', '.join(ENCODINGS)}", field="grpc-encoding")
        async with self._inflating:
            inflated = await self._inflate(bytes(content), encoding, self._messages.max_bytes, self.lease)
        self._held += len(inflated)
        self._read_bytes += len(inflated)
        return inflated

    def _return_credit(self) -> None:
        """Let the peer send more, unless messages wait to be read."""
        if self._credit >= CREDIT and not self._messages.complete and not self.is_closed:
            self._connection.session.consume(self._stream, self._credit)
            self._credit = 0

    def _wake_reader(self) -> None:
        if self._received and not self._received.done():
            self._received.set_result(None)

    def _release(self, count: int) -> None:
        if count:
            self._held -= count
            self.lease.shrink(COPIES * count)

    def _fail_receiving(self, error: Exception) -> None:
        """Ignore all further bytes; the messages before the error can still be read."""
        self._receive_error = error.with_traceback(None)  # its frames hold the received bytes
        complete = sum([len(content) + PREFIX for _, content in self._messages.complete])
        self._release(self._held - complete - self._read_bytes)
        self._messages.drop()

    # --- the response ---

    @property
    def has_more(self) -> bool:
        """Whether a further message has come already."""
        return bool(self._messages.complete)

    def begin_response(self) -> None:
        """Send the response's headers, for a caller that waits for them before it sends."""
        if not (self.is_closed or self._has_headers):
            self._has_headers = True
            self._connection.session.send_headers(self._stream, RESPONSE_HEADERS)
            self._connection.flush()

    def write(self, content: bytes, on_sent: Callable[[], None] | None = None) -> None:
        """Send a message.

        Args:
            content: the message.
            on_sent: called when it is given to the transport.
        """
        if not self.is_closed:
            self._send(content, on_sent)
            self._connection.flush()

    def finish(self, trailers: Sequence[Header], content: bytes | None = None) -> None:
        """End the call with the status OK.

        Args:
            trailers: sent beside the status; binary ones (`-bin`) in base64.
            content: a message to be sent before.
        """
        self._finish((OK, *trailers), content)

    def fail(self, status: int, message: str, details: bytes = b"", trailers: Sequence[Header] = ()) -> None:
        """End the call with an error.

        Args:
            status: gRPC's code.
            message: for people.
            details: a serialized google.rpc.Status; empty for none.
            trailers: sent beside the status.
        """
        told: list[Header] = [
            (b"grpc-status", b"%d" % status),
            (b"grpc-message", quote(message, safe=UNQUOTED).encode()),
        ]
        if details:
            told.append((b"grpc-status-details-bin", base64.b64encode(details).rstrip(b"=")))
        self._finish((*told, *trailers), None)

    def refuse(self, headers: Sequence[Header]) -> None:
        """Answer a request that is not gRPC by a response of HTTP without a body."""
        if not self.is_closed:
            self._is_finished = True
            self._connection.session.respond(self._stream, Headers(headers))

    def _finish(self, trailers: Sequence[Header], content: bytes | None) -> None:
        if self.task is None:  # it was never started
            self._call_done_callbacks()
        if self.is_closed or self._is_finished:
            return
        self._is_finished = True
        session = self._connection.session
        if content is not None and not self._has_headers:
            session.answer(self._stream, RESPONSE_HEADERS, _framed(content), Headers(trailers))
        else:
            if content is not None:
                self._send(content, None)
            if self._has_headers:
                session.send_trailers(self._stream, Headers(trailers))
            else:
                session.respond(self._stream, Headers([*RESPONSE, *trailers]))
        self._connection.flush()

    def _send(self, content: bytes, on_sent: Callable[[], None] | None) -> None:
        session = self._connection.session
        if not self._has_headers:
            self._has_headers = True
            session.send_headers(self._stream, RESPONSE_HEADERS)
        *first, last = _framed(content)
        for piece in first:
            session.send_data(self._stream, piece)
        session.send_data(self._stream, last, on_sent)


def _framed(content: bytes) -> tuple[bytes, ...]:
    """Return the pieces of a message behind its prefix; a short one is copied."""
    prefix = b"\0" + len(content).to_bytes(4, "big")
    return (prefix + content,) if len(content) <= COPIED else (prefix, content)


def _headers_error() -> CallError:
    return HeadersTooLarge(f"the metadata is over {HEADER_BYTES} bytes, or has more than {HEADER_COUNT} names")


def _parse_timeout(sent: bytes | None) -> float | None:
    """Return a timeout in seconds; None without one.

    Raises:
        InvalidMessage: it cannot be parsed.
    """
    if sent is None:
        return None
    found = TIMEOUT.fullmatch(sent)
    if not found:
        raise InvalidMessage("must be up to eight digits and a unit, as in 100m", field="grpc-timeout")
    seconds = int(found[1]) * UNITS[found[2]]
    return seconds if seconds < LONGEST else None
