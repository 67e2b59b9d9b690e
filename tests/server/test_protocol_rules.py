"""Rules of the protocols that honest clients keep, and the errors of those that do not."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import grpc
import pytest
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.inference import grpc_predict_v2_pb2 as oip
from attention_server import app
from attention_server.auth.hosts import HostPolicy
from attention_server.budget.shares import Shares
from attention_server.codecs.document import fields as json_fields
from attention_server.codecs.oip.proto import decode_request
from attention_server.errors import Full, InvalidRequest, Misdirected
from attention_server.grpc import stream
from attention_server.settings import misspelt_variables
from grpc_reflection.v1alpha import reflection_pb2
from serving import HANG, wait_until

from tests.http2.peer import OPENING, Peer, data, fields, headers, message
from tests.local_server import LocalServer, local_server
from tests.refusals import refused_by_grpc
from tests.server.test_budget import weights

ATTEND = "/attention.v1.AttentionService/Attend"
STREAM = ATTEND + "Stream"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
INVALID_ARGUMENT, UNIMPLEMENTED, INTERNAL = "3", "12", "13"


@pytest.fixture(scope="module")
def server(dot_only) -> Iterator[LocalServer]:
    with local_server(dot_only) as running:
        yield running


def status(server: LocalServer, sent: list[tuple[str, str]], *messages: bytes) -> str:
    """Return the status of a call with these headers and messages."""
    host, port = server.grpc.split(":")
    with Peer((host, int(port)), OPENING) as peer:
        peer.send(headers(1, sent), data(1, b"".join(messages), ("END_STREAM",)))
        for frame in peer.frames():
            told = getattr(frame, "fields", {})
            if "grpc-status" in told:
                return told["grpc-status"]
    raise AssertionError("no status")


@pytest.mark.parametrize(
    ("more", "messages", "expected"),
    [
        ({}, [message(b"", flag=1)], INTERNAL),
        ({"grpc_timeout": "soon"}, [message(b"")], INVALID_ARGUMENT),
        ({"grpc_timeout": "123456789S"}, [message(b"")], INVALID_ARGUMENT),
        ({}, [], UNIMPLEMENTED),
        ({}, [message(b""), message(b"")], UNIMPLEMENTED),
    ],
    ids=["compressed, not how", "timeout", "a timeout of nine digits", "no message", "two messages"],
)
def test_calls_that_break_a_rule(server, more, messages, expected):
    """A compressed message without its encoding, a malformed timeout and another number of messages than one."""
    assert status(server, fields(ATTEND, **more), *messages) == expected


def test_a_stream_begins_before_its_first_answer(server):
    """A caller that waits for the response's headers before it sends gets them."""
    going_on = threading.Event()

    def later() -> Iterator[bytes]:
        going_on.wait(HANG)
        yield pb.AttendStreamRequest(id="a", request=weights(1)).SerializeToString()

    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.stream_stream(STREAM, response_deserializer=pb.AttendStreamResponse.FromString)(
            later(), timeout=HANG
        )
        assert call.initial_metadata() is not None
        going_on.set()
        assert [each.id for each in call] == ["a"]


def test_an_idle_stream_ends(server, monkeypatch):
    """A stream without requests ends as UNAVAILABLE after a time, and its slot is free."""
    monkeypatch.setattr(stream, "IDLE_SECONDS", 0.2)
    stopping = threading.Event()
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.stream_stream(STREAM)(iter(lambda: stopping.wait(HANG) and None, None), timeout=HANG)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        stopping.set()
    refusal = refused_by_grpc(caught.value)
    assert refusal.code == "UNAVAILABLE"
    assert "idle" in refusal.message
    assert refusal.retry_after
    wait_until(lambda: not server.service.observer.open_records())


def test_streams_have_shares():
    """One holder has so many slots alone, and fewer beside others, who find some free."""
    shares = Shares(64, "streams")
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(shares.hold("a"))
        with pytest.raises(Full):
            stack.enter_context(shares.hold("a"))
        for _ in range(10):
            stack.enter_context(shares.hold("b"))
    with shares.hold("a"):
        pass


