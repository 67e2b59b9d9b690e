"""Messages written by hand: protobuf reads the same message."""

import numpy as np
import pytest
from attention_proto import codec, wire
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.inference import grpc_predict_v2_pb2 as oip
from google.rpc.status_pb2 import Status


def tensor(*shape, dtype=np.float32):
    return codec.encode(np.arange(np.prod(shape), dtype=dtype).reshape(shape))


REQUEST = pb.AttendRequest(
    model="ünï",
    version=3,
    inputs=[
        pb.Sequence(
            query=tensor(2, 3), key=tensor(300, 9), mask=pb.Mask(causal=2, allowed=tensor(1, 2, dtype=np.bool_))
        ),
        pb.Sequence(text="", memory="id"),
        pb.Sequence(),
        pb.Sequence(query=tensor(0, 0), mask=pb.Mask(window=pb.Mask.Window(left=-1, right=2))),
        pb.Sequence(query=pb.Tensor(shape=[-1, 2**62], data=b"\x00" * 20000)),
    ],
    outputs=[pb.OutputSpec(name="weights", heads=[1, 2], rows=[-1], pool=1), pb.OutputSpec()],
    mask=pb.Mask(bias=tensor(1)),
    token_offsets=True,
)
RESPONSE = pb.AttendResponse(
    model="m",
    results=[
        pb.Result(
            outputs=[pb.Output(name="a", tensor=tensor(2)), pb.Output(name="b", top_k=pb.TopK(indices=tensor(3)))],
            tokens=["a", ""],
            predictions=[pb.Prediction(name="x", row=0), pb.Prediction(probability=0.5)],
        )
    ],
)
INFERENCE = oip.ModelInferResponse(
    model_name="m",
    parameters={"a": oip.InferParameter(int64_param=0), "b": oip.InferParameter(string_param="x")},
    outputs=[
        oip.ModelInferResponse.InferOutputTensor(name="y", shape=[1, 300]),
        oip.ModelInferResponse.InferOutputTensor(
            contents=oip.InferTensorContents(fp32_contents=[1, 2], bytes_contents=[b"", b"x"])
        ),
    ],
    raw_output_contents=[b"", b"\x01" * 300, b"z"],
)
MESSAGES = [
    REQUEST,
    RESPONSE,
    pb.AttendRequest(),
    INFERENCE,
    pb.AttendStreamRequest(id="7", request=REQUEST),
    pb.AttendStreamResponse(id="7", response=RESPONSE),
    pb.AttendStreamResponse(id="7", error=Status(code=3, message="no")),
    pb.CreateMemoryRequest(model="m", key=tensor(4, 2), memory_text=""),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_serialized(message):
    """Every field is there, with its presence, and nothing else."""
    assert type(message).FromString(wire.serialize(message)) == message
