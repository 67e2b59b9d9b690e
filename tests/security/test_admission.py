"""Messages that inflate or are invalid, streams and watches without number, outputs and work without bound."""

import gc
import gzip
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.inference import grpc_predict_v2_pb2 as oip
from attention_server.domain.messages import Response
from attention_server.grpc import native, standard
from attention_server.http2.limits import Timeouts
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving import HANG, start_server, wait_until
from structlog.testing import capture_logs

from tests.local_server import IN_A_SLOT, local_server
from tests.refusals import refused
from tests.security.peers import BODY, all_of, answers
from tests.transports import TRANSPORTS

pytestmark = pytest.mark.both_grpc_servers

MIB = 2**20
INFLATED = 128 * MIB


@pytest.fixture
def server(dot_only):
    with local_server(dot_only, predicted=IN_A_SLOT) as running:
        yield running


# --- messages that inflate -------------------------------------------------------------------------------------------


BOMB = """
import sys, grpc
target, size, kind = sys.argv[1], int(sys.argv[2]), grpc.Compression[sys.argv[3]]
options = [("grpc.max_send_message_length", -1)]
with grpc.insecure_channel(target, options, kind) as channel:
    try:
        channel.unary_unary("/attention.v1.AttentionService/Attend")(b"\\x12" + bytes(size), timeout=240)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""


def peak_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


@pytest.mark.parametrize("kind", ["Gzip", "Deflate"])
@pytest.mark.native_grpc("its core inflates, and has its own words")
def test_a_message_that_inflates(dot_only, kind):
    """Eight times the limit of zeros, sent compressed, is refused before it is inflated over the limit."""
    with start_server(dot_only, "--max-message-mib", 16) as server:
        before = peak_mib(server.process.pid)
        command = [sys.executable, "-c", BOMB, server.grpc, str(INFLATED), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG)
        assert done.stdout.startswith("RESOURCE_EXHAUSTED"), done
        assert str(16 * MIB) in done.stdout
        grown = peak_mib(server.process.pid) - before
        assert grown < 3 * 16, f"grew by {grown} MiB"
        assert answers(server)


@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_taken(server, kind):
    """A compressed message within the limit is answered, as clients of the Open Inference Protocol may send it."""
    with grpc.insecure_channel(server.grpc, compression=kind) as channel:
        assert b"dot" in channel.unary_unary("/attention.v1.AttentionService/ListModels")(b"\x00" * 0, timeout=HANG)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/attention.v1.AttentionService/Attend")(os.urandom(10) + bytes(10_000), timeout=HANG)
        assert caught.value.code() is not grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.native_grpc("a body of REST is the same beside either")
def test_a_body_that_inflates(dot_only):
    """Eight times the limit of spaces, sent to REST compressed, is refused and never held whole."""
    with start_server(dot_only, "--max-message-mib", 16) as server:
        before = peak_mib(server.process.pid)
        bomb = gzip.compress(b" " * INFLATED, 1)
        headers = {"content-encoding": "gzip"}
        response = requests.post(f"{server.url}/v1/models/dot:attend", data=bomb, headers=headers, timeout=HANG)
        assert response.status_code in (400, 413)  # not inflated, or not over the limit
        grown = peak_mib(server.process.pid) - before
        assert grown < 3 * 16, f"grew by {grown} MiB"
        assert answers(server)


# --- invalid messages and requests -----------------------------------------------------------------------------------


UNREADABLE = b"\x0c\xff\xff"
STREAMS = {
    "/attention.v1.AttentionService/AttendStream": pb.AttendStreamRequest(id="1"),
    "/inference.GRPCInferenceService/ModelStreamInfer": oip.ModelInferRequest(id="1"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(),
}


@pytest.mark.parametrize(
    "method",
    [
        "/attention.v1.AttentionService/Attend",
        "/inference.GRPCInferenceService/ModelInfer",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ],
)
def test_what_is_no_message(server, method, caplog):
    """Bytes that are no message are the caller's mistake, told as that, and none of the log's."""
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_stream(method)(UNREADABLE, timeout=HANG)
        with pytest.raises(grpc.RpcError):
            list(call)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message" in call.details()
    assert not caplog.records


@pytest.mark.parametrize("method", STREAMS)
def test_what_is_no_message_on_a_stream(server, method, caplog):
    """On a stream, the messages before invalid bytes are answered; then it ends as the caller's mistake."""
    with grpc.insecure_channel(server.grpc) as channel:
        good = STREAMS[method].SerializeToString()
        call = channel.stream_stream(method)(iter([good, UNREADABLE, good]), timeout=HANG)
        assert next(call)
        with pytest.raises(grpc.RpcError):
            next(call)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records


