"""Tokens: every route and RPC needs one, except liveness and readiness; rights hold."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import requests
from attention_client import AttentionClient, NotFound, PermissionDenied, Unauthenticated
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.auth.callers import PUBLIC_PATHS, new_token
from attention_server.domain.call import CallContext
from attention_server.errors import PermissionDenied as NotAllowed
from attention_server.errors import Unimplemented
from attention_server.rest.middleware import PUBLIC
from attention_server.rest.oip import NOT_OFFERED
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving import HANG, Server, bearer, start_server
from starlette.routing import Mount, Route

from tests.local_server import local_server
from tests.refusals import refused_by_grpc, refused_by_http
from tests.security.conftest import make_token, metadata

pytestmark = pytest.mark.both_grpc_servers

QUERY = {"query": [[1.0, 0.0]]}
# Routes for a caller without rights: descriptions. Every other route needs a right.
READING = {
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/models/{model}/versions/{version}"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/docs/start.js"),
    ("GET", "/docs/assets"),
    ("GET", "/v2"),
    ("GET", "/metrics"),
    *(
        ("GET", f"/v2/models/{{model}}{version}{what}")
        for version in ("", "/versions/{version}")
        for what in ("", "/ready", "/config", "/stats")
    ),
    ("GET", "/v2/models/stats"),
    ("POST", "/v2/repository/index"),
    *((method, path) for method in ("GET", "POST") for path in NOT_OFFERED),  # 501
}
READING_RPCS = {
    "/attention.v1.AttentionService/ListModels",
    "/attention.v1.AttentionService/GetModel",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.health.v1.Health/List",
    *(
        f"/inference.GRPCInferenceService/{name}"
        for name in (
            *("ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"),
            *(
                f"{kind}SharedMemory{what}"
                for kind in ("System", "Cuda")
                for what in ("Status", "Register", "Unregister")
            ),
            *("TraceSetting", "LogSettings"),
        )
    ),
}
# Each message is answered by itself, and here refused.
STREAMS = {"/attention.v1.AttentionService/AttendStream", "/inference.GRPCInferenceService/ModelStreamInfer"}


@dataclass
class Guarded:
    """A server with tokens, and one of each kind."""

    server: Server
    file: Path
    attend: str
    nothing: str
    repository: str
    attends_too: str

    @property
    def url(self) -> str:
        return self.server.url


@pytest.fixture(scope="module")
def guarded(dot_only, grpc_server, tmp_path_factory):
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    made = {
        "attend": make_token("search"),
        "nothing": make_token("scraper", "--rights"),
        "repository": make_token("deployer", "--rights", "repository"),
        "attends_too": make_token("neighbour"),
    }
    file.write_text("".join(lines for _, lines in made.values()))
    with start_server(dot_only, "--tokens", file) as server:
        yield Guarded(server, file, **{name: token for name, (token, _) in made.items()})


# --- every route ---


def all_routes(dot_only: Path) -> list[tuple[str, str]]:
    """Return every method and path of the router."""
    with local_server(dot_only) as server:
        routes = server.rest_server.routes
        found = [(method, route.path) for route in routes if isinstance(route, Route) for method in route.methods]
        found += [("GET", route.path) for route in routes if isinstance(route, Mount)]
        assert len({route.path for route in routes}) == len({path for _, path in found}), "a kind of route is missing"
    return [(method, path) for method, path in found if method != "HEAD"]


def filled(path: str) -> str:
    return re.sub(r"\{(\w+)(:\w+)?\}", lambda name: {"model": "dot", "version": "1"}.get(name[1], "x"), path)


def ask(url: str, method: str, path: str, **headers: str) -> requests.Response:
    tensor = "key" if path.endswith("/memories") else "query"
    body = f'{{"{tensor}": [[1.0]]}}' if method == "POST" else None
    if path.endswith(":tokenize"):
        body = '{"text": "a"}'
    if path == "/v1/embeddings":
        body = '{"model": "dot", "input": "a"}'
    if path.startswith("/v2") and body:
        inputs = '{"inputs": [{"name": "query", "datatype": "FP32", "shape": [1, 1, 1], "data": [1]}]}'
        body = inputs if path.endswith("/infer") else ""
    return requests.request(method, url + filled(path), data=body, headers=headers, timeout=HANG)


def assert_refused(response: requests.Response, path: str, code: str) -> None:
    """Look at a refusal in the form of its protocol; the Open Inference Protocol has words alone."""
    if path.startswith("/v2"):
        assert isinstance(response.json().pop("error"), str)
    elif path == "/v1/embeddings":
        assert response.json()["error"]["message"]
    else:
        assert refused_by_http(response).code == code


def test_every_route_asks_who_calls(guarded, dot_only):
    """Each route but health and the page's own files refuses a missing or unknown token."""
    routes = all_routes(dot_only)
    assert {"/healthz", "/readyz", "/v1/models", "/docs"} <= {path for _, path in routes}
    for method, path in [*routes, ("GET", "/nowhere"), ("POST", "/healthz/"), ("GET", "/docs/assets/swagger-ui.css")]:
        if path in PUBLIC:
            assert ask(guarded.url, method, path).status_code == 200, path
            continue
        for headers in ({}, bearer(new_token()), {"authorization": "Bearer"}, {"authorization": "Bearer "}):
            response = ask(guarded.url, method, path, **headers)
            assert response.status_code == 401, (method, path)
            assert_refused(response, path, "UNAUTHENTICATED")
            assert response.headers["www-authenticate"] == 'Bearer realm="attention", Basic realm="attention"'


