"""Many sequences through one AttendStream: packed, several messages in flight, answered in order.

Three threads: one draws sequences and packs them, gRPC's own writes messages, one reads answers; the caller's takes the
results. A stream that breaks is opened anew, and what was not answered is sent again.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import grpc
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.errors import AttentionError, DeadlineExceeded
from attention_client.inputs import Item
from attention_client.result import AttendResult
from attention_client.streaming.packs import IN_FLIGHT, IN_FLIGHT_BYTES, Answer, Build, Ledger, Pack, Packer
from attention_client.streaming.window import Window
from attention_client.wire.status import from_call

Open = Callable[[Iterator[pb.AttendStreamRequest]], Any]


class Stream:
    """Sends packs and gives their answers, in order.

    Args:
        open_: opens an AttendStream.
        build: makes the message of some sequences; raises InvalidRequest.
        ask: asks for one sequence by itself.
        seconds: how long to wait for the next answer.
    """

    def __init__(self, open_: Open, build: Build, ask: Callable[[Item], AttendResult], seconds: float) -> None:
        self._open = open_
        self._packer = Packer(build)
        self._ask = ask
        self._seconds = seconds
        self._window = Window(IN_FLIGHT, IN_FLIGHT_BYTES)
        self._changed = threading.Condition()  # of what is to be sent, and by which stream
        self._outbox: deque[Pack] = deque()
        self._drawn = False
        self._inbox: queue.SimpleQueue[pb.AttendStreamResponse | grpc.RpcError | Pack] = queue.SimpleQueue()
        self._ledger = Ledger()  # of which `sent` changes with the lock
        self._epoch = 0
        self._call: Any = None

    def answers(self, items: Iterable[Item]) -> Iterator[Answer]:
        """Yield a result for each sequence, in order, or the error in its place."""
        threading.Thread(target=self._draw, args=(iter(items),), name="attend-many", daemon=True).start()
        self._connect()
        try:
            while not self._ledger.complete:
                found = self._ledger.next()
                if found is None:
                    self._take(self._next())
                    continue
                pack, answer = found
                if pack.fault is not None:
                    raise pack.fault
                yield from self._read(pack, answer)
                self._window.leave(pack.size)
        finally:
            self._window.close()
            self._disconnect()

    def _draw(self, items: Iterator[Item]) -> None:
        """Pack what there is, for as long as there is room in flight."""
        for pack in self._packs(items):
            if pack.request is None:
                if pack.items and not self._window.enter(pack.size):
                    return
                self._inbox.put(pack)
            elif self._window.enter(pack.size):
                with self._changed:
                    self._outbox.append(pack)
                    self._changed.notify_all()
            else:
                return
        with self._changed:
            self._drawn = True
            self._changed.notify_all()

    def _packs(self, items: Iterator[Item]) -> Iterator[Pack]:
        fault = None
        try:
            for item in items:
                if (full := self._packer.add(item)) is not None:
                    yield full
        except Exception as error:  # noqa: BLE001 # the caller's own: raised to them, in its place
            fault = error
        yield from self._packer.rest(fault)

    def _connect(self) -> None:
        with self._changed:
            self._epoch += 1
            self._changed.notify_all()
            again = list(self._ledger.sent.values())
            self._call = self._open(self._messages(self._epoch, again))
        threading.Thread(target=self._receive, args=(self._call,), name="attend-many", daemon=True).start()

    def _disconnect(self) -> None:
        with self._changed:
            self._epoch += 1
            self._changed.notify_all()
        self._call.cancel()

    def _messages(self, epoch: int, again: list[Pack]) -> Iterator[pb.AttendStreamRequest]:
        for pack in again:
            yield pack.message
        while (next_pack := self._next_to_send(epoch)) is not None:
            yield next_pack.message

    def _next_to_send(self, epoch: int) -> Pack | None:
        """Wait for a pack; None when there is no more, or another stream has come after this one."""
        with self._changed:
            self._changed.wait_for(lambda: self._outbox or self._drawn or self._epoch != epoch)
            if not self._outbox or self._epoch != epoch:
                return None
            pack = self._outbox.popleft()
            self._ledger.sent[pack.id] = pack
            return pack

    def _receive(self, call: Any) -> None:
        try:
            for response in call:
                self._inbox.put(response)
        except grpc.RpcError as error:
            if call is self._call:
                self._inbox.put(error)

    def _next(self) -> "pb.AttendStreamResponse | grpc.RpcError | Pack":
        while True:
            try:
                return self._inbox.get(timeout=self._seconds)
            except queue.Empty:
                if self._ledger.sent:  # an answer is owed; else it is the source that takes its time
                    raise DeadlineExceeded(f"no answer came for {self._seconds:g} seconds") from None

    def _take(self, news: "pb.AttendStreamResponse | grpc.RpcError | Pack") -> None:
        if isinstance(news, Pack):
            self._ledger.take_unsent(news)
        elif isinstance(news, grpc.RpcError):
            time.sleep(self._ledger.pause(from_call(cast("grpc.Call", news)), self._seconds))
            self._connect()
        else:
            with self._changed:
                self._ledger.take_answer(news)

    def _read(self, pack: Pack, answer: pb.AttendStreamResponse | None) -> Iterator[Answer]:
        results = pack.results(answer)
        if results is not None:
            yield from results
            return
        for item in pack.items:
            try:
                yield self._ask(item)
            except AttentionError as error:
                yield error