def test_reflection_of_version_1(server):
    """Reflection v1 lists the services, itself included, and describes them."""
    ask = reflection_pb2.ServerReflectionRequest
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.stream_stream(
            REFLECTION,
            request_serializer=ask.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        listed, described = call(
            iter([ask(list_services=""), ask(file_containing_symbol="grpc.reflection.v1.ServerReflection")]),
            timeout=HANG,
        )
    names = [each.name for each in listed.list_services_response.service]
    assert {"attention.v1.AttentionService", "grpc.reflection.v1.ServerReflection"} <= set(names)
    assert described.file_descriptor_response.file_descriptor_proto


def test_headers_that_are_not_plain(server):
    """A length that is sent twice, and a timeout in Python's own writing, are refused by the header's name."""
    url = f"{server.url}/v1/models/dot:attend"
    refusal = requests.post(url, json={"query": [[1.0]]}, headers={"X-Request-Timeout": "1_0"}, timeout=HANG)
    assert refusal.status_code == 400
    assert "X-Request-Timeout" in refusal.json()["error"]["message"]
    lines = [
        "POST /v2/models/dot/infer HTTP/1.1",
        "host: localhost",
        "connection: close",
        "content-length: 2",
        "inference-header-content-length: 2",
        "inference-header-content-length: 1",
    ]
    host, port = server.rest.split(":")
    with Peer((host, int(port)), "\r\n".join([*lines, "", "{}"]).encode()) as peer:
        answer = peer.socket.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Inference-Header-Content-Length" in answer


def test_contents_of_two_types():
    """A tensor in the field of its type and in another's as well is refused, with the field."""
    tensor = oip.ModelInferRequest.InferInputTensor(name="query", datatype="FP32", shape=[1, 1, 1])
    tensor.contents.fp32_contents[:] = [1.0]
    tensor.contents.bytes_contents[:] = [b"a"]
    with pytest.raises(InvalidRequest, match="bytes_contents"):
        decode_request(oip.ModelInferRequest(model_name="dot", inputs=[tensor]))


def test_a_field_where_none_is_known():
    """The error of an unknown field ends in what would do."""
    with pytest.raises(InvalidRequest, match=r"there is no such field; leave it out$"):
        json_fields({"a": 1}, "parameters", ())


def test_variables_that_are_misspelt():
    """A variable close to a setting's is told with the setting; the client's and Kubernetes' are not."""
    told = misspelt_variables(
        ["ATTENTION_MAX_QUEUE", "ATTENTION_REST_PROT", "ATTENTION_TOKEN", "ATTENTION_PORT_8080_TCP", "ATTENTION_SLOTS"]
    )
    assert told == {
        "ATTENTION_MAX_QUEUE": "ATTENTION_MAX_QUEUED",
        "ATTENTION_REST_PROT": "ATTENTION_REST_PORT",
    }


def test_a_list_of_hosts():
    """With a list of hosts its names and the loopback's are accepted, with any port; any further one is not."""
    hosts = HostPolicy(loopback_only=False, names=frozenset({"attention.example.org"}))
    for accepted in ("attention.example.org", "Attention.Example.org:8080", "127.0.0.1:80", "[::1]"):
        hosts.check([accepted], "1.1")
    for refused in ("example.org", "attention.example.org.evil.org", "10.0.0.1", "a" * 300):
        with pytest.raises(Misdirected, match="--allowed-hosts"):
            hosts.check([refused], "1.1")
    HostPolicy(loopback_only=False).check(["example.org"], "1.1")


def test_health_on_a_port_of_its_own(repository, tmp_path, monkeypatch):
    """The health port answers while the loop is busy, beside a peer that sends nothing, and tells a stop."""
    (tmp_path / "dot").symlink_to(repository / "dot")
    with local_server(tmp_path, health_port=0) as server:
        assert server.application.health
        url = f"http://127.0.0.1:{server.application.health.port}"
        with socket.create_connection(("127.0.0.1", server.application.health.port)):
            blocked, going_on = threading.Event(), threading.Event()
            server.loop.call_soon_threadsafe(lambda: (blocked.set(), going_on.wait(HANG)))
            assert blocked.wait(HANG)
            for path, status in (("healthz", 200), ("readyz", 200), ("metrics", 404)):
                assert requests.get(f"{url}/{path}", timeout=HANG).status_code == status
            going_on.set()
        server.application.rest.set_stopping()
        assert requests.get(f"{url}/readyz", timeout=HANG).status_code == 503
        monkeypatch.setattr(app, "STUCK_SECONDS", -1.0)
        assert requests.get(f"{url}/healthz", timeout=HANG).status_code == 503
