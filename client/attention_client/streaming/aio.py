"""A stream of batches by asyncio: `blocking` with tasks in place of threads, and the same `StreamState`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import nullcontext, suppress
from typing import Any

import grpc
import grpc.aio

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
from attention_client.wire.call import Call, send_async
from attention_client.wire.status import from_call


class AsyncStream:
    """Sends batches on an AttendStream and yields the answer to each sequence; see `BlockingStream`.

    Args:
        open_: opens an AttendStream.
        plan: of the stream.
    """

    def __init__(self, open_: Callable[[], Any], plan: StreamPlan) -> None:
        self._open = open_
        self._batcher = Batcher(plan.build)
        self._room = asyncio.Condition()  # of the window
        self._window = Window(IN_FLIGHT, IN_FLIGHT_BYTES)
        self._outbox: asyncio.Queue[Batch | None] = asyncio.Queue()  # None: the source has ended
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._state = StreamState(plan, nullcontext())  # one thread has all of it
        self._call: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    async def answers(self, items: Iterable[Item] | AsyncIterable[Item]) -> AsyncGenerator[Answer, None]:
        """Yield the answer to each sequence, in order."""
        self._connect()
        drawing = asyncio.create_task(self._draw(items))
        flow = self._state.flow()
        try:
            step = next(flow)
            while True:
                if isinstance(step, Deliver):
                    for answer in step.answers:
                        yield answer
                    step = next(flow)
                else:
                    step = flow.send(await self._perform(step))
        except StopIteration:
            return
        finally:
            drawing.cancel()
            self._disconnect()
            await asyncio.gather(drawing, *self._tasks, return_exceptions=True)

    async def _perform(self, step: Wait) -> Any:
        match step:
            case Receive(seconds):
                return await self._receive(seconds)
            case Release(size):
                async with self._room:
                    self._window.leave(size)
                    self._room.notify_all()
            case Reconnect(delay):
                self._disconnect()
                await asyncio.sleep(delay)
                self._connect()
            case Call():
                return await send_async(step)
        return None

    async def _draw(self, items: Iterable[Item] | AsyncIterable[Item]) -> None:
        """Collect sequences into batches and queue each, while there is room in flight."""
        fault: BaseException | None = None
        try:
            async for item in _each(items):
                if (full := self._batcher.add(item)) is not None:
                    await self._queue(full)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            fault = error  # of a task or future that the source awaits
        except Exception as error:  # noqa: BLE001 # the source's own: raised to the caller, in its turn
            fault = error
        for batch in self._batcher.rest(fault):
            await self._queue(batch)
        self._outbox.put_nowait(None)

    async def _queue(self, batch: Batch) -> None:
        if batch.items:
            async with self._room:
                await self._room.wait_for(lambda: self._window.has_room(batch.size))
                self._window.enter(batch.size)
        if batch.request is None:
            self._inbox.put_nowait(batch)
        else:
            self._outbox.put_nowait(batch)

    def _connect(self) -> None:
        self._call = self._open()
        again = self._state.unanswered()
        self._tasks = [asyncio.create_task(self._write(self._call, again)), asyncio.create_task(self._read(self._call))]

    def _disconnect(self) -> None:
        self._call.cancel()
        for task in self._tasks:
            task.cancel()

    async def _write(self, call: Any, again: list[Batch]) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # `_read` raises the stream's error
            for batch in again:
                await call.write(batch.message)
            while (following := await self._outbox.get()) is not None:
                self._state.sent(following)
                await call.write(following.message)
            self._outbox.put_nowait(None)  # for the next stream, if this one breaks
            await call.done_writing()

    async def _read(self, call: Any) -> None:
        try:
            async for response in call:
                self._inbox.put_nowait(response)
        except grpc.aio.AioRpcError as error:
            self._inbox.put_nowait(from_call(error))  # type: ignore[arg-type] # it has the methods of a call

    async def _receive(self, seconds: float) -> Event | None:
        try:
            return await asyncio.wait_for(self._inbox.get(), seconds)
        except TimeoutError:
            return None


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
