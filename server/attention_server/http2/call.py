"""One call of gRPC: messages out of a request's bytes, messages and a status into an answer's.

The form is that of `doc/PROTOCOL-HTTP2.md` of gRPC: each message behind a byte that says whether it is compressed, and
its length; the status in headers behind the body, or, where there is no body, in the only ones.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import structlog

from attention_server.domain.limits import MAX_SECONDS
from attention_server.errors import (
    AttentionServiceError,
    Cancelled,
    DeadlineExceeded,
    Full,
    InvalidRequest,
    Stopping,
    Unimplemented,
)
from attention_server.http2.messages import PREFIX, Messages
from attention_server.http2.nghttp2 import STREAM_WINDOW, Buffer, Header, Headers, Session
from attention_server.transport import INFLATED, Threads, inflate

OWED = STREAM_WINDOW // 4  # bytes of room that are worth a call: nghttp2 tells a peer of half a window at a time
SMALL = 4096  # bytes of a message that is rather copied than sent in two pieces
INFLATING = 2  # messages at once
TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
HEAD: tuple[Header, ...] = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity, deflate, gzip"),
)
BEGINNING = Headers(HEAD)
FAULT = ((b"grpc-status", b"13"), (b"grpc-message", b"internal error"))

log = structlog.get_logger()


class Inbound:
    """Bytes that have come and belong to messages that nobody has taken yet, of all calls together.

    Messages that are on their way have room for up to twice as much; see `messages.AHEAD`.

    Args:
        most: how many there may be.

    Attributes:
        inflating: held by who makes a compressed message what it was, which may be as large as any.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self.inflating = asyncio.Semaphore(INFLATING)

    def add(self, count: int) -> None:
        """Count bytes that have come.

        Raises:
            Full: there are too many; they are not counted.
        """
        if self._held + count > self._most:
            raise Full("more is being sent at once than can be held")
        self._held += count

    def remove(self, count: int) -> None:
        """Count bytes no more."""
        self._held -= count


class Line(Protocol):
    """The connection that a call came by."""

    session: Session
    host: str
    certificate: str

    def flush(self) -> None:
        """Send what is to be sent."""

    def forget(self, rpc: "Call") -> None:
        """The call's task has ended."""


