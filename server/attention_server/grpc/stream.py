"""Streams of either protocol: requests are taken as they come, and answers go out as they are ready, or in order.

All of it happens on the loop. A caller who does not read fills the windows of what is in flight, and then nothing more
of theirs is read: that is the flow control.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from attention_server.codecs.errors import note
from attention_server.domain.call import CallContext
from attention_server.domain.messages import Response
from attention_server.errors import AttentionServiceError, Cancelled, Full, Stopping
from attention_server.grpc.exchange import poster
from attention_server.grpc.interceptor import MessageStream
from attention_server.scheduling.future import Future
from attention_server.telemetry.observer import Observer

STREAMS = 64  # at once
IN_FLIGHT = 32  # requests of one stream
IN_FLIGHT_BYTES = 64 * 1024 * 1024  # of its requests
ANSWER_BYTES = 16 * 1024 * 1024  # of its answers that are not sent yet; how large the next will be, the last one tells

log = structlog.get_logger()

Write = Callable[[Response], bytes]
Submit = Callable[[Any, CallContext, Callable[[], None]], Awaitable[tuple["Future[Response]", Write]]]


@dataclass(frozen=True, slots=True)
class StreamProtocol:
    """How a protocol speaks on a stream.

    Attributes:
        submit: takes a message, its call, and what is told when it is let in, and hands its request to the core;
            returns what will hold the response, and what then writes it.
        refuse: writes that a request, by its id, has no answer.
        in_order: whether answers go out in the order of their requests; otherwise as they are ready.
    """

    submit: Submit
    refuse: Callable[[str, Exception, CallContext], bytes]
    in_order: bool


@dataclass(slots=True, eq=False)
class StreamItem:
    """One request of a stream, until its answer is on its way.

    Attributes:
        id: the caller's.
        call: its own, within the stream's.
        size: its bytes.
        answer_size: its answer's; expected ones, until there is one.
        write: writes the response; None for a request that was refused.
        outcome: holds the response, or the error, when it is settled.
    """

    id: str
    call: CallContext
    size: int
    answer_size: int
    write: Write | None = None
    outcome: "Future[Response] | None" = field(default=None)


class StreamSessions:
    """The streams that are open.

    Args:
        observer: watches what they bring.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._open: set[StreamSession] = set()
        self._ended = False

    async def hold(self, stream: MessageStream, dialect: StreamProtocol, call: CallContext) -> None:
        """Answer a stream.

        Raises:
            Full: too many are open.
            AttentionServiceError: as `StreamSession.hold`.
        """
        if self._ended:
            raise Stopping("the server is stopping")
        if len(self._open) >= STREAMS:
            raise Full(f"{STREAMS} streams are open; send several sequences in one request, or come back")
        conversation = StreamSession(stream, dialect, call, self._observer)
        self._open.add(conversation)
        try:
            await conversation.hold()
        finally:
            self._open.discard(conversation)

    def end(self) -> None:
        """Let every stream answer what it has taken, and take no more."""
        self._ended = True
        for conversation in self._open:
            conversation.end()


