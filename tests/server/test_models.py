"""Models: listed, described, chosen by version."""

import json

import grpc
import numpy as np
import onnx
import pytest
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.inference.model import served_files
from google.protobuf import json_format
from onnx import numpy_helper
from serving import HANG

from tests.refusals import HTTP, Refused, refused, refused_by_grpc, refused_by_http
from tests.server.reference import CLOSE, read_block

NAMES = ["cross", "dot", "grouped", "multi", "multi-head", "self", "text-cross"]


@pytest.fixture(params=["grpc", "rest"])
def models(request, server):
    """`models("name", version)` describes one model, `models()` all, as JSON values."""
    if request.param == "grpc":
        with grpc.insecure_channel(server.grpc) as channel:
            stub = AttentionServiceStub(channel)

            def get(name=None, version=0):
                try:
                    if name is None:
                        found = list(stub.ListModels(pb.ListModelsRequest()).models)
                    else:
                        found = [stub.GetModel(pb.GetModelRequest(model=name, version=version))]
                except grpc.RpcError as error:
                    raise refused_by_grpc(error) from error
                found = [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in found]
                return found if name is None else found[0]

            yield get
        return

    def get(name=None, version=0):
        path = "" if name is None else f"/{name}/versions/{version}" if version else f"/{name}"
        response = requests.get(f"{server.url}/v1/models{path}", timeout=HANG)
        if response.status_code != 200:
            raise refused_by_http(response)
        return response.json()["models"] if name is None else response.json()

    yield get


def test_all_models_by_name(models):
    """Every model is listed once, at its default version, by name; words are told of one model alone."""
    listed = models()
    assert [model["name"] for model in listed] == NAMES
    words = {"words", "memory_words"}
    alone = {name: models(name) for name in NAMES}
    assert listed == [{key: told[key] for key in told.keys() - words} for told in alone.values()]
    assert any(words & told.keys() for told in alone.values())


def test_a_model_and_its_manifest(models, repository):
    """A model tells its version, all versions, its device, and the manifest of its folder."""
    model = models("multi-head")
    assert (model["name"], model["version"], model["versions"], model["device"]) == ("multi-head", 1, [1], "cpu")
    assert model["nodes"].keys() == {"cpu"}
    assert model["nodes"]["cpu"] > 0
    on_disk = json.loads((repository / "multi-head/1/manifest.json").read_text())
    expected = json_format.ParseDict(on_disk, pb.Manifest())
    assert json_format.ParseDict(model["manifest"], pb.Manifest()) == expected


@pytest.mark.parametrize("name", ["multi-head", "text-cross", "dot"])
def test_bytes_in_memory(models, repository, name):
    """A model's bytes in memory are those of all tensors of the graphs that its device opens, each file once."""
    folder = repository / name / "1"
    manifest = json_format.Parse((folder / "manifest.json").read_text(), pb.Manifest())
    opened = [onnx.load(folder / file) for file in served_files(manifest, "cpu")]
    tensors = [numpy_helper.to_array(tensor) for graph in opened for tensor in tensors_of(graph)]
    assert int(models(name).get("memory_bytes", 0)) == sum(tensor.nbytes for tensor in tensors)


def tensors_of(model):
    """Yield the initializers of a graph, and the tensors in attributes."""
    yield from model.graph.initializer
    yield from (each.t for node in model.graph.node for each in node.attribute if each.HasField("t"))


def test_versions(models):
    """The default version is the latest; each can be described."""
    model = models("self")
    assert (model["version"], model["versions"]) == (2, [1, 2])
    first = models("self", 1)
    assert (first["version"], first["versions"]) == (1, [1, 2])
    assert first["manifest"]["layers"][0]["value_dim"] == 12
    assert model["manifest"]["layers"][0]["value_dim"] == 10


@pytest.mark.parametrize(
    ("name", "version", "words"), [("nobody", 0, ["nobody", "multi-head"]), ("self", 3, ["3", "1, 2"])]
)
def test_what_is_not_there(models, name, version, words):
    """An unknown model or version is not found; the message lists the existing ones."""
    with pytest.raises(Refused) as caught:
        models(name, version)
    assert (caught.value.code, caught.value.http) == ("NOT_FOUND", HTTP["NOT_FOUND"])
    assert caught.value.field == ("version" if version else "model")
    for word in words:
        assert word in caught.value.message