def test_an_origin_that_is_none(server):
    """An origin that is no URL is another site's."""
    response = requests.post(
        f"{server.url}/v1/models/dot:attend", data=BODY, headers={"origin": "http://["}, timeout=HANG
    )
    assert response.status_code == 403


@pytest.mark.parametrize("body", ['{"parameters": true}', '{"parameters": [1]}', '{"parameters": {"a": {}}}'])
@pytest.mark.parametrize("action", ["load", "unload"])
def test_parameters_that_are_none(server, action, body):
    """Parameters of a load or unload that are not an object of scalars are refused by the field."""
    response = requests.post(f"{server.url}/v2/repository/models/dot/{action}", data=body, timeout=HANG)
    assert response.status_code == 400
    assert response.json()["error"].startswith("parameters")


@pytest.mark.parametrize("path", ["/v1/models/dot:attend", "/v1/models/dot/versions/1:attend", "/v2/models/dot/infer"])
def test_a_method_that_is_not_offered(server, path):
    """A GET of a computing path is a 405 that names the method."""
    response = requests.get(server.url + path, timeout=HANG)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/models/dot:attend", "/v1/models/dot/memories", "/v2/models/dot/infer"])
@pytest.mark.parametrize("container", ["[]", "{}"])
def test_lists_without_number(server, path, container):
    """A document of a million lists or objects, many times as large when it is parsed, is refused before it is."""
    body = '{"query": [' + ",".join([container] * 1_000_000) + "]}"
    response = requests.post(server.url + path, data=body, timeout=HANG)
    assert response.status_code == 413
    assert "1000000" in response.text


# --- streams without number ------------------------------------------------------------------------------------------


def test_many_who_watch_health(server):
    """Watches of health, which need no credentials, hold no thread that an answer needs."""
    with grpc.insecure_channel(server.grpc) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        watches = [watch(health_pb2.HealthCheckRequest(), timeout=HANG) for _ in range(60)]
        assert all(next(each).status == health_pb2.HealthCheckResponse.SERVING for each in watches)
        assert b"dot" in channel.unary_unary("/attention.v1.AttentionService/ListModels")(b"", timeout=HANG)
        for each in watches:
            each.cancel()


def test_too_many_who_watch_health(dot_only, monkeypatch):
    """Of more watches than there may be, the last is refused; when one ends, another may come."""
    monkeypatch.setattr(standard, "WATCHES", 2)
    with local_server(dot_only) as server, grpc.insecure_channel(server.grpc) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        watches = [watch(health_pb2.HealthCheckRequest(), timeout=HANG) for _ in range(2)]
        assert all(next(each).status == health_pb2.HealthCheckResponse.SERVING for each in watches)
        refused = watch(health_pb2.HealthCheckRequest(), timeout=HANG)
        with pytest.raises(grpc.RpcError):
            next(refused)
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        watches.pop().cancel()
        wait_until(lambda: _watches(watch))


def _watches(watch) -> bool:
    call = watch(health_pb2.HealthCheckRequest(), timeout=HANG)
    try:
        return next(call).status == health_pb2.HealthCheckResponse.SERVING
    except grpc.RpcError:
        return False
    finally:
        call.cancel()


