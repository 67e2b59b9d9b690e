"""Streams of either protocol: requests are taken as they come, and answers go out as they are ready, or in order.

Two threads hold a stream: one reads and hands to the scheduler, the other writes. A caller who does not read fills the
window of what is in flight, and then nothing more of theirs is read: that is the flow control.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import grpc
import structlog
from attention_proto.window import Window

from attention_server.domain import Call, Response
from attention_server.errors import AttentionServiceError, Cancelled, Full, InvalidRequest, Stopping
from attention_server.observe import Observer
from attention_server.translate.errors import note

STREAMS = 64  # at once; each holds two threads
IN_FLIGHT = 32  # requests of one stream
IN_FLIGHT_BYTES = 64 * 1024 * 1024  # of its requests
ANSWER_BYTES = 16 * 1024 * 1024  # of its answers that are not sent yet; how large the next will be, the last one tells

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a protocol speaks on a stream.

    Attributes:
        submit: takes a message and hands its request to the core; returns what will hold the response, and what then
            writes it.
        refuse: writes that a request, by its id, has no answer.
        in_order: whether answers go out in the order of their requests; otherwise as they are ready.
    """

    submit: Callable[[Any, Call], tuple["Future[Response]", Callable[[Response], bytes]]]
    refuse: Callable[[str, Exception, Call], bytes]
    in_order: bool


