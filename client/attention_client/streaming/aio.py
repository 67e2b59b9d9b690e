"""`stream` for asyncio: tasks in place of threads, the same packs, the same order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_client.errors import AttentionError, DeadlineExceeded
from attention_client.inputs import Item
from attention_client.result import AttendResult
from attention_client.streaming.packs import IN_FLIGHT, IN_FLIGHT_BYTES, Answer, Build, Ledger, Pack, Packer
from attention_client.wire.status import from_call


class AsyncStream:
    """Sends packs and gives their answers, in order; see `Stream`.

    Args:
        open_: opens an AttendStream.
        build: makes the message of some sequences; raises InvalidRequest.
        ask: asks for one sequence by itself.
        seconds: how long to wait for the next answer.
    """

    def __init__(
        self,
        open_: Callable[[], Any],
        build: Build,
        ask: Callable[[Item], Awaitable[AttendResult]],
        seconds: float,
    ) -> None:
        self._open = open_
        self._packer = Packer(build)
        self._ask = ask
        self._seconds = seconds
        self._room = asyncio.Condition()
        self._in_flight = self._bytes_in_flight = 0
        self._outbox: asyncio.Queue[Pack | None] = asyncio.Queue()  # None: no more will come
        self._inbox: asyncio.Queue[pb.AttendStreamResponse | AttentionError | Pack] = asyncio.Queue()
        self._ledger = Ledger()
        self._call: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    async def answers(self, items: Iterable[Item] | AsyncIterable[Item]) -> AsyncGenerator[Answer, None]:
        """Yield a result for each sequence, in order, or the error in its place."""
        drawing = asyncio.create_task(self._draw(items))
        self._connect()
        try:
            while not self._ledger.complete:
                found = self._ledger.next()
                if found is None:
                    await self._take(await self._next())
                    continue
                pack, answer = found
                if pack.fault is not None:
                    raise pack.fault
                async for each in self._read(pack, answer):
                    yield each
                await self._leave(pack)
        finally:
            drawing.cancel()
            self._disconnect()
            await asyncio.gather(drawing, *self._tasks, return_exceptions=True)

    async def _draw(self, items: Iterable[Item] | AsyncIterable[Item]) -> None:
        """Pack what there is, for as long as there is room in flight."""
        fault = None
        try:
            async for item in _each(items):
                if (full := self._packer.add(item)) is not None:
                    await self._post(full)
        except Exception as error:  # noqa: BLE001 # the caller's own: raised to them, in its place
            fault = error
        for pack in self._packer.rest(fault):
            await self._post(pack)
        self._outbox.put_nowait(None)

    async def _post(self, pack: Pack) -> None:
        if pack.items:
            await self._enter(pack)
        if pack.request is None:
            self._inbox.put_nowait(pack)
        else:
            self._outbox.put_nowait(pack)

    async def _enter(self, pack: Pack) -> None:
        def fits() -> bool:
            room = self._in_flight < IN_FLIGHT and self._bytes_in_flight + pack.size <= IN_FLIGHT_BYTES
            return room or not self._in_flight

        async with self._room:
            await self._room.wait_for(fits)
            self._in_flight += 1
            self._bytes_in_flight += pack.size

    async def _leave(self, pack: Pack) -> None:
        async with self._room:
            self._in_flight -= 1
            self._bytes_in_flight -= pack.size
            self._room.notify_all()

    def _connect(self) -> None:
        self._call = self._open()
        again = list(self._ledger.sent.values())
        self._tasks = [
            asyncio.create_task(self._send(self._call, again)),
            asyncio.create_task(self._receive(self._call)),
        ]

    def _disconnect(self) -> None:
        self._call.cancel()
        for task in self._tasks:
            task.cancel()

    async def _send(self, call: Any, again: list[Pack]) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # who receives is told why
            for pack in again:
                await call.write(pack.message)
            while (next_pack := await self._outbox.get()) is not None:
                self._ledger.sent[next_pack.id] = next_pack
                await call.write(next_pack.message)
            self._outbox.put_nowait(None)  # for the stream after this one, if there is another
            await call.done_writing()

    async def _receive(self, call: Any) -> None:
        try:
            async for response in call:
                self._inbox.put_nowait(response)
        except grpc.aio.AioRpcError as error:
            self._inbox.put_nowait(from_call(error))  # type: ignore[arg-type] # it has what a call has

    async def _next(self) -> "pb.AttendStreamResponse | AttentionError | Pack":
        while True:
            try:
                return await asyncio.wait_for(self._inbox.get(), self._seconds)
            except TimeoutError:
                if self._ledger.sent:  # an answer is owed; else it is the source that takes its time
                    raise DeadlineExceeded(f"no answer came for {self._seconds:g} seconds") from None

    async def _take(self, news: "pb.AttendStreamResponse | AttentionError | Pack") -> None:
        if isinstance(news, Pack):
            self._ledger.take_unsent(news)
        elif isinstance(news, AttentionError):
            self._disconnect()
            await asyncio.sleep(self._ledger.pause(news, self._seconds))
            self._connect()
        else:
            self._ledger.take_answer(news)

    async def _read(self, pack: Pack, answer: pb.AttendStreamResponse | None) -> AsyncIterator[Answer]:
        results = pack.results(answer)
        for result in results or ():
            yield result
        for item in pack.items if results is None else ():
            try:
                yield await self._ask(item)
            except AttentionError as error:
                yield error


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
