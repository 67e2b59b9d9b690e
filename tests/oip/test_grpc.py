"""The Open Inference Protocol over gRPC: messages, raw contents and streams."""

from typing import Any

import grpc
import numpy as np
import pytest
from attention_proto.inference import grpc_predict_v2_pb2 as pb
from attention_proto.inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from serving import HANG

from tests.local_server import IN_A_SLOT, local_server
from tests.oip.oip_requests import RAW, rpc_message


def typed(datatype: str, shape: list[int], **contents: Any) -> list[pb.ModelInferRequest.InferInputTensor]:
    return [
        pb.ModelInferRequest.InferInputTensor(
            name="query", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
        )
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (rpc_message(), "query: has shape [1, 1, 2] of FP32, which is 8 bytes, but carries 0"),
        (rpc_message(raw_input_contents=[RAW, RAW]), "raw_input_contents: has more elements"),
        (rpc_message(inputs=typed("FP32", [1, 1, 2], fp32_contents=[1])), "query: has shape [1, 1, 2], but 1 values"),
        (
            rpc_message(inputs=typed("FP32", [1, 1, 1], int64_contents=[1])),
            "query: is FP32, sent in fp32_contents; leave out int64_contents",
        ),
        (
            rpc_message(inputs=typed("FP16", [1, 1, 1], fp32_contents=[1])),
            "query: of type 'FP16' cannot be sent in contents",
        ),
        (
            rpc_message(inputs=typed("UINT16", [1], uint_contents=[70000])),
            "query: must have shape [batch, length, width], not [1]",
        ),
        (rpc_message(raw_input_contents=[RAW], model_version="x"), "version: must be an integer above 0"),
        (
            rpc_message(raw_input_contents=[RAW], parameters={"causal": pb.InferParameter()}),
            "parameters.causal: has no value",
        ),
        (
            rpc_message(raw_input_contents=[RAW], parameters={"causal": pb.InferParameter(bool_param=True)}),
            "parameters.causal",
        ),
    ],
)
def test_messages_that_do_not_fit(stub, asked, words):
    """A message with contents that do not match is refused by its field."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(asked, timeout=HANG)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(words)


def test_raw_and_typed_contents_may_stand_beside_each_other(stub):
    """Raw contents belong, in order, to the inputs without typed contents; the answer is always raw."""
    key = pb.ModelInferRequest.InferInputTensor(name="key", datatype="FP32", shape=[1, 1, 2])
    asked = rpc_message(inputs=[*typed("FP32", [1, 1, 2], fp32_contents=[1, 2]), key], raw_input_contents=[RAW], id="x")
    answer = stub.ModelInfer(asked, timeout=HANG)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [3, 4]
    assert (answer.id, answer.model_version, len(answer.outputs)) == ("x", "1", len(answer.raw_output_contents))


def test_what_is_not_offered_is_unimplemented(stub, server):
    """Shared memory, trace and log settings are UNIMPLEMENTED, and no fault of ours in the log."""
    before = server.log.count("fault of ours")
    for name in ("SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting", "LogSettings"):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, name)(getattr(pb, f"{name}Request")(), timeout=HANG)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert server.log.count("fault of ours") == before


def test_a_timeout_while_the_request_runs(dot_only):
    """A request that the parameter `timeout` limits fails at that time, also while it computes."""
    with local_server(dot_only, predicted=IN_A_SLOT) as server, grpc.insecure_channel(server.grpc) as channel:
        server.gate.close()
        asked = rpc_message(raw_input_contents=[RAW], parameters={"timeout": pb.InferParameter(int64_param=500_000)})
        with pytest.raises(grpc.RpcError) as caught:
            GRPCInferenceServiceStub(channel).ModelInfer(asked, timeout=HANG)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "deadline" in caught.value.details()  # the server's words: the call's own time was not over
        server.gate.open()


def test_a_timeout_on_a_stream_is_its_requests_alone(stub):
    """One request of a stream runs out of time; the next ones have theirs."""
    short = {"timeout": pb.InferParameter(int64_param=1)}
    asked = [
        rpc_message(raw_input_contents=[RAW], id="1", parameters=short),
        rpc_message(raw_input_contents=[RAW], id="2"),
    ]
    late, answered = stub.ModelStreamInfer(iter(asked), timeout=HANG)
    assert "deadline" in late.error_message and late.infer_response.id == "1"
    assert answered.infer_response.id == "2" and not answered.error_message


def test_a_streams_answers_are_those_of_single_calls(stub):
    """Each answer of a stream is the one that a call has, and says that it is its request's last."""
    asked = rpc_message(raw_input_contents=[RAW], id="1")
    alone = stub.ModelInfer(asked, timeout=HANG)
    assert not alone.parameters
    (streamed,) = stub.ModelStreamInfer(iter([asked]), timeout=HANG)
    assert streamed.infer_response.parameters.pop("triton_final_response").bool_param
    assert streamed == pb.ModelStreamInferResponse(infer_response=alone)
