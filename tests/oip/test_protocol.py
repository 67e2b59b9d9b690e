"""The Open Inference Protocol's own rules: forms on the wire, refusals that name the place, limits."""

import gzip
import hashlib
import json
import struct
import subprocess
import zlib
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from attention_proto.inference import grpc_predict_v2_pb2 as pb
from attention_proto.inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openapi_schema_validator import OAS30Validator
from serving import ROOT, start_server

LENGTH = "Inference-Header-Content-Length"
QUERY = {"name": "query", "datatype": "FP32", "shape": [1, 2, 2], "data": [1, 0, 0, 1]}
TEXT = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["I gave my cat Tater a toy"]}


def post(server: Any, path: str, body: Any = None, **options: Any) -> requests.Response:
    content = {"json": body} if isinstance(body, dict) else {"data": body}
    response = requests.post(f"{server.url}{path}", timeout=30, **content, **options)
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/json"
        assert response.json().keys() == {"error"}
        assert response.headers["x-request-id"]
    return response


def infer(server: Any, model: str = "dot", **document: Any) -> requests.Response:
    return post(server, f"/v2/models/{model}/infer", {"inputs": [QUERY], **document})


def arrays(response: requests.Response) -> dict[str, np.ndarray]:
    assert response.status_code == 200, response.text
    kinds = {"FP32": "f4", "FP16": "f2", "INT64": "i8", "UINT16": "u2", "BYTES": object}
    return {
        each["name"]: np.array(each["data"], kinds[each["datatype"]]).reshape(each["shape"])
        for each in response.json()["outputs"]
    }


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


# --- the contract ---


def test_fields_and_methods_are_tritons():
    """Each field and method here has the name, number and kind that Triton's client knows, and no method is missing."""
    command = [ROOT / ".venv-clients/bin/python", ROOT / "tests/oip/clients/fields.py"]
    theirs = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)

    def fields(message: Any) -> dict[str, list[Any]]:
        own = {f"{message.full_name}.{f.name}": [f.number, f.type, f.is_repeated] for f in message.fields}
        for nested in message.nested_types:
            own |= fields(nested)
        return own

    for message in pb.DESCRIPTOR.message_types_by_name.values():
        for name, kind in fields(message).items():
            assert theirs["fields"][name] == kind, name
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert theirs["methods"] == {
        each.name: [each.input_type.full_name, each.output_type.full_name, each.client_streaming, each.server_streaming]
        for each in service.methods
    }
    assert theirs["types"] == {each.name: each.number for each in pb.DESCRIPTOR.enum_types_by_name["DataType"].values}


def test_health_knows_the_service(server):
    """grpc.health.v1 answers for this service by its name."""
    with grpc.insecure_channel(server.grpc) as channel:
        asked = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("path", "method", "body"),
    [
        ("/v2", "get", None),
        ("/v2/health/live", "get", None),
        ("/v2/health/ready", "get", None),
        ("/v2/models/{model}", "get", None),
        ("/v2/models/{model}/versions/{version}", "get", None),
        ("/v2/models/{model}/ready", "get", None),
        ("/v2/models/{model}/versions/{version}/ready", "get", None),
        ("/v2/models/{model}/config", "get", None),
        ("/v2/models/{model}/versions/{version}/config", "get", None),
        ("/v2/models/{model}/infer", "post", {"inputs": [QUERY], "id": "1"}),
        ("/v2/models/{model}/versions/{version}/infer", "post", {"inputs": [QUERY]}),
        ("/v2/models/stats", "get", None),
        ("/v2/models/{model}/stats", "get", None),
        ("/v2/models/{model}/versions/{version}/stats", "get", None),
        ("/v2/repository/index", "post", None),
        ("/v2/repository/index", "post", {"ready": True}),
    ],
)
def test_success_is_200_and_as_the_document_says(server, path, method, body):
    """Every success is exactly 200, and its body is what OpenAPI's document says of it."""
    url = server.url + path.format(model="dot", version=1)
    response = requests.request(method, url, json=body, timeout=60)
    assert response.status_code == 200, response.text
    document = requests.get(f"{server.url}/openapi.json", timeout=60).json()
    schema = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    OAS30Validator(schema | {"components": document["components"]}).validate(response.json())


