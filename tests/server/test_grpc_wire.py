"""gRPC on the wire, with frames made by hand: framing, buffers, disconnections, a stop, overload."""

import gzip
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import unquote

import grpc
import hpack
import numpy as np
import pytest
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.http2.limits import HEADER_BYTES, STREAM_WINDOW
from attention_server.scheduling.admission import PERMITS_PER_SLOT
from serving import start_server, wait_until

from tests.conftest import refused_by_grpc, tensor
from tests.local_server import IN_A_SLOT, local_server
from tests.trials.hostile_cases import DATA, HEADERS, PING, PREFACE, RST, SETTINGS, WINDOW, call_head, frame, literal

pytestmark = pytest.mark.both_grpc_servers

ATTEND = "/attention.v1.AttentionService/Attend"
END_HEADERS, END_STREAM = 4, 1
GOAWAY = 7
OPENING = PREFACE + frame(SETTINGS) + frame(SETTINGS, 1)  # the second: the server's are taken note of
QUERY = np.ones((2, 3), np.float32)
MIB = 2**20


def request(query=QUERY, **about) -> pb.AttendRequest:
    return pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=tensor(query))], **about)


def prefixed(content: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + struct.pack(">I", len(content)) + content


class Peer:
    """A peer of HTTP/2 that sends given frames, and reads frames."""

    def __init__(self, server) -> None:
        host, port = server.grpc.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self._received = b""
        self._headers = hpack.Decoder()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield each frame that comes, kind, flags, stream, content, headers in the clear, to the end."""
        while True:
            while len(self._received) < 9 or len(self._received) < 9 + self._length():
                try:
                    more = self.socket.recv(65536)
                except ConnectionResetError:
                    return
                if not more:
                    return
                self._received += more
            end = 9 + self._length()
            whole, self._received = self._received[:end], self._received[end:]
            content = whole[9:]
            if whole[3] == HEADERS:
                content = unquote("\n".join(map(": ".join, self._headers.decode(content)))).encode()
            yield whole[3], whole[4], struct.unpack(">I", whole[5:9])[0], content

    def _length(self) -> int:
        return int.from_bytes(self._received[:3], "big")

    def until(self, kind: int, stream: int | None = None) -> tuple[int, bytes]:
        """Return flags and content of the next frame of a kind."""
        for found, flags, of, content in self.frames():
            if found == kind and stream in (None, of):
                return flags, content
        raise AssertionError("the server hung up")

    def close(self) -> None:
        self.socket.close()


@contextmanager
def peer_of(server) -> Iterator[Peer]:
    peer = Peer(server)
    try:
        yield peer
    finally:
        peer.close()


@pytest.fixture
def server(dot_only):
    with local_server(dot_only, predicted=IN_A_SLOT) as running:
        yield running


def answers(server) -> bool:
    with grpc.insecure_channel(server.grpc) as channel:
        return bool(AttentionServiceStub(channel).Attend(request(), timeout=30).results)


# --- framing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_message_in_pieces(server, size):
    """However a message is cut into frames, within its prefix too, it is read as one."""
    content = prefixed(request().SerializeToString())
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    with peer_of(server) as peer:
        peer.send(OPENING, frame(HEADERS, END_HEADERS, 1, call_head()), *(frame(DATA, 0, 1, each) for each in pieces))
        peer.send(frame(DATA, END_STREAM, 1))
        _, answer = peer.until(DATA, 1)
        assert pb.AttendResponse.FromString(answer[5:]).results
        flags, _ = peer.until(HEADERS, 1)
        assert flags & END_STREAM


def test_an_answer_follows_the_window(server):
    """Of an answer no more is sent than the peer has room for; the rest follows when there is more."""
    large = np.ones((1000, 64), np.float32)
    with peer_of(server) as peer:
        message = prefixed(request(large).SerializeToString())
        peer.send(OPENING, frame(HEADERS, END_HEADERS, 1, call_head()))
        for start in range(0, len(message), 16384):
            peer.send(frame(DATA, 0, 1, message[start : start + 16384]))
        peer.send(frame(DATA, END_STREAM, 1))
        received = 0
        frames = peer.frames()
        while received < 65535:
            kind, _, of, content = next(frames)
            received += len(content) if (kind, of) == (DATA, 1) else 0
        assert received == 65535
        peer.send(frame(PING, 0, 0, b"12345678"))
        assert next(kind for kind, flags, *_ in frames if kind != WINDOW) == PING  # and nothing before it
        for stream in (0, 1):
            peer.send(frame(WINDOW, 0, stream, struct.pack(">I", MIB)))
        for kind, flags, of, content in frames:
            received += len(content) if (kind, of) == (DATA, 1) else 0
            if kind == HEADERS and flags & END_STREAM:
                break
        assert received > large.nbytes


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
@pytest.mark.native_grpc("its core inflates, and has its own words")
def test_a_compressed_message(server, compress):
    """A message may be compressed as its call says; without a word of how, or damaged, it is the caller's mistake."""
    name = {gzip.compress: "gzip", zlib.compress: "deflate"}[compress]
    packed = compress(request().SerializeToString())
    with peer_of(server) as peer:
        peer.send(OPENING)
        for stream, head, content in (
            (1, call_head() + literal("grpc-encoding", name), packed),
            (3, call_head(), packed),
            (5, call_head() + literal("grpc-encoding", name), packed[:-3]),
            (7, call_head() + literal("grpc-encoding", "br"), packed),
        ):
            peer.send(frame(HEADERS, END_HEADERS, stream, head))
            peer.send(frame(DATA, END_STREAM, stream, prefixed(content, 1)))
            if stream == 1:
                assert pb.AttendResponse.FromString(peer.until(DATA, stream)[1][5:]).results
            else:
                assert b"grpc-encoding" in peer.until(HEADERS, stream)[1]
    assert answers(server)


def test_metadata_that_is_too_large(server):
    """Metadata over the bound is refused as that, and nothing else of the connection is disturbed."""
    with peer_of(server) as peer:
        large = literal("x-a", "a" * 126) * (HEADER_BYTES // 126)
        peer.send(OPENING, frame(HEADERS, END_HEADERS | END_STREAM, 1, call_head() + large))
        assert b"metadata" in peer.until(HEADERS, 1)[1]
        peer.send(frame(HEADERS, END_HEADERS, 3, call_head()))
        peer.send(frame(DATA, END_STREAM, 3, prefixed(request().SerializeToString())))
        assert peer.until(DATA, 3)


@pytest.mark.native_grpc("looks into the native server's calls")
def test_every_call_has_a_status(server):
    """Of many calls with short deadlines each ends with a status."""
    head = call_head() + literal("grpc-timeout", "1m")
    streams = range(1, 2 * 80, 2)
    with peer_of(server) as peer:
        message = frame(DATA, END_STREAM, 0, prefixed(request(np.ones((200, 64), np.float32)).SerializeToString()))
        calls = [
            frame(HEADERS, END_HEADERS, n, head) + message[:5] + struct.pack(">I", n) + message[9:] for n in streams
        ]
        windows = frame(WINDOW, 0, 0, struct.pack(">I", 2**30))
        peer.send(OPENING, windows, *calls)
        ended = set()
        for kind, flags, of, content in peer.frames():
            if kind == HEADERS and flags & END_STREAM:
                assert b"grpc-status" in content
                ended.add(of)
            if ended == set(streams):
                break
    wait_until(lambda: not server.grpc_server.http2.calls)


@pytest.mark.native_grpc("its core answers other requests of HTTP in its own way")
def test_a_path_of_http(server):
    """A path of REST is UNIMPLEMENTED, and the connection's next call is answered."""
    with peer_of(server) as peer:
        peer.send(OPENING, frame(HEADERS, END_HEADERS | END_STREAM, 1, call_head("/healthz")))
        assert b"grpc-status: 12" in peer.until(HEADERS, 1)[1]
        peer.send(frame(HEADERS, END_HEADERS, 3, call_head()))
        peer.send(frame(DATA, END_STREAM, 3, prefixed(request().SerializeToString())))
        assert peer.until(DATA, 3)
    wait_until(lambda: not server.grpc_server.http2.calls)


# --- buffers --------------------------------------------------------------------------------------------


def test_what_is_not_read_is_not_taken(server):
    """Of a stream with waiting requests the server reads one window; the connection's next calls are answered."""
    content = prefixed(
        pb.AttendStreamRequest(id="a", request=request(np.ones((3000, 16), np.float32))).SerializeToString()
    )
    head = call_head("/attention.v1.AttentionService/AttendStream")
    server.gate.close()
    with peer_of(server) as peer:
        peer.send(OPENING, frame(HEADERS, END_HEADERS, 1, head))
        granted, sent = 65535, 0
        frames = peer.frames()

        def room() -> int:
            nonlocal granted
            peer.socket.settimeout(1)
            try:
                for kind, _, of, found in frames:
                    if kind == WINDOW and of == 1:
                        granted += struct.unpack(">I", found)[0]
                    elif kind == SETTINGS and found:
                        granted += STREAM_WINDOW - 65535
                    if granted - sent >= 16000:
                        break
            except TimeoutError:
                pass
            return granted - sent

        source = (content[i : i + 16000] for _ in range(1000) for i in range(0, len(content), 16000))
        for piece in source:
            if len(piece) > granted - sent and room() < len(piece):
                break
            peer.send(frame(DATA, 0, 1, piece))
            sent += len(piece)
        assert STREAM_WINDOW < sent < 64 * MIB + 4 * STREAM_WINDOW
    server.gate.open()
    assert answers(server)


@pytest.mark.native_grpc("its core bounds each message, and not all messages together")
def test_more_than_can_be_held(dot_only, monkeypatch):
    """When calls together exceed the buffer, the last is refused; the held bytes are freed with each call."""
    monkeypatch.setattr("attention_server.grpc.native.BUFFERED_MESSAGES", 1)
    with local_server(dot_only, max_message_mib=1) as server, ExitStack() as stack:
        peers = [stack.enter_context(peer_of(server)) for _ in range(3)]
        started = frame(HEADERS, END_HEADERS, 1, call_head()) + frame(DATA, 0, 1, b"\0\0\x0f\xff\xff")
        for peer in peers[:2]:
            peer.send(OPENING, started, *[frame(DATA, 0, 1, bytes(16000))] * 30)
        buffer = server.grpc_server.http2.buffer
        wait_until(lambda: buffer.held > 900_000)
        peers[2].send(OPENING, started, *[frame(DATA, 0, 1, bytes(16000))] * 30)
        assert b"held" in peers[2].until(HEADERS, 1)[1]
        for peer in peers:
            peer.send(frame(RST, 0, 1, struct.pack(">I", 8)))
        wait_until(lambda: buffer.held == 0)
        assert answers(server)


@pytest.mark.native_grpc("its core bounds each message, and not all messages together")
def test_nothing_stays_counted_of_what_came(server):
    """After good and bad calls, however each ends, no byte stays counted in the buffer."""
    good = request().SerializeToString()
    with grpc.insecure_channel(server.grpc) as channel:
        attend = channel.unary_unary(ATTEND)
        assert attend(good, timeout=30)
        for content, code in ((b"\xff" * 1000, "INVALID_ARGUMENT"), (b"", "NOT_FOUND")):
            with pytest.raises(grpc.RpcError) as caught:
                attend(content, timeout=30)
            assert refused_by_grpc(caught.value).code == code
        channel.stream_unary(ATTEND).future(iter([good, good])).cancel()
        assert channel.stream_unary(ATTEND)(iter([good, good]), timeout=30)
    wait_until(lambda: server.grpc_server.http2.buffer.held == 0)


@pytest.mark.native_grpc("its core bounds each message, and not all messages together")
def test_who_is_not_known_sends_little(server):
    """A message to a method that everyone may call is small; a larger one is refused, compressed or not."""
    check = "/grpc.health.v1.Health/Check"
    with peer_of(server) as peer:
        peer.send(
            OPENING, frame(HEADERS, END_HEADERS, 1, call_head(check)), frame(DATA, 0, 1, b"\0\0\x10\0\0" + b"a" * 9)
        )
        assert b"may be sent" in peer.until(HEADERS, 1)[1]
        packed = gzip.compress(bytes(MIB))
        peer.send(frame(HEADERS, END_HEADERS, 3, call_head(check) + literal("grpc-encoding", "gzip")))
        peer.send(frame(DATA, END_STREAM, 3, prefixed(packed, 1)))
        assert b"inflates" in peer.until(HEADERS, 3)[1]


# --- disconnections -----------------------------------------------------------------------------------------------


@pytest.mark.native_grpc("looks into the native server's calls")
def test_many_calls_that_are_cancelled(dot_only):
    """Thousands of calls that are cancelled at once leave no call, no byte and no slot in use."""
    with local_server(dot_only, max_queued=128) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = AttentionServiceStub(channel)
        large = request(np.ones((300, 64), np.float32))
        for _ in range(40):
            calls = [stub.Attend.future(large, timeout=60) for _ in range(100)]
            for call in calls:
                call.cancel()
        port = server.grpc_server.http2
        wait_until(lambda: not port.calls and port.buffer.held == 0)
        wait_until(lambda: server.scheduler.state().running == server.scheduler.state().queued == 0)
        assert not server.service.observer.open_records()
        assert stub.Attend(request(), timeout=30).results


# --- a stop ----------------------------------------------------------------------------------------------------------


@pytest.mark.native_grpc("its core refuses calls that arrive after GOAWAY")
def test_a_stop_says_so_and_finishes(dot_only):
    """A server that stops sends GOAWAY, answers the calls in transit, and closes the connection."""
    with start_server(dot_only, "--slots", 1) as server, peer_of(server) as peer:
        peer.send(OPENING, frame(HEADERS, END_HEADERS, 1, call_head()))
        peer.send(frame(PING, 0, 0, bytes(8)))
        assert peer.until(PING)
        server.process.terminate()
        _, told = peer.until(GOAWAY)
        assert struct.unpack(">I", told[:4])[0] == 2**31 - 1
        peer.send(frame(HEADERS, END_HEADERS, 3, call_head()))  # it was on its way
        content = frame(DATA, END_STREAM, 3, prefixed(request().SerializeToString()))
        peer.send(content, content.replace(b"\0\0\0\x03", b"\0\0\0\x01", 1))
        answered = set()
        for kind, _, of, _ in peer.frames():
            if kind == PING:
                peer.send(frame(PING, 1, 0, bytes(8)))
            if kind == DATA:
                answered.add(of)
        assert answered == {1, 3}
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("idle", [True, False])
@pytest.mark.native_grpc("its core refuses calls that arrive after GOAWAY")
def test_a_request_on_its_way_when_the_server_stops(dot_only, idle):
    """A call that was sent before GOAWAY arrived is answered, also on an idle connection."""
    with local_server(dot_only) as server, peer_of(server) as peer:
        peer.send(OPENING, frame(PING, 0, 0, bytes(8)))
        peer.until(PING)
        message = frame(DATA, END_STREAM, 1, prefixed(request().SerializeToString()))
        if not idle:
            peer.send(frame(HEADERS, END_HEADERS, 1, call_head()))
            wait_until(lambda: server.grpc_server.http2.calls)
        server.loop.call_soon_threadsafe(server.stop.set)
        peer.until(GOAWAY)
        threading.Event().wait(0.1)  # as a longer line would take
        peer.send(*([frame(HEADERS, END_HEADERS, 1, call_head())] if idle else []), message)
        assert peer.until(DATA, 1)


def test_an_answer_that_is_taken_slowly_when_the_server_stops(dot_only):
    """An answer that is made when the server stops is sent whole, however slowly its caller takes it."""
    query = np.ones((800, 64), np.float32)
    with local_server(dot_only) as server, peer_of(server) as peer:
        peer.send(OPENING, frame(HEADERS, END_HEADERS, 1, call_head()))
        content = prefixed(request(query).SerializeToString())
        pieces = [content[i : i + 16000] for i in range(0, len(content), 16000)]
        peer.send(*(frame(DATA, 0, 1, each) for each in pieces), frame(DATA, END_STREAM, 1))
        peer.until(DATA, 1)
        server.begin_stop()
        peer.until(GOAWAY)
        received = 0
        for _ in range(7):  # as many as it takes
            threading.Event().wait(0.1)
            peer.send(*(frame(WINDOW, 0, stream, struct.pack(">I", 20_000)) for stream in (0, 1)))
        for kind, flags, _, found in peer.frames():
            received += len(found) if kind == DATA else 0
            if kind == HEADERS and flags & END_STREAM:
                break
        assert received > query.nbytes - 2 * 65535


# --- overload --------------------------------------------------------------------------------------------------------


@pytest.mark.native_grpc("its core has read the message by then")
def test_refused_at_its_head(server):
    """Where there is no place for it, a call is refused before anything of its message has come, and nothing is kept.

    Bytes that the peer sends before it has read the refusal are dropped.
    """
    admission = server.service.admission
    admission.trip()
    with ExitStack() as taken, peer_of(server) as peer:
        for caller in ("other", "other", "127.0.0.1"):
            taken.enter_context(admission.acquire(caller))  # one more would equal the first caller's share
        content = prefixed(request().SerializeToString())
        peer.send(OPENING, frame(HEADERS, END_HEADERS, 1, call_head()))
        flags, trailers = peer.until(HEADERS, 1)
        assert flags & END_STREAM
        assert b"grpc-status: 14" in trailers
        assert b"more is asked for than can be computed" in trailers
        assert peer.until(RST, 1)[1] == bytes(4)  # NO_ERROR: the rest is not wanted
        peer.send(frame(DATA, 0, 1, content), frame(PING, 0, 0, bytes(8)))
        peer.until(PING)  # so the content has come
        assert not server.grpc_server.http2.calls
        assert not server.grpc_server.http2.buffer.held
    assert not server.service.observer.open_records()


def test_let_in_at_its_head(server):
    """Where there is a place, a call is answered, and gives it back; also where its caller goes."""
    admission = server.service.admission
    admission.trip()
    assert answers(server)
    calls = server.grpc_server.http2.calls
    for _ in range(2 * PERMITS_PER_SLOT):  # twice as many as there are permits
        with peer_of(server) as peer:
            peer.send(OPENING, frame(HEADERS, END_HEADERS, 1, call_head()))
            wait_until(lambda: bool(calls))
        wait_until(lambda: not calls)
    assert answers(server)
