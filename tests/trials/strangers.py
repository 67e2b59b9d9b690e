"""Attacks without a token, from further addresses of this machine; each runs in a process of its own.

Each attack takes the addresses of both ports and the seconds to go on, and does what it can.
"""

import gzip
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np
from attention_proto.attention.v1 import attention_pb2 as pb

from tests.trials.hostile_cases import ATTEND, DATA, HEADERS, PING, PREFACE, RST, SETTINGS, call_head, frame

MIB = 2**20
PATH = "/v1/models/dot:attend"
Address = tuple[str, int]


def connect(address: Address, first: bytes = b"", receive: int = 0) -> socket.socket:
    """Connect from another address than the good caller's, send, and read nothing."""
    peer = socket.socket()
    if receive:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    peer.bind((f"127.0.0.{random.randrange(2, 5)}", 0))  # any will do
    peer.settimeout(20)
    peer.connect(address)
    with suppress(OSError):
        peer.sendall(first)
    return peer


def head(length: int | None = None, *more: str, path: str = PATH) -> bytes:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: localhost", *more, size, "", ""]).encode()


def together(count: int, work: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=_quietly, args=(work, i)) for i in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def _quietly(work: Callable[[int], object], number: int) -> None:
    with suppress(OSError):
        work(number)


def pour(peer: socket.socket, pieces: Iterable[bytes]) -> None:
    """Send until the server disconnects, or all is sent; read what comes."""
    with suppress(OSError):
        for piece in pieces:
            peer.sendall(piece)
        peer.settimeout(2)
        while peer.recv(65536):
            pass


def weights(length: int) -> bytes:
    query = pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[length, 1], data=bytes(4 * length))
    request = pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=query)], outputs=[pb.OutputSpec(name="weights")])
    return request.SerializeToString()


# --- memory ----------------------------------------------------------------------------------------------------------


def trailers(rest: Address, grpc: Address, end: float) -> None:
    """Trailers without end behind a chunked GET /healthz."""

    def one(_: int) -> None:
        while time.monotonic() < end:
            first = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
            pour(connect(rest, first), [b"".join(b"x%d: a\r\n" % i for i in range(5000))] * 40)

    together(8, one)


def half_bodies(rest: Address, grpc: Address, end: float) -> None:
    """Bodies of the largest size, sent by half, over both protocols."""

    def one(number: int) -> None:
        size = 60 * MIB
        if number % 2:
            peer = connect(rest, head(size))
            pieces = [bytes(MIB)] * 55
        else:
            peer = connect(grpc, PREFACE + frame(SETTINGS) + frame(HEADERS, 4, 1, call_head()))
            pieces = [frame(DATA, 0, 1, b"\0" + size.to_bytes(4, "big"))] + [frame(DATA, 0, 1, bytes(16384))] * 3000
        with suppress(OSError):
            for piece in pieces:
                peer.sendall(piece)
        while time.monotonic() < end:
            time.sleep(0.2)

    together(12, one)


def bombs(rest: Address, grpc: Address, end: float) -> None:
    """Compressed bodies of 260 kB that become the largest message."""
    packed = gzip.compress(b'{"query": [[' + b"1," * (25 * MIB) + b"1]]}")

    def one(_: int) -> None:
        while time.monotonic() < end:
            pour(connect(rest, head(len(packed), "content-encoding: gzip") + packed), ())

    together(16, one)


