"""Errors of the Open Inference Protocol: each names the field, output or sequence at fault."""

import json
from typing import Any

import grpc
import numpy as np
import pytest
from attention_proto.inference import grpc_predict_v2_pb2 as pb
from serving import HANG

from tests.oip.oip_requests import LENGTHS, QUERY, TEXT, arrays, binary, bytes_input, infer, post

# --- refusals name the place ---

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"inputs": []}, "query: give a query"),
    ({"inputs": [QUERY | {"name": "key", "shape": [0, 2, 2], "data": []}]}, "query: give a query"),
    ({"inputs": [QUERY | {"name": "qery"}]}, "inputs.qery: there is no such field; did you mean 'query'?"),
    ({"inputs": [QUERY, QUERY]}, "query: is sent twice"),
    ({"inputs": [QUERY | {"name": ""}]}, "inputs[0].name: say which"),
    ({"inputs": [QUERY | {"shape": [1, 2, 3]}]}, "query: has shape [1, 2, 3], but 4 values"),
    ({"inputs": [QUERY | {"shape": [1, -2, -2]}]}, "inputs[0].shape[1]: must be an integer, at least 0"),
    ({"inputs": [QUERY | {"shape": [2, 2]}]}, "query: must have shape [batch, length, width], not [2, 2]"),
    ({"inputs": [QUERY | {"shape": [0, 2, 2], "data": []}]}, "query: is a batch of no sequences"),
    ({"inputs": [QUERY | {"datatype": "FP64"}]}, "query: has data type 'FP64'; it must be one of"),
    ({"inputs": [QUERY | {"datatype": "INT64"}]}, "query: must be FP32 or FP16, not int64"),
    ({"inputs": [QUERY | {"data": [1, 0, 0, "1"]}]}, "query: must hold numbers only"),
    ({"inputs": [QUERY | {"data": [1, 0, 0, None]}]}, "query: must hold numbers only"),
    ({"inputs": [QUERY | {"data": [1, 0, 0, 1e999]}]}, "the body is not valid JSON"),
    ({"inputs": [{name: QUERY[name] for name in ("name", "datatype", "shape")}]}, "inputs[0].data: give data, or"),
    ({"inputs": [TEXT]}, "text: this model reads no text"),
    ({"inputs": [TEXT | {"name": "query"}]}, "query: must have shape [batch, length, width], not [1]"),
    ({"inputs": [TEXT | {"data": [7]}]}, "inputs[0].data: must hold strings only"),
    ({"inputs": [QUERY, LENGTHS | {"data": [3]}]}, "query_lengths: must be from 1 to 2, the length of query"),
    ({"inputs": [QUERY, LENGTHS | {"data": [0]}]}, "query_lengths: must be from 1 to 2"),
    ({"inputs": [QUERY, LENGTHS | {"shape": [2], "data": [1, 1]}]}, "query_lengths: has 2 sequences, but query has 1"),
    ({"inputs": [QUERY, LENGTHS | {"datatype": "INT32"}]}, "query_lengths: must be INT64, not int32"),
    ({"inputs": [QUERY, LENGTHS | {"name": "key_lengths"}]}, "key_lengths: goes with key, which was not sent"),
    (
        {"inputs": [QUERY, {"name": "allowed", "datatype": "BOOL", "shape": [3], "data": [True] * 3}]},
        "allowed: must be broadcastable to [heads, queries, keys] = [1, 2, 2], but has shape [3]",
    ),
    ({"inputs": [QUERY, LENGTHS | {"name": "bias"}]}, "bias: must be FP32 or FP16, not int64"),
    ({"outputs": [{"name": "weight"}]}, "outputs[0].name: there is no 'weight' among"),
    ({"outputs": [{"name": "predictions"}]}, "outputs[0].name: this model has no head"),
    ({"outputs": [{"name": "tokens"}]}, "outputs[0]: there are none"),
    ({"outputs": [{"name": "weights", "parameters": {"top": 1}}]}, "outputs[0].top: is for predictions"),
    (
        {"outputs": [{"name": "weights", "parameters": {"spans": '{"a": [0, 1], "a": [1, 2]}'}}]},
        "outputs[0].spans: must be a JSON object",
    ),
    ({"outputs": [{"name": "weights", "parameters": {"pairs": "1.0"}}]}, "outputs[0].pairs: there is no layer '1'"),
    ({"outputs": [{}]}, "outputs[0].name: say which"),
    (
        {"outputs": [{"name": "tokens"}, {"name": "weights", "parameters": {"heads": "7"}}]},
        "outputs[1].heads: there is",
    ),
    ({"outputs": [{"name": "weights", "parameters": {"heads": "a"}}]}, "outputs[0].heads: must be integers"),
    ({"outputs": [{"name": "weights", "parameters": {"topk": 1}}]}, "outputs[0].parameters.topk: there is no such"),
    ({"outputs": [{"name": "tokens", "parameters": {"top_k": 1}}]}, "outputs[0].parameters: tokens takes no options"),
    (
        {"outputs": [{"name": "weights", "parameters": {"binary_data": 1}}]},
        "outputs[0].parameters.binary_data: must be",
    ),
    ({"parameters": {"causl": "top_left"}}, "parameters.causl: there is no such field; did you mean 'causal'?"),
    ({"parameters": {"causal": "left"}}, "parameters.causal: must be one of none, top_left, bottom_right"),
    ({"parameters": {"causal": True}}, "parameters.causal: must be a string"),
    ({"parameters": {"window_left": -2}}, "parameters.window_left, parameters.window_right: must be at least 0"),
    ({"parameters": {"weights.top_k": 2}}, "parameters.weights.top_k: names no output that is asked for"),
    ({"outputs": [{"name": "output", "parameters": {"pool": "max"}}]}, "outputs[0].pool: must be one of none, mean"),
    ({"parameters": {"timeout": -1}}, "parameters.timeout: must be"),
    ({"parameters": {"sequence_id": 7}}, "parameters.sequence_id: there is no such field"),
    ({"parameters": {"causal": ["none"]}}, "parameters.causal: must be a string, a number, true or false"),
    ({"parameters": []}, "parameters: must be an object, not a list"),
    ({"model_name": "multi"}, "model_name: is 'multi', but the URL says 'dot'"),
    ({"model_version": "0"}, "version: must be an integer above 0"),
    ({"more": 1}, "more: there is no such field"),
]