def test_every_route_that_does_something_asks_for_a_right(guarded, dot_only):
    """A token without rights reads descriptions; every other route refuses it."""
    for method, path in all_routes(dot_only):
        response = ask(guarded.url, method, path, **bearer(guarded.nothing))
        if path in PUBLIC or (method, path) in READING:
            assert response.status_code in (200, 404, 501), (method, path, response.text)  # assets has no index
        else:
            assert response.status_code == 403, (method, path, response.text)
            assert_refused(response, path, "PERMISSION_DENIED")


# --- every RPC ---


def all_methods(channel: grpc.Channel, token: str) -> dict[str, tuple[bool, bool]]:
    """Return every method that reflection lists, and whether requests and responses stream."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    def told(**request: str) -> reflection_pb2.ServerReflectionResponse:
        asked = reflection_pb2.ServerReflectionRequest(**request)
        (answer,) = stub.ServerReflectionInfo(iter([asked]), metadata=metadata(token), timeout=HANG)
        return answer

    methods = {}
    for service in told(list_services="").list_services_response.service:
        files = told(file_containing_symbol=service.name).file_descriptor_response.file_descriptor_proto
        for file in map(FileDescriptorProto.FromString, files):
            for each in file.service:
                if f"{file.package}.{each.name}" == service.name:
                    for method in each.method:
                        streams = method.client_streaming, method.server_streaming
                        methods[f"/{service.name}/{method.name}"] = streams
    return methods


def status_of(channel: grpc.Channel, method: str, streams: tuple[bool, bool], token: str | None) -> str:
    """Call a method with an empty message; return the code that comes, OK if something else does."""
    make = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[streams](method)
    try:
        answer = make(iter([b""]) if streams[0] else b"", metadata=metadata(token), timeout=HANG)
        if streams[1]:
            next(answer, None)
            answer.cancel()
    except grpc.RpcError as error:
        return refused_by_grpc(error).code if error.trailing_metadata() else error.code().name
    return "OK"


def test_every_rpc_asks_who_calls(guarded):
    """Each method but those of health refuses a missing or unknown token."""
    with grpc.insecure_channel(guarded.server.grpc) as channel:
        methods = all_methods(channel, guarded.nothing)
        assert {"/attention.v1.AttentionService/Attend", "/grpc.health.v1.Health/Check"} <= methods.keys()
        for method, streams in methods.items():
            expected = "OK" if method in PUBLIC_PATHS else "UNAUTHENTICATED"
            for token in (None, new_token(), "", "x"):
                assert status_of(channel, method, streams, token) == expected, method
        assert status_of(channel, "/no.Such/Method", (False, False), None) == "UNAUTHENTICATED"


def test_every_rpc_that_does_something_asks_for_a_right(guarded):
    """A token without rights reads descriptions; every other method refuses it."""
    with grpc.insecure_channel(guarded.server.grpc) as channel:
        for method, streams in all_methods(channel, guarded.nothing).items():
            if method in PUBLIC_PATHS | READING_RPCS | STREAMS:
                assert status_of(channel, method, streams, guarded.nothing) != "PERMISSION_DENIED"
            else:
                assert status_of(channel, method, streams, guarded.nothing) == "PERMISSION_DENIED", method


def test_each_message_of_a_stream_asks_for_a_right(guarded):
    """On a stream of a caller without the right to attend, each message is refused."""
    message = pb.AttendStreamRequest(id="1", request=pb.AttendRequest(model="dot"))
    with grpc.insecure_channel(guarded.server.grpc) as channel:
        stream = AttentionServiceStub(channel).AttendStream
        (answer,) = stream(iter([message]), metadata=metadata(guarded.nothing), timeout=HANG)
    assert (answer.id, answer.error.code) == ("1", grpc.StatusCode.PERMISSION_DENIED.value[0])


@pytest.mark.parametrize("change", ["load_model", "unload_model"])
def test_repository_changes_ask_for_a_right(dot_only, change):
    """The right `attend` does not permit loading and unloading models, over any protocol."""
    with local_server(dot_only) as server:
        method = getattr(server.service, change)
        for rights in (frozenset(), frozenset({"attend"})):
            with pytest.raises(NotAllowed, match="repository"):
                method("dot", CallContext("id", "search", rights=rights))
        with pytest.raises(Unimplemented, match="repository"):  # may, but the server does not offer it as it is set
            method("dot", CallContext("id", "deployer", rights=frozenset({"repository"})))


def test_a_refused_call_is_not_read(guarded):
    """An unknown caller is refused before the message is read into memory."""
    endless = (b"x" * 2**20 for _ in iter(int, 1))
    with grpc.insecure_channel(guarded.server.grpc) as channel:
        call = channel.stream_stream("/attention.v1.AttentionService/Attend")(endless, timeout=HANG)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


# --- the client ---


def test_a_memory_is_its_callers(guarded):
    """Over both ports another caller's memory is as one that never was: not found, not listed, not deleted."""
    key = np.eye(2, 4, dtype=np.float32)
    with (
        AttentionClient(guarded.server.grpc, token=guarded.attend) as mine,
        AttentionClient(guarded.server.grpc, token=guarded.attends_too) as theirs,
    ):
        memory = mine.create_memory("dot", key=key)
        assert [each.id for each in mine.memories("dot")] == [memory.id]
        assert theirs.memories("dot") == []
        for call in (
            lambda id_: theirs.attend("dot", query=key, memory=id_),
            lambda id_: theirs.delete_memory(SimpleNamespace(model="dot", id=id_)),
        ):
            found = [str(failure(call, id_)).replace(id_, "ID") for id_ in (memory.id, "0" * 32)]
            assert found[0] == found[1]
        url = f"{guarded.url}/v1/models/dot/memories"
        for path in (memory.id, "0" * 32):
            answer = requests.get(f"{url}/{path}", headers=bearer(guarded.attends_too), timeout=HANG)
            assert (answer.status_code, answer.json()["error"]["field"]) == (404, "id")
        assert requests.get(url, headers=bearer(guarded.attends_too), timeout=HANG).json() == {"memories": []}
        assert theirs.create_memory("dot", key=key).id != memory.id
        assert mine.attend("dot", query=key, memory=memory.id).output.shape == (2, 4)
        assert requests.get(f"{url}/{memory.id}", headers=bearer(guarded.attend), timeout=HANG).ok
        mine.delete_memory(memory)
        assert len(theirs.memories("dot")) == 1


