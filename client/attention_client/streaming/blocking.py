"""A stream of batches by threads: sequences in, answers out, in order.

Three threads beside the caller's: the first collects sequences into batches, gRPC's own writes messages, the third
reads answers. `StreamState` has the rules.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import grpc
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.inputs import Item
from attention_client.streaming.batcher import Batch, Batcher
from attention_client.streaming.state import (
    IN_FLIGHT,
    IN_FLIGHT_BYTES,
    Answer,
    Deliver,
    Event,
    Receive,
    Reconnect,
    Release,
    StreamPlan,
    StreamState,
    Wait,
)
from attention_client.streaming.window import Window
from attention_client.wire.call import Call, send
from attention_client.wire.status import from_call

Open = Callable[[Iterator[pb.AttendStreamRequest]], Any]


class BlockingStream:
    """Sends batches on an AttendStream and yields the answer to each sequence.

    Args:
        open_: opens an AttendStream with an iterator of its messages.
        plan: of the stream.
    """

    def __init__(self, open_: Open, plan: StreamPlan) -> None:
        self._open = open_
        self._batcher = Batcher(plan.build)
        self._room = threading.Condition()  # of the window
        self._window = Window(IN_FLIGHT, IN_FLIGHT_BYTES)
        self._closed = False
        self._outgoing = threading.Condition()  # of the outbox, the batches in flight and the epoch
        self._outbox: deque[Batch] = deque()
        self._drawn = False  # whether the source has ended
        self._epoch = 0  # counts the streams; each writes only in its own
        self._call: Any = None
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._state = StreamState(plan, self._outgoing)

    def answers(self, items: Iterable[Item]) -> Iterator[Answer]:
        """Yield the answer to each sequence, in order."""
        self._connect()
        flow = self._state.flow()
        try:
            threading.Thread(target=self._draw, args=(iter(items),), name="attend-many", daemon=True).start()
            step = next(flow)
            while True:
                if isinstance(step, Deliver):
                    yield from step.answers
                    step = next(flow)
                else:
                    step = flow.send(self._perform(step))
        except StopIteration:
            return
        finally:
            self._close()

    def _perform(self, step: Wait) -> Any:
        match step:
            case Receive(seconds):
                return self._receive(seconds)
            case Release(size):
                with self._room:
                    self._window.leave(size)
                    self._room.notify_all()
            case Reconnect(delay):
                self._disconnect()
                time.sleep(delay)
                self._connect()
            case Call():
                return send(step)
        return None

    def _draw(self, items: Iterator[Item]) -> None:
        """Collect sequences into batches and queue each, while there is room in flight."""
        for batch in self._batches(items):
            if batch.items and not self._enter(batch):
                return
            if batch.request is None:
                self._inbox.put(batch)
            else:
                with self._outgoing:
                    self._outbox.append(batch)
                    self._outgoing.notify_all()
        with self._outgoing:
            self._drawn = True
            self._outgoing.notify_all()

    def _batches(self, items: Iterator[Item]) -> Iterator[Batch]:
        fault = None
        while fault is None:
            try:
                full = self._batcher.add(next(items))
            except StopIteration:
                break
            except BaseException as error:  # noqa: BLE001 # the source's own: raised to the caller, in its turn
                fault = error
            else:
                if full is not None:
                    yield full
        yield from self._batcher.rest(fault)

    def _enter(self, batch: Batch) -> bool:
        """Wait for room; return False when the caller has stopped meanwhile."""
        with self._room:
            self._room.wait_for(lambda: self._closed or self._window.has_room(batch.size))
            if not self._closed:
                self._window.enter(batch.size)
            return not self._closed

    def _connect(self) -> None:
        with self._outgoing:
            self._epoch += 1
            self._call = self._open(self._messages(self._epoch, self._state.unanswered()))
        threading.Thread(target=self._read, args=(self._call,), name="attend-many", daemon=True).start()

    def _disconnect(self) -> None:
        with self._outgoing:
            self._epoch += 1
            self._outgoing.notify_all()
        self._call.cancel()

    def _close(self) -> None:
        with self._room:
            self._closed = True
            self._room.notify_all()
        self._disconnect()

    def _messages(self, epoch: int, again: list[Batch]) -> Iterator[pb.AttendStreamRequest]:
        for batch in again:
            yield batch.message
        while (following := self._next_to_send(epoch)) is not None:
            yield following.message

    def _next_to_send(self, epoch: int) -> Batch | None:
        """Wait for a batch; None when there are no more, or this stream has been given up."""
        with self._outgoing:
            self._outgoing.wait_for(lambda: self._outbox or self._drawn or self._epoch != epoch)
            if not self._outbox or self._epoch != epoch:
                return None
            batch = self._outbox.popleft()
            self._state.sent(batch)
            return batch

    def _read(self, call: Any) -> None:
        try:
            for response in call:
                self._inbox.put(response)
        except grpc.RpcError as error:
            if call is self._call:  # else it was given up
                self._inbox.put(from_call(cast("grpc.Call", error)))

    def _receive(self, seconds: float) -> Event | None:
        try:
            return self._inbox.get(timeout=seconds)
        except queue.Empty:
            return None