@pytest.mark.parametrize(("document", "words"), REFUSED, ids=[words[:48] for _, words in REFUSED])
def test_refusals_name_the_place(server, document, words):
    """A request that the protocol or the model cannot take is a 400; its message begins with the field at fault."""
    sent = json.dumps({"inputs": [QUERY], **document})  # which writes Infinity as JavaScript has it
    response = post(server, "/v2/models/dot/infer", sent.encode())
    assert response.status_code == 400
    assert response.json()["error"].startswith(words), response.json()


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v2/models/dot/infer", b'{"inputs": [], "inputs": []}', "inputs: stands twice"),
        (
            "/v2/models/dot/infer",
            json.dumps({"inputs": [QUERY]})[:-1].encode() + b', "id": "1", "id": "2"}',
            "id: stands",
        ),
        ("/v2/repository/index", b'{"ready": true, "ready": false}', "ready: stands twice"),
    ],
)
def test_names_that_stand_twice(server, path, body, words):
    """A name that stands twice in one object is refused, as in attention.v1."""
    response = post(server, path, body)
    assert response.status_code == 400
    assert response.json()["error"].startswith(words), response.json()


def ask_raw(server: Any, stub: Any, transport: str, model: str, sent: dict[str, np.ndarray], outputs: Any = ()) -> str:
    """Send arrays as bytes over one of three transports, which carry NaN too; return the error's words."""
    kinds = {"f4": "FP32", "i8": "INT64", "b1": "BOOL"}
    inputs = [(name, kinds[x.dtype.str[1:]], x) for name, x in sent.items()]
    if transport == "rest":
        given = [bytes_input(name, x.nbytes, kind, x.shape) for name, kind, x in inputs]
        asked = [{"name": name, "parameters": options} for name, options in outputs]
        document = {"inputs": given} | ({"outputs": asked} if asked else {})
        body = binary(document, b"".join(x.tobytes() for _, _, x in inputs))
        return post(server, f"/v2/models/{model}/infer", body["body"], headers=body["headers"]).json()["error"]
    tensor, output = pb.ModelInferRequest.InferInputTensor, pb.ModelInferRequest.InferRequestedOutputTensor
    message = pb.ModelInferRequest(
        model_name=model,
        inputs=[tensor(name=name, datatype=kind, shape=x.shape) for name, kind, x in inputs],
        raw_input_contents=[x.tobytes() for _, _, x in inputs],
        outputs=[
            output(name=name, parameters={key: pb.InferParameter(string_param=text) for key, text in options.items()})
            for name, options in outputs
        ],
    )
    if transport == "stream":
        (answer,) = stub.ModelStreamInfer(iter([message]), timeout=HANG)
        return answer.error_message
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message, timeout=HANG)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.details()


