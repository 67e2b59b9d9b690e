"""Frames of calls to the core's gRPC port, and readers of its answers."""

from urllib.parse import unquote

import numpy as np
from attention_proto.attention.v1 import attention_pb2 as pb
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, WindowUpdateFrame

from tests.http2.peer import Peer, data, fields, headers
from tests.messages import tensor

ATTEND = "/attention.v1.AttentionService/Attend"
PING = PingFrame(0).serialize()
QUERY = np.ones((2, 3), np.float32)


def request(query=QUERY, **about) -> pb.AttendRequest:
    return pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=tensor(query))], **about)


def call_headers(stream: int, path: str = ATTEND, *, end: bool = False, **more: str) -> bytes:
    """Return the frame that begins a call; a keyword names a further header, with _ for -."""
    return headers(stream, fields(path, **more), ("END_HEADERS", "END_STREAM") if end else ("END_HEADERS",))


def whole(stream: int, content: bytes) -> bytes:
    """Return the last frame of a call's messages."""
    return data(stream, content, ("END_STREAM",))


def window(stream: int, more: int) -> bytes:
    return WindowUpdateFrame(stream, more).serialize()


def words_of(answer: HeadersFrame) -> str:
    """Return the words of a call's status."""
    return unquote(answer.fields["grpc-message"])


def content_bytes(answer: Frame) -> int:
    """Return how many bytes of a message a frame has."""
    return len(answer.data) if isinstance(answer, DataFrame) else 0


def ends_call(answer: Frame) -> bool:
    return isinstance(answer, HeadersFrame) and "END_STREAM" in answer.flags


def peer_of(server) -> Peer:
    host, port = server.grpc.split(":")
    return Peer((host, int(port)))
