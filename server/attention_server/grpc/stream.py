"""Bidirectional streams of both protocols: requests are computed concurrently, and answered when ready or in order.

Everything runs on the loop. A caller that does not read fills the bounds of a session; the session then stops reading:
this is the flow control.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from attention_server.budget.account import Lease
from attention_server.budget.current import current_lease
from attention_server.budget.shares import Shares
from attention_server.codecs.errors import record_error
from attention_server.domain.call import CallContext
from attention_server.domain.messages import Response
from attention_server.errors import AttentionServiceError, Cancelled, Stopping, Unavailable
from attention_server.grpc.interceptor import MessageStream
from attention_server.http2.lease import COPIES
from attention_server.scheduling.future import Future
from attention_server.telemetry.observer import Observer
from attention_server.transport.futures import make_poster
from attention_server.transport.offload import INLINE_BYTES
from attention_server.transport.threads import Threads

STREAMS = 64  # of one caller; of all callers together a third more
IDLE_SECONDS = 300.0  # without a request or an unanswered one
IN_FLIGHT = 32  # requests of one stream
IN_FLIGHT_BYTES = 64 * 1024 * 1024  # of its requests
ANSWER_BYTES = 16 * 1024 * 1024  # of its unsent answers; the size of the next is predicted by that of the last

log = structlog.get_logger()

Serialize = Callable[[Response], bytes]
Submit = Callable[[Any, CallContext, Callable[[], None]], Awaitable[tuple["Future[Response]", Serialize]]]


@dataclass(frozen=True, slots=True)
class StreamProtocol:
    """The messages of a streaming method.

    Attributes:
        submit: hands a message's request to the core; takes the message, its context and a callback for when it is
            admitted; returns the future of its response, and a function that serializes the response.
        refuse: serializes the error of a request, by its id.
        in_order: whether answers go out in the order of requests; otherwise each goes out when it is ready.
    """

    submit: Submit
    refuse: Callable[[str, Exception, CallContext], bytes]
    in_order: bool


@dataclass(slots=True, eq=False)
class StreamItem:
    """One request of a stream, until its answer is sent.

    Attributes:
        id: the caller's.
        context: its own, within the stream's.
        size: bytes of the request.
        answer_size: bytes of the answer; predicted until it is there.
        serialize: the response; None for a request that was refused.
        outcome: the settled future of the response; None until the answer can be written.
        content: the answer, where it was large and has been serialized in a thread.
    """

    id: str
    context: CallContext
    size: int
    answer_size: int
    serialize: Serialize | None = None
    outcome: "Future[Response] | None" = field(default=None)
    content: bytes | None = None


class StreamSessions:
    """The open streams of a server.

    Args:
        observer: observes each request of a stream.
        threads: for serializing large answers.
    """

    def __init__(self, observer: Observer, threads: Threads) -> None:
        self._observer = observer
        self._threads = threads
        self._open: set[StreamSession] = set()
        self._slots = Shares(STREAMS, "streams")
        self._ended = False

    async def run(self, stream: MessageStream, protocol: StreamProtocol, context: CallContext) -> None:
        """Answer a stream.

        Raises:
            Full: too many are open.
            AttentionServiceError: as `StreamSession.run`.
        """
        if self._ended:
            raise Stopping("the server is stopping")
        with self._slots.hold(context.caller):
            session = StreamSession(stream, protocol, context, self._observer, self._threads)
            self._open.add(session)
            try:
                await session.run()
            finally:
                self._open.discard(session)

    def end(self) -> None:
        """Let every stream receive no more, and answer all received requests."""
        self._ended = True
        for session in self._open:
            session.end()


class StreamSession:
    """One open stream.

    Args:
        stream: its request messages.
        protocol: of its method.
        context: the call's; each request has its caller and its deadline.
        observer: observes each request.
        threads: for serializing large answers.
    """

    def __init__(
        self,
        stream: MessageStream,
        protocol: StreamProtocol,
        context: CallContext,
        observer: Observer,
        threads: Threads,
    ) -> None:
        self._stream = stream
        self._protocol = protocol
        self._context = context
        self._observer = observer
        self._threads = threads
        self._post = make_poster()
        self._loop = asyncio.get_running_loop()
        self._items: dict[StreamItem, None] = {}  # with an answer that is not written, in order of arrival
        self._leases: set[Lease] = set()  # of requests with an answer that is not sent
        self._count = 0  # of items with an answer that is not sent
        self._size = self._answer_size = 0  # bytes of theirs
        self._predicted = ANSWER_BYTES // 8  # bytes of the next answer
        self._progress: asyncio.Future[None] | None = None  # an answer was sent
        self._is_over = False
        self._receiver: asyncio.Task[None] | None = None
        self._last = self._loop.time()  # that a request came, or an answer went

    async def run(self) -> None:
        """Answer requests until the stream has ended and every request is answered.

        Raises:
            Cancelled: the caller has gone.
            Stopping: the server stops; all received requests are answered.
            InvalidRequest: a message could not be parsed; those before it are answered.
            Unavailable: the stream was idle for too long.
        """
        self._receiver = self._loop.create_task(self._receive())
        timer = self._loop.call_later(IDLE_SECONDS, self._check_idle)
        try:
            await asyncio.wait([self._receiver])
            while self._count:
                await self._wait_for_progress()
            if self._receiver.cancelled():
                raise Stopping("the server is stopping")
            self._receiver.result()
        finally:
            self._is_over = True
            timer.cancel()
            if not self._receiver.cancel() and not self._receiver.cancelled():
                self._receiver.exception()  # marks it as retrieved where the caller has gone
            self._forget()

    def end(self) -> None:
        """Receive no more, and answer all received requests."""
        if self._receiver:
            self._receiver.cancel()

    async def _receive(self) -> None:
        while (found := await self._stream.next()) is not None:
            message, size = found
            while not self._has_room(size):
                await self._wait_for_progress()
            item = StreamItem(message.id, self._item_context(message.id, size), size, self._predicted)
            self._add(item)
            await self._submit(message, item)
            del message, found, item  # not to be held while the next is awaited

    def _check_idle(self) -> None:
        """End a stream on which nothing was sent for some time, and nothing is being computed."""
        if self._is_over:
            return
        idle = 0.0 if self._items else self._loop.time() - self._last
        if idle >= IDLE_SECONDS:
            self._stream.call.stop(Unavailable(f"the stream was idle for {IDLE_SECONDS:g} s; open it again"))
        else:
            self._loop.call_later(IDLE_SECONDS - idle, self._check_idle)

    def _has_room(self, size: int) -> bool:
        """Return whether one more request fits; a request that exceeds the bounds alone may be alone."""
        fits = self._size + size <= IN_FLIGHT_BYTES and self._answer_size + self._predicted <= ANSWER_BYTES
        return not self._count or (self._count < IN_FLIGHT and fits)

    def _item_context(self, id_: str, size: int) -> CallContext:
        return self._context.for_message(self._observer.message(self._context.record, id_, size))

    def _add(self, item: StreamItem) -> None:
        self._items[item] = None
        self._last = self._loop.time()
        self._leases.add(item.context.lease)
        self._count += 1
        self._size += item.size
        self._answer_size += item.answer_size

    async def _submit(self, message: Any, item: StreamItem) -> None:
        admitted = self._loop.create_future()
        on_admitted = partial(self._post, partial(_settle, admitted))
        lease = item.context.lease
        current_lease.set(lease)
        try:
            lease.grow(COPIES * item.size)
            future, item.serialize = await self._protocol.submit(message, item.context, on_admitted)
        except asyncio.CancelledError:  # the server stops; all received requests are answered
            self._refuse(item, Stopping("the server is stopping"))
            raise
        except Exception as error:  # noqa: BLE001 # the error of one request; the stream goes on
            self._refuse(item, error)
            return
        future.add_done_callback(lambda future: self._post(partial(self._on_done, item, future)))
        await admitted

    def _refuse(self, item: StreamItem, error: Exception) -> None:
        future: Future[Response] = Future()
        future.set_exception(error)
        self._on_done(item, future)

    def _on_done(self, item: StreamItem, outcome: "Future[Response]") -> None:
        """Note a request's outcome, and write the answers that can be written."""
        if self._is_over:
            return
        failed = outcome.cancelled() or outcome.exception() is not None
        size = 0 if failed else outcome.result().size
        self._answer_size += size - item.answer_size
        item.answer_size = size
        if not failed:
            self._predicted = size
        if size > INLINE_BYTES and item.content is None:
            self._serialize_in_thread(item, outcome)
            return
        item.outcome = outcome
        if not self._protocol.in_order:
            self._write(item)
        while self._protocol.in_order and self._items and next(iter(self._items)).outcome is not None:
            self._write(next(iter(self._items)))

    def _serialize_in_thread(self, item: StreamItem, outcome: "Future[Response]") -> None:
        """Serialize a large answer in a thread, and write it from there on as any other."""
        assert item.serialize is not None  # or the future would have raised
        try:
            item.context.lease.grow(item.answer_size)
            serialized = self._threads.run(partial(item.serialize, outcome.result()), item.context.lease)
        except AttentionServiceError as error:
            self._refuse(item, error)
        else:
            serialized.add_done_callback(partial(self._on_serialized, item, outcome))

    def _on_serialized(
        self, item: StreamItem, outcome: "Future[Response]", serialized: "asyncio.Future[bytes]"
    ) -> None:
        error = serialized.exception()
        if isinstance(error, Exception):
            self._refuse(item, error)
        else:
            item.content = serialized.result()
            self._on_done(item, outcome)

    def _write(self, item: StreamItem) -> None:
        del self._items[item]
        answer, lease = self._serialized(item), item.context.lease
        lease.settle(len(answer))
        self._stream.call.write(answer, partial(self._on_sent, item.size, item.answer_size, lease))

    def _on_sent(self, size: int, answer_size: int, lease: Lease) -> None:
        """Note that an answer is on its way."""
        self._release(lease)
        self._last = self._loop.time()
        self._count -= 1
        self._size -= size
        self._answer_size -= answer_size
        if self._progress and not self._progress.done():
            self._progress.set_result(None)

    async def _wait_for_progress(self) -> None:
        """Wait until an answer is sent."""
        self._progress = self._loop.create_future()
        await self._progress

    def _forget(self) -> None:
        """End the records of unanswered requests, and free their results."""
        for item in self._items:
            record_error(item.context.record, Cancelled("the caller has gone"))
            self._observer.end(item.context.record)
            item.outcome = None  # break the reference cycle
        self._items.clear()
        for lease in list(self._leases):
            self._release(lease)

    def _release(self, lease: Lease) -> None:
        if lease in self._leases:
            self._leases.discard(lease)
            lease.release()

    def _serialized(self, item: StreamItem) -> bytes:
        record, outcome = item.context.record, item.outcome
        item.outcome = None  # break the reference cycle
        try:
            assert outcome is not None
            response = outcome.result()
            assert item.serialize is not None  # or the future would have raised
            answer = item.serialize(response) if item.content is None else item.content
        except Exception as error:
            if not isinstance(error, AttentionServiceError):
                log.exception("a request failed for a fault of ours", request_id=record.request_id)
            record_error(record, error)
            answer = self._protocol.refuse(item.id, error, item.context)
        record.mark_written(len(answer))
        self._observer.end(record)
        return answer


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
