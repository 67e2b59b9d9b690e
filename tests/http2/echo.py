"""A service on the package http2 alone, in a thread, which sends back each message."""

import asyncio
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvloop
from attention_server.budget.account import Account
from attention_server.errors import AttentionServiceError
from attention_server.http2.errors import CallError
from attention_server.http2.lease import CONNECTION_BYTES, COPIES
from attention_server.http2.limits import Limits, Timeouts
from attention_server.http2.server import Server
from serving import HANG

ECHO = "/echo.Echo/Echo"
LIMITS = Limits(message_bytes=2**20, concurrent_calls=100, connections=50)
INVALID_ARGUMENT, DEADLINE_EXCEEDED = 3, 4


@dataclass
class Echo:
    """A running server: where it listens, what its calls hold, and how they ended."""

    address: tuple[str, int]
    http2: Server
    loop: asyncio.AbstractEventLoop
    account: Account
    ends: list[str] = field(default_factory=list)

    @property
    def target(self) -> str:
        return "{}:{}".format(*self.address)

    @property
    def received(self) -> int:
        """Bytes that open calls have received, up to the message read last."""
        calls = [call for each in list(self.http2.connections) for call in list(each._streams.values())]
        return sum(call._held for call in calls)

    @property
    def is_free(self) -> bool:
        """Whether no call holds a byte."""
        return self.account.state().held == CONNECTION_BYTES * len(self.http2.connections)

    def run(self, function: Callable[[], object]) -> object:
        """Call a function on the server's loop."""

        async def call() -> object:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(HANG)


async def answer(call, ends: list[str]) -> None:
    """Send back each message as it comes; `sleep` waits for ever."""
    try:
        if call.headers_error:
            raise call.headers_error
        while (content := await call.read()) is not None:
            if bytes(content) == b"sleep":
                await asyncio.Event().wait()
            call.write(bytes(content))
        call.finish([(b"x-echo", b"done")])
        ends.append("finished")
    except asyncio.CancelledError:
        reason = call.stop_reason()
        ends.append(type(reason).__name__)
        call.fail(DEADLINE_EXCEEDED, str(reason))
    except (CallError, AttentionServiceError) as error:
        ends.append(type(error).__name__)
        call.fail(INVALID_ARGUMENT, str(error))


async def inflate(content: bytes, encoding: str, limit: int, lease) -> bytes:
    inflated = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(content, limit)
    lease.grow(COPIES * len(inflated))
    return inflated


@contextmanager
def running(
    limits: Limits = LIMITS, timeouts: Timeouts | None = None, account: Account | None = None
) -> Iterator[Echo]:
    """Run a server in a thread until the block ends."""
    loop = uvloop.new_event_loop()
    ends: list[str] = []
    started = threading.Event()
    stopping = asyncio.Event()
    found: list[Echo] = []
    account = account or Account()

    async def serve() -> None:
        server = Server(
            lambda call: call.start(answer(call, ends)), limits, timeouts or Timeouts(), inflate, account.lease
        )
        listener = await loop.create_server(server.connect, "127.0.0.1", 0)
        found.append(Echo(listener.sockets[0].getsockname()[:2], server, loop, account, ends))
        started.set()
        await stopping.wait()
        listener.close()
        server.begin_shutdown()
        await server.drain(0, CallError("the test is over"))

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(HANG)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()