class StreamSession:
    """One stream.

    Args:
        conversed: what it brings.
        dialect: how its protocol speaks.
        call: the stream's: all its requests have its caller and its deadline.
        observer: watches each.
    """

    def __init__(self, stream: MessageStream, dialect: StreamProtocol, call: CallContext, observer: Observer) -> None:
        self._conversed = stream
        self._dialect = dialect
        self._call = call
        self._observer = observer
        self._post = poster()
        self._loop = asyncio.get_running_loop()
        self._asked: dict[StreamItem, None] = {}  # in their order, and not on their way yet
        self._count = 0  # of those whose answers are not on their way
        self._size = self._answer_size = 0  # bytes of theirs
        self._expected = ANSWER_BYTES // 8  # of the next answer
        self._moved: asyncio.Future[None] | None = None  # something was sent
        self._is_over = False  # nobody reads any more
        self._taking: asyncio.Task[None] | None = None

    async def hold(self) -> None:
        """Take what comes and answer it, until all is answered.

        Raises:
            Cancelled: the caller has gone.
            Stopping: the server is; what it took is answered.
            InvalidRequest: what followed is no message; what came before it is answered.
        """
        self._taking = self._loop.create_task(self._take())
        try:
            await asyncio.wait([self._taking])
            while self._count:
                await self._something()
            if self._taking.cancelled():
                raise Stopping("the server is stopping")
            self._taking.result()
        finally:
            self._is_over = True
            if not self._taking.cancel() and not self._taking.cancelled():
                self._taking.exception()  # seen, where it was not told: its caller has gone
            self._forget()

    def end(self) -> None:
        """Answer what was taken, and take no more."""
        if self._taking:
            self._taking.cancel()

    async def _take(self) -> None:
        while (found := await self._conversed.next()) is not None:
            message, size = found
            while not self._has_room(size):
                await self._something()
            asked = StreamItem(message.id, self._part(message.id, size), size, self._expected)
            self._enter(asked)
            await self._submit(message, asked)
            del message, found, asked  # while the next is waited for, nothing of the last one is kept

    def _has_room(self, size: int) -> bool:
        """Return whether one more fits; what is too large alone may go alone."""
        fits = self._size + size <= IN_FLIGHT_BYTES and self._answer_size + self._expected <= ANSWER_BYTES
        return not self._count or (self._count < IN_FLIGHT and fits)

    def _part(self, id_: str, size: int) -> CallContext:
        return self._call.for_message(self._observer.message(self._call.record, id_, size))

    def _enter(self, asked: StreamItem) -> None:
        self._asked[asked] = None
        self._count += 1
        self._size += asked.size
        self._answer_size += asked.answer_size

    async def _submit(self, message: Any, asked: StreamItem) -> None:
        admitted = self._loop.create_future()
        tell = partial(self._post, partial(_settle, admitted))
        try:
            future, asked.write = await self._dialect.submit(message, asked.call, tell)
        except asyncio.CancelledError:  # the server stops: it was taken, and is answered
            self._refuse(asked, Stopping("the server is stopping"))
            raise
        except Exception as error:  # noqa: BLE001 # it is this request's alone: the stream goes on
            self._refuse(asked, error)
            return
        future.add_done_callback(lambda future: self._post(partial(self._done, asked, future)))
        await admitted

    def _refuse(self, asked: StreamItem, error: Exception) -> None:
        future: Future[Response] = Future()
        future.set_exception(error)
        self._done(asked, future)

    def _done(self, asked: StreamItem, outcome: "Future[Response]") -> None:
        """Take note of what came of a request, and send what can be sent."""
        if self._is_over:
            return
        asked.outcome = outcome
        failed = outcome.cancelled() or outcome.exception() is not None
        size = 0 if failed else outcome.result().size
        self._answer_size += size - asked.answer_size
        asked.answer_size = size
        if not failed:
            self._expected = size
        if not self._dialect.in_order:
            self._send(asked)
        while self._dialect.in_order and self._asked and next(iter(self._asked)).outcome is not None:
            self._send(next(iter(self._asked)))

    def _send(self, asked: StreamItem) -> None:
        del self._asked[asked]
        self._conversed.rpc.send(self._written(asked), partial(self._gone, asked.size, asked.answer_size))

    def _gone(self, size: int, answer_size: int) -> None:
        """Take note that an answer is on its way."""
        self._count -= 1
        self._size -= size
        self._answer_size -= answer_size
        if self._moved and not self._moved.done():
            self._moved.set_result(None)

    async def _something(self) -> None:
        """Wait until an answer is on its way."""
        self._moved = self._loop.create_future()
        await self._moved

    def _forget(self) -> None:
        """End the watch of what nobody reads any more, and keep nothing of it."""
        for asked in self._asked:
            note(asked.call.record, Cancelled("the caller has gone"))
            self._observer.end(asked.call.record)
            asked.outcome = None  # they hold each other
        self._asked.clear()

    def _written(self, asked: StreamItem) -> bytes:
        record, outcome = asked.call.record, asked.outcome
        asked.outcome = None  # they hold each other
        try:
            assert outcome is not None
            response = outcome.result()
            assert asked.write is not None  # or the future would have raised
            answer = asked.write(response)
        except Exception as error:
            if not isinstance(error, AttentionServiceError):
                log.exception("a request failed for a fault of ours", request_id=record.request_id)
            note(record, error)
            answer = self._dialect.refuse(asked.id, error, asked.call)
        record.mark_written(len(answer))
        self._observer.end(record)
        return answer


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
