"""Reflection answers a caller that reads, and waits for one that does not."""

import asyncio

from attention_server.domain.call import CallContext
from attention_server.grpc.standard import Reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest


class UnreadStream:
    """A stream of endless requests from a peer that reads no answer."""

    def __init__(self) -> None:
        self.call = self
        self.written = 0

    async def next(self):
        return ServerReflectionRequest(list_services="*"), 4

    def write(self, *_) -> None:
        self.written += 1
        self.waiting.set()


def test_a_caller_that_does_not_read():
    """One answer is written, and the next request is not answered before the first is on its way."""

    async def main() -> int:
        stream = UnreadStream()
        stream.waiting = asyncio.Event()
        answering = asyncio.create_task(Reflection([]).ServerReflectionInfo(stream, CallContext("test")))
        await stream.waiting.wait()
        for _ in range(100):  # turns of the loop, in which an unbounded server would answer on
            await asyncio.sleep(0)
        answering.cancel()
        return stream.written

    assert asyncio.run(main()) == 1
