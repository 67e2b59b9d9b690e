"""The promises of `GrpcCall`, over both servers of gRPC; the callers are gRPC's client and a peer of raw frames."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from attention_server.budget.account import Account
from attention_server.errors import Cancelled, DeadlineExceeded, Stopping, TooLarge
from attention_server.grpc.call import GrpcCall, service_error
from attention_server.grpc.grpcio_call import GrpcioHandlers
from attention_server.http2.limits import Limits, Timeouts
from attention_server.http2.server import Server

from tests.http2.echo import inflate
from tests.http2.peer import Peer, data, fields, headers, message

HANG = 60
LIMITS = Limits(message_bytes=2**20, concurrent_calls=100, connections=50)
METHOD = "/test.Test/Test"
CANCELLED, UNAVAILABLE = 1, 14
PIECE = bytes(2**20)
PIECES = 64  # more than the client's window and socket take


@dataclass
class Scenario:
    """The course of one call on the server.

    Attributes:
        events: in order of time.
        reason: why the coroutine was cancelled, as the service's error.
        ended: set when the coroutine has ended.
    """

    events: list[str] = field(default_factory=list)
    reason: Exception | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    async def wait(self, call: GrpcCall, begin: Callable[[], None] = lambda: None) -> None:
        """Do something, and then wait for ever; tell the caller why the wait ended."""
        self.events.append("begun")
        try:
            begin()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.events.append("cancelled")
            await asyncio.sleep(0)  # a second cancellation would end the cleaning up
            self.reason = service_error(call.stop_reason())
            call.fail(UNAVAILABLE, str(self.reason))
            self.events.append("failed")
        finally:
            self.ended.set()

    def note_done(self, call: GrpcCall) -> None:
        """Note each time that the call says that it is done."""
        call.add_done_callback(lambda: self.events.append("done"))


def write_all(call: GrpcCall, scenario: Scenario) -> None:
    """Write more than the peer lets through."""
    for _ in range(PIECES - 1):
        call.write(PIECE)
    call.write(PIECE, lambda: scenario.events.append("sent"))


async def _listen_native(on_call: Callable[[GrpcCall], None], stack: contextlib.AsyncExitStack) -> int:
    server = Server(on_call, LIMITS, Timeouts(), inflate, Account().lease)
    listener = await asyncio.get_running_loop().create_server(server.connect, "127.0.0.1", 0)
    stack.push_async_callback(server.drain, 0, Stopping("the test is over"))
    stack.callback(server.begin_shutdown)
    stack.callback(listener.close)
    return listener.sockets[0].getsockname()[1]


async def _listen_grpcio(on_call: Callable[[GrpcCall], None], stack: contextlib.AsyncExitStack) -> int:
    server = grpc.aio.server(handlers=[GrpcioHandlers(on_call, Account().lease)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    return port


LISTEN: dict[str, Callable[..., Coroutine[Any, Any, int]]] = {"native": _listen_native, "grpcio": _listen_grpcio}


@contextmanager
def serving(kind: str, on_call: Callable[[GrpcCall], None]) -> Iterator[tuple[int, asyncio.AbstractEventLoop]]:
    """Serve in a thread until the block ends; give the port and the loop."""
    loop = asyncio.new_event_loop()
    stopping, started = asyncio.Event(), threading.Event()
    ports = []

    async def serve() -> None:
        async with contextlib.AsyncExitStack() as stack:
            ports.append(await LISTEN[kind](on_call, stack))
            started.set()
            await stopping.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(HANG)
        yield ports[0], loop
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()


@contextmanager
def client(port: int) -> Iterator[grpc.StreamStreamMultiCallable]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.stream_stream(METHOD)


@pytest.fixture(params=["native", "grpcio"])
def kind(request):
    return request.param


def test_a_stop_before_the_first_step(kind):
    """A coroutine that is stopped at once runs to its first wait, reads the reason there, and gives the status."""
    scenario = Scenario()

    def on_call(call):
        scenario.note_done(call)
        call.start(scenario.wait(call))
        call.stop(Stopping("stopped at once"))

    with serving(kind, on_call) as (port, _), client(port) as method:
        with pytest.raises(grpc.RpcError) as failed:
            list(method(iter([]), timeout=HANG))
        assert scenario.ended.wait(HANG)
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.UNAVAILABLE, "stopped at once")
    assert scenario.events == ["begun", "done", "cancelled", "failed"]


def test_a_second_stop(kind):
    """The first stop counts: its reason stays, callbacks are called once, and cleaning up is not cancelled."""
    scenario, calls = Scenario(), []

    def stop():
        calls[0].stop(Stopping("the first"))
        calls[0].stop(ValueError("the second"))

    def on_call(call):
        calls.append(call)
        scenario.note_done(call)
        call.start(scenario.wait(call, lambda: asyncio.get_running_loop().call_soon(stop)))

    with serving(kind, on_call) as (port, loop), client(port) as method:
        with pytest.raises(grpc.RpcError) as failed:
            list(method(iter([]), timeout=HANG))
        assert scenario.ended.wait(HANG)
        loop.call_soon_threadsafe(calls[0].stop, ValueError("the third"))
    assert failed.value.details() == "the first"
    assert scenario.events == ["begun", "done", "cancelled", "failed"]


def test_the_peer_goes_while_a_write_blocks(kind):
    """The coroutine is cancelled, the unsent message is never reported as sent, and a late status has no effect."""
    scenario = Scenario()

    def on_call(call):
        scenario.note_done(call)
        call.start(scenario.wait(call, lambda: write_all(call, scenario)))

    with serving(kind, on_call) as (port, _):
        with client(port) as method:
            call = method(iter([]))
            assert next(call) == PIECE
            call.cancel()
        assert scenario.ended.wait(HANG)
    assert type(scenario.reason) is Cancelled
    assert scenario.events == ["begun", "done", "cancelled", "failed"]


def test_a_deadline_during_a_write(kind):
    """The timeout ends a call with a caller that does not read; the reason is the deadline."""
    scenario = Scenario()

    def on_call(call):
        assert call.timeout is not None
        scenario.note_done(call)
        call.start(scenario.wait(call, lambda: write_all(call, scenario)))

    with serving(kind, on_call) as (port, _), Peer(("127.0.0.1", port)) as peer:
        peer.send(headers(1, fields(METHOD, grpc_timeout="100m")), data(1, b"", ("END_STREAM",)))
        assert scenario.ended.wait(HANG)
    assert type(scenario.reason) is DeadlineExceeded
    assert scenario.events == ["begun", "done", "cancelled", "failed"]


def test_the_order_of_metadata(kind):
    """Trailers arrive in the given order, repeated names too; of request headers the last counts."""
    trailers = [(b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3")]
    seen = {}

    async def answer(call):
        seen.update({name: value for name, value in call.headers.items() if name.startswith(b"x-")})
        assert await call.read() is None
        call.finish(trailers, b"the last message")

    def on_call(call):
        call.start(answer(call))

    with serving(kind, on_call) as (port, _), client(port) as method:
        call = method(iter([]), metadata=(("x-1", "a"), ("x-2", "b"), ("x-1", "c")))
        assert list(call) == [b"the last message"]
        received = [(name, value) for name, value in call.trailing_metadata() if name.startswith("x-")]
    assert seen == {b"x-1": b"c", b"x-2": b"b"}
    assert received == [("x-b", "1"), ("x-a", "2"), ("x-b", "3")]


def test_a_call_that_fails_without_a_coroutine(kind):
    """A call may be refused from its headers; its callbacks are called once, and its messages are not read."""
    scenario = Scenario()

    def on_call(call):
        scenario.note_done(call)
        call.fail(UNAVAILABLE, "refused", b"", [(b"x-a", b"1")])
        call.fail(CANCELLED, "too late")

    with serving(kind, on_call) as (port, _), client(port) as method, pytest.raises(grpc.RpcError) as failed:
        list(method(iter([message(b"unread")]), timeout=HANG))
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.UNAVAILABLE, "refused")
    assert ("x-a", "1") in failed.value.trailing_metadata()
    assert scenario.events == ["done"]


def test_a_message_over_the_limit_of_its_method(kind):
    """`limit_message` bounds the messages of one call, and an error of `read` is the service's for too large ones."""
    errors = []

    async def answer(call):
        assert len(await call.read()) == 10
        try:
            await call.read()
        except Exception as error:  # noqa: BLE001 # its type is the promise
            errors.append(service_error(error))
        call.finish([])

    def on_call(call):
        call.limit_message(10)
        call.start(answer(call))

    with serving(kind, on_call) as (port, _), client(port) as method:
        assert list(method(iter([bytes(10), bytes(11)]), timeout=HANG)) == []
    assert [type(error) for error in errors] == [TooLarge]