class Call:
    """One call.

    Args:
        line: the connection.
        stream: its number there.
        headers: by name, in small letters.
        max_message_bytes: the largest message, as it is sent and as it is when it is inflated.
        inbound: what counts the bytes that have come.
        threads: for what would hold up the loop.

    Attributes:
        method: its path, `/package.Service/Method`.
        seconds: how long its caller waits; None for ever.
        is_over: nothing more of it can be sent.
    """

    def __init__(
        self,
        line: Line,
        stream: int,
        headers: dict[bytes, bytes],
        *,
        max_message_bytes: int,
        inbound: Inbound,
        threads: Threads,
    ) -> None:
        self.headers = headers
        self.method = headers.get(b":path", b"").decode("latin-1")
        self.is_over = False
        self.seconds = _seconds(headers.get(b"grpc-timeout"))
        self._line = line
        self._stream = stream
        self._inbound = inbound
        self._threads = threads
        self._messages = Messages(max_message_bytes)
        self._held = 0  # bytes in them
        self._owed = 0  # bytes that the peer has sent and not been given room for again
        self._is_whole = False
        self._fault: AttentionServiceError | None = None
        self._news: asyncio.Future[None] | None = None
        self._has_begun = False  # its task
        self._begun = False  # its answer
        self._is_finished = False
        self._why: AttentionServiceError | None = None  # its task was cancelled
        self._leaving: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def host(self) -> str:
        """The peer's, without the port."""
        return self._line.host

    @property
    def certificate(self) -> str:
        """The name in the peer's certificate, where TLS asked for one."""
        return self._line.certificate

    @property
    def is_on_its_way(self) -> bool:
        """Whether the peer has begun a message and not ended it, or is not taking an answer that is whole."""
        messages = self._messages
        return self._is_finished or (messages.has_begun and not messages.whole and not self._is_whole)

    @property
    def is_under_way(self) -> bool:
        """Whether it is being answered; one that was refused at its head never is."""
        return self._task is not None

    # --- how it lives ---

    def start(self, answer: Coroutine[Any, Any, None]) -> None:
        """Let it be answered, for as long as its caller waits."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(answer))
        self._task.add_done_callback(self._ended)
        if self.seconds is not None:
            self._timer = loop.call_later(self.seconds, self._expire)

    def stop(self, why: AttentionServiceError) -> None:
        """End it before it is answered."""
        if not self._task or self._task.done() or self._why:
            return
        if not self._has_begun:  # who is cancelled before that could not say so
            asyncio.get_running_loop().call_soon(self.stop, why)
            return
        self._why = why
        self._leave()
        self._task.cancel()

    async def _run(self, answer: Coroutine[Any, Any, None]) -> None:
        self._has_begun = True
        await answer

    def _expire(self) -> None:
        self.stop(DeadlineExceeded("the deadline passed before the request could be answered"))

    def why(self) -> AttentionServiceError:
        """Return why its task was cancelled."""
        return self._why or Stopping("the server is stopping")

    def on_leaving(self, tell: Callable[[], None]) -> None:
        """Have it told when the caller does not wait any more, whyever."""
        self._leaving.append(tell)

    def closed(self) -> None:
        """It is over on the wire: it was answered, or its caller has gone."""
        self.is_over = True
        self._drop()
        if not self._is_finished:
            self.stop(Cancelled("the caller has gone"))

    def left(self) -> None:
        """It has its answer, and its caller does not wait any more."""
        self._leave()
        self._leaving.clear()

    def _leave(self) -> None:
        for tell in self._leaving:
            tell()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if self._timer:
            self._timer.cancel()
        if self._why is None:
            self._leave()
        self._leaving.clear()
        self._line.forget(self)
        self._task = None
        error = None if task.cancelled() else task.exception()
        if error or not (self._is_finished or self.is_over):
            log.error("a call ends without a status, for a fault of ours", exc_info=error)
            self.finish(FAULT)

    # --- what comes ---

    def allow(self, message_bytes: int) -> None:
        """Take messages of so many bytes at most, where none has come yet."""
        self._messages.most = message_bytes

    def feed(self, content: memoryview) -> None:
        """Take bytes that have come, which are the connection's again afterwards."""
        self._owed += len(content)
        if self._fault is None:
            try:
                self._inbound.add(len(content))
                self._held += len(content)
                self._messages.add(content)
            except AttentionServiceError as error:
                self._fail(error)
            self._tell()
        self._make_room()

    def fed(self) -> None:
        """All has come."""
        self._is_whole = True
        self._tell()

    async def message(self) -> Buffer:
        """Return the message of a call that has one.

        Raises:
            InvalidRequest: there is none, or it is not as it should be.
            TooLarge: it is larger than one may be.
            Full: more is being sent than can be held.
        """
        found = await self.next()
        if found is None:
            raise InvalidRequest("the method takes one message")
        return found

    async def next(self) -> Buffer | None:
        """Return the next message; None behind the last. Raises as `message`.

        What is not taken is soon not sent any more: the peer is given no room for it.
        """
        messages = self._messages
        while not messages.whole:
            if self._fault is not None:
                raise self._fault
            if self._is_whole:
                if messages.unready:
                    raise InvalidRequest("the bytes end within a message")
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        compressed, content = messages.whole.popleft()
        self._release(len(content) + PREFIX)
        if not messages.whole and self._fault is None:
            try:
                messages.cut()
            except AttentionServiceError as error:
                self._fail(error)
        self._make_room()
        return await self._inflated(content) if compressed else content

    async def _inflated(self, content: Buffer) -> bytes:
        encoding = self.headers.get(b"grpc-encoding", b"").decode("latin-1")
        if encoding in ("", "identity"):
            raise InvalidRequest("a message is compressed, and this does not say how", field="grpc-encoding")
        if encoding not in INFLATED:
            raise Unimplemented(f"messages may be compressed by {', '.join(INFLATED)}", field="grpc-encoding")
        limit = self._messages.most
        async with self._inbound.inflating:
            return await self._threads.run(lambda: inflate(bytes(content), encoding, limit, "message", "grpc-encoding"))

    def _make_room(self) -> None:
        """Let the peer send more, unless there is a message that nobody has taken."""
        if self._owed >= OWED and not self._messages.whole and not self.is_over:
            self._line.session.took(self._stream, self._owed)
            self._owed = 0

    def _tell(self) -> None:
        if self._news and not self._news.done():
            self._news.set_result(None)

    def _release(self, count: int) -> None:
        self._held -= count
        self._inbound.remove(count)

    def _fail(self, error: AttentionServiceError) -> None:
        """Take nothing any more of what comes; the messages before are answered."""
        self._fault = error.with_traceback(None)  # which holds what was lent
        self._release(self._held - sum([len(content) + PREFIX for _, content in self._messages.whole]))
        self._messages.drop()

    def _drop(self) -> None:
        self._messages.whole.clear()
        self._messages.drop()
        self._release(self._held)

    # --- what goes ---

    def send(self, content: bytes, is_gone: Callable[[], None] | None = None) -> None:
        """Send a message.

        Args:
            content: of the message.
            is_gone: called when it is on its way.
        """
        if not self.is_over:
            self._put(content, is_gone)
            self._line.flush()

    def finish(self, trailers: Sequence[Header], content: bytes | None = None) -> None:
        """End it with a status.

        Args:
            trailers: the status, and what is told beside it.
            content: a message to send before.
        """
        if self.is_over or self._is_finished:
            return
        self._is_finished = True
        session = self._line.session
        if content is not None:
            self._put(content, None)
        if self._begun:
            session.finish(self._stream, Headers(trailers))
        else:
            session.answer(self._stream, Headers([*HEAD, *trailers]))
        self._line.flush()

    def _put(self, content: bytes, is_gone: Callable[[], None] | None) -> None:
        session, prefix = self._line.session, b"\0" + len(content).to_bytes(4, "big")
        if not self._begun:
            self._begun = True
            session.begin(self._stream, BEGINNING)
        if len(content) <= SMALL:
            session.send(self._stream, prefix + content, is_gone)
        else:
            session.send(self._stream, prefix)
            session.send(self._stream, content, is_gone)

    def refuse(self, headers: Sequence[Header]) -> None:
        """Answer what is no call of gRPC as HTTP does, at once."""
        if not self.is_over:
            self._is_finished = True
            self._line.session.answer(self._stream, Headers(headers))


def _seconds(sent: bytes | None) -> float | None:
    """Return a timeout in seconds; None where there is none, or none that can be read: the caller keeps their own."""
    found = TIMEOUT.fullmatch(sent) if sent else None
    seconds = int(found[1]) * SECONDS[found[2]] if found else MAX_SECONDS
    return seconds if seconds < MAX_SECONDS else None
