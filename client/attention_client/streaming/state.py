"""The rules of a stream of batches, for threads and for asyncio: order, failures, and sequences sent one by one.

Nothing here waits: `StreamState.flow` yields each step that has to (see `attention_client.wire.call`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.errors import AttentionError, DeadlineExceeded, Unavailable
from attention_client.inputs import Item
from attention_client.result import AttendResult
from attention_client.streaming.batcher import Batch, Build
from attention_client.wire.call import Call, Flow, backoff

IN_FLIGHT = 32  # messages
IN_FLIGHT_BYTES = 32 * 1024 * 1024
MAX_FAILURES = 5  # of the stream, without an answer in between

Answer = AttendResult | AttentionError
Event = pb.AttendStreamResponse | AttentionError | Batch
"""An answer, the error that ended the stream, or a batch that needs no message."""


@dataclass(frozen=True)
class StreamPlan:
    """The parts of a stream that the client's call sets.

    Attributes:
        build: builds the message of some sequences; raises InvalidRequest.
        send_alone: the flow that sends one sequence by itself.
        seconds: the longest wait for the next answer.
        return_exceptions: whether the error of a sequence is delivered in its position; else it is raised.
    """

    build: Build
    send_alone: Callable[[Item], Flow[Call, AttendResult]]
    seconds: float
    return_exceptions: bool


class Receive(NamedTuple):
    """Wait for the next event; the outcome is None when `seconds` pass without one."""

    seconds: float


class Reconnect(NamedTuple):
    """Give up the stream; after `delay` seconds open another, and send the unanswered batches again."""

    delay: float


class Deliver(NamedTuple):
    """Hand answers to the caller."""

    answers: list[Answer]


class Release(NamedTuple):
    """Give the room of a delivered batch, in bytes, to the next one."""

    size: int


Wait = Receive | Reconnect | Release | Call
Step = Deliver | Wait


class StreamState:
    """Which batches are sent, which are answered, and which is delivered next.

    Args:
        plan: of the stream.
        lock: guards the batches in flight, which the sending thread adds to.
    """

    def __init__(self, plan: StreamPlan, lock: AbstractContextManager[Any]) -> None:
        self._plan = plan
        self._lock = lock
        self._unanswered: dict[int, Batch] = {}
        self._answered: dict[int, tuple[Batch, pb.AttendStreamResponse | None]] = {}
        self._count: int | None = None  # of batches, once the source has ended
        self._position = 0  # of the batch to deliver next
        self._failures = 0

    def sent(self, batch: Batch) -> None:
        """Note that a batch is in flight."""
        self._unanswered[batch.id] = batch

    def unanswered(self) -> list[Batch]:
        """Return the batches in flight, in the order of sending."""
        return list(self._unanswered.values())

    def flow(self) -> Flow[Step, None]:
        """Receive events and deliver answers in the order of the sequences, until all are delivered.

        Raises:
            AttentionError: the stream failed, or a sequence failed and `return_exceptions` is false.
            Exception: the source's own, after the answers to all that came before it.
        """
        while self._position != self._count:
            found = self._answered.pop(self._position, None)
            if found is None:
                yield from self._take((yield Receive(self._plan.seconds)))
                continue
            self._position += 1
            batch, response = found
            if batch.error is not None:
                raise batch.error
            yield from self._deliver(batch, response)
            yield Release(batch.size)

    def _take(self, event: Event | None) -> Flow[Step, None]:
        if event is None:
            if self._unanswered:  # else the source is slow, not the server
                raise DeadlineExceeded(f"no answer came for {self._plan.seconds:g} seconds")
        elif isinstance(event, Batch):
            self._take_unsent(event)
        elif isinstance(event, AttentionError):
            yield Reconnect(self._backoff(event))
        else:
            self._take_answer(event)

    def _take_unsent(self, batch: Batch) -> None:
        if batch.items or batch.error is not None:
            self._answered[batch.id] = (batch, None)
        else:
            self._count = batch.id

    def _take_answer(self, response: pb.AttendStreamResponse) -> None:
        self._failures = 0
        with self._lock:
            batch = self._unanswered.pop(int(response.id), None)
        if batch is not None:  # else a second answer, to a batch that was sent again
            self._answered[batch.id] = (batch, response)

    def _backoff(self, error: AttentionError) -> float:
        """Return the seconds to wait before the next stream is opened.

        Raises:
            AttentionError: the error itself, where another stream would not help.
        """
        self._failures += 1
        if not isinstance(error, Unavailable) or self._failures == MAX_FAILURES:
            raise error
        return min(error.retry_after or backoff(self._failures), self._plan.seconds)

    def _deliver(self, batch: Batch, response: pb.AttendStreamResponse | None) -> Flow[Step, None]:
        results = batch.results(response)
        if results is not None:
            yield Deliver([*results])
            return
        for item in batch.items:
            answer: Answer
            try:
                answer = yield from self._plan.send_alone(item)
            except AttentionError as error:
                if not self._plan.return_exceptions:
                    raise
                answer = error
            yield Deliver([answer])
