"""A service's endpoints beside its answers: ids, health, reflection, documents, limits, speed."""

import gzip
import json
import re

import grpc
import numpy as np
import pytest
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_server.codecs import json as translate
from attention_server.rest.attention import AttentionRoutes
from attention_server.rest.oip import InferenceRoutes
from attention_server.rest.openai import EmbeddingsRoutes
from attention_server.rest.server import HealthRoutes
from attention_server.rest.tokenization import TokenizationRoutes
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import validate
from serving import HANG, start_server

from tests.messages import Raw, request_message
from tests.refusals import Refused, refused, refused_by_http
from tests.transports import TRANSPORTS

QUERY = np.ones((2, 3), np.float32)
REST = [name for name in TRANSPORTS if name != "grpc"]


# --- ids ---


def test_a_request_id_comes_back(transport):
    """The caller's X-Request-Id comes back with the answer, and with the refusal."""
    assert transport.attend("dot", query=QUERY, request_id="an/id:1")["headers"]["x-request-id"] == "an/id:1"
    with pytest.raises(Refused) as caught:
        transport.attend("nobody", query=QUERY, request_id="an/id:2")
    assert caught.value.request_id == "an/id:2"


def test_a_request_without_an_id_gets_one(transport):
    """Without one the server chooses, another each time."""
    ids = {transport.attend("dot", query=QUERY)["headers"]["x-request-id"] for _ in range(2)}
    with pytest.raises(Refused) as caught:
        transport.attend("nobody", query=QUERY)
    ids.add(caught.value.request_id)
    assert len(ids) == 3
    assert all(ids)


def test_the_header_of_a_refusal(server):
    """Over HTTP a refusal has the id in its header as in its body."""
    url = f"{server.url}/v1/models/nobody:attend"
    response = requests.post(url, json={}, headers={"x-request-id": "abc"}, timeout=HANG)
    assert response.headers["x-request-id"] == response.json()["error"]["request_id"] == "abc"


@pytest.mark.parametrize("sent", ["x" * 129, "a b", "ä", ""])
def test_an_id_that_is_none(server, sent):
    """An id that is too long or not printable is not sent back: one is chosen."""
    headers = {"x-request-id": sent.encode("latin-1")}
    response = requests.post(f"{server.url}/v1/models/dot:attend", json={"query": [[1]]}, headers=headers, timeout=HANG)
    assert response.status_code == 200
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


# --- deadlines ---


@pytest.mark.parametrize("sent", ["0", "-1", "soon", "nan", "", "1e", "0x1"])
def test_timeouts_that_are_none(server, sent):
    """X-Request-Timeout is a number of seconds above 0."""
    url = f"{server.url}/v1/models/dot:attend"
    response = requests.post(url, json={"query": [[1]]}, headers={"x-request-timeout": sent}, timeout=HANG)
    error = refused_by_http(response)
    assert (error.code, error.field) == ("INVALID_ARGUMENT", "X-Request-Timeout")


@pytest.mark.parametrize("name", REST)  # gRPC's client rounds a deadline up to what can be kept
def test_a_deadline_already_passed(server, connect, name):
    """A deadline that has passed when the request is read is told as such."""
    with refused("DEADLINE_EXCEEDED"):
        connect(name, server.rest, server.grpc).attend("dot", query=QUERY, timeout=1e-9)


def test_a_deadline_in_time(transport):
    """A deadline that is kept changes nothing."""
    assert transport.attend("dot", query=QUERY, timeout=HANG)["model"] == "dot"


# --- health, reflection ---


def test_grpc_health(server):
    """Health serves "" and the service by its name; further names are not found."""
    with grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "attention.v1.AttentionService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=HANG)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=HANG)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_http_health(server):
    """/healthz says alive and /readyz ready."""
    for path, status in (("/healthz", "alive"), ("/readyz", "ready")):
        response = requests.get(f"{server.url}{path}", timeout=HANG)
        assert (response.status_code, response.json()) == (200, {"status": status})


def test_a_client_from_reflection_alone(server):
    """A client that has the address alone finds all services, builds the messages of one, and calls it."""
    with grpc.insecure_channel(server.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "attention.v1.AttentionService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "inference.GRPCInferenceService",
        }
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName("attention.v1.AttentionService").FindMethodByName("Attend")
        request_class, response_class = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
        request = request_class(model="dot")
        request.inputs.add().query.CopyFrom(
            message_factory.GetMessageClass(pool.FindMessageTypeByName("attention.v1.Tensor"))(
                data_type=6, shape=[1, 1], data=np.float32(5).tobytes()
            )
        )
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )
        answer = call(request, timeout=HANG)
        assert answer.results[0].outputs[0].tensor.data == np.float32(5).tobytes()


# --- documents ---


@pytest.fixture(scope="module")
def openapi(server):
    return requests.get(f"{server.url}/openapi.json", timeout=HANG).json()


def test_the_document_is_valid(openapi):
    """/openapi.json is an OpenAPI document, of the version that is installed."""
    validate(openapi)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", openapi["info"]["version"])


