"""gRPC on the wire, with frames made by hand: framing, buffers, disconnections, a stop, overload."""

import gzip
import threading
import zlib
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.http2.lease import CONNECTION_BYTES
from attention_server.http2.limits import HEADER_BYTES, STREAM_WINDOW
from attention_server.scheduling.admission import PERMITS_PER_SLOT
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from serving import HANG, start_server, wait_until

from tests.http2.peer import data, fields, headers, message, reset
from tests.local_server import IN_A_SLOT, local_server
from tests.refusals import refused_by_grpc
from tests.server.wire import (
    ATTEND,
    PING,
    call_headers,
    content_bytes,
    ends_call,
    peer_of,
    request,
    whole,
    window,
    words_of,
)

pytestmark = pytest.mark.both_grpc_servers

MIB = 2**20


@pytest.fixture
def server(dot_only):
    with local_server(dot_only, predicted=IN_A_SLOT) as running:
        yield running


def answers(server) -> bool:
    with grpc.insecure_channel(server.grpc) as channel:
        return bool(AttentionServiceStub(channel).Attend(request(), timeout=HANG).results)


# --- framing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_message_in_pieces(server, size):
    """However a message is cut into frames, within its prefix too, it is read as one."""
    content = message(request().SerializeToString())
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    with peer_of(server) as peer:
        peer.send(call_headers(1), *(data(1, each) for each in pieces))
        peer.send(whole(1, b""))
        assert pb.AttendResponse.FromString(peer.until(DataFrame, 1).data[5:]).results
        assert "END_STREAM" in peer.until(HeadersFrame, 1).flags


def test_an_answer_follows_the_window(server):
    """Of an answer no more is sent than the peer has room for; the rest follows when there is more."""
    large = np.ones((1000, 64), np.float32)
    with peer_of(server) as peer:
        content = message(request(large).SerializeToString())
        peer.send(call_headers(1))
        for start in range(0, len(content), 16384):
            peer.send(data(1, content[start : start + 16384]))
        peer.send(whole(1, b""))
        received = 0
        frames = peer.frames()
        while received < 65535:
            received += content_bytes(next(frames))
        assert received == 65535
        peer.send(PING)
        after = next(each for each in frames if not isinstance(each, WindowUpdateFrame))
        assert isinstance(after, PingFrame)  # and nothing before it
        for stream in (0, 1):
            peer.send(window(stream, MIB))
        for each in frames:
            received += content_bytes(each)
            if ends_call(each):
                break
        assert received > large.nbytes


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
@pytest.mark.native_grpc("its core inflates, and has its own words")
def test_a_compressed_message(server, compress):
    """A message may be compressed as its call says; without a word of how, or damaged, it is the caller's mistake."""
    name = {gzip.compress: "gzip", zlib.compress: "deflate"}[compress]
    packed = compress(request().SerializeToString())
    with peer_of(server) as peer:
        for stream, encoding, content in (
            (1, {"grpc_encoding": name}, packed),
            (3, {}, packed),
            (5, {"grpc_encoding": name}, packed[:-3]),
            (7, {"grpc_encoding": "br"}, packed),
        ):
            peer.send(call_headers(stream, **encoding))
            peer.send(whole(stream, message(content, 1)))
            if stream == 1:
                assert pb.AttendResponse.FromString(peer.until(DataFrame, stream).data[5:]).results
            else:
                assert "grpc-encoding" in words_of(peer.until(HeadersFrame, stream))
    assert answers(server)


