"""Many sequences through one AttendStream: packed, several messages in flight, answered in order.

Three threads: one draws sequences and packs them, gRPC's own writes messages, one reads answers; the caller's takes the
results. A stream that breaks is opened anew, and what was not answered is sent again.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.window import Window
from numpy.typing import ArrayLike

from attention_client.errors import AttentionError, DeadlineExceeded, Unavailable, from_call
from attention_client.request import Sequence
from attention_client.result import AttendResult, read

PACK_SEQUENCES = 16
PACK_BYTES = 1024 * 1024
IN_FLIGHT = 32  # messages
IN_FLIGHT_BYTES = 32 * 1024 * 1024
# A server that stops cancels what reaches it in that moment.
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
ATTEMPTS = 5  # without an answer between them
FIRST_BACKOFF = 0.1  # seconds; doubles

Item = Sequence | str | ArrayLike
Open = Callable[[Iterator[pb.AttendStreamRequest]], Any]
Answer = AttendResult | AttentionError


@dataclass
class Pack:
    """Some sequences that travel in one message.

    Attributes:
        id: its place among all.
        items: the sequences.
        request: their message; None when they have no form on the wire.
        fault: what their source raised in place of the next.
    """

    id: int
    items: list[Item] = field(default_factory=list)
    request: pb.AttendRequest | None = None
    fault: BaseException | None = None
    size: int = 0


class Stream:
    """Sends packs and gives their answers, in order.

    Args:
        open_: opens an AttendStream.
        build: makes the message of some sequences; raises InvalidRequest.
        ask: asks for one sequence by itself.
        seconds: how long to wait for the next answer.
    """

    def __init__(
        self,
        open_: Open,
        build: Callable[[list[Item]], pb.AttendRequest],
        ask: Callable[[Item], AttendResult],
        seconds: float,
    ) -> None:
        self._open = open_
        self._build = build
        self._ask = ask
        self._seconds = seconds
        self._window = Window(IN_FLIGHT, IN_FLIGHT_BYTES)
        self._changed = threading.Condition()  # of what is to be sent, and by which stream
        self._outbox: deque[Pack] = deque()
        self._drawn = False
        self._inbox: queue.SimpleQueue[pb.AttendStreamResponse | grpc.RpcError | Pack] = queue.SimpleQueue()
        self._sent: dict[int, Pack] = {}
        self._answered: dict[int, tuple[Pack, pb.AttendStreamResponse | None]] = {}
        self._count: int | None = None
        self._epoch = 0
        self._failures = 0
        self._call: Any = None

    def answers(self, items: Iterable[Item]) -> Iterator[Answer]:
        """Yield a result for each sequence, in order, or the error in its place."""
        threading.Thread(target=self._draw, args=(iter(items),), name="attend-many", daemon=True).start()
        self._connect()
        position = 0
        try:
            while self._count is None or position < self._count:
                pack, answer = self._answer_to(position)
                if pack.fault is not None:
                    raise pack.fault
                yield from self._read(pack, answer)
                self._window.leave(pack.size)
                position += 1
        finally:
            self._window.close()
            self._disconnect()

    def _draw(self, items: Iterator[Item]) -> None:
        """Pack what there is, for as long as there is room in flight."""
        number = 0
        for pack in _packs(items, self._build):
            pack.id = number
            number += 1
            if not self._window.enter(pack.size):
                return
            if pack.request is None:
                self._inbox.put(pack)  # answered without a message
            else:
                with self._changed:
                    self._outbox.append(pack)
                    self._changed.notify_all()
        self._inbox.put(Pack(number))  # empty: so many there are
        with self._changed:
            self._drawn = True
            self._changed.notify_all()

    def _connect(self) -> None:
        with self._changed:
            self._epoch += 1
            self._changed.notify_all()
            again = list(self._sent.values())
            self._call = self._open(self._messages(self._epoch, again))
        threading.Thread(target=self._receive, args=(self._call,), name="attend-many", daemon=True).start()

    def _disconnect(self) -> None:
        with self._changed:
            self._epoch += 1
            self._changed.notify_all()
        self._call.cancel()

    def _messages(self, epoch: int, again: list[Pack]) -> Iterator[pb.AttendStreamRequest]:
        for pack in again:
            yield _message(pack)
        while (next_pack := self._next_to_send(epoch)) is not None:
            yield _message(next_pack)

    def _next_to_send(self, epoch: int) -> Pack | None:
        """Wait for a pack; None when there is no more, or another stream has come after this one."""
        with self._changed:
            self._changed.wait_for(lambda: self._outbox or self._drawn or self._epoch != epoch)
            if not self._outbox or self._epoch != epoch:
                return None
            pack = self._outbox.popleft()
            self._sent[pack.id] = pack
            return pack

    def _receive(self, call: Any) -> None:
        try:
            for response in call:
                self._inbox.put(response)
        except grpc.RpcError as error:
            if call is self._call:
                self._inbox.put(error)

    def _answer_to(self, position: int) -> tuple[Pack, pb.AttendStreamResponse | None]:
        """Wait for the answer to one pack."""
        while position not in self._answered:
            if self._count == position:
                return Pack(position), None
            self._take(self._next())
        return self._answered.pop(position)

    def _next(self) -> "pb.AttendStreamResponse | grpc.RpcError | Pack":
        while True:
            try:
                return self._inbox.get(timeout=self._seconds)
            except queue.Empty:
                if self._sent:  # an answer is owed; else it is the source that takes its time
                    raise DeadlineExceeded(f"no answer came for {self._seconds:g} seconds") from None

    def _take(self, news: "pb.AttendStreamResponse | grpc.RpcError | Pack") -> None:
        if isinstance(news, Pack):
            self._count = None if news.items or news.fault else news.id
            if self._count is None:
                self._answered[news.id] = (news, None)
        elif isinstance(news, grpc.RpcError):
            self._reconnect(cast("grpc.Call", news))
        else:
            self._failures = 0
            with self._changed:
                pack = self._sent.pop(int(news.id), None)
            if pack is not None:  # else it was answered twice, before and after a break
                self._answered[pack.id] = (pack, news)

    def _reconnect(self, broken: grpc.Call) -> None:
        error = from_call(broken)
        self._failures += 1
        if broken.code() not in AGAIN or self._failures == ATTEMPTS:
            raise error
        asked = error.retry_after if isinstance(error, Unavailable) else None
        pause = asked or FIRST_BACKOFF * 2 ** (self._failures - 1)
        time.sleep(min(pause, self._seconds))  # nobody waits longer than for an answer
        self._connect()

    def _read(self, pack: Pack, answer: pb.AttendStreamResponse | None) -> Iterator[Answer]:
        if pack.request is not None and answer is not None and answer.HasField("response"):
            yield from read(pack.request, answer.response)
            return
        for item in pack.items:  # one of them is at fault, or its memory is gone: each by itself tells which
            try:
                yield self._ask(item)
            except AttentionError as error:
                yield error


def _packs(items: Iterator[Item], build: Callable[[list[Item]], pb.AttendRequest]) -> Iterator[Pack]:
    pack = Pack(0)
    try:
        for item in items:
            pack.items.append(item)
            pack.size += _size(item)
            if len(pack.items) == PACK_SEQUENCES or pack.size >= PACK_BYTES:
                yield _built(pack, build)
                pack = Pack(0)
    except Exception as error:  # noqa: BLE001 # the caller's own: raised to them, in its place
        if pack.items:
            yield _built(pack, build)
        yield Pack(0, fault=error)
        return
    if pack.items:
        yield _built(pack, build)


def _built(pack: Pack, build: Callable[[list[Item]], pb.AttendRequest]) -> Pack:
    try:
        pack.request = build(pack.items)
    except AttentionError:
        return pack  # each is asked for by itself, and the one at fault says so
    pack.size = pack.request.ByteSize()
    return pack


def _size(item: Item) -> int:
    """Return about how many bytes a sequence has on the wire."""
    if isinstance(item, Sequence):
        arrays = (item.query, item.key, item.value, item.allowed, item.bias)
        return sum(_size(each) for each in arrays if each is not None)
    return getattr(item, "nbytes", 0)


def _message(pack: Pack) -> pb.AttendStreamRequest:
    return pb.AttendStreamRequest(id=str(pack.id), request=pack.request)
