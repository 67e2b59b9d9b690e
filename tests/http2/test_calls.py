"""Calls of gRPC on the package http2 alone, by gRPC's own client."""

import asyncio
import gzip
import threading
from types import SimpleNamespace

import grpc
import pytest
from attention_server.budget.account import Account
from attention_server.http2 import library
from attention_server.http2.call import Call
from attention_server.http2.errors import LibraryError
from attention_server.http2.headers import Headers
from attention_server.http2.messages import QUEUED
from attention_server.http2.session import Session
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, PingFrame
from serving import HANG, wait_until

from tests.http2.echo import ECHO, LIMITS, running
from tests.http2.peer import connected, data, fields, headers, message

MIB = 2**20


@pytest.fixture
def channel(echo):
    with grpc.insecure_channel(echo.target) as found:
        yield found


@pytest.mark.parametrize("size", [0, 1, 5000, MIB])
def test_a_unary_call(channel, size):
    """A message comes back as it was sent, with the trailers."""
    content = bytes(range(256)) * (size // 256) + b"a" * (size % 256)
    answer, call = channel.unary_unary(ECHO).with_call(content, timeout=HANG)
    assert answer == content
    assert ("x-echo", "done") in call.trailing_metadata()


def test_a_stream(channel):
    """Messages of a stream come back in order, while the stream is open."""
    given = [bytes([i]) * (i * 997) for i in range(100)]
    assert list(channel.stream_stream(ECHO)(iter(given), timeout=HANG)) == given


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages(channel, compression):
    """Messages that the client compresses come back."""
    given = [b"a" * 100_000, b"b"]
    assert list(channel.stream_stream(ECHO)(iter(given), compression=compression, timeout=HANG)) == given


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (message(b"a", flag=2), "no message of gRPC"),
        (message(bytes(2))[:-1], "end within a message"),
        (b"\0\xff\xff\xff\xff", "may be sent"),
        (message(gzip.compress(b"a"), flag=1), "does not say how"),
    ],
    ids=["flag", "cut off", "length", "no encoding"],
)
def test_bytes_that_are_no_message(echo, sent, says):
    """Bytes that are not gRPC messages end the call, with the reason."""
    with connected(echo) as peer:
        peer.send(headers(1), data(1, sent, ("END_STREAM",)))
        assert says in peer.until(HeadersFrame, 1).fields["grpc-message"]
        peer.call(3)
        assert peer.until(DataFrame, 3)


def test_frames_of_a_byte(echo):
    """A message in frames of one byte each is counted as received, and read as one message."""
    content = message(bytes(4000))
    with connected(echo) as peer:
        peer.send(headers(1), *(data(1, content[i : i + 1]) for i in range(len(content) - 1)))
        wait_until(lambda: echo.received == len(content) - 1)
        peer.send(data(1, content[-1:], ("END_STREAM",)))
        assert peer.until(DataFrame, 1)


def test_an_unknown_encoding(echo):
    """Another encoding than those that are offered is refused by its name."""
    with connected(echo) as peer:
        peer.send(headers(1, fields(grpc_encoding="br")), data(1, message(b"a", flag=1), ("END_STREAM",)))
        answer = peer.until(HeadersFrame, 1).fields
        assert answer["grpc-accept-encoding"] == "identity, deflate, gzip"
        assert answer["grpc-message"].startswith("grpc-encoding")


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("content-type", "text/plain", "415"),
        ("content-type", "application/grpcx", "415"),
        ("content-type", "application/grpc+json", "415"),
        ("content-type", "application/grpc-web+proto", "415"),
        ("content-type", "application/grpc+proto; a=b", "200"),
        (":method", "GET", "405"),
    ],
)
def test_a_request_that_is_not_grpc(echo, name, value, status):
    """A request of HTTP/2 that is not gRPC has an answer of HTTP; a parameter of the content type is ignored."""
    with connected(echo) as peer:
        sent = [(key, value if key == name else given) for key, given in fields()]
        peer.send(headers(1, sent, ("END_HEADERS", "END_STREAM")))
        assert peer.until(HeadersFrame, 1).fields[":status"] == status


