"""Raw HTTP/1.1 to a real server: trailers and the Host header."""

import socket
from collections.abc import Iterator

import psutil
import pytest
from serving import Server, start_server

MIB = 2**20
CHUNKED = b"host: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n"
ATTEND = b"POST /v1/models/dot:attend HTTP/1.1\r\n" + CHUNKED
BODY = b'{"query": [[1.0]]}'
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    (models / "dot").symlink_to(repository / "dot")
    with start_server(models) as running:
        yield running


def connect(server: Server) -> socket.socket:
    host, port = server.rest.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def exchange(server: Server, request: bytes) -> bytes:
    """Send bytes; return all that comes until the server closes the connection."""
    with connect(server) as peer:
        peer.sendall(request)
        received = b""
        while more := peer.recv(65536):
            received += more
        return received


# --- trailers ---


@pytest.mark.parametrize(
    "start",
    [b"GET /healthz HTTP/1.1\r\n" + CHUNKED + b"0\r\n", ATTEND + b"0\r\n", ATTEND + CHUNK + b"0\r\n"],
    ids=["after an early answer", "without a body", "after a body"],
)
@pytest.mark.parametrize("trailers", [b"a:b\r\n", b"a"], ids=["many", "one long name"])
def test_trailers_without_end(server, start, trailers):
    """Megabytes of trailers end the connection early, and the server's memory does not grow with them."""
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
    """Trailers of an allowed size are ignored: they are no headers of the request, and the next request is read."""
    first = ATTEND + CHUNK + b"0\r\nx-request-id: from-a-trailer\r\nhost: elsewhere\r\n\r\n"
    second = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    received = exchange(server, first + second)
    assert received.count(b"HTTP/1.1 200 ") == 2
    assert b"from-a-trailer" not in received


def test_many_small_chunks(server):
    """Chunk headers do not count as trailers: a body in single bytes, 64 KiB of them and more, is read."""
    body = BODY[:-1] + b" " * 70_000 + BODY[-1:]
    chunks = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body)
    received = exchange(server, ATTEND.replace(b"host", b"connection: close\r\nhost") + chunks + b"0\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")
