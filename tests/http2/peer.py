"""A peer of HTTP/2, and frames: well formed ones by hyperframe and hpack, and raw ones."""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

import hpack
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from serving import HANG

from tests.http2.echo import ECHO, Echo

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# The second acknowledges the server's, so that the server's windows and sizes hold.
OPENING = PREFACE + SettingsFrame(0).serialize() + SettingsFrame(0, flags=["ACK"]).serialize()


def raw(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """Return a frame of any form."""
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def fields(path: str = ECHO, **more: str) -> list[tuple[str, str]]:
    """Return the headers of a call; a keyword names a further one, with _ for -."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *((name.replace("_", "-"), value) for name, value in more.items()),
    ]


def block(headers: list[tuple[str, str]]) -> bytes:
    """Return headers as HPACK, with nothing put into its table."""
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*each) for each in headers], huffman=False)


def headers(
    stream: int = 1, sent: list[tuple[str, str]] | None = None, flags: tuple[str, ...] = ("END_HEADERS",)
) -> bytes:
    """Return a frame of headers."""
    return HeadersFrame(stream, block(fields() if sent is None else sent), flags=flags).serialize()


def data(stream: int = 1, content: bytes = b"", flags: tuple[str, ...] = ()) -> bytes:
    """Return a frame of data."""
    return DataFrame(stream, content, flags=flags).serialize()


def message(content: bytes, flag: int = 0) -> bytes:
    """Return a message of gRPC behind its prefix."""
    return bytes([flag]) + struct.pack(">I", len(content)) + content


class Peer:
    """A client of HTTP/2 that sends given bytes and reads frames."""

    def __init__(self, address: tuple[str, int], opening: bytes = OPENING) -> None:
        self.socket = socket.create_connection(address, timeout=HANG)
        self._received = bytearray()
        self._decoder = hpack.Decoder()
        self.send(opening)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        """Send frames; a connection that is closed meanwhile is noticed when it is read."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(b"".join(frames))

    def frames(self) -> Iterator[Frame]:
        """Yield each frame to the end of the connection."""
        while True:
            head = self._take(9)
            if head is None:
                return
            frame, length = Frame.parse_frame_header(memoryview(head))
            body = self._take(length)
            if body is None:
                return
            frame.parse_body(memoryview(body))
            if isinstance(frame, HeadersFrame):
                frame.fields = dict(self._decoder.decode(frame.data))
            yield frame

    def until(self, kind: type[Frame], stream: int | None = None) -> Frame:
        """Return the next frame of a kind."""
        for frame in self.frames():
            if isinstance(frame, kind) and stream in (None, frame.stream_id):
                return frame
        raise AssertionError("the connection was closed")

    def call(self, stream: int, content: bytes = b"hello") -> None:
        """Send a whole call."""
        self.send(headers(stream), data(stream, message(content), ("END_STREAM",)))

    def fence(self) -> list[Frame]:
        """Return all frames until the server has read everything that was sent."""
        self.send(PingFrame(0, b"thefence").serialize())
        found = []
        for frame in self.frames():
            if isinstance(frame, PingFrame) and frame.opaque_data == b"thefence":
                return found
            found.append(frame)
        raise AssertionError("the connection was closed")

    def _take(self, count: int) -> bytes | None:
        while len(self._received) < count:
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self._received += more
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken


def connected(server: Echo, opening: bytes = OPENING) -> Peer:
    """Return a peer of a server; a `with` block closes its connection."""
    return Peer(server.address, opening)


def reset(stream: int, code: int = 8) -> bytes:
    """Return a frame that resets a stream, by CANCEL."""
    return RstStreamFrame(stream, code).serialize()
