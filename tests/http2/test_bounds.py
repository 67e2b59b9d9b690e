"""The bounds of a peer: headers and trailers, resets, unread responses, connections."""

import asyncio
import gzip
import itertools
import socket
import struct
from contextlib import ExitStack

import pytest
from attention_server.budget.account import Account
from attention_server.http2 import callbacks, share
from attention_server.http2.connection import INFLATING
from attention_server.http2.limits import (
    CONNECTION_WINDOW,
    HEADER_BYTES,
    HEADER_COUNT,
    RESET_BURST,
    RESETS_PER_SECOND,
    STREAM_WINDOW,
    Limits,
    Timeouts,
)
from attention_server.http2.share import RateLimit
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from serving import HANG, wait_until

from tests.http2.echo import LIMITS, running
from tests.http2.peer import OPENING, block, connected, data, fields, headers, message, raw, reset

CANCEL, ENHANCE_YOUR_CALM = 8, 11
END = ("END_HEADERS", "END_STREAM")
LARGE = [("x-a", "a" * 100)] * (HEADER_BYTES // 100)
MANY = [(f"x{i}", "") for i in range(HEADER_COUNT + 1)]
BOMB = b"\x40\x03x-a\x7e" + b"a" * 126 + b"\xbe" * 16_000  # a header for HPACK's table, and 16,000 times the same


def window(stream: int) -> bytes:
    """Return a frame of the largest increment, two of which overflow a window."""
    return WindowUpdateFrame(stream, 2**31 - 1).serialize()


def is_answered(peer, stream: int) -> bool:
    peer.call(stream)
    return peer.until(DataFrame, stream).data == message(b"hello")


# --- headers and trailers ---


@pytest.mark.parametrize("more", [LARGE, MANY], ids=["bytes", "number"])
def test_headers_over_the_limit(echo, more):
    """A call with headers over the limit fails with that reason, and the connection goes on."""
    with connected(echo) as peer:
        peer.send(headers(1, [*fields(), *more], END))
        assert "metadata" in peer.until(HeadersFrame, 1).fields["grpc-message"]
        assert is_answered(peer, 3)


@pytest.mark.parametrize("more", [LARGE, MANY], ids=["bytes", "number"])
def test_trailers_over_the_limit(echo, more):
    """Trailers over the limit end the stream; trailers within it do not."""
    with connected(echo) as peer:
        peer.send(headers(1), data(1, message(b"hello")), headers(1, more, END))
        assert peer.until(RstStreamFrame, 1).error_code == ENHANCE_YOUR_CALM
        peer.send(headers(3), data(3, message(b"hello")), headers(3, more[: HEADER_COUNT // 2], END))
        assert peer.until(DataFrame, 3).data == message(b"hello")
        assert "END_STREAM" in peer.until(HeadersFrame, 3).flags
        assert is_answered(peer, 5)


@pytest.mark.parametrize("opening", [b"", headers(1)], ids=["headers", "trailers"])
def test_headers_that_a_byte_stands_for(echo, opening):
    """A peer whose bytes each stand for a long header is disconnected at a multiple of the limit."""
    with connected(echo) as peer:
        content = BOMB if opening else block(fields()) + BOMB
        peer.send(opening, HeadersFrame(1, content[:16_000], flags=END).serialize())
        assert not [frame for frame in peer.frames() if isinstance(frame, HeadersFrame)]


def test_trailers_without_end(echo):
    """Trailers that go on in frame after frame end the connection."""
    with connected(echo) as peer:
        more = ContinuationFrame(1, block([("x-a", "a" * 16_000)])).serialize()
        peer.send(headers(1), HeadersFrame(1, b"", flags=("END_STREAM",)).serialize(), *[more] * 1000)
        assert list(peer.frames()) is not None  # it ends


# --- resets ---


@pytest.fixture
def at_once(monkeypatch):
    """No reset comes back while a test sends its own, however long that takes."""
    monkeypatch.setattr(callbacks, "RESETS_PER_SECOND", 0)


@pytest.mark.usefixtures("at_once")
def test_calls_that_are_reset_at_once(echo):
    """So many calls may be reset at once; with one more the peer is sent away, and its open calls are answered."""
    with connected(echo) as peer:
        peer.send(headers(1))
        for stream in range(3, 3 + 2 * RESET_BURST, 2):
            peer.send(headers(stream), reset(stream))
        assert not [frame for frame in peer.fence() if isinstance(frame, GoAwayFrame)]
        last = 3 + 2 * RESET_BURST
        peer.send(headers(last), reset(last))
        assert peer.until(GoAwayFrame).error_code == ENHANCE_YOUR_CALM
        peer.send(data(1, message(b"hello"), ("END_STREAM",)))
        assert peer.until(DataFrame, 1).data == message(b"hello")
        list(peer.frames())  # to the end: nothing is open any more
    with connected(echo) as peer:
        assert is_answered(peer, 1)


def test_calls_that_are_reset_before_their_first_step():
    """Calls that arrive together with their resets are never run, and leave nothing behind."""
    with running() as echo:
        with connected(echo) as peer:
            peer.send(*[headers(stream) + reset(stream) for stream in range(1, 201, 2)])
            assert is_answered(peer, 201)
        wait_until(lambda: not (echo.http2.calls or echo.http2.connections))
        assert echo.account.state().held == 0
        assert echo.ends.count("finished") == 1
        assert len(echo.ends) < 20  # one that a read divides from its reset is run


@pytest.mark.usefixtures("at_once")
def test_resets_that_go_on(echo):
    """A peer that goes on after GOAWAY is disconnected, with or without open calls."""
    with connected(echo) as peer:
        peer.send(headers(1))
        pairs = [headers(stream) + reset(stream) for stream in range(3, 3 + 2 * RESET_BURST + 2, 2)]
        peer.send(*pairs)
        assert peer.until(GoAwayFrame).error_code == ENHANCE_YOUR_CALM
        peer.send(*[reset(1)] * (2 * RESET_BURST))
        list(peer.frames())


@pytest.mark.usefixtures("at_once")
def test_streams_that_the_peer_has_reset(echo):
    """Streams that the server resets because of a peer's error count likewise."""
    with connected(echo) as peer:
        found = []
        peer.send(headers(1))  # is open, and so the connection
        for stream in itertools.count(3, 2):
            peer.send(headers(stream), window(stream) * 2)
            if stream % 100 == 99:
                found += [frame for frame in peer.fence() if isinstance(frame, RstStreamFrame | GoAwayFrame)]
            if found and isinstance(found[-1], GoAwayFrame):
                break
        assert found.pop().error_code == ENHANCE_YOUR_CALM
        assert len(found) >= RESET_BURST


def test_resets_come_back(monkeypatch):
    """Beyond a burst so many are allowed each second, and after a pause no more than a burst."""
    now = 0.0
    monkeypatch.setattr(share.time, "monotonic", lambda: now)
    limit = RateLimit(RESET_BURST, RESETS_PER_SECOND)
    assert all(limit.allows() for _ in range(RESET_BURST))
    now = 1.0
    assert [limit.allows() for _ in range(RESETS_PER_SECOND + 1)] == [True] * RESETS_PER_SECOND + [False]
    now = 10_000.0
    assert [limit.allows() for _ in range(RESET_BURST + 1)] == [True] * RESET_BURST + [False]


# --- unread responses and messages ---


@pytest.mark.parametrize(
    "flood", [PingFrame(0, b"12345678").serialize(), SettingsFrame(0).serialize()], ids=["PING", "SETTINGS"]
)
def test_answers_that_are_not_read(flood):
    """A peer that has frames acknowledged and does not read is disconnected."""
    with running() as echo, connected(echo) as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wait_until(lambda: bool(echo.http2.connections))
        wait_until(lambda: peer.send(flood * 10_000) or not echo.http2.connections)


def test_windows():
    """A connection has room for several streams that are not read."""
    assert CONNECTION_WINDOW >= 8 * STREAM_WINDOW


def test_more_than_may_be_buffered():
    """When all calls together exceed the account, the call that exceeds it fails, and its bytes are freed."""
    with running(account=Account(400_000)) as echo, connected(echo) as peer:
        begun = struct.pack(">BI", 0, 2**20) + bytes(15_000)
        for stream in range(1, 15, 2):
            peer.send(headers(stream), data(stream, begun))
        assert "full" in peer.until(HeadersFrame, 13).fields["grpc-message"]
        peer.send(*map(reset, range(1, 13, 2)))
        wait_until(lambda: echo.is_free)
        assert is_answered(peer, 15)


def test_messages_that_are_not_read():
    """Messages without content that are not read are held as received bytes, and freed with the call."""
    with running() as echo:
        with connected(echo) as peer:
            peer.send(headers(1), data(1, message(b"sleep") + message(b"") * 3000))
            wait_until(lambda: echo.received == len(message(b"sleep")) + 5 * 3000)
        wait_until(lambda: echo.is_free)


def test_compressed_messages_that_wait():
    """Compressed messages are held as received bytes until they may be inflated, and freed then or with the call."""
    content = gzip.compress(b"hello")
    framed = struct.pack(">BI", 1, len(content)) + content
    compressed = [*fields(), ("grpc-encoding", "gzip")]
    with running() as echo, connected(echo) as peer:
        inflating = echo.http2.inflating
        for _ in range(INFLATING):  # all turns are taken
            asyncio.run_coroutine_threadsafe(inflating.acquire(), echo.loop).result(HANG)
        for stream in (1, 3, 5):
            peer.send(headers(stream, compressed), data(stream, framed))
        peer.fence()
        wait_until(lambda: len(inflating._waiters or ()) == 3)
        assert echo.received == 3 * len(framed)
        peer.send(data(3, b"\2\0\0\0\0"), reset(1))  # bytes that are no message; the message before is still answered
        peer.fence()
        assert echo.received == 2 * len(framed)
        echo.run(inflating.release)
        assert peer.until(DataFrame, 5).data == message(b"hello")
        peer.send(reset(3), reset(5))
        wait_until(lambda: echo.is_free)


# --- connections ---


def test_connections_over_the_limit():
    """Of more connections than there may be the last is closed; when one goes, another may come."""
    limits = Limits(LIMITS.message_bytes, LIMITS.concurrent_calls, connections=3)
    with running(limits) as echo, ExitStack() as stack:
        held = [stack.enter_context(connected(echo)) for _ in range(3)]
        wait_until(lambda: len(echo.http2.connections) == 3)
        with connected(echo) as peer:
            assert not list(peer.frames())
        held.pop().socket.close()
        wait_until(lambda: len(echo.http2.connections) == 2)
        with connected(echo) as peer:
            assert is_answered(peer, 1)


@pytest.mark.parametrize(
    "sent",
    [b"", headers(1) + data(1, b"\0\0\0\1\0a"), headers(1) + data(1, message(b"hello") + b"\0\0\0\0\2a")],
    ids=["nothing", "a part of a message", "a part of the second message"],
)
@pytest.mark.parametrize("opening", [b"", OPENING], ids=["no preface", "preface"])
def test_a_peer_that_stalls(sent, opening):
    """A peer that sends no SETTINGS, or a part of a message, and then nothing is disconnected."""
    timeouts = Timeouts(check=0.1, idle=0.3)
    with running(timeouts=timeouts) as echo, connected(echo, opening) as peer:
        peer.send(sent)
        list(peer.frames())


def test_a_response_that_is_not_read():
    """A peer that does not read its response is disconnected; a peer that waits for one is not."""
    with running(timeouts=Timeouts(check=0.1, idle=0.3)) as echo, connected(echo) as waiting, connected(echo) as peer:
        wait_until(lambda: len(echo.http2.connections) == 2)
        waiting.send(headers(1), data(1, message(b"sleep")))
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.send(WindowUpdateFrame(0, 2**30).serialize(), headers(1), WindowUpdateFrame(1, 2**30).serialize())
        for _ in range(8):
            content = message(bytes(900_000))
            peer.send(*(data(1, content[i : i + 16_384]) for i in range(0, len(content), 16_384)))
        wait_until(lambda: len(echo.http2.connections) == 1)
        assert waiting.fence() is not None  # it is open


def test_a_call_that_stalls_ends_alone():
    """An unread response, or a message that goes on no further, ends its own call; others of the connection go on."""
    with running(timeouts=Timeouts(check=0.1)) as echo, connected(echo) as peer:
        peer.send(headers(1), data(1, message(b"sleep")))
        peer.send(WindowUpdateFrame(0, 2**30).serialize(), headers(3))
        content = message(bytes(900_000))  # more than the window of its stream
        peer.send(
            *(data(3, content[i : i + 16_384]) for i in range(0, len(content), 16_384)), data(3, b"", ("END_STREAM",))
        )
        assert peer.until(RstStreamFrame, 3).error_code == CANCEL
        peer.send(headers(5), data(5, b"\0\0\0\1\0a"))
        assert "of the message came" in peer.until(HeadersFrame, 5).fields["grpc-message"]
        assert is_answered(peer, 7)
        assert not echo.ends.count("Cancelled")  # the call that sleeps goes on


BURST = 40  # more than the frames of a handshake


@pytest.mark.parametrize("kind", ["ping", "settings", "empty data", "padding", "priority"])
def test_frames_that_carry_nothing(echo, monkeypatch, kind):
    """A peer that floods with frames that carry nothing is told to calm down, and is disconnected if it goes on."""
    monkeypatch.setattr(callbacks, "CONTROLS_PER_SECOND", 0)
    monkeypatch.setattr(callbacks, "CONTROL_BURST", BURST)
    nothing = {
        "ping": PingFrame(0, bytes(8)).serialize(),
        "settings": SettingsFrame(0).serialize(),
        "empty data": data(1),
        "padding": raw(0, 8, 1, b"\0"),
        "priority": raw(2, 0, 1, bytes(4) + b"\1"),
    }[kind]
    with connected(echo) as peer:
        peer.send(headers(1), nothing * (BURST + 1))
        assert peer.until(GoAwayFrame, 0).error_code == ENHANCE_YOUR_CALM
        peer.send(nothing * (BURST + 1))
        assert all(not isinstance(frame, GoAwayFrame) for frame in peer.frames())  # to the end
    with connected(echo) as peer:
        assert is_answered(peer, 1)


def test_a_connection_that_has_its_age():
    """An old connection takes calls in transit, and is closed when its calls have ended; after the grace they end."""
    with running(timeouts=Timeouts(check=0.1, age=0.2, grace=0.3, goaway=0.1)) as echo, connected(echo) as peer:
        peer.send(headers(1), data(1, message(b"sleep")))
        assert peer.until(GoAwayFrame).last_stream_id == 2**31 - 1
        assert is_answered(peer, 3)  # it was in transit
        last = peer.until(HeadersFrame, 1).fields
        assert "old" in last["grpc-message"]
        list(peer.frames())  # to the end


def test_a_quiet_peer():
    """A peer that is quiet for long is pinged; unless it answers, its connection is closed."""
    with running(timeouts=Timeouts(check=1.0, quiet=0.5)) as echo, connected(echo) as silent, connected(echo) as alive:
        ping = alive.until(PingFrame)
        alive.send(PingFrame(0, ping.opaque_data, flags=("ACK",)).serialize())
        list(silent.frames())
        assert len(echo.http2.connections) == 1
