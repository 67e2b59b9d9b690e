"""Tokens: every route and RPC needs one, except liveness and readiness; rights and limits hold."""

import base64
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from attention_client import AttentionClient, PermissionDenied, Unauthenticated
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.auth import callers as callers_module
from attention_server.auth.callers import ANYONE, PUBLIC_PATHS, Callers, digest_of, new_token
from attention_server.domain.call import CallContext
from attention_server.errors import LimitReached, Unimplemented
from attention_server.errors import PermissionDenied as NotAllowed
from attention_server.errors import Unauthenticated as NoCredentials
from attention_server.rest.middleware import PUBLIC
from attention_server.rest.oip import NOT_OFFERED
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving import Server, run_server, start_server, wait_until
from starlette.routing import Mount, Route

from tests.conftest import refused_by_grpc, refused_by_http
from tests.local_server import IN_A_SLOT, local_server
from tests.security.conftest import make_token

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

    @property
    def url(self) -> str:
        return self.server.url


@pytest.fixture(scope="module")
def guarded(dot_only, tmp_path_factory):
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    made = {
        "attend": make_token("search"),
        "nothing": make_token("scraper", "--rights"),
        "repository": make_token("deployer", "--rights", "repository"),
    }
    file.write_text("".join(lines for _, lines in made.values()))
    with start_server(dot_only, "--tokens", file) as server:
        yield Guarded(server, file, **{name: token for name, (token, _) in made.items()})


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


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
    if path.startswith("/v2") and body:
        inputs = '{"inputs": [{"name": "query", "datatype": "FP32", "shape": [1, 1, 1], "data": [1]}]}'
        body = inputs if path.endswith("/infer") else ""
    return requests.request(method, url + filled(path), data=body, headers=headers, timeout=30)


def assert_refused(response: requests.Response, path: str, code: str) -> None:
    """Look at a refusal in the form of its protocol; the Open Inference Protocol has words alone."""
    if path.startswith("/v2"):
        assert isinstance(response.json().pop("error"), str)
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
        (answer,) = stub.ServerReflectionInfo(iter([asked]), metadata=metadata(token), timeout=30)
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


def metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


def status_of(channel: grpc.Channel, method: str, streams: tuple[bool, bool], token: str | None) -> str:
    """Call a method with an empty message; return the code that comes, OK if something else does."""
    make = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[streams](method)
    try:
        answer = make(iter([b""]) if streams[0] else b"", metadata=metadata(token), timeout=30)
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
        (answer,) = stream(iter([message]), metadata=metadata(guarded.nothing), timeout=30)
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
        call = channel.stream_stream("/attention.v1.AttentionService/Attend")(endless, timeout=30)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


# --- the client ---


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
    response = requests.get(f"{guarded.url}/docs", auth=("anyone", guarded.nothing), timeout=60)
    assert response.status_code == 200
    assert requests.get(f"{guarded.url}/docs", auth=(guarded.nothing, ""), timeout=60).status_code == 401
    for bad in ("Basic", "Basic §", "Basic " + base64.b64encode(b"\xff:\xff").decode(), "Digest x"):
        headers = {"authorization": bad.encode()}
        assert requests.get(f"{guarded.url}/docs", headers=headers, timeout=60).status_code == 401


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
    response = requests.post(f"{guarded.url}/v1/models/dot:attend", json=QUERY, headers=headers, auth=auth, timeout=30)
    assert response.status_code == status


# --- the file ---


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_tokens_change_while_it_runs(dot_only, tmp_path):
    """A token that is taken out is refused within seconds, a new one let in; a broken file changes nothing."""
    old, old_lines = make_token("old")
    new, new_lines = make_token("new")
    file = written(tmp_path / "tokens.toml", old_lines)
    with start_server(dot_only, "--tokens", file) as server:

        def knows(token: str) -> bool:
            return requests.get(f"{server.url}/v1/models", headers=bearer(token), timeout=60).status_code == 200

        assert (knows(old), knows(new)) == (True, False)
        written(file, old_lines + "[broken")
        wait_until(lambda: knows(old) and "cannot be used" in server.log)
        file.unlink()
        wait_until(lambda: knows(old) and "No such file" in server.log)
        written(file, new_lines)
        wait_until(lambda: (knows(old), knows(new)) == (False, True))
        assert old not in server.log
        assert new not in server.log


