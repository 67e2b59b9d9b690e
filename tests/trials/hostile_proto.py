"""Messages of either protocol: all that the descriptors allow, valid ones with edits, and bytes that are no message."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.inference import grpc_predict_v2_pb2 as oip
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st

INTEGERS = (0, 1, 2, 3, -1, 7, 100, 2**31 - 1, -(2**31), 2**32 - 1, 2**62, 2**63 - 1, -(2**63), 2**64 - 1)
FLOATS = (0.0, -0.0, 1.5, 1e300, -1e-300, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "dot",
    "self",
    "multi",
    "text-cross",
    "multi-head",
    "nobody",
    "..",
    "query",
    "key",
    "allowed",
    "text",
    "query_lengths",
    "weights",
    "scores",
    "output",
    "predictions",
    "tokens",
    "FP32",
    "FP16",
    "BYTES",
    "INT64",
    "BOOL",
    "1",
    "0",
    "99999999999999999999",
    "twenty one",
    "I gave my cat",
    "é\u2028\x00",
    "x" * 5000,
    "causal",
    "top_left",
    "heads",
)
BYTES = (
    b"",
    bytes(4),
    bytes(12),
    np.ones(6, "<f4").tobytes(),
    b"\x03\x00\x00\x00abc",
    b"\xff\xff\xff\x7f",
    bytes(4096),
)


def _tensor(array: np.ndarray) -> pb.Tensor:
    return pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=array.shape, data=array.astype("<f4").tobytes())


def _infer(**more: Any) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor
    query = tensor(name="query", datatype="FP32", shape=(1, 2, 3))
    return oip.ModelInferRequest(model_name="dot", inputs=[query], raw_input_contents=[bytes(24)], **more)


ONES = np.ones((2, 3), np.float32)
VALID: dict[str, list[Message]] = {
    "/attention.v1.AttentionService/Attend": [
        pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=_tensor(ONES))]),
        pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=_tensor(ONES), lengths=[1, 1])]),
        pb.AttendRequest(
            model="multi",
            inputs=[pb.Sequence(query=_tensor(np.ones((2, 24)))) for _ in range(3)],
            outputs=[pb.OutputSpec(name="weights", top_k=1), pb.OutputSpec(name="k", rows=[-1], heads=[0])],
            mask=pb.Mask(causal=pb.Mask.CAUSAL_TOP_LEFT, window=pb.Mask.Window(left=1, right=-1)),
        ),
        pb.AttendRequest(model="multi-head", inputs=[pb.Sequence(text="I gave my cat")], token_offsets=True),
        pb.AttendRequest(model="text-cross", inputs=[pb.Sequence(text="twenty", memory_text="ein")]),
        pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=_tensor(np.ones((2, 1, 3))))]),
        pb.AttendRequest(model="multi-head", inputs=[pb.Sequence(token_ids=[1, 2, 3], truncate=pb.TRUNCATE_RIGHT)]),
    ],
    "/attention.v1.AttentionService/Tokenize": [
        pb.TokenizeRequest(model="multi-head", inputs=[pb.TokenizeInput(text="I gave my cat")]),
        pb.TokenizeRequest(model="text-cross", inputs=[pb.TokenizeInput(text="ein", text_pair="und")], memory=True),
    ],
    "/attention.v1.AttentionService/CreateMemory": [pb.CreateMemoryRequest(model="dot", key=_tensor(ONES))],
    "/attention.v1.AttentionService/GetModel": [pb.GetModelRequest(model="dot", version=1)],
    "/attention.v1.AttentionService/ListModels": [pb.ListModelsRequest()],
    "/attention.v1.AttentionService/GetMemory": [pb.GetMemoryRequest(model="dot", id="x")],
    "/attention.v1.AttentionService/ListMemories": [pb.ListMemoriesRequest(model="dot")],
    "/attention.v1.AttentionService/DeleteMemory": [pb.DeleteMemoryRequest(model="dot", id="x")],
    "/inference.GRPCInferenceService/ModelInfer": [
        _infer(),
        _infer(outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="weights")]),
        _infer(parameters={"causal": oip.InferParameter(string_param="top_left")}),
        oip.ModelInferRequest(
            model_name="multi-head",
            inputs=[
                oip.ModelInferRequest.InferInputTensor(
                    name="text",
                    datatype="BYTES",
                    shape=[1],
                    contents=oip.InferTensorContents(bytes_contents=[b"I gave my cat"]),
                )
            ],
        ),
    ],
    "/inference.GRPCInferenceService/ModelMetadata": [oip.ModelMetadataRequest(name="dot", version="1")],
    "/inference.GRPCInferenceService/ModelReady": [oip.ModelReadyRequest(name="dot")],
    "/inference.GRPCInferenceService/ModelConfig": [oip.ModelConfigRequest(name="dot")],
    "/inference.GRPCInferenceService/ModelStatistics": [oip.ModelStatisticsRequest(name="dot")],
    "/inference.GRPCInferenceService/ServerMetadata": [oip.ServerMetadataRequest()],
    "/inference.GRPCInferenceService/RepositoryIndex": [oip.RepositoryIndexRequest(ready=True)],
    "/inference.GRPCInferenceService/RepositoryModelLoad": [oip.RepositoryModelLoadRequest(model_name="dot")],
    "/grpc.health.v1.Health/Check": [health_pb2.HealthCheckRequest(service="")],
}
STREAMS: dict[str, list[Message]] = {
    "/attention.v1.AttentionService/AttendStream": [
        pb.AttendStreamRequest(
            id="1", request=pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=_tensor(ONES))])
        ),
        pb.AttendStreamRequest(id="2"),
    ],
    "/inference.GRPCInferenceService/ModelStreamInfer": [_infer(id="1")],
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_by_filename="nothing.proto"),
    ],
}
# The calls in which most can be wrong are made most often.
OFTEN = ("/attention.v1.AttentionService/Attend", "/inference.GRPCInferenceService/ModelInfer")
METHODS = (*VALID, *OFTEN * 5)


@cache
def of(descriptor: Descriptor, depth: int = 4) -> "st.SearchStrategy[Message]":
    """Return a strategy for all that a message's descriptor allows, and values that an enumeration does not."""
    kind = GetMessageClass(descriptor)
    fields = [each for each in descriptor.fields if depth or each.message_type is None]

    @st.composite
    def build(draw: Callable[..., Any]) -> Message:
        message = kind()
        for field in draw(st.lists(st.sampled_from(fields), max_size=5)) if fields else ():
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                continue  # edits and damages make these
            if field.is_repeated:
                values = draw(st.lists(_value(field, depth), max_size=3))
                getattr(message, field.name).extend(values)
            elif field.message_type is not None:
                getattr(message, field.name).CopyFrom(draw(_value(field, depth)))
            else:
                setattr(message, field.name, draw(_value(field, depth)))
        return message

    return build()


