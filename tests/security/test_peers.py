"""Peers of the REST port: heads without end, stalls, connections without number."""

import socket
import threading
from collections.abc import Hashable
from contextlib import ExitStack
from typing import ClassVar

import pytest
from attention_server.http2.stall import StallDetector
from attention_server.rest import connection
from serving import HANG, connections, wait_until

from tests.local_server import IN_A_SLOT, local_server
from tests.security.peers import ATTEND, BODY, all_of, answers, connect


@pytest.fixture
def server(dot_only):
    with local_server(dot_only, predicted=IN_A_SLOT) as running:
        yield running


@pytest.fixture
def impatient(monkeypatch):
    """Looks at connections often; few bytes have to move between two checks."""
    monkeypatch.setattr(connection, "CHECK_SECONDS", 0.2)


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        "GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: " + "a" * 70_000 + "\r\n\r\n",
        "GET /healthz HTTP/1.1\r\n" + "".join(f"x{i}: a\r\n" for i in range(200)) + "\r\n",
        "GET /" + "a" * 70_000 + " HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ],
    ids=["a header", "headers", "the path"],
)
def test_a_head_that_is_too_large(server, head):
    """A head over 64 KiB, or of more than 128 headers, is refused as such."""
    with connect(server) as peer:
        peer.sendall(head.encode())
        assert all_of(peer).startswith(b"HTTP/1.1 431 ")
    assert answers(server)


@pytest.mark.parametrize("start", ["GET /", "GET /healthz HTTP/1.1\r\nx: "])
def test_a_head_without_end(server, start):
    """A head that goes on and on is cut off: it is not gathered up."""
    with connect(server) as peer:
        peer.sendall(start.encode())
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 # whichever comes first
            for _ in range(1000):
                peer.sendall(b"a" * 65536)
    assert answers(server)


def test_a_large_head_and_body_that_may_be(server):
    """A request within the bounds is answered, in one piece with its body, and in single bytes."""
    head = ATTEND + "x: " + "a" * 60_000 + f"\r\ncontent-length: {len(BODY)}\r\nconnection: close\r\n\r\n"
    with connect(server) as peer:
        peer.sendall(head.encode() + BODY)
        assert all_of(peer).startswith(b"HTTP/1.1 200 ")
    with connect(server) as peer:
        for byte in (ATTEND + f"content-length: {len(BODY)}\r\nconnection: close\r\n\r\n").encode() + BODY:
            peer.sendall(bytes([byte]))
        assert all_of(peer).startswith(b"HTTP/1.1 200 ")


# --- stalls ----------------------------------------------------------------------------------------------------------


def dribble(peer: socket.socket) -> None:
    """Send a byte now and then, until the server disconnects."""
    try:
        while True:
            peer.sendall(b"a")
            threading.Event().wait(0.02)
    except OSError:
        pass


@pytest.mark.parametrize(
    "start",
    ["", "GET /healthz HTTP/1.1\r\nx: ", ATTEND + "content-length: 1000000\r\n\r\n"],
    ids=["nothing", "a head", "a body"],
)
@pytest.mark.parametrize("how", [dribble, all_of])
def test_a_peer_that_stalls_while_it_sends(server, impatient, start, how):
    """A peer that sends nothing, or a byte now and then, is disconnected, in any state of a request."""
    with connect(server) as peer:
        peer.sendall(start.encode())
        how(peer)  # returns when it is hung up on
    assert answers(server)


def test_a_peer_that_stalls_after_a_request(server, impatient):
    """After an answer, too, the next head has its time."""
    with connect(server) as peer:
        peer.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /")
        dribble(peer)
    assert answers(server)


def test_a_peer_that_does_not_take_its_answer(dot_only, impatient):
    """An unread answer is dropped, with its connection."""
    with local_server(dot_only) as server, connect(server) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        rows = ",".join(["[1.0]"] * 2000)
        body = f'{{"query": [{rows}], "outputs": ["weights"]}}'.encode()
        peer.sendall((ATTEND + f"content-length: {len(body)}\r\n\r\n").encode() + body)
        wait_until(lambda: server.gate.runs > 0)
        wait_until(lambda: connections(server.rest) == 0)
        assert answers(server)


class Paced(StallDetector):
    """A detector that looks when the test tells, so that a peer's pace is counted in looks and not in seconds."""

    made: ClassVar[list["Paced"]] = []

    def __init__(self, least_bytes: int) -> None:
        super().__init__(least_bytes)
        self.wanted, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.unsent = self.unsent_at_look = 0
        self.made.append(self)

    def check(self, state: Hashable, unsent: int) -> bool:
        self.unsent = unsent
        if not self.wanted.acquire(blocking=False):
            return False
        is_stalled = super().check(state, unsent)
        self.unsent_at_look = unsent
        self.done.release()
        return is_stalled

    def look(self) -> None:
        self.wanted.release()
        assert self.done.acquire(timeout=HANG)


def test_a_peer_that_takes_its_time(dot_only, monkeypatch):
    """A peer that sends and receives slowly is not disconnected, nor one that waits for a long computation."""
    least = 100
    monkeypatch.setattr(connection, "LEAST_BYTES", least)
    monkeypatch.setattr(connection, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(connection, "StallDetector", Paced)
    with local_server(dot_only, predicted=IN_A_SLOT) as server, connect(server) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        rows = ",".join(["[1.0]"] * 800)
        body = f'{{"query": [{rows}], "outputs": ["weights"]}}'.encode()
        server.gate.close()
        peer.sendall((ATTEND + f"content-length: {len(body)}\r\nconnection: close\r\n\r\n").encode())
        wait_until(lambda: Paced.made)
        detector = Paced.made.pop()
        for i in range(0, len(body) - least, least):
            peer.sendall(body[i : i + least])
            wait_until(lambda: detector.received >= least)
            detector.look()
        peer.sendall(body[i + least :])
        assert server.gate.arrived.wait(HANG)
        for _ in range(3):
            detector.look()
        server.gate.open()
        received = b""
        detector.wanted.release()
        while more := peer.recv(200_000):
            received += more
            has_moved = 0 < detector.unsent <= detector.unsent_at_look - least
            if has_moved and detector.done.acquire(blocking=False):
                detector.wanted.release()
        assert received.startswith(b"HTTP/1.1 200 ")
        assert received.endswith(b"]}")


def test_connections_without_number(server, monkeypatch):
    """Connections over the limit are closed at once; once a connection closes, a new one is accepted."""
    monkeypatch.setattr(connection, "max_connections", lambda: 5)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(5)]
        wait_until(lambda: connections(server.rest) == 5)
        with connect(server) as peer:
            assert all_of(peer) == b""
        held.pop().close()
        wait_until(lambda: connections(server.rest) == 4)
        assert answers(server)


@pytest.mark.parametrize("after", [b"", b"NO HTTP\r\n\r\n"], ids=["it hangs up", "it sends no HTTP"])
def test_two_requests_and_a_peer_that_goes(server, after, caplog):
    """A peer that sends two requests and disconnects, or is disconnected, leaves no error in the log."""
    server.gate.close()
    one = (ATTEND + f"content-length: {len(BODY)}\r\n\r\n").encode() + BODY
    with connect(server) as peer:
        peer.sendall(one + one)
        assert server.gate.arrived.wait(HANG)
        peer.sendall(after)
        if after:
            assert all_of(peer).startswith(b"HTTP/1.1 400 ")
    wait_until(lambda: connections(server.rest) == 0)
    server.gate.open()
    assert answers(server)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