TOKEN = "0" * 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a", "table declaration"),
        ("[a]", "a.sha256"),
        ("a = 1", "a"),
        ('[a]\nsha256 = "secret-in-the-wrong-place"', "a.sha256"),
        (f'[a]\nsha256 = "{TOKEN}"\nright = ["attend"]', "a.right"),
        (f'[a]\nsha256 = "{TOKEN}"\nrights = ["all"]', "a.rights.0"),
        (f'[a]\nsha256 = "{TOKEN}"\nmax_in_flight = 0', "a.max_in_flight"),
        (f'[a]\nsha256 = "{TOKEN}"\nrequests_per_second = inf', "a.requests_per_second"),
        (f'[a]\nsha256 = "{TOKEN}"\n[b]\nsha256 = ["{TOKEN}"]', "same token"),
    ],
)
def test_files_that_say_nothing_usable(tmp_path, text, said):
    """An invalid file is refused with the field at fault, but without its content."""
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Callers(written(tmp_path / "tokens.toml", text))
    assert "secret-in" not in str(caught.value)


def test_a_server_does_not_start_on_a_broken_file(dot_only, tmp_path):
    """A file that cannot be used at the start ends it with a line that says why."""
    for file in (written(tmp_path / "broken.toml", "[a]"), tmp_path / "missing.toml"):
        done = run_server("--models", dot_only, "--rest-port", 0, "--grpc-port", 0, "--tokens", file)
        assert done.returncode == 1
        assert file.name in done.stderr
        assert "Traceback" not in done.stderr


def test_two_tokens_of_one_caller(tmp_path):
    """While one token takes another's place, both are the caller's, and share its limits."""
    first, second = new_token(), new_token()
    text = f'[a]\nsha256 = ["{digest_of(first)}", "{digest_of(second)}"]\nmax_in_flight = 1'
    callers = Callers(written(tmp_path / "tokens.toml", text))
    leave = callers.authenticate(f"Bearer {first}").begin_request()
    with pytest.raises(LimitReached):
        callers.authenticate(f"bearer {second}").begin_request()
    leave()
    callers.authenticate(f"bearer {second}").begin_request()


def test_no_file_asks_nobody():
    """Without a file, everyone is anyone."""
    assert Callers().authenticate(None) is ANYONE


def test_every_token_is_compared(tmp_path, monkeypatch):
    """A comparison takes the same time wherever tokens differ, and each is compared, whoever is found."""
    compared = []
    real = callers_module.hmac.compare_digest
    monkeypatch.setattr(callers_module.hmac, "compare_digest", lambda *both: compared.append(both) or real(*both))
    tokens = [new_token() for _ in range(5)]
    lines = (f'[c{i}]\nsha256 = "{digest_of(token)}"\n' for i, token in enumerate(tokens))
    callers = Callers(written(tmp_path / "tokens.toml", "".join(lines)))
    assert callers.authenticate(f"Bearer {tokens[0]}").name == "c0"
    assert len(compared) == 5
    with pytest.raises(NoCredentials):
        callers.authenticate(f"Bearer {new_token()}")
    assert len(compared) == 10


# --- limits ---


@pytest.mark.parametrize("port", ["rest", "grpc"])
def test_requests_in_flight(dot_only, tmp_path, port):
    """A caller over its limit is refused with a time to retry; another caller is not."""
    greedy, modest = new_token(), new_token()
    lines = f'[greedy]\nsha256 = "{digest_of(greedy)}"\nmax_in_flight = 1\n[modest]\nsha256 = "{digest_of(modest)}"\n'
    callers = Callers(written(tmp_path / "tokens.toml", lines))
    with local_server(dot_only, slots=3, predicted=IN_A_SLOT, callers=callers) as server, ThreadPoolExecutor(1) as pool:
        ask = {"rest": attend_by_rest, "grpc": attend_by_grpc}[port]
        server.gate.close()
        first = pool.submit(ask, server, greedy)
        assert server.gate.arrived.wait(30)
        assert ask(server, greedy) == {"rest": ("429", True), "grpc": ("UNAVAILABLE", True)}[port]
        other = threading.Thread(target=ask, args=(server, modest))
        other.start()
        wait_until(lambda: server.gate.runs == 2)
        server.gate.open()
        other.join()
        assert first.result(30)[0] == {"rest": "200", "grpc": "OK"}[port]
        wait_until(lambda: ask(server, greedy)[0] == first.result()[0])  # its place is given back


