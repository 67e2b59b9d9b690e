"""Hostile cases that no generator comes upon: floods, bombs, frames of HTTP/2 made by hand, peers that only hold on."""

import contextlib
import gzip
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.inference import grpc_predict_v2_pb2 as oip

from tests.trials.doors import GrpcDoor, SocketDoor, exchanged
from tests.trials.subject import MIB, SECONDS_TO_SETTLE, Subject, Wrong, judge

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, HEADERS, CONTINUATION, RST, DATA, WINDOW, PRIORITY = 4, 6, 1, 9, 3, 0, 8, 2
ATTEND = "/attention.v1.AttentionService/Attend"
HUGE_SHAPES = ([2**62, 4], [2**63 - 1, 2], [-1, 3], [-(2**63)], [1] * 1000, [0, 2**62], [2**31, 2**31, 4], [2**16] * 4)


def frame(kind: int, flags: int = 0, stream: int = 0, content: bytes = b"", length: int | None = None) -> bytes:
    """Write a frame of HTTP/2; its length may lie."""
    size = len(content) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def literal(name: str, value: str) -> bytes:
    """Write a header as HPACK does, plainly, to lengths below 127."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def call_head(method: str = ATTEND) -> bytes:
    pairs = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "x", "te": "trailers"}
    return b"".join(literal(*pair) for pair in (pairs | {"content-type": "application/grpc"}).items())


@contextmanager
def grpc_socket(subject: Subject) -> Iterator[socket.socket]:
    host, port = subject.server.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as peer:
        yield peer


def frames_by_hand(subject: Subject) -> None:
    """Frames that are out of order, of lengths that lie, or without end."""
    head = call_head()
    opening = PREFACE + frame(SETTINGS)
    for sent in (
        b"\x00" * 100,
        os.urandom(5000),
        b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        PREFACE,
        PREFACE + b"\xff" * 100,
        opening + frame(DATA, 0, 1, b"x" * 100),
        opening + frame(HEADERS, 4, 2, head),
        opening + frame(HEADERS, 4, 1, b"\xff" * 50),
        opening + frame(HEADERS, 4, 1, head, 2**24 - 1),
        opening + frame(WINDOW, 0, 0, b"\x00\x00\x00\x00"),
        opening + frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 3,
        opening + frame(SETTINGS, 0, 0, b"\x00\x04\xff\xff\xff\xff"),
        opening + frame(99, 255, 2**31 - 1, b"x" * 1000),
        opening + frame(HEADERS, 4, 1, head) + frame(DATA, 1, 1, b"\x00\xff\xff\xff\xffabc"),
        opening + frame(HEADERS, 4, 1, head) + frame(DATA, 1, 1, b"\x02\x00\x00\x00\x03abc"),
        opening + frame(HEADERS, 4, 1, head) + frame(DATA, 1, 1, b"\x01\x00\x00\x00\x03abc"),
        opening + frame(HEADERS, 4, 1, head) + frame(DATA, 1, 1, b""),
    ):
        with grpc_socket(subject) as peer:
            exchanged(peer, [sent])


def floods_of_frames(subject: Subject) -> None:
    """Pings, settings, priorities, resets and continuations by the ten thousand."""
    head = call_head()
    opening = PREFACE + frame(SETTINGS)
    resets = b"".join(frame(HEADERS, 4, n, head) + frame(RST, 0, n, b"\x00\x00\x00\x08") for n in range(1, 8001, 2))
    for sent in (
        opening + frame(PING, 0, 0, bytes(8)) * 20_000,
        opening + frame(SETTINGS, 0, 0, b"\x00\x03\x00\x00\x00\x01") * 10_000,
        opening + frame(PRIORITY, 0, 1, b"\x00\x00\x00\x03\x10") * 10_000,
        opening + resets,
        opening + frame(HEADERS, 0, 1, head) + frame(CONTINUATION, 0, 1, literal("a" * 100, "b" * 100)) * 20_000,
    ):
        with grpc_socket(subject) as peer, contextlib.suppress(OSError):
            exchanged(peer, [sent])
        _wait_until_answered(subject)


def _wait_until_answered(subject: Subject) -> None:
    """Wait until a flood has been worked off: until then calls may be refused."""
    good = subject.goods[0].message().SerializeToString()
    end = time.monotonic() + SECONDS_TO_SETTLE
    with grpc.insecure_channel(subject.server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        attend = channel.unary_unary(ATTEND)
        while any(call.exception() for call in [attend.future(good, timeout=60) for _ in range(20)]):
            if time.monotonic() > end:
                raise Wrong("long after a flood, calls are still dropped")


def floods_of_headers(subject: Subject) -> None:
    """Heads of thousands of headers, and metadata of a megabyte."""
    door = SocketDoor(subject)
    door.send([b"GET /healthz HTTP/1.1\r\n" + b"".join(b"x%d: a\r\n" % i for i in range(5000)) + b"\r\n"])
    door.send([b"GET /healthz HTTP/1.1\r\nx: " + b"a" * MIB + b"\r\n\r\n"])
    door.send([b"GET /" + b"a" * MIB + b" HTTP/1.1\r\n\r\n"])
    with grpc.insecure_channel(subject.server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        attend = channel.unary_unary(ATTEND)
        for metadata in ([("x", "a" * MIB)], [(f"x{i}", "a") for i in range(3000)], [("x-request-id", "a" * 7000)]):
            with contextlib.suppress(grpc.RpcError):
                attend(b"", metadata=metadata, timeout=60)
                raise Wrong("an empty request was answered")


def bombs(subject: Subject) -> None:
    """Bodies and messages of a few kilobytes that inflate to many megabytes."""
    for url in ("/v1/models/dot:attend", "/v2/models/dot/infer", "/v2/repository/index"):
        for packed, encoding in (
            (gzip.compress(bytes(64 * MIB)), "gzip"),
            (zlib.compress(b"[" * 64 * MIB), "deflate"),
        ):
            headers = {"content-encoding": encoding}
            response = requests.post(subject.server.url + url, data=packed, headers=headers, timeout=60)
            judge(str(response.status_code), response.text)
            if response.status_code != 413:
                raise Wrong(f"a bomb had {response.status_code}")
    with grpc.insecure_channel(
        subject.server.grpc,
        [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)],
        compression=grpc.Compression.Gzip,
    ) as channel:
        try:
            channel.unary_unary(ATTEND)(b"\x12" + bytes(64 * MIB), timeout=60)
        except grpc.RpcError as error:
            judge(error.code().name, error.details() or "")  # type: ignore[attr-defined]
        else:
            raise Wrong("a bomb was answered")


def bodies_that_parse_slowly(subject: Subject) -> None:
    """Documents up to the limit made of structure alone."""
    for body in (
        b"[" * 3 * MIB,
        b'{"query":' + b"[" * MIB + b"]" * MIB + b"}",
        b'{"query":[' + b"[]," * MIB + b"[]]}",
        b'{"query":[' + b"{}," * MIB + b"{}]}",
        b'{"a":1,' * 300_000,
        b"{" + b",".join(b'"%d":0' % i for i in range(200_000)) + b"}",
        b'{"inputs":[' + b",".join([b'{"query":[[1.0]]}'] * 150_000) + b"]}",
        b'{"query":[[1.0]],"outputs":[' + b",".join([b'"weights"'] * 200_000) + b"]}",
        b'{"query":[[1.0]],"outputs":[{"name":"weights","rows":[' + b"0," * MIB + b"0]}]}",
        b'{"text":"' + b"I " * MIB + b'"}',
        b'{"query":[[' + b"1" * 3 * MIB + b"]]}",
    ):
        for url in ("/v1/models/dot:attend", "/v1/models/multi-head:attend", "/v2/models/dot/infer"):
            response = requests.post(subject.server.url + url, data=body, timeout=120)
            judge(str(response.status_code), response.text)
            if response.status_code not in (400, 413):
                raise Wrong(f"{url} {body[:60]!r} had {response.status_code}")


def shapes_that_overflow(subject: Subject) -> None:
    """Shapes with a product beyond every machine, or that are none, in every place for a shape."""
    door = GrpcDoor(subject)
    for shape in HUGE_SHAPES:
        for data_type in (pb.DATA_TYPE_FP32, pb.DATA_TYPE_BOOL, 99):
            tensor = pb.Tensor(data_type=data_type, shape=shape, data=bytes(16))
            for sequence in (
                pb.Sequence(query=tensor),
                pb.Sequence(query=tensor, key=tensor),
                pb.Sequence(mask=pb.Mask(allowed=tensor)),
            ):
                door.send(ATTEND, [pb.AttendRequest(model="dot", inputs=[sequence]).SerializeToString()])
        for name in ("query", "text", "allowed", "query_lengths"):
            for datatype in ("FP32", "BYTES", "INT64"):
                own = oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
                infer = oip.ModelInferRequest(model_name="dot", inputs=[own], raw_input_contents=[bytes(16)])
                door.send("/inference.GRPCInferenceService/ModelInfer", [infer.SerializeToString()])
    door.close()
    if door.codes.keys() - {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}:
        raise Wrong(f"shapes had {door.codes}")


def peers_that_hold_on(subject: Subject) -> None:
    """Connections by the hundred that send half a head, half a body, half a message or nothing hold up no caller."""
    host, port = subject.server.rest.split(":")
    with ExitStack() as stack:
        for i in range(100):
            for start in (
                b"",
                b"GET /",
                b"POST /v1/models/dot:attend HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{",
            ):
                peer = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
                peer.sendall(start)
            near = stack.enter_context(grpc_socket(subject))
            near.sendall(PREFACE + frame(SETTINGS) + frame(HEADERS, 4, 1, call_head()) if i < 30 else b"")
        for good in subject.goods:
            subject.ask(good)


CASES: tuple[Callable[[Subject], None], ...] = (
    frames_by_hand,
    floods_of_frames,
    floods_of_headers,
    bombs,
    bodies_that_parse_slowly,
    shapes_that_overflow,
    peers_that_hold_on,
)
