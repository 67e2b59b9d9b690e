"""Raw HTTP/1.1 to a real server: trailers and the Host header."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from attention_server.auth.hosts import is_loopback
from attention_server.rest import connection
from attention_server.rest.server import RestServer
from serving import HANG, Server, start_server, wait_until

from tests.local_server import local_server

MIB = 2**20
CHUNKED = b"host: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n"
ATTEND = b"POST /v1/models/dot:attend HTTP/1.1\r\n" + CHUNKED
BODY = b'{"query": [[1.0]]}'
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def server(dot_only) -> Iterator[Server]:
    with start_server(dot_only) as running:
        yield running


def connect(server: Server) -> socket.socket:
    host, port = server.rest.split(":")
    return socket.create_connection((host, int(port)), timeout=HANG)


def exchange(server: Server, request: bytes) -> bytes:
    """Send bytes; return all that comes until the server closes the connection."""
    with connect(server) as peer:
        peer.sendall(request)
        received = b""
        while more := peer.recv(65536):
            received += more
        return received


# --- offers of another protocol ---


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", [1, 7, 100_000], ids=["bytes", "pieces", "at once"])
def test_an_offered_upgrade_is_declined(server, framing, size):
    """A request that offers HTTP/2, as Java's client sends its first one, is answered as HTTP/1.1, body and all.

    So are those behind it on the connection, however the bytes arrive.
    """
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    head = b"POST /v1/models/dot:attend HTTP/1.1\r\n" + offer + b"Host: 127.0.0.1\r\nUpgrade: h2c\r\n"
    framed = {
        "length": b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    }[framing]
    plain = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    sent = head + framed + head + framed + plain
    with connect(server) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), size):
            peer.sendall(sent[start : start + size])
        received = b""
        while more := peer.recv(65536):
            received += more
    assert received.count(b"HTTP/1.1 200 ") == 3
    assert received.count(b'"model":"dot"') == 2


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"TLS/1.0, HTTP/1.1"])
def test_an_upgrade_changes_no_other_answer(server, offer):
    """Bounds hold for a head that offers an upgrade, and a method that is not offered is refused in words."""
    start = b"DELETE /v1/models/dot:attend HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close, upgrade\r\nupgrade: "
    assert exchange(server, start + offer + b"\r\n\r\n").startswith(b"HTTP/1.1 405 ")
    assert exchange(server, start + offer + b"\r\nx: %b\r\n\r\n" % (b"a" * 65536)).startswith(b"HTTP/1.1 431 ")


# --- trailers ---


@pytest.mark.parametrize(
    "start",
    [b"GET /healthz HTTP/1.1\r\n" + CHUNKED + b"0\r\n", ATTEND + b"0\r\n", ATTEND + CHUNK + b"0\r\n"],
    ids=["after an early answer", "without a body", "after a body"],
)
@pytest.mark.parametrize("trailers", [b"a:b\r\n", b"a"], ids=["many", "one long name"])
def test_trailers_without_end(server, start, trailers):
    """Megabytes of trailers end the connection early, and leave the server's memory as it is."""
    process = psutil.Process(server.process.pid)
    before, sent = process.memory_info().rss, 0
    block = trailers * (65536 // len(trailers))
    with connect(server) as peer:
        peer.sendall(start)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 # whichever comes first
            while sent < 64 * MIB:
                peer.sendall(block)
                sent += len(block)
    assert sent < 16 * MIB  # as much as the kernel's buffers hold
    assert process.memory_info().rss - before < 32 * MIB


def test_trailers_change_nothing(server):
    """Trailers of an allowed size are ignored: none is a header of the request, and the next request is read."""
    first = ATTEND + CHUNK + b"0\r\nx-request-id: from-a-trailer\r\nhost: elsewhere\r\n\r\n"
    second = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    received = exchange(server, first + second)
    assert received.count(b"HTTP/1.1 200 ") == 2
    assert b"from-a-trailer" not in received


def test_many_small_chunks(server):
    """Chunk headers do not count as trailers: a body in single bytes, over 64 KiB of chunks, is read."""
    body = BODY[:-1] + b" " * 70_000 + BODY[-1:]
    chunks = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body)
    received = exchange(server, ATTEND.replace(b"host", b"connection: close\r\nhost") + chunks + b"0\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")