WIRES = pytest.mark.parametrize("transport", ["rest", "grpc", "stream"])


@WIRES
@pytest.mark.parametrize(("number", "says"), [(np.nan, "must be finite"), (3e38, "overflows float32")])
@pytest.mark.parametrize("lengths", [None, [3, 2, 3]], ids=["equal lengths", "lengths"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_sequence_of_a_batch_is_named(server, stub, transport, number, says, lengths, at):
    """An error says in which sequence of the batch it is, whether checking or computing finds it."""
    query = np.random.default_rng(7).standard_normal((3, 3, 24)).astype("f4")
    query[at, 0] = number
    sent = {"query": query} | ({"query_lengths": np.array(lengths)} if lengths else {})
    words = ask_raw(server, stub, transport, "multi", sent)
    assert says in words
    assert f"(in sequence {at} of the batch, from 0)" in words


@WIRES
def test_a_mask_of_a_batch_is_named(server, stub, transport):
    """An error in a mask names the sequence, and the input by the protocol's name."""
    sent = {"query": np.ones((2, 1, 2), "f4"), "bias": np.zeros((2, 1, 1, 1), "f4")}
    sent["bias"][1] = np.nan
    words = ask_raw(server, stub, transport, "dot", sent)
    assert words.startswith("bias: must be finite or -inf, but is nan")
    assert words.endswith("(in sequence 1 of the batch, from 0)")
    sent = {"query": np.ones((2, 1, 2), "f4"), "allowed": np.ones((2, 1, 1, 3), "b1")}
    words = ask_raw(server, stub, transport, "dot", sent)
    assert words.startswith("allowed: ")
    assert words.endswith("(in sequence 0 of the batch, from 0)")


@WIRES
def test_one_sequence_is_not_named(server, stub, transport):
    """Where there is but one sequence, an error names none."""
    words = ask_raw(server, stub, transport, "dot", {"query": np.full((1, 2, 2), np.nan, "f4")})
    assert words.startswith("query: must be finite")
    assert "sequence" not in words


@WIRES
@pytest.mark.parametrize(
    ("outputs", "value", "field"),
    [
        ([("tokens", {}), ("output", {}), ("nothing", {})], 1, "outputs[2].name"),
        ([("tokens", {}), ("memory_tokens", {}), ("output", {"top_k": "1"})], 1, "outputs[2].top_k"),
        ([("tokens", {}), ("scores", {}), ("best", {"stage": "scores", "data_type": "FP16"})], 1e3, "outputs[2].data"),
        ([("tokens", {}), ("scores", {"rows": "7"})], 1, "outputs[1].rows"),
    ],
    ids=["a name", "an option", "a type too small", "a row"],
)
def test_an_output_is_named_by_its_place(server, stub, transport, outputs, value, field):
    """An error names an output by its place in the request, also behind outputs that are not computed."""
    words = ask_raw(server, stub, transport, "dot", {"query": np.full((1, 2, 2), value, "f4")}, outputs)
    assert words.startswith(field), words


@pytest.mark.parametrize("batch", [1, 3])
def test_a_value_longer_than_its_key(server, batch):
    """A value has the lengths of its key: positions after them are padding."""

    def sent(name: str, *shape: int) -> dict[str, Any]:
        return {"name": name, "datatype": "FP32", "shape": [batch, *shape], "data": np.arange(batch * 6.0).tolist()}

    query, key = sent("query", 3, 2), sent("key", 3, 2)
    longer = {"name": "value", "datatype": "FP32", "shape": [batch, 5, 1], "data": [*range(5)] * batch}
    value = longer | {"shape": [batch, 3, 1], "data": [0, 1, 2] * batch}
    expected = arrays(infer(server, inputs=[query, key, value]))["output"]
    lengths = {"name": "key_lengths", "datatype": "INT64", "shape": [batch], "data": [3] * batch}
    for inputs in ([query, key, longer], [query, key, longer, lengths], [query, longer]):
        np.testing.assert_array_equal(arrays(infer(server, inputs=inputs))["output"], expected)