def test_a_deadline(echo, channel):
    """A call ends at its timeout, with the status."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(ECHO)(b"sleep", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: not echo.http2.calls)


def test_cancellation(channel):
    """A call that its caller cancels is cancelled on the server, and nothing of it is kept."""
    with running() as echo, grpc.insecure_channel(echo.target) as own:
        call = own.unary_unary(ECHO).future(b"sleep")
        wait_until(lambda: bool(echo.http2.calls))
        call.cancel()
        wait_until(lambda: not echo.http2.calls)
        assert echo.ends == ["Cancelled"]
        wait_until(lambda: echo.is_free)


def test_the_peer_goes_away(echo):
    """Calls that are open when the peer sends GOAWAY are answered."""
    with connected(echo) as peer:
        peer.send(headers(1), GoAwayFrame(0, last_stream_id=0).serialize())
        peer.send(data(1, message(b"hello"), ("END_STREAM",)))
        assert peer.until(DataFrame, 1).data == message(b"hello")
        list(peer.frames())  # and then the connection is closed


def test_a_shutdown():
    """At a shutdown a peer is told so twice: calls in transit are answered in between."""
    with running() as echo, connected(echo) as peer:
        peer.send(headers(1))
        peer.fence()
        echo.run(echo.http2.begin_shutdown)
        assert peer.until(GoAwayFrame).last_stream_id == 2**31 - 1
        ping = peer.until(PingFrame)
        peer.call(3)  # it was on its way
        assert peer.until(DataFrame, 3)
        peer.send(PingFrame(0, ping.opaque_data, flags=("ACK",)).serialize())
        assert peer.until(GoAwayFrame).last_stream_id == 3
        peer.send(data(1, message(b"hello"), ("END_STREAM",)))
        assert peer.until(DataFrame, 1)
        list(peer.frames())  # to the end: all is answered


def test_an_answer_that_is_sent_later(echo):
    """Of an answer no more is sent than the peer has room for; the rest follows when there is more."""
    with connected(echo) as peer:
        content = message(bytes(100_000))
        peer.send(headers(1), *(data(1, content[i : i + 16_384]) for i in range(0, len(content), 16_384)))
        received = 0
        frames = peer.frames()
        while received < 65_535:
            frame = next(frames)
            received += len(frame.data) if isinstance(frame, DataFrame) else 0
        assert received == 65_535
        assert not [frame for frame in peer.fence() if isinstance(frame, DataFrame)]


def test_many_messages_that_come_at_once():
    """A reader of very many small messages lets the loop run in between."""
    connection = SimpleNamespace(session=SimpleNamespace(consume=lambda *_: None))
    taken = []

    async def read_all(call: Call) -> None:
        while (content := await call.read()) is not None:
            taken.append(content)

    async def turns() -> int:
        account, inflating = Account(), asyncio.Semaphore()
        given = {"lease": account.lease(""), "inflating": inflating, "inflate": lambda *_: None}
        call = Call(connection, 1, {}, fit=True, message_bytes=MIB, **given)
        call.on_data(memoryview(message(b"a") * 10 * QUEUED))
        call.on_end()
        reading = asyncio.create_task(read_all(call))
        count = 0
        while not reading.done():
            await asyncio.sleep(0)
            count += 1
        return count

    assert asyncio.run(turns()) >= 10
    assert len(taken) == 10 * QUEUED


def test_many_callers(channel):
    """Each of many calls over one connection gets its own answer."""
    echoes = channel.unary_unary(ECHO)
    found = {}

    def ask(n: int) -> None:
        found[n] = [echoes(b"%d" % (n * 1000 + i), timeout=HANG) for i in range(50)]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [b"%d" % (n * 1000 + i) for i in range(50)] for n in range(4)}


# --- the library ---


@pytest.fixture
def reloading():
    library.load_library.cache_clear()
    yield
    library.load_library.cache_clear()


def test_a_system_without_the_library(reloading, monkeypatch):
    """Where libnghttp2 is missing, the error names the package to install."""
    monkeypatch.setattr(library, "FILE", "libnghttp2-that-is-missing.so")
    with pytest.raises(LibraryError, match="apt-get install libnghttp2-14"):
        library.check_library()


def test_an_old_library(reloading, monkeypatch):
    """Where libnghttp2 is too old, the error says which version is needed."""
    monkeypatch.setattr(library, "VERSION", (99, 0, 0))
    with pytest.raises(LibraryError, match=r"99\.0\.0 or later.*version 1\."):
        library.check_library()


def test_data_for_a_stream_that_is_over():
    """Data and trailers of a response that is over are dropped: nothing is sent, and no callback is called."""
    session = Session(SimpleNamespace(), LIMITS.concurrent_calls)
    session.data_to_send(2**16)  # the settings
    sent = []
    session.send_data(1, b"late", lambda: sent.append("late"))
    session.send_trailers(1, Headers([(b"grpc-status", b"0")]))
    assert session.data_to_send(2**16) == []
    assert not sent
    session.close()
