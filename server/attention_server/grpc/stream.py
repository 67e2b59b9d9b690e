"""AttendStream: requests are taken as they come, and answers go out as they are ready, matched by their ids.

Two threads hold a stream: one reads and hands to the scheduler, the other writes. A caller who does not read fills the
window of what is in flight, and then nothing more of theirs is read: that is the flow control.
"""

import functools
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

import grpc
import structlog
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.window import Window

from attention_server.domain import Call, Response
from attention_server.errors import AttentionServiceError, InvalidRequest, Unavailable
from attention_server.service import Service
from attention_server.translate import proto
from attention_server.translate.errors import to_status

STREAMS = 64  # at once; each holds two threads
IN_FLIGHT = 32  # requests of one stream
IN_FLIGHT_BYTES = 64 * 1024 * 1024

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request.

    Attributes:
        id: the caller's.
        size: the request's bytes.
        future: holds the response, or the error.
    """

    id: str
    size: int
    future: "Future[Response]"


class Conversations:
    """The streams that are open."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._open: set[Conversation] = set()
        self._ended = False

    def hold(
        self, messages: Iterator[pb.AttendStreamRequest], call: Call, context: grpc.ServicerContext
    ) -> Iterator[pb.AttendStreamResponse]:
        """Answer a stream.

        Raises:
            Unavailable: too many are open, or the server is stopping.
        """
        conversation = Conversation(self._service, call)
        with self._lock:
            if self._ended:
                raise Unavailable("the server is stopping")
            if len(self._open) >= STREAMS:
                raise Unavailable(f"{STREAMS} streams are open; send several sequences in one Attend, or come back")
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
        service: the core.
        call: the stream's: all its requests have its caller and its deadline.
    """

    def __init__(self, service: Service, call: Call) -> None:
        self._service = service
        self._call = call
        self._window = Window(IN_FLIGHT, IN_FLIGHT_BYTES)
        self._outcomes: SimpleQueue[Outcome | None] = SimpleQueue()  # None: look whether this is the end
        self._taken = 0
        self._complete = False  # the caller has sent all they wanted to
        self._ended = False  # no more is taken, for whatever reason

    def hold(self, messages: Iterator[pb.AttendStreamRequest]) -> Iterator[pb.AttendStreamResponse]:
        """Yield an answer for each message, as they are ready.

        Raises:
            Unavailable: the server stops; what it took is answered.
        """
        threading.Thread(target=self._take, args=(messages,), name="stream", daemon=True).start()
        sent = 0
        while not (self._ended and sent == self._taken):
            outcome = self._outcomes.get()
            if outcome is not None:
                yield self._answer(outcome)
                sent += 1
                self._window.leave(outcome.size)
        if not self._complete:
            raise Unavailable("the server is stopping")

    def end(self) -> None:
        """Answer what was taken, and take no more."""
        self._window.close()
        self._end_taking()

    def leave(self) -> None:
        """The caller has gone, or all is done."""
        self._call.leave()
        self._window.close()

    def _take(self, messages: Iterator[pb.AttendStreamRequest]) -> None:
        try:
            for message in messages:
                size = message.ByteSize()
                if not self._window.enter(size):
                    return
                self._taken += 1
                self._submit(message, size)
                del message  # while this thread waits for the next, nothing of the last one is kept
            self._complete = True
        except grpc.RpcError:
            self._call.leave()  # the stream broke
        finally:
            self._end_taking()

    def _end_taking(self) -> None:
        self._ended = True
        self._outcomes.put(None)

    def _submit(self, message: pb.AttendStreamRequest, size: int) -> None:
        try:
            if not message.id:
                raise InvalidRequest("must not be empty: answers are matched by it", field="id")  # noqa: TRY301
            request = proto.to_request(message.request, self._service.limits)
            future = self._service.submit(request, self._call, bulk=True)
        except Exception as error:  # noqa: BLE001 # it is this request's alone: the stream goes on
            future = Future()
            future.set_exception(error)
        future.add_done_callback(functools.partial(self._done, message.id, size))

    def _done(self, id_: str, size: int, future: "Future[Response]") -> None:
        self._outcomes.put(Outcome(id_, size, future))

    def _answer(self, outcome: Outcome) -> pb.AttendStreamResponse:
        try:
            response = outcome.future.result()
            return pb.AttendStreamResponse(id=outcome.id, response=proto.from_response(response))
        except Exception as error:
            if not isinstance(error, AttentionServiceError):
                log.exception("a request failed for a fault of ours", request_id=self._call.request_id)
            return pb.AttendStreamResponse(id=outcome.id, error=to_status(error, self._call.request_id))