def test_the_version_that_answers(transport, repository):
    """A version asked for answers and is named in the answer; none asked for is the latest."""
    vectors = {"query": np.eye(2, 12, dtype=np.float32), "value": np.ones((2, 10), np.float32)}
    assert transport.attend("self", **vectors)["version"] == 2
    assert transport.attend("self", version=2, **vectors)["version"] == 2
    answer = transport.attend("self", version=1, query=vectors["query"])
    assert (answer["model"], answer["version"]) == ("self", 1)
    expected = read_block(repository, "self", 1).stages(vectors["query"])["output"]
    np.testing.assert_allclose(answer["results"][0]["outputs"]["output"], expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "version", "field"), [("nobody", 0, "model"), ("self", 3, "version"), ("x" * 5000, 0, "model")]
)
def test_attend_to_what_is_not_there(transport, name, version, field):
    """Attend with an unknown model or version is not found, by its field."""
    with refused("NOT_FOUND", field, "self" if field == "model" else "1, 2") as caught:
        transport.attend(name, version=version, query=np.ones((1, 12), np.float32))
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("version", ["0", "-1", "one", "1.0", "99999999999"])
def test_versions_that_are_none(server, version):
    """In a URL a version is an integer above 0."""
    for response in (
        requests.get(f"{server.url}/v1/models/self/versions/{version}", timeout=HANG),
        requests.post(f"{server.url}/v1/models/self/versions/{version}:attend", json={}, timeout=HANG),
    ):
        error = refused_by_http(response)
        assert (error.code, error.field) == ("INVALID_ARGUMENT", "version")


def attend(server, path, document):
    return requests.post(f"{server.url}/v1/models/{path}:attend", json=document, timeout=HANG)


@pytest.mark.parametrize(
    ("path", "beside"),
    [
        ("self/versions/1", {"version": 1}),
        ("self/versions/1", {"version": 0}),
        ("self/versions/1", {"version": None}),
        ("self/versions/1", {"model": "self"}),
        ("self", {"version": 1}),
    ],
)
def test_model_and_version_in_the_document(server, path, beside):
    """The request's own `model` and `version` may repeat the URL's; a version that the URL leaves open is chosen."""
    response = attend(server, path, {"query": [[0.0] * 12]} | beside)
    assert response.status_code == 200, response.text
    assert response.json()["version"] == 1


@pytest.mark.parametrize(
    ("path", "beside", "field"),
    [
        ("self/versions/1", {"version": 2}, "version"),
        ("self/versions/1", {"version": "1"}, "version"),
        ("self/versions/1", {"version": True}, "version"),
        ("self/versions/1", {"version": -1}, "version"),
        ("self", {"model": "dot"}, "model"),
        ("self", {"model": 1}, "model"),
    ],
)
def test_a_document_that_contradicts_its_url(server, path, beside, field):
    """A document that says another model or version than its URL, or says it in another type, is refused."""
    error = refused_by_http(attend(server, path, {"query": [[0.0] * 12]} | beside))
    assert (error.code, error.field) == ("INVALID_ARGUMENT", field)


@pytest.mark.parametrize(
    ("path", "beside", "version"), [("self", {"version": 1}, 1), ("self/versions/1", {"version": 0}, 1)]
)
def test_model_and_version_in_the_message(server, path, beside, version):
    """The same in application/x-protobuf."""
    query = np.zeros((1, 12), np.float32)
    sequence = pb.Sequence(query=pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=query.shape, data=query.tobytes()))
    body = pb.AttendRequest(inputs=[sequence], **beside).SerializeToString()
    headers = {"content-type": "application/x-protobuf"}
    response = requests.post(f"{server.url}/v1/models/{path}:attend", data=body, headers=headers, timeout=HANG)
    assert response.status_code == 200, response.text
    assert response.json()["version"] == version


def test_a_message_that_contradicts_its_url(server):
    """A message that names another model than its URL is refused."""
    body = pb.AttendRequest(model="dot").SerializeToString()
    headers = {"content-type": "application/x-protobuf"}
    response = requests.post(f"{server.url}/v1/models/self:attend", data=body, headers=headers, timeout=HANG)
    error = refused_by_http(response)
    assert (error.code, error.field) == ("INVALID_ARGUMENT", "model")