def test_the_document_has_every_route(openapi):
    """Every route of /v1 and /v2 is in the document, with its method, and nothing that is not there."""
    inference = InferenceRoutes(None, None, None).routes()
    routes = [*AttentionRoutes(None, None).routes(), *EmbeddingsRoutes(None, None).routes()]
    routes += [*TokenizationRoutes(None, None).routes(), *inference, *HealthRoutes(None).routes()]
    served = {(route.path, method) for route in routes for method in route.methods - {"HEAD"}}
    served.add(("/metrics", "GET"))
    assert served == {(path, method.upper()) for path, methods in openapi["paths"].items() for method in methods}


def resolved(openapi, name):
    return OAS30Validator({"$ref": f"#/components/schemas/{name}", "components": openapi["components"]})


@pytest.mark.parametrize("path", ["/v1/models/{model}:attend", "/v1/models/{model}/versions/{version}:attend"])
def test_the_documents_examples_run(server, openapi, path):
    """Each example request is valid by the document, and runs; its answer is as the document says."""
    examples = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert examples
    for name, example in examples.items():
        model = {"text": "multi-head", "vectors": "dot"}[name]
        resolved(openapi, "AttendRequest").validate(example["value"])
        url = server.url + path.format(model=model, version=1)
        response = requests.post(url, json=example["value"], timeout=HANG)
        assert response.status_code == 200, response.text
        resolved(openapi, "AttendResponse").validate(response.json())


def test_answers_are_as_the_document_says(server, openapi):
    """Models, errors and every form of an output are as the document's schemas say."""
    models = requests.get(f"{server.url}/v1/models", timeout=HANG).json()
    schema = openapi["paths"]["/v1/models"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    OAS30Validator(schema | {"components": openapi["components"]}).validate(models)
    error = requests.get(f"{server.url}/v1/models/nobody", timeout=HANG).json()
    resolved(openapi, "ErrorResponse").validate(error)
    outputs = [{"name": "weights", "as": "top", "top_k": 2}, {"name": "weights", "data_type": "FP16"}]
    body = {"query": [[1, 2]], "outputs": outputs, "encoding": "base64", "token_offsets": True}
    answer = requests.post(f"{server.url}/v1/models/dot:attend", json=body, timeout=HANG).json()
    resolved(openapi, "AttendResponse").validate(answer)


def test_the_document_knows_every_field(openapi):
    """The document's schemas have the fields that JSON requests may have, no more and no fewer."""
    schemas = openapi["components"]["schemas"]
    assert set(schemas["AttendRequest"]["properties"]) == {*translate.REQUEST_FIELDS, *translate.SEQUENCE_FIELDS}
    assert set(schemas["Sequence"]["properties"]) == set(translate.SEQUENCE_FIELDS)
    assert set(schemas["OutputSpec"]["properties"]) == set(translate.OUTPUT_FIELDS)
    assert set(schemas["Mask"]["properties"]) == set(translate.MASK_FIELDS)
    assert set(schemas["InputTensor"]["properties"]) == set(translate.TENSOR_FIELDS)


def test_the_viewer_loads_nothing_from_elsewhere(server):
    """/docs and its files name no foreign origin, all of them exist, and a policy forbids the rest."""
    page = requests.get(f"{server.url}/docs", timeout=HANG)
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*", policy)
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) >= 3
    for path in loaded:
        response = requests.get(f"{server.url}/{path}", timeout=HANG)
        assert response.status_code == 200, path
    start = requests.get(f"{server.url}/docs/start.js", timeout=HANG).text
    assert "openapi.json" in start
    assert "//" not in start


@pytest.mark.parametrize("path", ["/docs/assets/../../../../etc/passwd", "/docs/assets/%2e%2e/%2e%2e/setup.py"])
def test_the_viewers_files_are_all_there_is(server, path):
    """No path leads out of the viewer's folder."""
    request = requests.Request("GET", server.url).prepare()
    request.url = server.url + path
    with requests.Session() as session:
        assert session.send(request, timeout=HANG).status_code == 404


# --- protobuf over HTTP ---


def test_protobuf_in_and_json_out_and_back(server):
    """Request and answer have independent forms: by Content-Type and by Accept."""
    url = f"{server.url}/v1/models/dot:attend"
    protobuf = "application/x-protobuf"
    body = request_message("dot", [{"query": QUERY}]).SerializeToString()
    response = requests.post(
        url, data=body, headers={"content-type": protobuf, "accept": "application/json"}, timeout=HANG
    )
    assert response.headers["content-type"] == "application/json"
    as_json = response.json()["results"][0]["outputs"]["output"]["values"]
    response = requests.post(url, json={"query": QUERY.tolist()}, headers={"accept": protobuf}, timeout=HANG)
    assert response.headers["content-type"] == protobuf
    tensor = pb.AttendResponse.FromString(response.content).results[0].outputs[0].tensor
    np.testing.assert_array_equal(np.frombuffer(tensor.data, "<f4").reshape(tensor.shape), as_json)


