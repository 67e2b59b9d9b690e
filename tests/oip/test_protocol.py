"""The Open Inference Protocol over HTTP: the contract, outputs and parameters, and the repository."""

import hashlib
import json
import subprocess
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from attention_proto.inference import grpc_predict_v2_pb2 as pb
from attention_proto.inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openapi_schema_validator import OAS30Validator
from serving import HANG, ROOT, start_server

from tests.oip.oip_requests import LENGTHS, QUERY, RAW, TEXT, arrays, infer, post, rpc_message

# --- the contract ---


def test_fields_and_methods_are_tritons():
    """Each field and method here has the name, number and kind that Triton's client knows, and no method is missing."""
    command = [ROOT / ".venv-clients/bin/python", ROOT / "tests/oip/clients/fields.py"]
    theirs = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=HANG).stdout)

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
        answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=HANG)
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
    """Every success is exactly 200, and its body matches the schema of the OpenAPI document."""
    url = server.url + path.format(model="dot", version=1)
    response = requests.request(method, url, json=body, timeout=HANG)
    assert response.status_code == 200, response.text
    document = requests.get(f"{server.url}/openapi.json", timeout=HANG).json()
    schema = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    OAS30Validator(schema | {"components": document["components"]}).validate(response.json())


@pytest.mark.parametrize("name", ["vectors", "text"])
def test_the_documents_examples_run(server, name):
    """Each example of OpenAPI's document is answered."""
    document = requests.get(f"{server.url}/openapi.json", timeout=HANG).json()
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
    """A failure has its message in `error`, a string, and the code of its cause."""
    response = requests.request(method, f"{server.url}{path}", timeout=HANG)
    assert response.status_code == status
    assert isinstance(response.json().pop("error"), str)


# --- outputs and parameters ---


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
    """`pool` reduces the rows of each sequence to one, without padding; the batch has no dimension for rows."""
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
        f"{server.url}/v1/models/cross/memories", json={"key": key, "value": value}, timeout=HANG
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


@pytest.mark.parametrize(
    ("model", "texts"), [("dot", []), ("multi-head", ["text"]), ("text-cross", ["text", "memory_text"])]
)
def test_inputs_are_those_that_a_model_reads(server, model, texts):
    """The metadata names the texts that a model reads; the query is required where no text can stand for it."""
    url = f"{server.url}/v2/models/{model}"
    names = [each["name"] for each in requests.get(url, timeout=HANG).json()["inputs"]]
    assert [name for name in names if "text" in name] == texts
    config = requests.get(f"{url}/config", timeout=HANG).json()["input"]
    assert [each["name"] for each in config] == names
    assert {each["name"]: each["optional"] for each in config}["query"] == bool(texts)


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


def test_the_most_probable_labels(server):
    """The option `top` gives [B, N, k] of ids, labels and probabilities; fewer labels and predictions are padded."""
    text = TEXT | {"shape": [2], "data": ["twenty one", "cats"]}
    memory_text = TEXT | {"name": "memory_text", "shape": [2], "data": ["ein", "Katzen und Hunde"]}
    outputs = [{"name": "predictions", "parameters": {"top": 3}}]
    got = arrays(infer(server, "text-cross", inputs=[text, memory_text], outputs=outputs))
    parts = ["name", "label", "probability", "row", "id", "top.id", "top.label", "top.probability"]
    assert list(got) == [f"predictions.{part}" for part in parts]
    assert got["predictions.top.id"].shape == (2, 5, 3)
    for part in ("id", "label", "probability"):
        assert (got[f"predictions.top.{part}"][..., 0] == got[f"predictions.{part}"]).all()
    assert (np.diff(got["predictions.top.probability"]) <= 0).all()
    by_label = np.array([*"abcd"])[got["predictions.top.id"][0, :, :2]]
    assert (by_label == got["predictions.top.label"][0, :, :2]).all()
    assert got["predictions.top.label"][0, 2, 2] == ""  # `first` has two labels
    assert got["predictions.top.label"][1, 4].tolist() == [""] * 3  # the shorter text has four predictions
    named = [{"name": "predictions.top.id", "parameters": {"top": 3}}]
    alone = arrays(infer(server, "text-cross", inputs=[text, memory_text], outputs=named))
    assert list(alone) == ["predictions.top.id"]
    assert (alone["predictions.top.id"] == got["predictions.top.id"]).all()