def test_slow_bytes_are_parsed_few_in_a_turn(dot_only, monkeypatch):
    """Bytes that take the parser long, such as single bytes in chunks, are parsed 4 KiB in a turn of the event loop."""
    parsed = []
    read = connection.Connection._read

    def recorded(self, data):
        parsed.append(len(data))
        read(self, data)

    monkeypatch.setattr(connection.Connection, "_read", recorded)
    monkeypatch.setattr(connection, "QUICK_SECONDS", 0)
    monkeypatch.setattr(connection, "SLOW_SECONDS", 1e-9)
    body = BODY[:-1] + b" " * 20_000 + BODY[-1:]
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    with local_server(dot_only) as server:
        received = exchange(server, ATTEND.replace(b"host", b"connection: close\r\nhost") + chunks + b"0\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert max(parsed) <= connection.SLICE_LEAST
    assert sum(parsed) > len(chunks)


def test_requests_for_metrics_share_one_exposition(dot_only, monkeypatch):
    """While the metrics are written, further requests wait for the same text, and take no thread."""
    begun, may_end = [], threading.Event()
    expose = RestServer._expose

    def waiting(self):
        begun.append(self)
        assert may_end.wait(HANG)
        return expose(self)

    monkeypatch.setattr(RestServer, "_expose", waiting)
    get = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    with local_server(dot_only) as server, ThreadPoolExecutor() as pool:
        first = pool.submit(exchange, server, get)
        wait_until(lambda: begun)
        rest = [pool.submit(exchange, server, get) for _ in range(4)]
        assert exchange(server, get.replace(b"metrics", b"healthz")).startswith(b"HTTP/1.1 200 ")
        may_end.set()
        assert all(b"\nattention_" in each.result(HANG) for each in (first, *rest))
    assert len(begun) <= 2  # a second for requests that came behind the first


# --- the Host header ---

PATHS = ("/healthz", "/readyz", "/", "/v1/models", "/metrics", "/v2/health/live", "/nowhere")


def get(server: Server, path: str, *headers: str, version: str = "HTTP/1.1") -> tuple[int, dict]:
    """Send a GET; return the status and, of an error, the document."""
    lines = (f"GET {path} {version}", *headers, "connection: close", "", "")
    head, _, body = exchange(server, "\r\n".join(lines).encode("latin-1")).partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert b"x-request-id: " in head
    return status, json.loads(body)["error"] if status in (400, 421) else {}


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:8080", "127.9.9.9:1", "[::1]", "[::1]:8080", "localhost:"],
)
def test_loopback_hosts_are_accepted(server, host):
    """A server on a loopback address answers to each loopback name, with any port."""
    assert get(server, "/readyz", f"host: {host}")[0] == 200
    assert get(server, "/v1/models", f"Host:{host}")[0] == 200


@pytest.mark.parametrize("path", PATHS)
def test_another_host_is_misdirected(server, path):
    """DNS rebinding: a loopback server refuses every foreign host, on every path, and the error quotes the host."""
    status, error = get(server, path, "host: attacker.example:8080")
    assert status == 421
    if path.startswith("/v2"):  # the Open Inference Protocol's errors are words alone
        assert error.startswith("Host: is 'attacker.example:8080'")
    else:
        assert error["field"] == "Host"
        assert "'attacker.example:8080'" in error["message"]


@pytest.mark.parametrize(
    "host",
    ["", "localhost.attacker.example", "attacker@localhost", "127.0.0.1.attacker.example", "10.0.0.1", "[::2]", "::1",
     "localhost, localhost", "localhost/x", "127.1", "[localhost", "localhost:80:80", "localhost:x",
     "localhost:" + "8" * 60, "0.0.0.0", "\xe9"],
)  # fmt: skip
def test_hosts_that_look_like_loopback(server, host):
    """Only the names themselves pass, and only in the form that RFC 9110 gives a host."""
    assert get(server, "/healthz", f"host: {host}")[0] == 421


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", [(), ("host: localhost", "host: localhost"), ("host: a", "Host: localhost")])
def test_exactly_one_host(server, path, headers):
    """HTTP/1.1 has one Host header: with none, or with two, a request is refused."""
    assert get(server, path, *headers)[0] == 400


def test_http_1_0_needs_no_host(server):
    """HTTP/1.0 has no Host header, but where one is sent it is checked."""
    assert get(server, "/healthz", version="HTTP/1.0")[0] == 200
    assert get(server, "/healthz", "host: attacker.example", version="HTTP/1.0")[0] == 421
    assert get(server, "/healthz", "host: localhost", "host: localhost", version="HTTP/1.0")[0] == 400


def test_a_server_for_others_answers_to_every_host(server, repository, tmp_path):
    """On any address but a loopback one, as in a container, every host is accepted, but exactly one."""
    (tmp_path / "dot").symlink_to(repository / "dot")
    with start_server(tmp_path, "--host", "0.0.0.0") as open_server:
        assert get(open_server, "/v1/models", "host: attention.example")[0] == 200
        assert get(open_server, "/healthz", "host:")[0] == 200
        assert get(open_server, "/healthz")[0] == 400
        assert get(open_server, "/healthz", "host: a", "host: a")[0] == 400


@pytest.mark.parametrize(
    ("name", "expected"),
    [("127.0.0.1", True), ("127.5.5.5", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("example.com", False), ("192.168.0.1", False), ("", False)],
)  # fmt: skip
def test_loopback_addresses(name, expected):
    """Hosts are checked only if --host is a loopback address."""
    assert is_loopback(name) is expected