def documents(rest: Address, grpc: Address, end: float) -> None:
    """Honest JSON of 45 MB, of many callers at once."""
    row = b"[" + b",".join([b"0.123456"] * 64) + b"]"
    body = b'{"query": [' + b",".join([row] * (45 * MIB // len(row))) + b"]}"

    def one(_: int) -> None:
        while time.monotonic() < end:
            pour(connect(rest, head(len(body)) + body), ())

    together(30, one)


def unread(rest: Address, grpc: Address, end: float) -> None:
    """Requests of a few kB with answers of tens of MB that stay unread, over REST and on one connection of gRPC."""
    body = b'{"query": [' + b",".join([b"[1.0]"] * 2800) + b'], "outputs": ["weights"]}'
    content = weights(2800)
    framed = b"\0" + len(content).to_bytes(4, "big") + content
    peers = [connect(rest, head(len(body)) + body, 4096) for _ in range(8)]
    window = frame(8, 0, 0, b"\x7f\x00\x00\x00")
    calls = [frame(HEADERS, 4, i, call_head()) + frame(DATA, 1, i, framed) for i in range(1, 29, 2)]
    peers.append(connect(grpc, PREFACE + frame(SETTINGS) + window + b"".join(calls), 4096))
    while time.monotonic() < end:
        time.sleep(0.2)
    for peer in peers:
        peer.close()


def many_fields(rest: Address, grpc: Address, end: float) -> None:
    """Protobuf messages of millions of empty messages."""
    content = b"\x1a\x00" * (10 * MIB)

    def one(_: int) -> None:
        while time.monotonic() < end:
            pour(connect(rest, head(len(content), "content-type: application/x-protobuf") + content), ())

    together(8, one)


def pipelines(rest: Address, grpc: Address, end: float) -> None:
    """Requests by the ten thousand, ahead of their answers, none of which is read."""

    def one(_: int) -> None:
        while time.monotonic() < end:
            with suppress(OSError):
                connect(rest, b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 10_000, 4096)

    together(4, one)


# --- the loop --------------------------------------------------------------------------------------------------------


def flood(rest: Address, grpc: Address, end: float, frames: Callable[[int], bytes], connections: int = 4) -> None:
    """Send frames of one kind on some connections, each opened again when it ends."""

    def one(_: int) -> None:
        number = 1
        while time.monotonic() < end:
            with suppress(OSError), connect(grpc, PREFACE + frame(SETTINGS)) as peer:
                threading.Thread(target=_drain, args=(peer,), daemon=True).start()
                while time.monotonic() < end:
                    peer.sendall(b"".join(frames(number + 2 * i) for i in range(500)))
                    number += 1000

    together(connections, one)


def _drain(peer: socket.socket) -> None:
    with suppress(OSError):
        while peer.recv(65536):
            pass


def resets(rest: Address, grpc: Address, end: float) -> None:
    """HEADERS and RST_STREAM."""
    head_ = call_head()
    flood(rest, grpc, end, lambda i: frame(HEADERS, 5, i, head_) + frame(RST, 0, i, b"\0\0\0\x08"))


def empty_calls(rest: Address, grpc: Address, end: float) -> None:
    """Calls without a message, answered by an error each."""
    head_ = call_head("/none.None/None")
    flood(rest, grpc, end, lambda i: frame(HEADERS, 5, i, head_))


def pings(rest: Address, grpc: Address, end: float) -> None:
    """PING frames."""
    flood(rest, grpc, end, lambda _: frame(PING, 0, 0, bytes(8)))


def settings(rest: Address, grpc: Address, end: float) -> None:
    """SETTINGS frames."""
    flood(rest, grpc, end, lambda _: frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 100)))


def empty_data(rest: Address, grpc: Address, end: float) -> None:
    """DATA frames without data on an open stream."""
    opened: dict[str, bytes] = {}

    def frames(number: int) -> bytes:
        first = b"" if number != 1 else frame(HEADERS, 4, 1, call_head(ATTEND + "Stream"))
        return opened.get("", first) + frame(DATA, 0, 1)

    flood(rest, grpc, end, frames)


def requests(rest: Address, grpc: Address, end: float) -> None:
    """Requests of HTTP/1.1 for a path that is not there."""

    def one(_: int) -> None:
        while time.monotonic() < end:
            with suppress(OSError), connect(rest) as peer:
                threading.Thread(target=_drain, args=(peer,), daemon=True).start()
                while time.monotonic() < end:
                    peer.sendall(b"GET /none HTTP/1.1\r\nhost: localhost\r\n\r\n" * 10)

    together(8, one)


def chunks(rest: Address, grpc: Address, end: float) -> None:
    """A body in chunks of one byte."""

    def one(_: int) -> None:
        while time.monotonic() < end:
            with suppress(OSError), connect(rest, head()) as peer:
                threading.Thread(target=_drain, args=(peer,), daemon=True).start()
                while time.monotonic() < end:
                    peer.sendall(b"1\r\n \r\n" * 5000)

    together(4, one)


def scrapes(rest: Address, grpc: Address, end: float) -> None:
    """Requests for the metrics, many at a time."""

    def one(_: int) -> None:
        while time.monotonic() < end:
            with suppress(OSError), connect(rest) as peer:
                threading.Thread(target=_drain, args=(peer,), daemon=True).start()
                while time.monotonic() < end:
                    peer.sendall(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n" * 5)

    together(12, one)


MEMORY = (trailers, half_bodies, bombs, documents, unread, many_fields, pipelines)
FLOODS = (resets, empty_calls, pings, settings, empty_data, requests, chunks, scrapes)


def main() -> None:
    """Run an attack: its name, both addresses, the seconds."""
    name, rest, grpc, seconds = sys.argv[1:]
    attack = {each.__name__: each for each in (*MEMORY, *FLOODS)}[name]
    addresses = [(host, int(port)) for host, _, port in (each.partition(":") for each in (rest, grpc))]
    attack(*addresses, time.monotonic() + float(seconds))


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
