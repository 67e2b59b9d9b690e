"""Answers as bytes, put together from pieces: the message that protobuf makes of the same."""

import numpy as np
import pytest
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.codec import encode
from attention_server.codecs import proto
from attention_server.domain.messages import Prediction, Response, Result, Span, Tokens, TopK

TOKENS = Tokens(np.array([1, 2]), np.array([0, 0]), ("a", "b"), ("a", "b"), (Span(0, 1), Span(2, 3)))


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
    batches = (
        Result({"output": full}, batch=2),
        Result({"turned": full.transpose(0, 2, 1), "half": full.astype(np.float16), "mean": full[:, 0]}, batch=2),
        Result({str(i): full for i in range(5)}, batch=2),
        Result({str(i): full[0] for i in range(5)}),
    )
    alone = (Result(some, TOKENS, TOKENS, predicted), Result({}), Result({"output": full[1]}))
    return Response("m", 3, (*alone, *batches), True)


def by_protobuf(answer: Response) -> pb.AttendResponse:
    message = pb.AttendResponse(model=answer.model, version=answer.version)
    for result in answer.each():
        written = message.results.add()
        for name, value in result.outputs.items():
            if isinstance(value, TopK):
                top = pb.TopK(indices=encode(value.indices), values=encode(value.values))
                written.outputs.add(name=name, top_k=top)
            else:
                written.outputs.add(name=name, tensor=encode(value))
        for each in result.predictions or ():
            written.predictions.add(name=each.name, label=each.label, probability=each.probability, row=each.row)
        for tokens, shown, offsets in (
            (result.tokens, written.tokens, written.token_offsets),
            (result.memory_tokens, written.memory_tokens, written.memory_token_offsets),
        ):
            if tokens:
                shown.extend(tokens.shown)
                offsets.extend(pb.Span(start=start, end=end) for start, end in tokens.spans)
    return message


@pytest.mark.parametrize("length", [2, 100])
def test_bytes_are_the_message(length):
    """The bytes of any answer are those of its message, alone and on a stream."""
    answer = response(length)
    message = by_protobuf(answer)
    assert pb.AttendResponse.FromString(proto.encode_response(answer)) == message
    streamed = pb.AttendStreamResponse.FromString(proto.encode_stream_response(answer, "id"))
    assert streamed == pb.AttendStreamResponse(id="id", response=message)