def attend_by_rest(server, token: str) -> tuple[str, bool]:
    response = requests.post(f"{server.url}/v1/models/dot:attend", json=QUERY, headers=bearer(token), timeout=30)
    return str(response.status_code), "retry-after" in response.headers


def attend_by_grpc(server, token: str) -> tuple[str, bool]:
    request = pb.AttendRequest(model="dot")
    request.inputs.add().query.CopyFrom(pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[1, 1], data=bytes(4)))
    with grpc.insecure_channel(server.grpc) as channel:
        method = channel.unary_unary("/attention.v1.AttentionService/Attend")
        try:
            method(request.SerializeToString(), metadata=metadata(token), timeout=30)
        except grpc.RpcError as error:
            return error.code().name, refused_by_grpc(error).retry_after is not None
    return "OK", False


def test_requests_a_second(tmp_path, monkeypatch):
    """A caller sends as many requests at once as it may a second, and then at that rate."""
    token, now = new_token(), [100.0]
    monkeypatch.setattr(callers_module.time, "monotonic", lambda: now[0])
    lines = f'[a]\nsha256 = "{digest_of(token)}"\nrequests_per_second = 4\n'
    caller = Callers(written(tmp_path / "tokens.toml", lines)).authenticate(f"Bearer {token}")
    for _ in range(4):
        caller.begin_request()()
    with pytest.raises(LimitReached, match="4 requests a second") as caught:
        caller.begin_request()
    assert caught.value.retry_after == pytest.approx(0.25)
    now[0] += 0.25
    caller.begin_request()()
    with pytest.raises(LimitReached):
        caller.begin_request()
    now[0] += 60  # unused requests do not accumulate
    for _ in range(4):
        caller.begin_request()()
    with pytest.raises(LimitReached):
        caller.begin_request()


@pytest.mark.parametrize(("rate", "at_once"), [(0.5, 1), (1, 1), (3, 3), (10, 10)])
def test_not_one_request_more_than_the_rate(tmp_path, monkeypatch, rate, at_once):
    """At the start, after a pause and when the time has come: not one request more or fewer than the rate."""
    token, now = new_token(), [100.0]
    monkeypatch.setattr(callers_module.time, "monotonic", lambda: now[0])
    lines = f'[a]\nsha256 = "{digest_of(token)}"\nrequests_per_second = {rate}\n'
    caller = Callers(written(tmp_path / "tokens.toml", lines)).authenticate(f"Bearer {token}")

    def admitted() -> int:
        """Send requests until one is refused, and return how many were not."""
        for count in range(100):
            try:
                caller.begin_request()()
            except LimitReached:
                return count
        return 100

    assert admitted() == at_once
    now[0] += 0.99 / rate
    assert admitted() == 0
    now[0] += 0.02 / rate
    assert admitted() == 1
    now[0] += 3600
    assert admitted() == at_once


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_not_one_request_more_at_once(tmp_path, limit):
    """So many requests are in flight at once as the limit says, and with each that ends one more may come."""
    token = new_token()
    lines = f'[a]\nsha256 = "{digest_of(token)}"\nmax_in_flight = {limit}\n'
    caller = Callers(written(tmp_path / "tokens.toml", lines)).authenticate(f"Bearer {token}")
    ends = [caller.begin_request() for _ in range(limit)]
    for end in ends:
        with pytest.raises(LimitReached, match=f"{limit} requests in flight"):
            caller.begin_request()
        end()
        caller.begin_request()
    with pytest.raises(LimitReached):
        caller.begin_request()