def test_pairs_of_layer_and_head(server):
    """`pairs` is a string with commas; the embeddings of texts of several lengths are padded."""
    query = {"name": "query", "datatype": "FP32", "shape": [1, 2, 24], "data": np.eye(2, 24).ravel().tolist()}
    outputs = [
        {"name": "weights", "parameters": {"pairs": "0.2,0.0"}},
        {"name": "heads", "parameters": {"stage": "weights", "heads": "2,0"}},
    ]
    got = arrays(infer(server, "multi", inputs=[query], outputs=outputs))
    assert got["weights"].shape == (1, 2, 2, 2)
    assert (got["weights"] == got["heads"]).all()
    parts = {"pairs": "0.2,0.0", "spans": '{"both": [0, 2], "first": [0, 1], "last": {"begin": 1, "end": 2}}'}
    found = arrays(infer(server, "multi", inputs=[query], outputs=[{"name": "weights", "parameters": parts}]))
    summed = np.concatenate([got["weights"].sum(-1, keepdims=True), got["weights"]], -1)
    np.testing.assert_allclose(found["weights"], summed, rtol=1e-6)
    text = TEXT | {"shape": [2], "data": ["twenty one", "cats"]}
    memory_text = TEXT | {"name": "memory_text", "shape": [2], "data": ["ein", "Katzen und Hunde"]}
    outputs = [{"name": "embeddings"}]
    embeddings = arrays(infer(server, "text-cross", inputs=[text, memory_text], outputs=outputs))["embeddings"]
    assert embeddings.shape == (2, 2, 8)
    assert embeddings[0].any()
    assert not embeddings[1, 1].any()


def test_a_timeout_is_in_microseconds(server):
    """Triton's `timeout` bounds the wait."""
    query = {"name": "query", "datatype": "FP32", "shape": [1, 1, 1], "data": [1]}
    assert infer(server, inputs=[query], parameters={"timeout": 1}).status_code == 504
    assert infer(server, inputs=[query], parameters={"timeout": 0}).status_code == 200


def test_statistics_count_what_was_asked(repository):
    """Requests, sequences and failures over both protocols count for their version; phases add up to the total."""

    def of(server: Any, path: str) -> list[dict[str, Any]]:
        response = requests.get(f"{server.url}/v2/models/{path}", timeout=HANG)
        assert response.status_code == 200
        return response.json()["model_stats"]

    with start_server(repository) as server:
        (fresh,) = of(server, "dot/stats")
        assert fresh["last_inference"] == fresh["inference_count"] == fresh["inference_stats"]["success"]["count"] == 0
        pair = QUERY | {"shape": [2, 1, 2]}
        assert infer(server, inputs=[pair]).status_code == 200
        body = {"query": [[1, 0]]}
        assert requests.post(f"{server.url}/v1/models/dot:attend", json=body, timeout=HANG).status_code == 200
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
        assert requests.get(f"{server.url}/v2/models/nobody/stats", timeout=HANG).status_code == 404


# --- the repository and its access control ---


def test_load_and_unload(repository):
    """In explicit mode models come and go by both transports, and readiness and the index tell."""
    with (
        start_server(repository, "--repository-mode", "explicit") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        assert not stub.ModelReady(pb.ModelReadyRequest(name="dot"), timeout=HANG).ready
        assert post(server, "/v2/repository/models/dot/load").status_code == 200
        assert stub.ModelReady(pb.ModelReadyRequest(name="dot"), timeout=HANG).ready
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="cross"), timeout=HANG)
        index = post(server, "/v2/repository/index", {"ready": True}).json()
        assert [each["name"] for each in index] == ["cross", "dot"]
        unload = {"parameters": {"unload_dependents": False}}
        assert post(server, "/v2/repository/models/dot/unload", unload).status_code == 200
        assert requests.get(f"{server.url}/v2/models/dot/ready", timeout=HANG).status_code in {404, 503}
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="cross"), timeout=HANG)
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
        assert requests.get(f"{server.url}/v2/health/ready", timeout=HANG).json() == {"ready": True}
        assert post(server, "/v2/models/dot/infer", {"inputs": [QUERY]}).status_code == 401
        assert post(server, "/v2/models/dot/infer", {"inputs": [QUERY]}, headers=known).status_code == 200
        assert post(server, "/v2/repository/models/dot/unload", headers=known).status_code == 403
        with grpc.insecure_channel(server.grpc) as channel:
            stub = GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(pb.ServerReadyRequest(), timeout=HANG).ready
            for method, asked, metadata, code in (
                (stub.ModelInfer, rpc_message(raw_input_contents=[RAW]), (), grpc.StatusCode.UNAUTHENTICATED),
                (
                    stub.RepositoryModelUnload,
                    pb.RepositoryModelUnloadRequest(model_name="dot"),
                    tuple(known.items()),
                    grpc.StatusCode.PERMISSION_DENIED,
                ),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    method(asked, timeout=HANG, metadata=metadata)
                assert caught.value.code() == code
