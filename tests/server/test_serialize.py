"""Answers as bytes: small ones by protobuf, large ones in pieces, and both are the same message."""

import numpy as np
import pytest
from attention_proto import wire
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_server.domain import Prediction, Response, Result, Span, Tokens, TopK
from attention_server.translate import proto

TOKENS = Tokens(np.array([1, 2]), ("a", "b"), ("a", "b"), (Span(0, 1), Span(2, 3)))


def response(length: int) -> Response:
    drawn = np.random.default_rng(length)
    full = drawn.standard_normal((2, length, length), np.float32)
    some = {
        "output": full[0],
        "turned": full.transpose(0, 2, 1),
        "half": full.astype(np.float16),
        "top": TopK(np.argsort(full)[..., :2].astype(np.uint16), np.sort(full)[..., :2]),
    }
    predicted = (Prediction("next", "b", 0.5, 1), Prediction("mean", "a", 0.25, None))
    return Response("m", 3, (Result(some, TOKENS, TOKENS, predicted), Result({}), Result({"output": full[1]})), True)


@pytest.mark.parametrize("length", [2, 100])
def test_bytes_are_the_message(length):
    """Whatever an answer has, its bytes are those of its message, alone and on a stream."""
    answer = response(length)
    assert (answer.size >= wire.LARGE) == (length == 100)
    message = proto.from_response(answer)
    assert pb.AttendResponse.FromString(proto.serialize(answer)) == message
    streamed = pb.AttendStreamResponse.FromString(proto.serialize_streamed(answer, "id"))
    assert streamed == pb.AttendStreamResponse(id="id", response=message)
