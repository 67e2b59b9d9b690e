"""Requests as users of MLServer write them: content types, columns, and parameters that change nothing."""

import json
import subprocess

import grpc
import numpy as np
import pytest
from attention_proto.inference import grpc_predict_v2_pb2 as pb
from serving import HANG, ROOT

from tests.oip.oip_requests import QUERY, TEXT, arrays, infer, post

TEXTS = ["I gave my cat Tater a toy", "Mia was shown a letter by Leo"]


@pytest.fixture(scope="module")
def answers(server):
    """The answers to the requests of MLServer's codecs, by request."""
    command = [ROOT / ".venv-clients/bin/python", ROOT / "tests/oip/clients/mlserver_codecs.py", server.url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("request_", ["str", "nulls", "pd", "first", "base64"])
def test_texts_of_mlservers_codecs(server, answers, request_):
    """A column of strings, with fields that are null, in a frame, as the first input, or in base64, is [B] texts."""
    sent = {"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS}
    outputs = [{"name": "weights"}, {"name": "tokens"}]
    expected = arrays(infer(server, "multi-head", inputs=[sent], outputs=outputs))
    assert answers[request_]["tokens"] == expected["tokens"].ravel().tolist()
    np.testing.assert_allclose(answers[request_]["weights"], expected["weights"], atol=1e-6)


def test_arrays_of_mlservers_codecs(server, answers):
    """Arrays, and lengths as a column [B, 1], are read as they are without content types."""
    query = {"name": "query", "datatype": "FP32", "shape": [2, 2, 2], "data": [1, 0, 0, 1, 1, 1, 2, 0]}
    lengths = {"name": "query_lengths", "datatype": "INT64", "shape": [2], "data": [2, 1]}
    expected = arrays(infer(server, inputs=[query, lengths]))
    assert answers["np"].keys() == expected.keys()
    np.testing.assert_allclose(answers["np"]["output"], expected["output"], atol=1e-6)


def test_what_the_codecs_write_and_no_input_can_be(answers):
    """Float64, NumPy's own type, is refused with the remedy; so are bytes that are no base64, and text of numbers."""
    assert answers["FP64"].startswith("query: has data type 'FP64'; it must be one of BOOL")
    assert answers["FP64"].endswith("send array.astype('float32') as FP32")
    assert answers["broken"].startswith("inputs[0].parameters.content_type: says base64 of UTF-8")
    assert answers["numbers"].startswith("inputs[0].parameters.content_type: str is of BYTES")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"priority": 0, "sequence_id": 0, "sequence_start": False, "sequence_end": False}, None),
        ({"content_type": "np", "headers": {"a": ["b"]}}, None),
        ({"priority": 1}, "parameters.priority: there is no such field"),
        ({"sequence_start": True}, "parameters.sequence_start: there is no such field"),
        ({"content_type": "pd_json"}, "parameters.content_type: must be one of str, np, pd, not 'pd_json'"),
        ({"content_type": 1}, "parameters.content_type: must be a string"),
    ],
)
def test_parameters_that_change_nothing(server, parameters, words):
    """Parameters of Triton and MLServer are taken with the values that change nothing, and refused with others."""
    response = infer(server, parameters=parameters)
    assert response.status_code == (400 if words else 200), response.text
    assert response.json().get("error", "").startswith(words or "")


def test_other_content_types_and_shapes_are_refused(server):
    """An unknown content type of an input, and a row of texts in place of a column, are refused by their place."""
    for sent, words in (
        (TEXT | {"parameters": {"content_type": "hg_json"}}, "inputs[0].parameters.content_type: must be one of str"),
        (TEXT | {"shape": [1, 2], "data": TEXTS}, "text: must have shape [batch], not [1, 2]"),
        (QUERY | {"parameters": {"contenttype": "np"}}, "inputs[0].parameters.contenttype: there is no such field"),
    ):
        response = post(server, "/v2/models/multi-head/infer", {"inputs": [sent]})
        assert response.status_code == 400
        assert response.json()["error"].startswith(words), response.json()


def test_content_types_over_grpc(stub):
    """Content types of inputs hold over gRPC, too."""

    def tokens(elements: list[bytes], **parameters: str) -> bytes:
        tensor = pb.ModelInferRequest.InferInputTensor(
            name="text", datatype="BYTES", shape=[1, 1], contents=pb.InferTensorContents(bytes_contents=elements)
        )
        for name, text in parameters.items():
            tensor.parameters[name].string_param = text
        wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name="tokens")]
        message = pb.ModelInferRequest(model_name="multi-head", inputs=[tensor], outputs=wanted)
        return stub.ModelInfer(message, timeout=HANG).raw_output_contents[0]

    plain = tokens([b"cat"])
    assert b"cat" in plain
    assert tokens([b"cat"], content_type="str") == tokens([b"Y2F0"], content_type="base64") == plain
    with pytest.raises(grpc.RpcError, match=r"inputs\[0\].parameters.content_type: must be one of str") as caught:
        tokens([b"cat"], content_type="datetime")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    wide = pb.ModelInferRequest.InferInputTensor(
        name="query", datatype="FP64", shape=[1], contents=pb.InferTensorContents(fp64_contents=[1.0])
    )
    with pytest.raises(grpc.RpcError, match=r"send array.astype\('float32'\) as FP32"):
        stub.ModelInfer(pb.ModelInferRequest(model_name="dot", inputs=[wide]), timeout=HANG)