@pytest.mark.parametrize("name", ["vectors", "text"])
def test_the_documents_examples_run(server, name):
    """Each example of OpenAPI's document is answered."""
    document = requests.get(f"{server.url}/openapi.json", timeout=60).json()
    content = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]
    body = content["examples"][name]["value"]
    model = {"vectors": "dot", "text": "multi-head"}[name]
    assert post(server, f"/v2/models/{model}/infer", body).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/dot/versions/7", 404),
        ("GET", "/v2/models/dot/versions/x", 400),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/dot/infer", 405),
        ("POST", "/v2/models/nobody/infer", 400),
        ("POST", "/v2/repository/models/dot/load", 501),
        ("POST", "/v2/repository/models/dot/unload", 501),
        ("GET", "/v2/systemsharedmemory/status", 501),
        ("POST", "/v2/cudasharedmemory/region/x/register", 501),
        ("GET", "/v2/trace/setting", 501),
        ("POST", "/v2/logging", 501),
    ],
)
def test_errors_are_a_string(server, method, path, status):
    """What fails says why in `error`, a string, and has the code of its cause."""
    response = requests.request(method, f"{server.url}{path}", timeout=60)
    assert response.status_code == status
    assert isinstance(response.json().pop("error"), str)


# --- refusals name the place ---

LENGTHS = {"name": "query_lengths", "datatype": "INT64", "shape": [1], "data": [2]}

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
    """What the protocol or the model cannot take is a 400 that begins with the place at fault."""
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
        (answer,) = stub.ModelStreamInfer(iter([message]), timeout=30)
        return answer.error_message
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message, timeout=30)
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
    """Of a mask too an error says whose of the batch it is, and names the input as the protocol does."""
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
    """A value has the lengths of what it goes with: what is behind them is ignored, as of all that is padded."""

    def sent(name: str, *shape: int) -> dict[str, Any]:
        return {"name": name, "datatype": "FP32", "shape": [batch, *shape], "data": np.arange(batch * 6.0).tolist()}

    query, key = sent("query", 3, 2), sent("key", 3, 2)
    longer = {"name": "value", "datatype": "FP32", "shape": [batch, 5, 1], "data": [*range(5)] * batch}
    value = longer | {"shape": [batch, 3, 1], "data": [0, 1, 2] * batch}
    expected = arrays(infer(server, inputs=[query, key, value]))["output"]
    lengths = {"name": "key_lengths", "datatype": "INT64", "shape": [batch], "data": [3] * batch}
    for inputs in ([query, key, longer], [query, key, longer, lengths], [query, longer]):
        np.testing.assert_array_equal(arrays(infer(server, inputs=inputs))["output"], expected)


# --- bytes behind JSON ---


def binary(document: dict[str, Any], raw: bytes, length: str | None = None) -> dict[str, Any]:
    head = json.dumps(document).encode()
    return {"body": head + raw, "headers": {LENGTH: str(len(head)) if length is None else length}}


def bytes_input(name: str, size: int, datatype: str = "FP32", shape: Any = (1, 1, 2)) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": size}}