@pytest.mark.parametrize(
    "body", [b"\xff", b"{}", b'{"query": [[1]]}', request_message("dot", [{"query": QUERY}]).SerializeToString()[:-3]]
)
def test_what_is_no_message(server, body):
    """A body that is no AttendRequest is refused as such."""
    headers = {"content-type": "application/x-protobuf"}
    response = requests.post(f"{server.url}/v1/models/dot:attend", data=body, headers=headers, timeout=HANG)
    error = refused_by_http(response)
    assert error.code == "INVALID_ARGUMENT"
    assert "AttendRequest" in error.message


# --- limits ---


@pytest.fixture(scope="module")
def narrow(repository):
    """A server with low limits."""
    limits = ["--max-message-mib", 1, "--max-answer-mib", 1, "--max-sequences", 3]
    with start_server(repository, *limits) as running:
        yield running


@pytest.fixture(params=TRANSPORTS)
def narrowly(request, narrow, connect):
    return connect(request.param, narrow.rest, narrow.grpc)


def test_a_request_over_the_limit(narrowly):
    """A body or message over the limit is too large: 413 and RESOURCE_EXHAUSTED."""
    with refused("RESOURCE_EXHAUSTED"):
        narrowly.attend("dot", query=np.ones((300, 1000), np.float32))


def test_a_chunked_body_over_the_limit(narrow):
    """A body that does not tell its size is measured as it comes."""
    with refused("RESOURCE_EXHAUSTED"):
        raise refused_by_http(
            requests.post(f"{narrow.url}/v1/models/dot:attend", data=(b" " * 2**16 for _ in range(17)), timeout=HANG)
        )


def test_a_compressed_message_over_the_limit(narrow):
    """A gRPC message that is small on the wire and over the limit when inflated is refused all the same."""
    body = request_message("dot", [{"query": np.zeros((2000, 1000), np.float32)}])
    assert len(gzip.compress(body.SerializeToString())) < 2**20
    with grpc.insecure_channel(narrow.grpc) as channel:
        call = channel.unary_unary("/attention.v1.AttentionService/Attend", pb.AttendRequest.SerializeToString)
        with pytest.raises(grpc.RpcError) as caught:
            call(body, compression=grpc.Compression.Gzip, timeout=HANG)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_answer_over_the_limit(narrowly):
    """An answer above the limit is refused before it is computed, in words that say how to shrink it."""
    query = np.ones((600, 2), np.float32)
    with refused("RESOURCE_EXHAUSTED", "outputs", "top k"):
        narrowly.attend("dot", query=query, outputs=["weights"])
    for smaller in ({"rows": [0]}, {"top_k": 3}, {"data_type": "FP16"}):
        assert narrowly.attend("dot", query=query, outputs=[{"name": "weights"} | smaller])["results"]
    with refused("RESOURCE_EXHAUSTED", "outputs"):
        narrowly.attend("dot", inputs=[{"query": query[:300]}] * 3, outputs=["weights"])


def test_an_answer_just_below_the_limit(narrowly):
    """An answer below the limit is sent, also where the message around it is over it."""
    weights = narrowly.outputs("dot", query=np.ones((512, 1), np.float32), outputs=["weights"])["weights"]
    assert weights.nbytes == 2**20


def test_what_stands_over_the_limit(transport):
    """A sequence that needs too much memory is refused before it runs; what is made block by block needs little."""
    query = np.ones((1, 1), np.float32).repeat(12_000, 0)
    causal = {"causal": "top_left"}
    top = transport.outputs("dot", query=query, outputs=[{"name": "weights", "rows": [2], "top_k": 4}], mask=causal)
    assert top["weights"].indices.tolist() == [[[0, 1, 2, 3]]]
    with refused("RESOURCE_EXHAUSTED", None, "--max-scores-mib", "positions fit"):
        transport.attend("dot", query=query, outputs=["weights"])


def test_sequences_over_the_limit(narrowly):
    """Sequences are counted, those of a batch too."""
    batch = [{"query": np.ones((4, 1, 3), np.float32)}]
    for inputs, field in (([{"query": QUERY}] * 4, "inputs"), (batch, "inputs[0].query")):
        with refused("RESOURCE_EXHAUSTED", field, "3"):
            narrowly.attend("dot", inputs=inputs)
    assert len(narrowly.attend("dot", inputs=[{"query": QUERY}] * 3)["results"]) == 3


def test_the_log_tells_no_content(server, connect):
    """Requests' contents are not in the log."""
    with pytest.raises(Refused):
        connect("rest-json", server.rest, server.grpc).attend("multi-head", text="confidential")
    assert "confidential" not in server.log
    assert json.dumps("confidential") not in server.log


def test_refusals_leave_no_trace_in_the_log(server, connect):
    """A caller's mistake is not logged as a fault."""
    before = server.log.count("fault of ours")
    for name in TRANSPORTS:
        with pytest.raises(Refused):
            connect(name, server.rest, server.grpc).attend("dot", query=Raw("FP32", (2, 2), b""))
    assert server.log.count("fault of ours") == before