def _value(field: FieldDescriptor, depth: int) -> "st.SearchStrategy[Any]":
    kind = field.cpp_type
    if kind == field.CPPTYPE_MESSAGE:
        return of(field.message_type, depth - 1)
    if kind == field.CPPTYPE_STRING:
        return st.sampled_from(BYTES) if field.type == field.TYPE_BYTES else st.sampled_from(TEXTS)
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return st.sampled_from(FLOATS)
    if kind == field.CPPTYPE_BOOL:
        return st.booleans()
    bits = 64 if kind in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64) else 32
    least = 0 if kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else -(2 ** (bits - 1))
    return st.sampled_from([each for each in INTEGERS if least <= each < least + 2**bits])


@st.composite
def messages(draw: Callable[..., Any], valid: list[Message]) -> bytes:
    """Draw a message: one of the valid, with further fields of its descriptor merged into it; or only that."""
    base = draw(st.sampled_from(valid))
    how = draw(st.integers(0, 3))
    if how == 0:
        return base.SerializeToString()
    other = draw(of(base.DESCRIPTOR))
    if how == 1:
        return other.SerializeToString()
    return base.SerializeToString() + other.SerializeToString()  # which merges both


def damaged(body: bytes, rng: random.Random) -> bytes:
    """Return a message as a bad line, or a bad caller, would send it."""
    kind = rng.randrange(10)
    at = rng.randrange(len(body) + 1)
    if kind == 0:
        return body[:at]
    if kind <= 3 and body:
        at = rng.randrange(len(body))
        return (
            body[:at] + bytes([rng.choice((body[at] ^ (1 << rng.randrange(8)), 0xFF, 0x80, 0, 0x7F))]) + body[at + 1 :]
        )
    if kind == 4:
        return body[:at] + rng.randbytes(rng.randrange(1, 12)) + body[at:]
    if kind == 5:
        return body + field_of(rng)
    if kind == 6:
        return field_of(rng) + body
    if kind == 7:
        return rng.randbytes(rng.randrange(200))
    if kind == 8:
        depth = rng.choice((50, 101, 1000, 20_000))
        return b"\x0b" * depth + (b"\x0c" * depth if rng.randrange(2) else b"")  # groups within groups
    end = min(len(body), at + rng.randrange(1, 20))
    return body[:at] + body[end:]


def field_of(rng: random.Random) -> bytes:
    """Return one field: known or unknown, of any wire type, its length true or not."""
    key = varint(rng.choice((1, 2, 3, 4, 5, 6, 7, 15, 16, 999, 2**29 - 1)) << 3 | rng.randrange(8))
    content = rng.choice(
        (
            varint(rng.choice(INTEGERS) % 2**64),
            b"\xff" * 11,
            b"\x80" * 10 + b"\x00",
            varint(5) + b"abcde",
            varint(2**31 - 1),
            varint(2**63),
            varint(3) + b"\xff\xfe\xfd",
            bytes(8),
        )
    )
    return key + content


def varint(value: int) -> bytes:
    """Write an integer as protobuf does."""
    written = b""
    while value >= 0x80:
        written += bytes([value & 0x7F | 0x80])
        value >>= 7
    return written + bytes([value])