RAW = np.array([3, 4], "<f4").tobytes()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (binary({"inputs": [bytes_input("query", 9)]}, RAW), "inputs[0].parameters.binary_data_size: says 9 bytes"),
        (binary({"inputs": [bytes_input("query", -1)]}, RAW), "inputs[0].parameters.binary_data_size: says -1 bytes"),
        (binary({"inputs": [bytes_input("query", 8)]}, RAW + b"x"), f"{LENGTH}: leaves 1 bytes"),
        (
            binary({"inputs": [bytes_input("query", 4)]}, RAW[:4]),
            "query: has shape [1, 1, 2] of FP32, which is 8 bytes",
        ),
        (binary({"inputs": [bytes_input("query", 8)]}, RAW, "99999"), f"{LENGTH}: must be from 0 to"),
        (binary({"inputs": [bytes_input("query", 8)]}, RAW, "-1"), f"{LENGTH}: must be from 0 to"),
        (binary({"inputs": [bytes_input("query", 8)]}, RAW, "9" * 5000), f"{LENGTH}: must be from 0 to"),
        (binary({"inputs": [bytes_input("query", 8)]}, RAW, "x"), f"{LENGTH}: must be from 0 to"),
        (binary({"inputs": [bytes_input("query", 8) | {"data": [1, 2]}]}, RAW), "inputs[0].data: stands beside"),
        (
            binary({"inputs": [bytes_input("text", 8, "BYTES", (1,))]}, struct.pack("<I", 9) + b"abcd"),
            "text: ends within",
        ),
        (
            binary({"inputs": [bytes_input("text", 5, "BYTES", (1,))]}, struct.pack("<I", 1) + b"\xff"),
            "text: must be UTF-8",
        ),
        (binary({"inputs": [bytes_input("text", 2, "BYTES", (1,))]}, b"ab"), "text: ends within an element"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bytes_that_do_not_fit(server, asked, words):
    """Bytes that are too few, too many, or no tensor are refused by their place."""
    response = post(server, "/v2/models/dot/infer", asked["body"], headers=asked["headers"])
    assert response.status_code == 400
    assert response.json()["error"].startswith(words), response.json()


def test_bytes_are_sent_as_they_are_asked_for(server):
    """`binary_data` of an output goes before `binary_data_output`; the header says where the bytes begin."""
    outputs = [{"name": "output"}, {"name": "scores", "parameters": {"binary_data": False}}]
    response = infer(server, outputs=outputs, parameters={"binary_data_output": True})
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    output, scores = json.loads(response.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 16} and "data" not in output
    assert len(scores["data"]) == 4
    assert len(response.content) == length + 16
    assert LENGTH not in infer(server, outputs=outputs).headers


@pytest.mark.parametrize("path", ["/v2/models/dot/infer", "/v1/models/dot:attend"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies(server, path, encoding):
    """A compressed body is read, of either protocol."""
    body = json.dumps({"inputs": [QUERY]} if path.startswith("/v2") else {"query": [[1, 0]]}).encode()
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding](body)
    response = requests.post(f"{server.url}{path}", packed, headers={"content-encoding": encoding}, timeout=60)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("body", "encoding", "words"),
    [
        (b"{}", "gzip", "Content-Encoding: the body is no gzip"),
        (gzip.compress(b"{}")[:-4], "gzip", "Content-Encoding: the body is no gzip"),
        (zlib.compress(b"{}") + b"x", "deflate", "Content-Encoding: the body is no deflate"),
        (b"{}", "br", "Content-Encoding: must be one of gzip, deflate, not 'br'"),
    ],
)
def test_bodies_that_are_not_compressed_as_they_say(server, body, encoding, words):
    """A body that is not of its encoding, or of one that is not known, is refused."""
    response = post(server, "/v2/models/dot/infer", body, headers={"content-encoding": encoding})
    assert response.status_code == 400
    assert response.json()["error"].startswith(words)


@pytest.fixture(scope="module")
def narrow(repository):
    """A server that takes and sends little."""
    with start_server(repository, "--max-message-mib", 1, "--max-answer-mib", 1) as running:
        yield running


def test_what_inflates_too_far_is_refused(narrow):
    """The limit of a body holds for what it inflates to, and no more than that is inflated."""
    bomb = gzip.compress(bytes(64 * 2**20))
    assert len(bomb) < 2**20
    response = post(narrow, "/v2/models/dot/infer", bomb, headers={"content-encoding": "gzip"})
    assert response.status_code == 413


def test_padding_counts_in_the_limit_of_an_answer(narrow):
    """Short sequences beside a long one are padded to it: what that makes too large is refused with words."""
    query = {"name": "query", "datatype": "FP32", "shape": [64, 100, 1], "data": [0.0] * 6400}
    lengths = {"name": "query_lengths", "datatype": "INT64", "shape": [64], "data": [100] + [1] * 63}
    response = infer(narrow, inputs=[query, lengths], outputs=[{"name": "weights"}])
    assert response.status_code == 413
    assert response.json()["error"].startswith("outputs: the answer would be at least 2560000 bytes, padded")


# --- what can be asked for ---


def test_two_forms_of_one_stage(server):
    """`stage` says which one an output is, under a name of its own; its options are its own."""
    outputs = [
        {"name": "best", "parameters": {"stage": "weights", "top_k": 1}},
        {"name": "last", "parameters": {"stage": "weights", "rows": -1}},
        {"name": "weights"},
    ]
    got = arrays(infer(server, outputs=outputs))
    assert list(got) == ["best.indices", "best.values", "last", "weights"]
    np.testing.assert_array_equal(got["last"][0, 0, 0], got["weights"][0, 0, 1])
    np.testing.assert_array_equal(got["best.values"][0, 0, :, 0], got["weights"][0, 0].max(-1))


def test_rows_are_pooled_without_padding(server):
    """`pool` makes the rows of each sequence one, padding left out; the batch has no dimension for them."""
    query = np.random.default_rng(4).standard_normal((3, 6, 24)).astype("f4")
    sent = {"name": "query", "datatype": "FP32", "shape": [3, 6, 24], "data": query.ravel().tolist()}
    lengths = {"name": "query_lengths", "datatype": "INT64", "shape": [3], "data": [6, 2, 4]}
    outputs = [
        {"name": "output"},
        {"name": "mean", "parameters": {"stage": "output", "pool": "mean"}},
        {"name": "heads", "parameters": {"pool": "last"}},
        {"name": "weights"},
        {"name": "looked_at", "parameters": {"stage": "weights", "pool": "mean"}},
        {"name": "most", "parameters": {"stage": "weights", "pool": "first", "top_k": 2}},
    ]
    got = arrays(infer(server, "multi", inputs=[sent, lengths], outputs=outputs))
    shapes = {"mean": (3, 20), "heads": (3, 3, 5), "looked_at": (3, 3, 6), "most.indices": (3, 3, 2)}
    assert {name: got[name].shape for name in shapes} == shapes
    for i, length in enumerate((6, 2, 4)):
        np.testing.assert_allclose(got["mean"][i], got["output"][i, :length].mean(0), atol=1e-6)
        np.testing.assert_allclose(got["looked_at"][i], got["weights"][i, :, :length].mean(1), atol=1e-6)


def test_entropy_is_padded_by_rows(server):
    """A stage of one number a row is [B, H, T], or [B, H] pooled; rows behind a sequence's length are zeros."""
    query = {"name": "query", "datatype": "FP32", "shape": [2, 4, 2], "data": [0.0] * 16}
    lengths = {"name": "query_lengths", "datatype": "INT64", "shape": [2], "data": [2, 3]}
    outputs = [{"name": "entropy"}, {"name": "mean", "parameters": {"stage": "entropy", "pool": "mean"}}]
    answer = post(server, "/v2/models/dot/infer", {"inputs": [query, lengths], "outputs": outputs}).json()
    whole, mean = answer["outputs"]
    assert (whole["shape"], mean["shape"]) == ([2, 1, 4], [2, 1])
    expected = np.zeros((2, 1, 4))
    expected[0, 0, :2], expected[1, 0, :3] = np.log(2), np.log(3)
    np.testing.assert_allclose(np.reshape(whole["data"], (2, 1, 4)), expected, rtol=1e-6)
    np.testing.assert_allclose(np.ravel(mean["data"]), [np.log(2), np.log(3)], rtol=1e-6)


def test_a_memory_is_named_by_a_parameter(server):
    """A memory that attention.v1 keeps serves every sequence of a batch."""
    key = np.random.default_rng(1).standard_normal((5, 12)).tolist()
    value = np.random.default_rng(2).standard_normal((5, 10)).tolist()
    query = np.random.default_rng(3).standard_normal((2, 7, 16)).astype("f4")
    memory = requests.post(
        f"{server.url}/v1/models/cross/memories", json={"key": key, "value": value}, timeout=10
    ).json()
    sent = {"name": "query", "datatype": "FP32", "shape": [2, 7, 16], "data": query.ravel().tolist()}
    outputs = [{"name": "output"}, {"name": "weights"}, {"name": "k"}]
    got = arrays(infer(server, "cross", inputs=[sent], outputs=outputs, parameters={"memory": memory["id"]}))
    direct = {
        name: {"name": name, "datatype": "FP32", "shape": [2, 5, len(rows[0])], "data": [rows, rows]}
        for name, rows in {"key": key, "value": value}.items()
    }
    other = arrays(infer(server, "cross", inputs=[sent, *direct.values()], outputs=outputs))
    assert got["weights"].shape == (2, 4, 7, 5)
    for name, array in other.items():
        np.testing.assert_allclose(got[name], array, atol=1e-6)
    gone = infer(server, "cross", inputs=[sent], parameters={"memory": "f" * 32})
    assert gone.status_code == 404
    assert gone.json()["error"].startswith("parameters.memory: ")


def test_text_beside_memory_text(server):
    """A model that reads two texts takes both as BYTES, and gives the tokens of both, padded with nothing."""
    text = TEXT | {"shape": [2], "data": ["twenty one", "cats"]}
    memory_text = TEXT | {"name": "memory_text", "shape": [2], "data": ["ein", "Katzen und Hunde"]}
    names = ("tokens", "memory_tokens", "weights", "predictions.row", "predictions.label")
    outputs = [{"name": name} for name in names]
    got = arrays(infer(server, "text-cross", inputs=[text, memory_text], outputs=outputs))
    assert list(got) == list(names)
    assert got["tokens"].tolist() == [["twenty", "one"], ["cats", ""]]
    assert got["memory_tokens"].tolist() == [["ein", "", ""], ["Katzen", "und", "Hunde"]]
    assert got["weights"].shape == (2, 2, 2, 3)
    assert not got["weights"][1, :, 1].any()
    assert got["predictions.row"].tolist() == [[0, 1, 0, 1, -1], [0, 0, 0, -1, -1]]
    assert got["predictions.label"][1, 4] == ""


def test_a_timeout_is_in_microseconds(server):
    """Triton's `timeout` bounds the wait."""
    query = {"name": "query", "datatype": "FP32", "shape": [1, 1, 1], "data": [1]}
    assert infer(server, inputs=[query], parameters={"timeout": 1}).status_code == 504
    assert infer(server, inputs=[query], parameters={"timeout": 0}).status_code == 200


def test_statistics_count_what_was_asked(repository):
    """Requests, sequences and failures are counted for their version, by either protocol; parts make up the whole."""

    def of(server: Any, path: str) -> list[dict[str, Any]]:
        response = requests.get(f"{server.url}/v2/models/{path}", timeout=60)
        assert response.status_code == 200
        return response.json()["model_stats"]

    with start_server(repository) as server:
        (fresh,) = of(server, "dot/stats")
        assert fresh["last_inference"] == fresh["inference_count"] == fresh["inference_stats"]["success"]["count"] == 0
        pair = QUERY | {"shape": [2, 1, 2]}
        assert infer(server, inputs=[pair]).status_code == 200
        body = {"query": [[1, 0]]}
        assert requests.post(f"{server.url}/v1/models/dot:attend", json=body, timeout=60).status_code == 200
        assert infer(server, inputs=[QUERY, LENGTHS | {"name": "bias"}]).status_code == 400
        (one,) = of(server, "dot/versions/1/stats")
        assert (one["inference_count"], one["execution_count"]) == (3, 2)
        assert one["last_inference"] > 1_700_000_000_000
        parts = one["inference_stats"]
        assert {name: part["count"] for name, part in parts.items()} == {
            "success": 2,
            "fail": 1,
            "queue": 2,
            "compute_input": 2,
            "compute_infer": 2,
            "compute_output": 2,
        }
        inside = sum(parts[name]["ns"] for name in ("queue", "compute_input", "compute_infer"))
        assert 0 < parts["compute_infer"]["ns"] < inside <= parts["success"]["ns"]
        assert [each["version"] for each in of(server, "self/stats")] == ["1", "2"]
        assert {each["name"] for each in of(server, "stats")} > {"dot", "multi", "self"}
        assert requests.get(f"{server.url}/v2/models/nobody/stats", timeout=60).status_code == 404


# --- gRPC's own ---


def message(**fields: Any) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="query", datatype="FP32", shape=[1, 1, 2])
    return pb.ModelInferRequest(**{"model_name": "dot", "inputs": [tensor], **fields})