@dataclass(slots=True)
class Held:
    """What a request holds until it is answered: its bytes, and its answer's; expected ones, until there is one."""

    request: int
    answer: int
    left: bool = False  # it is answered, and holds nothing any more


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request.

    Attributes:
        id: the caller's.
        call: the request's own, within the stream's.
        held: what it holds.
        write: writes the response; None for a request that was refused.
        future: holds the response, or the error.
    """

    id: str
    call: Call
    held: Held
    write: Callable[[Response], bytes] | None
    future: "Future[Response]"


class Conversations:
    """The streams that are open.

    Args:
        observer: watches what they bring.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._open: set[Conversation] = set()
        self._ended = False

    def hold(
        self, messages: Iterator[Any], dialect: Dialect, call: Call, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Answer a stream.

        Raises:
            Full: too many are open.
            Stopping: the server is.
        """
        conversation = Conversation(dialect, call, self._observer)
        with self._lock:
            if self._ended:
                raise Stopping("the server is stopping")
            if len(self._open) >= STREAMS:
                raise Full(f"{STREAMS} streams are open; send several sequences in one request, or come back")
            self._open.add(conversation)
        try:
            if not context.add_callback(conversation.leave):
                conversation.leave()
            yield from conversation.hold(messages)
        finally:
            conversation.leave()
            with self._lock:
                self._open.discard(conversation)

    def end(self) -> None:
        """Let every stream answer what it has taken, and take no more."""
        with self._lock:
            self._ended = True
            still_open = list(self._open)
        for conversation in still_open:
            conversation.end()


class Conversation:
    """One stream.

    Args:
        dialect: how its protocol speaks.
        call: the stream's: all its requests have its caller and its deadline.
        observer: watches each.
    """

    def __init__(self, dialect: Dialect, call: Call, observer: Observer) -> None:
        self._dialect = dialect
        self._call = call
        self._observer = observer
        self._requests = Window(IN_FLIGHT, IN_FLIGHT_BYTES)
        self._answers = Window(IN_FLIGHT, ANSWER_BYTES)
        self._weighing = threading.Lock()
        self._expected = ANSWER_BYTES // 8  # of the next answer
        self._outcomes: SimpleQueue[Outcome | None] = SimpleQueue()  # None: look whether this is the end
        self._taken = 0
        self._complete = False  # the caller has sent all they wanted to
        self._unreadable: InvalidRequest | None = None  # what followed the last message
        self._ended = False  # no more is taken, for whatever reason
        self._over = False  # nobody reads any more

    def hold(self, messages: Iterator[Any]) -> Iterator[bytes]:
        """Yield an answer for each message, as they are ready.

        Raises:
            Cancelled: the caller has gone.
            Stopping: the server is; what it took is answered.
            InvalidRequest: what followed is no message; what came before it is answered.
        """
        threading.Thread(target=self._take, args=(messages,), name="stream", daemon=True).start()
        sent = 0
        while not self._over and not (self._ended and sent == self._taken):
            outcome = self._outcomes.get()
            if outcome is not None:
                yield self._answer(outcome)
                sent += 1
                self._leave_windows(outcome.held)
        if self._unreadable:
            raise self._unreadable
        if not self._complete:
            if self._call.gone:
                raise Cancelled("the caller has gone")
            raise Stopping("the server is stopping")

    def end(self) -> None:
        """Answer what was taken, and take no more."""
        self._close()
        self._end_taking()

    def leave(self) -> None:
        """The caller has gone, or all is done: keep no answer for them."""
        self._over = True
        self._call.leave()
        self._close()
        self._forget()

    def _take(self, messages: Iterator[Any]) -> None:
        try:
            for message in messages:
                held = Held(message.ByteSize(), self._expected)
                if not (self._requests.enter(held.request) and self._answers.enter(held.answer)):
                    return
                self._taken += 1
                self._submit(message, held)
                del message  # while this thread waits for the next, nothing of the last one is kept
            self._complete = True
        except InvalidRequest as error:
            self._unreadable = error
        except grpc.RpcError:
            self._call.leave()  # the stream broke
        finally:
            self._end_taking()

    def _end_taking(self) -> None:
        self._ended = True
        self._outcomes.put(None)

    def _close(self) -> None:
        self._requests.close()
        self._answers.close()

    def _submit(self, message: Any, held: Held) -> None:
        call = self._call.part(self._observer.message(self._call.watch, message.id, held.request))
        write = None
        try:
            future, write = self._dialect.submit(message, call)
        except Exception as error:  # noqa: BLE001 # it is this request's alone: the stream goes on
            future = Future()
            future.set_exception(error)
        future.add_done_callback(functools.partial(self._weigh, held))
        if self._dialect.in_order:
            self._put(Outcome(message.id, call, held, write, future))
        else:
            future.add_done_callback(functools.partial(self._done, message.id, call, held, write))

    def _weigh(self, held: Held, future: "Future[Response]") -> None:
        """Count an answer with the bytes that it has; who waits for a future may have sent it before this is called."""
        failed = future.cancelled() or future.exception() is not None
        size = 0 if failed else future.result().size
        with self._weighing:
            if not held.left:
                self._answers.resize(size - held.answer)
                held.answer = size
        if not failed:
            self._expected = size

    def _leave_windows(self, held: Held) -> None:
        with self._weighing:
            held.left = True
        self._requests.leave(held.request)
        self._answers.leave(held.answer)

    def _done(
        self, id_: str, call: Call, held: Held, write: Callable[[Response], bytes] | None, future: "Future[Response]"
    ) -> None:
        self._put(Outcome(id_, call, held, write, future))

    def _put(self, outcome: Outcome) -> None:
        self._outcomes.put(outcome)
        if self._over:
            self._forget()

    def _forget(self) -> None:
        """End the watch of what nobody reads any more, and keep nothing of it.

        gRPC's objects hold each other, and this: it may be long before they are collected.
        """
        with suppress(Empty):
            while True:
                outcome = self._outcomes.get_nowait()
                if outcome is not None:
                    note(outcome.call.watch, Cancelled("the caller has gone"))
                    self._observer.end(outcome.call.watch)
        self._outcomes.put(None)

    def _answer(self, outcome: Outcome) -> bytes:
        watch = outcome.call.watch
        try:
            response = outcome.future.result()
            assert outcome.write is not None  # or the future would have raised
            answer = outcome.write(response)
        except Exception as error:
            if not isinstance(error, AttentionServiceError):
                log.exception("a request failed for a fault of ours", request_id=watch.request_id)
            note(watch, error)
            answer = self._dialect.refuse(outcome.id, error, outcome.call)
        watch.is_written(len(answer))
        self._observer.end(watch)
        return answer