def failure(call, id_: str) -> NotFound:
    with pytest.raises(NotFound) as caught:
        call(id_)
    return caught.value


def test_the_client_says_who_calls(guarded):
    """The client sends its token; without one, or without the right, it raises the contract's error."""
    query = np.ones((1, 2), np.float32)
    with AttentionClient(guarded.server.grpc, token=guarded.attend) as client:
        assert client.attend("dot", query=query).output.shape == (1, 2)
        assert len(list(client.attend_many("dot", [query, query]))) == 2
    with AttentionClient(guarded.server.grpc) as client:
        with pytest.raises(Unauthenticated, match="Bearer"):
            client.models()
        with pytest.raises(Unauthenticated, match="Bearer"):
            list(client.attend_many("dot", [query]))
    for token in (guarded.nothing, guarded.repository):
        with AttentionClient(guarded.server.grpc, token=token) as client:
            assert [model.name for model in client.models()] == ["dot"]
            with pytest.raises(PermissionDenied, match="attend"):
                client.attend("dot", query=query)


# --- browsers ---


def test_a_browser_sends_the_token_as_a_password(guarded):
    """Basic credentials with the token as the password are accepted with any user name."""
    response = requests.get(f"{guarded.url}/docs", auth=("anyone", guarded.nothing), timeout=HANG)
    assert response.status_code == 200
    assert requests.get(f"{guarded.url}/docs", auth=(guarded.nothing, ""), timeout=HANG).status_code == 401
    for bad in ("Basic", "Basic §", "Basic " + base64.b64encode(b"\xff:\xff").decode(), "Digest x"):
        headers = {"authorization": bad.encode()}
        assert requests.get(f"{guarded.url}/docs", headers=headers, timeout=HANG).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "OWN"}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "OWN"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "https://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "OWN"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_pages_of_other_sites(guarded, headers, status):
    """A request from a page of another site is refused, even with the token that the browser adds."""
    headers = {name: guarded.url if value == "OWN" else value for name, value in headers.items()}
    auth = ("me", guarded.attend)
    response = requests.post(
        f"{guarded.url}/v1/models/dot:attend", json=QUERY, headers=headers, auth=auth, timeout=HANG
    )
    assert response.status_code == status