def typed(datatype: str, shape: list[int], **contents: Any) -> list[pb.ModelInferRequest.InferInputTensor]:
    return [
        pb.ModelInferRequest.InferInputTensor(
            name="query", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
        )
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (message(), "query: has shape [1, 1, 2] of FP32, which is 8 bytes, but carries 0"),
        (message(raw_input_contents=[RAW, RAW]), "raw_input_contents: has more elements"),
        (message(inputs=typed("FP32", [1, 1, 2], fp32_contents=[1])), "query: has shape [1, 1, 2], but 1 values"),
        (message(inputs=typed("FP32", [1, 1, 1], int64_contents=[1])), "query: has shape [1, 1, 1], but 0 values"),
        (
            message(inputs=typed("FP16", [1, 1, 1], fp32_contents=[1])),
            "query: of type 'FP16' cannot be sent in contents",
        ),
        (
            message(inputs=typed("UINT16", [1], uint_contents=[70000])),
            "query: must have shape [batch, length, width], not [1]",
        ),
        (message(raw_input_contents=[RAW], model_version="x"), "version: must be an integer above 0"),
        (
            message(raw_input_contents=[RAW], parameters={"causal": pb.InferParameter()}),
            "parameters.causal: has no value",
        ),
        (
            message(raw_input_contents=[RAW], parameters={"causal": pb.InferParameter(bool_param=True)}),
            "parameters.causal",
        ),
    ],
)
def test_messages_that_do_not_fit(stub, asked, words):
    """What a message cannot hold is refused by its place."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(asked, timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(words)


def test_raw_and_typed_contents_may_stand_beside_each_other(stub):
    """Raw contents go, in their order, to the inputs that have none; the answer is raw always."""
    key = pb.ModelInferRequest.InferInputTensor(name="key", datatype="FP32", shape=[1, 1, 2])
    asked = message(inputs=[*typed("FP32", [1, 1, 2], fp32_contents=[1, 2]), key], raw_input_contents=[RAW], id="x")
    answer = stub.ModelInfer(asked, timeout=60)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [3, 4]
    assert (answer.id, answer.model_version, len(answer.outputs)) == ("x", "1", len(answer.raw_output_contents))


def test_what_is_not_offered_is_unimplemented(stub, server):
    """Shared memory, trace and log settings are UNIMPLEMENTED, and no fault of ours in the log."""
    before = server.log.count("fault of ours")
    for name in ("SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting", "LogSettings"):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, name)(getattr(pb, f"{name}Request")(), timeout=60)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert server.log.count("fault of ours") == before


def test_a_timeout_on_a_stream_is_its_requests_alone(stub):
    """One request of a stream runs out of time; the next ones have theirs."""
    short = {"timeout": pb.InferParameter(int64_param=1)}
    asked = [message(raw_input_contents=[RAW], id="1", parameters=short), message(raw_input_contents=[RAW], id="2")]
    late, answered = stub.ModelStreamInfer(iter(asked), timeout=30)
    assert "deadline" in late.error_message and late.infer_response.id == "1"
    assert answered.infer_response.id == "2" and not answered.error_message


def test_a_streams_answers_are_those_of_single_calls(stub):
    """Each answer of a stream is the one that a call has, and says that it is its request's last."""
    asked = message(raw_input_contents=[RAW], id="1")
    alone = stub.ModelInfer(asked, timeout=60)
    assert not alone.parameters
    (streamed,) = stub.ModelStreamInfer(iter([asked]), timeout=30)
    assert streamed.infer_response.parameters.pop("triton_final_response").bool_param
    assert streamed == pb.ModelStreamInferResponse(infer_response=alone)