def test_metadata_that_is_too_large(server):
    """Metadata over the bound is refused as that, and nothing else of the connection is disturbed."""
    with peer_of(server) as peer:
        large = [("x-a", "a" * 126)] * (HEADER_BYTES // 126)
        peer.send(headers(1, fields(ATTEND) + large, ("END_HEADERS", "END_STREAM")))
        assert "metadata" in words_of(peer.until(HeadersFrame, 1))
        peer.send(call_headers(3))
        peer.send(whole(3, message(request().SerializeToString())))
        assert peer.until(DataFrame, 3)


@pytest.mark.native_grpc("looks into the native server's calls")
def test_every_call_has_a_status(server):
    """Of many calls with short deadlines each ends with a status."""
    streams = range(1, 2 * 80, 2)
    with peer_of(server) as peer:
        content = message(request(np.ones((200, 64), np.float32)).SerializeToString())
        calls = [call_headers(n, grpc_timeout="1m") + whole(n, content) for n in streams]
        peer.send(window(0, 2**30), *calls)
        ended = set()
        for each in peer.frames():
            if ends_call(each):
                assert "grpc-status" in each.fields
                ended.add(each.stream_id)
            if ended == set(streams):
                break
    wait_until(lambda: not server.grpc_server.http2.calls)


@pytest.mark.native_grpc("its core answers other requests of HTTP in its own way")
def test_a_path_of_http(server):
    """A path of REST is UNIMPLEMENTED, and the connection's next call is answered."""
    with peer_of(server) as peer:
        peer.send(call_headers(1, "/healthz", end=True))
        assert peer.until(HeadersFrame, 1).fields["grpc-status"] == "12"
        peer.send(call_headers(3))
        peer.send(whole(3, message(request().SerializeToString())))
        assert peer.until(DataFrame, 3)
    wait_until(lambda: not server.grpc_server.http2.calls)


# --- buffers ---------------------------------------------------------------------------------------------------------


@pytest.mark.native_grpc("its core reads ahead by a window of its own")
def test_what_is_not_read_is_not_taken(server):
    """Of a stream with waiting requests the server reads one window; the connection's next calls are answered."""
    content = message(
        pb.AttendStreamRequest(id="a", request=request(np.ones((3000, 16), np.float32))).SerializeToString()
    )
    server.gate.close()
    with peer_of(server) as peer:
        peer.send(call_headers(1, "/attention.v1.AttentionService/AttendStream"))
        granted, sent = 65535, 0
        frames = peer.frames()

        def room() -> int:
            nonlocal granted
            peer.socket.settimeout(1)
            try:
                for each in frames:
                    if isinstance(each, WindowUpdateFrame) and each.stream_id == 1:
                        granted += each.window_increment
                    elif isinstance(each, SettingsFrame) and each.settings:
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
            peer.send(data(1, piece))
            sent += len(piece)
        assert STREAM_WINDOW < sent < 64 * MIB + 4 * STREAM_WINDOW
    server.gate.open()
    assert answers(server)


@pytest.mark.native_grpc("its core bounds each message, and not all messages together")
def test_more_than_can_be_held(dot_only):
    """When calls together exceed the budget, the last is refused; the held bytes are freed with each call."""
    with local_server(dot_only, max_message_mib=1, memory_budget_mib=3) as server, ExitStack() as stack:
        peers = [stack.enter_context(peer_of(server)) for _ in range(3)]
        started = call_headers(1) + data(1, b"\0\0\x0f\xff\xff")
        for peer in peers[:2]:
            peer.send(started, *[data(1, bytes(16000))] * 30)
        account = server.service.account
        wait_until(lambda: account.state().held > 2 * 900_000)
        peers[2].send(started, *[data(1, bytes(16000))] * 30)
        assert "full" in words_of(peers[2].until(HeadersFrame, 1))
        for peer in peers:
            peer.send(reset(1))
        wait_until(lambda: account.state().held <= CONNECTION_BYTES * len(server.grpc_server.http2.connections))
        assert answers(server)


@pytest.mark.native_grpc("its core bounds each message, and not all messages together")
def test_nothing_stays_counted_of_what_came(server):
    """After good and bad calls, however each ends, no byte stays counted in the buffer."""
    good = request().SerializeToString()
    with grpc.insecure_channel(server.grpc) as channel:
        attend = channel.unary_unary(ATTEND)
        assert attend(good, timeout=HANG)
        for content, code in ((b"\xff" * 1000, "INVALID_ARGUMENT"), (b"", "NOT_FOUND")):
            with pytest.raises(grpc.RpcError) as caught:
                attend(content, timeout=HANG)
            assert refused_by_grpc(caught.value).code == code
        channel.stream_unary(ATTEND).future(iter([good, good])).cancel()
        twice = channel.stream_unary(ATTEND).future(iter([good, good]), timeout=HANG)
        # Refused where the second message came before the first was read.
        assert twice.code() in {grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED}
    wait_until(lambda: not server.service.account.state().held)


@pytest.mark.native_grpc("its core bounds each message, and not all messages together")
def test_who_is_not_known_sends_little(server):
    """A message to a method that everyone may call is small; a larger one is refused, compressed or not."""
    check = "/grpc.health.v1.Health/Check"
    with peer_of(server) as peer:
        peer.send(call_headers(1, check), data(1, b"\0\0\x10\0\0" + b"a" * 9))
        assert "may be sent" in words_of(peer.until(HeadersFrame, 1))
        packed = gzip.compress(bytes(MIB))
        peer.send(call_headers(3, check, grpc_encoding="gzip"))
        peer.send(whole(3, message(packed, 1)))
        assert "inflates" in words_of(peer.until(HeadersFrame, 3))


# --- disconnections --------------------------------------------------------------------------------------------------


@pytest.mark.native_grpc("looks into the native server's calls")
def test_many_calls_that_are_cancelled(dot_only):
    """Thousands of calls that are cancelled at once leave no call, no byte and no slot in use."""
    with local_server(dot_only, max_queued=128) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = AttentionServiceStub(channel)
        large = request(np.ones((300, 64), np.float32))
        for _ in range(40):
            calls = [stub.Attend.future(large, timeout=HANG) for _ in range(100)]
            for call in calls:
                call.cancel()
        port = server.grpc_server.http2
        wait_until(
            lambda: not port.calls and server.service.account.state().held == CONNECTION_BYTES * len(port.connections)
        )
        wait_until(lambda: server.scheduler.state().running == server.scheduler.state().queued == 0)
        assert not server.service.observer.open_records()
        assert stub.Attend(request(), timeout=HANG).results


# --- a stop ----------------------------------------------------------------------------------------------------------


@pytest.mark.native_grpc("its core refuses calls that arrive after GOAWAY")
def test_a_stop_says_so_and_finishes(dot_only):
    """A server that stops sends GOAWAY, answers the calls in transit, and closes the connection."""
    with start_server(dot_only, "--slots", 1) as server, peer_of(server) as peer:
        peer.send(call_headers(1))
        peer.send(PING)
        assert peer.until(PingFrame)
        server.process.terminate()
        assert peer.until(GoAwayFrame).last_stream_id == 2**31 - 1
        peer.send(call_headers(3))  # it was on its way
        content = whole(3, message(request().SerializeToString()))
        peer.send(content, content.replace(b"\0\0\0\x03", b"\0\0\0\x01", 1))
        answered = set()
        for each in peer.frames():
            if isinstance(each, PingFrame):
                peer.send(PingFrame(0, flags=["ACK"]).serialize())
            if isinstance(each, DataFrame):
                answered.add(each.stream_id)
        assert answered == {1, 3}
        assert server.process.wait(HANG) == 0


@pytest.mark.parametrize("idle", [True, False])
@pytest.mark.native_grpc("its core refuses calls that arrive after GOAWAY")
def test_a_request_on_its_way_when_the_server_stops(dot_only, idle):
    """A call that was sent before GOAWAY arrived is answered, also on an idle connection."""
    with local_server(dot_only) as server, peer_of(server) as peer:
        peer.send(PING)
        peer.until(PingFrame)
        last = whole(1, message(request().SerializeToString()))
        if not idle:
            peer.send(call_headers(1))
            wait_until(lambda: server.grpc_server.http2.calls)
        server.loop.call_soon_threadsafe(server.stop.set)
        peer.until(GoAwayFrame)
        threading.Event().wait(0.1)  # as a longer line would take
        peer.send(*([call_headers(1)] if idle else []), last)
        assert peer.until(DataFrame, 1)


def test_an_answer_that_is_taken_slowly_when_the_server_stops(dot_only):
    """An answer that is made when the server stops is sent whole, however slowly its caller takes it."""
    query = np.ones((800, 64), np.float32)
    with local_server(dot_only) as server, peer_of(server) as peer:
        peer.send(call_headers(1))
        content = message(request(query).SerializeToString())
        pieces = [content[i : i + 16000] for i in range(0, len(content), 16000)]
        peer.send(*(data(1, each) for each in pieces), whole(1, b""))
        peer.until(DataFrame, 1)
        server.begin_stop()
        peer.until(GoAwayFrame)
        received = 0
        for _ in range(7):  # as many as it takes
            threading.Event().wait(0.1)
            peer.send(*(window(stream, 20_000) for stream in (0, 1)))
        for each in peer.frames():
            received += content_bytes(each)
            if ends_call(each):
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
        content = message(request().SerializeToString())
        peer.send(call_headers(1))
        refusal = peer.until(HeadersFrame, 1)
        assert ends_call(refusal)
        assert refusal.fields["grpc-status"] == "14"
        assert "more is asked for than can be computed" in words_of(refusal)
        assert peer.until(RstStreamFrame, 1).error_code == 0  # NO_ERROR: the rest is not wanted
        peer.send(data(1, content), PING)
        peer.until(PingFrame)  # so the content has come
        assert not server.grpc_server.http2.calls
        assert server.service.account.state().held == CONNECTION_BYTES
    assert not server.service.observer.open_records()


@pytest.mark.native_grpc("its core has read the message by then")
def test_let_in_at_its_head(server):
    """Where there is a place, a call is answered, and gives it back; also where its caller goes."""
    admission = server.service.admission
    admission.trip()
    assert answers(server)
    calls = server.grpc_server.http2.calls
    for _ in range(2 * PERMITS_PER_SLOT):  # twice as many as there are permits
        with peer_of(server) as peer:
            peer.send(call_headers(1))
            wait_until(lambda: bool(calls))
        wait_until(lambda: not calls)
    assert answers(server)