def test_streams_of_reflection_that_stay(dot_only, monkeypatch):
    """Streams of reflection are few, and end by themselves: open ones block new ones for a bounded time."""
    monkeypatch.setattr(standard, "REFLECTIONS", 2)
    monkeypatch.setattr(standard, "REFLECTION_SECONDS", 1.0)
    with capture_logs() as logs, local_server(dot_only) as server, grpc.insecure_channel(server.grpc) as channel:
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        release = threading.Event()

        def once_and_wait():
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            release.wait(HANG)

        held = [reflect(once_and_wait(), timeout=HANG) for _ in range(2)]
        assert all(next(each).list_services_response.service for each in held)
        refused = reflect(once_and_wait(), timeout=HANG)
        with pytest.raises(grpc.RpcError):
            next(refused)
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        for each in held:
            with pytest.raises(grpc.RpcError):
                next(each)
            assert each.code() is grpc.StatusCode.CANCELLED
        assert next(reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=HANG))
        release.set()
    assert not [entry for entry in logs if entry["log_level"] == "error"]


@pytest.mark.native_grpc("looks into the native server's connections")
def test_a_stream_that_nobody_reads(dot_only):
    """Of an unread stream few answers are computed, and none is held when the caller disconnects."""
    query = pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[900, 1], data=bytes(3600))
    request = pb.AttendRequest(
        model="dot", inputs=[pb.Sequence(query=query)], outputs=[pb.OutputSpec(name="weights")]
    )  # 3 MiB of answer
    done = threading.Event()

    def many():
        for i in range(60):
            yield pb.AttendStreamRequest(id=str(i), request=request).SerializeToString()
        done.wait(HANG)

    gc.collect()
    gc.disable()  # leftovers have to be freed by reference counting
    try:
        with local_server(dot_only) as server, grpc.insecure_channel(server.grpc) as channel:
            before = server.gate.runs
            call = channel.stream_stream("/attention.v1.AttentionService/AttendStream")(many(), timeout=HANG)
            wait_until(lambda: server.gate.runs - before >= 5)
            threading.Event().wait(1)  # in which all would be computed
            assert unsent_bytes(server) > 0
            assert server.gate.runs - before < 24 * 8  # an answer is computed in eight blocks of rows
            done.set()
            call.cancel()
            wait_until(lambda: unsent_bytes(server) == kept_answers() == 0)
    finally:
        gc.enable()


def unsent_bytes(server) -> int:
    connections = list(server.grpc_server.http2.connections)
    return sum(body.size for each in connections for body in list(each.session.bodies.values()))


def kept_answers() -> int:
    # By type: isinstance reads `__class__` of all libraries' objects, and some warn at that.
    return sum(type(each) is Response for each in gc.get_objects())


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSPORTS)
def test_outputs_without_number(server, connect, name):
    """More outputs than the limit are refused, before any is planned."""
    transport = connect(name, server.rest, server.grpc)
    outputs = [{"name": "weights", "as": f"w{i}"} for i in range(257)]
    query = np.ones((1, 1), np.float32)
    assert len(transport.outputs("dot", query=query, outputs=outputs[:256])) == 256
    with refused("RESOURCE_EXHAUSTED", "outputs", "257", "256"):
        transport.attend("dot", query=query, outputs=outputs)


@pytest.fixture(scope="module")
def narrow(dot_only, grpc_server):
    """A server of little work at a time."""
    with start_server(dot_only, "--max-work-mib", 1) as running:
        yield running


@pytest.mark.parametrize("name", TRANSPORTS)
def test_work_without_bound(narrow, connect, name):
    """Sequences within the limit each, but together over the work limit, are refused, with the limit."""
    transport = connect(name, narrow.rest, narrow.grpc)
    sequence = {"query": np.ones((256, 1), np.float32)}  # scores of a quarter of a MiB
    assert len(transport.attend("dot", inputs=[sequence] * 4)["results"]) == 4
    with refused("RESOURCE_EXHAUSTED", "inputs", "1048576"):
        transport.attend("dot", inputs=[sequence] * 5)


@pytest.mark.native_grpc("its core closes idle connections at times of its own")
def test_an_idle_connection_of_grpc(dot_only, monkeypatch):
    """A connection without a call is closed after a while."""
    monkeypatch.setattr(native, "TIMEOUTS", Timeouts(check=0.2, idle=0.5))
    with local_server(dot_only) as server:
        host, port = server.grpc.split(":")
        with socket.create_connection((host, int(port)), timeout=HANG) as peer:
            peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            assert all_of(peer)  # to its end: it is hung up on