# --- the repository, and who may change it ---


def test_load_and_unload(repository):
    """In explicit mode models come and go by both transports, and readiness and the index tell."""
    with (
        start_server(repository, "--repository-mode", "explicit") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        assert not stub.ModelReady(pb.ModelReadyRequest(name="dot"), timeout=60).ready
        assert post(server, "/v2/repository/models/dot/load").status_code == 200
        assert stub.ModelReady(pb.ModelReadyRequest(name="dot"), timeout=60).ready
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="cross"), timeout=60)
        index = post(server, "/v2/repository/index", {"ready": True}).json()
        assert [each["name"] for each in index] == ["cross", "dot"]
        unload = {"parameters": {"unload_dependents": False}}
        assert post(server, "/v2/repository/models/dot/unload", unload).status_code == 200
        assert requests.get(f"{server.url}/v2/models/dot/ready", timeout=60).status_code in {404, 503}
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="cross"), timeout=60)
        assert post(server, "/v2/repository/index", {"ready": True}).json() == []
        refused = post(server, "/v2/repository/models/dot/load", {"parameters": {"config": "{}"}})
        assert refused.status_code == 400
        assert refused.json()["error"].startswith("parameters.config: there is no such field")


def test_who_may_do_what(repository, tmp_path):
    """Health needs no token; all else does, and to change the repository needs its right: errors in this form."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[asker]\nsha256 = "{hashlib.sha256(b"secret").hexdigest()}"\nrights = ["attend"]\n')
    known = {"authorization": "Bearer secret"}
    with start_server(repository, "--tokens", tokens) as server:
        assert requests.get(f"{server.url}/v2/health/ready", timeout=60).json() == {"ready": True}
        assert post(server, "/v2/models/dot/infer", {"inputs": [QUERY]}).status_code == 401
        assert post(server, "/v2/models/dot/infer", {"inputs": [QUERY]}, headers=known).status_code == 200
        assert post(server, "/v2/repository/models/dot/unload", headers=known).status_code == 403
        with grpc.insecure_channel(server.grpc) as channel:
            stub = GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(pb.ServerReadyRequest(), timeout=60).ready
            for method, asked, metadata, code in (
                (stub.ModelInfer, message(raw_input_contents=[RAW]), (), grpc.StatusCode.UNAUTHENTICATED),
                (
                    stub.RepositoryModelUnload,
                    pb.RepositoryModelUnloadRequest(model_name="dot"),
                    tuple(known.items()),
                    grpc.StatusCode.PERMISSION_DENIED,
                ),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    method(asked, timeout=60, metadata=metadata)
                assert caught.value.code() == code
