"""The table of errors: every cause has its codes, over both transports; our own faults are in the log alone."""

import inspect
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import grpc
import numpy as np
import pytest
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server import errors
from attention_server.codecs.errors import CODES, code_of, encode_json, encode_status
from attention_server.contexts.store import MemoryStore
from attention_server.domain.request_record import RequestRecord
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.repository.policy import Policy
from attention_server.repository.repository import Repository
from attention_server.rest.exchange import error_response
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import HANG, wait_until
from starlette.requests import Request
from structlog.testing import capture_logs

from tests.local_server import DEADLINES, SOON_IN_A_SLOT, local_server
from tests.refusals import Refused, refused, refused_by_http
from tests.transports import TRANSPORTS

pytestmark = pytest.mark.both_grpc_servers

TABLE = {
    "InvalidRequest": ("INVALID_ARGUMENT", 400),
    "NotFound": ("NOT_FOUND", 404),
    "TooLarge": ("RESOURCE_EXHAUSTED", 413),
    "Unavailable": ("UNAVAILABLE", 503),
    "Full": ("UNAVAILABLE", 503),
    "Loading": ("UNAVAILABLE", 503),
    "Stopping": ("UNAVAILABLE", 503),
    "LimitReached": ("UNAVAILABLE", 429),
    "Unauthenticated": ("UNAUTHENTICATED", 401),
    "PermissionDenied": ("PERMISSION_DENIED", 403),
    "Misdirected": ("INVALID_ARGUMENT", 421),
    "DeadlineExceeded": ("DEADLINE_EXCEEDED", 504),
    "BrokenProtocol": ("INTERNAL", 500),
    "Unimplemented": ("UNIMPLEMENTED", 501),
    "Cancelled": ("CANCELLED", 499),
}
CAUSES = [
    cause
    for _, cause in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cause, errors.AttentionServiceError) and cause is not errors.AttentionServiceError
]
QUERY = np.ones((2, 3), np.float32)


@pytest.fixture
def dot_only(repository, tmp_path):
    """A repository of one small model."""
    (tmp_path / "dot").symlink_to(repository / "dot")
    return tmp_path


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_its_codes(cause):
    """Each class of error stands in the one table, with its codes, field and all."""
    error = cause("the reason", field="a.field")
    grpc_code, http = TABLE[cause.__name__]
    status = encode_status(error, "id-1")
    assert status.code == grpc.StatusCode[grpc_code].value[0]
    assert "the reason" in status.message
    details = {}
    for packed in status.details:
        for kind in (BadRequest, RequestInfo, RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                details[kind] = kind.FromString(packed.value)
    assert details[RequestInfo].request_id == "id-1"
    assert details[BadRequest].field_violations[0].field == "a.field"
    assert (RetryInfo in details) == issubclass(cause, errors.Unavailable)
    content = encode_json(error, "id-1")["error"]
    assert (content["code"], content["status"], content["field"], content["request_id"]) == (
        http,
        grpc_code,
        "a.field",
        "id-1",
    )
    scope = {"type": "http", "path": "/v1/x", "headers": [], "state": {"record": RequestRecord()}}
    response = error_response(error, Request(scope))
    assert response.status_code == http
    assert ("www-authenticate" in response.headers) == (cause is errors.Unauthenticated)
    assert ("retry-after" in response.headers) == issubclass(cause, errors.Unavailable)


def test_the_table_and_the_tree_agree():
    """No class is missing from the table, and none of the tree's drawing from the classes."""
    assert set(CODES) == set(CAUSES)
    for cause in CAUSES:
        assert cause.__name__ in (errors.__doc__ or "")


def test_a_subclass_has_its_parents_code():
    """A narrower error that someone adds is told as its parent, not as a fault within the handling of faults."""

    class Narrower(errors.NotFound):
        pass

    assert code_of(Narrower("x")).http == 404


def test_what_is_no_error_of_ours_is_internal():
    """Any further exception is INTERNAL and 500, and its words are not sent."""
    for error in (ValueError("secret"), TimeoutError("secret"), KeyError("secret"), AssertionError("secret")):
        assert code_of(error).http == 500
        assert encode_status(error, "id").message == encode_json(error, "id")["error"]["message"] == "internal error"


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize(
    "fault", [RuntimeError("secret /etc/path"), TimeoutError("secret"), MemoryError("secret")], ids=repr
)
def test_a_fault_of_ours(dot_only, connect, name, fault):
    """A fault inside says "internal error" and the request's id to the caller, and everything to the log."""
    with local_server(dot_only) as server, capture_logs() as logs:
        transport = connect(name, server.rest, server.grpc)
        server.gate.fault = fault
        with refused("INTERNAL", "") as caught:
            transport.attend("dot", query=QUERY, request_id="the-id")
        assert caught.value.message == "internal error"
        assert caught.value.request_id == "the-id"
        (entry,) = (entry for entry in logs if entry["log_level"] == "error")
        assert entry["request_id"] == "the-id"
        assert entry["exc_info"]
        server.gate.fault = None
        assert transport.outputs("dot", query=QUERY)["output"].shape == (2, 3)  # and it goes on


@contextmanager
def full(models, connect, name):
    """A server with a busy slot and a full queue until the block ends, and a function that calls it in a thread."""
    with local_server(models, max_queued=1, predicted=SOON_IN_A_SLOT) as server, ThreadPoolExecutor(3) as callers:
        attend = partial(callers.submit, connect(name, server.rest, server.grpc).attend, "dot", query=QUERY)
        server.gate.close()
        try:
            running = attend()
            assert server.gate.arrived.wait(HANG)
            queued = attend()
            wait_until(lambda: server.scheduler.state().queued == 1)
            yield server, attend
        finally:
            server.gate.open()
        for answer in (running, queued):
            assert len(answer.result(HANG)["results"]) == 1


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_full_queue(dot_only, connect, name):
    """A request to a full queue is refused as unavailable, with a time to try again; the rest is answered."""
    with full(dot_only, connect, name) as (_, attend):
        with refused("UNAVAILABLE", None, "full") as caught:
            attend().result(HANG)
        assert caught.value.retry_after > 0


@pytest.mark.parametrize(
    ("name", "timeout"),
    [
        *(("grpc", timeout) for timeout in (None, 1e6)),  # gRPC has no form for a deadline beyond 1e9 seconds
        *(("rest-json", timeout) for timeout in (None, 1e6, 1e12, 1e18, 1e300, float("inf"))),
    ],
)
def test_a_queued_request_of_any_patience(dot_only, connect, name, timeout):
    """A request that has to queue is answered in the end, whether its caller set no deadline or a very far one."""
    with local_server(dot_only, predicted=SOON_IN_A_SLOT) as server, ThreadPoolExecutor(2) as callers:
        transport = connect(name, server.rest, server.grpc)
        server.gate.close()
        running = callers.submit(transport.attend, "dot", query=QUERY)
        assert server.gate.arrived.wait(HANG)
        queued = callers.submit(transport.attend, "dot", query=QUERY, timeout=timeout)
        wait_until(lambda: server.scheduler.state().queued == 1 or queued.done())
        server.gate.open()
        for answer in (running, queued):
            assert len(answer.result(HANG)["results"]) == 1


@pytest.mark.parametrize("name", [name for name in TRANSPORTS if name != "grpc"])
def test_a_deadline_behind_more_than_the_queue_holds(dot_only, connect, name):
    """However many wait, a caller has an answer by its deadline."""
    with full(dot_only, connect, name) as (_, attend):
        with pytest.raises(Refused) as caught:
            attend(timeout=0.2).result(HANG)
        assert caught.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("name", TRANSPORTS)
def test_health_while_the_queue_is_full(dot_only, connect, name):
    """Health answers at once while every slot and place is taken."""
    with full(dot_only, connect, name) as (server, _):
        assert requests.get(f"{server.url}/healthz", timeout=HANG).status_code == 200
        assert requests.get(f"{server.url}/readyz", timeout=HANG).status_code == 200
        assert requests.get(f"{server.url}/v1/models", timeout=HANG).status_code == 200
        with grpc.insecure_channel(server.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert (
                health.Check(health_pb2.HealthCheckRequest(), timeout=HANG).status
                == health_pb2.HealthCheckResponse.SERVING
            )


@pytest.mark.parametrize("name", TRANSPORTS)
def test_while_loading(dot_only, connect, name):
    """While models load, the process is alive and not ready, and requests are refused as unavailable."""
    with local_server(dot_only, load=False) as server:
        with refused("UNAVAILABLE", None, "loading") as caught:
            connect(name, server.rest, server.grpc).attend("dot", query=QUERY)
        assert caught.value.retry_after >= 1
        assert requests.get(f"{server.url}/healthz", timeout=HANG).status_code == 200
        for path in ("/readyz", "/v1/models", "/v1/models/dot"):
            assert requests.get(f"{server.url}{path}", timeout=HANG).status_code == 503
        with grpc.insecure_channel(server.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "attention.v1.AttentionService"):
                answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=HANG)
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_deadline_in_the_queue(dot_only, connect, name):
    """A request that expires in the queue is refused then, and never runs."""
    with local_server(dot_only, predicted=SOON_IN_A_SLOT) as server, ThreadPoolExecutor(1) as callers:
        transport = connect(name, server.rest, server.grpc)
        server.gate.close()
        running = callers.submit(transport.attend, "dot", query=QUERY)
        assert server.gate.arrived.wait(HANG)
        with refused("DEADLINE_EXCEEDED"):
            connect(name, server.rest, server.grpc).attend("dot", query=QUERY, timeout=0.5)
        server.gate.open()
        running.result(HANG)
        transport.attend("dot", query=QUERY)
        assert server.gate.runs == 2


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_deadline_while_running(dot_only, connect, name):
    """A request that expires while it runs is refused then: its caller does not wait for the computation."""
    with local_server(dot_only, predicted=SOON_IN_A_SLOT) as server:
        attend = connect(name, server.rest, server.grpc).attend
        server.gate.close()
        for deadline in DEADLINES:
            with refused("DEADLINE_EXCEEDED"):
                attend("dot", query=QUERY, timeout=deadline)
            if server.gate.arrived.is_set():
                break
        assert server.gate.arrived.is_set()


@pytest.mark.parametrize("name", [name for name in TRANSPORTS if name != "grpc"])
def test_an_answer_that_is_late(dot_only, connect, name):
    """An answer that was computed after its deadline is not sent as if it had been in time."""
    with local_server(dot_only, predicted=SOON_IN_A_SLOT) as server, ThreadPoolExecutor(1) as callers:
        attend = connect(name, server.rest, server.grpc).attend
        server.gate.close()
        for deadline in DEADLINES:
            answer = callers.submit(attend, "dot", query=QUERY, timeout=deadline)
            wait_until(lambda: server.gate.arrived.is_set() or answer.done())  # noqa: B023
            if server.gate.arrived.is_set():
                late = time.monotonic() + deadline
                wait_until(lambda: time.monotonic() > late)  # noqa: B023
                break
        server.gate.open()
        with refused("DEADLINE_EXCEEDED"):
            answer.result(HANG)
        assert server.gate.runs


def test_a_grpc_call_cancelled_in_the_queue(dot_only):
    """A gRPC call that is cancelled in the queue never runs."""
    message = pb.AttendRequest(
        model="dot",
        inputs=[pb.Sequence(query=pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=QUERY.shape, data=QUERY.tobytes()))],
    )
    with local_server(dot_only, predicted=SOON_IN_A_SLOT) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = AttentionServiceStub(channel)
        server.gate.close()
        running = stub.Attend.future(message)
        assert server.gate.arrived.wait(HANG)
        gone = stub.Attend.future(message)
        wait_until(lambda: server.scheduler.state().queued == 1)
        gone.cancel()
        wait_until(lambda: is_cancelled(server))
        server.gate.open()
        running.result(HANG)
        stub.Attend(message)
        assert server.gate.runs == 2


def is_cancelled(server) -> bool:
    """Return whether the server has counted a request that was cancelled."""
    return 'code="CANCELLED"' in requests.get(f"{server.url}/metrics", timeout=HANG).text


def test_a_http_request_whose_caller_has_gone(dot_only):
    """An HTTP request with a caller that disconnects never runs."""
    body = b'{"query": [[1.0]]}'
    head = f"POST /v1/models/dot:attend HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with local_server(dot_only, predicted=SOON_IN_A_SLOT) as server, ThreadPoolExecutor(1) as callers:
        host, port = server.rest.split(":")
        server.gate.close()
        running = callers.submit(
            requests.post, f"{server.url}/v1/models/dot:attend", json={"query": [[1.0]]}, timeout=HANG
        )
        assert server.gate.arrived.wait(HANG)
        with socket.create_connection((host, int(port))) as caller:
            caller.sendall(head + body)
            wait_until(lambda: server.scheduler.state().queued == 1)
        wait_until(lambda: is_cancelled(server))
        server.gate.open()
        assert running.result(HANG).status_code == 200
        assert (
            requests.post(f"{server.url}/v1/models/dot:attend", json={"query": [[1.0]]}, timeout=HANG).status_code
            == 200
        )
        assert server.gate.runs == 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v3/x", 404),
        ("GET", "/v1/models/a/b", 404),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/models/dot", 405),
        ("POST", "/healthz", 405),
    ],
)
def test_routes_that_are_not_there(server, method, path, status):
    """An unknown path or method is refused in the form of all errors, with the request's id."""
    response = requests.request(method, f"{server.url}{path}", headers={"x-request-id": "the-id"}, timeout=HANG)
    assert response.status_code == status
    error = refused_by_http(response)
    assert error.request_id == response.headers["x-request-id"] == "the-id"


def test_a_large_request_over_both(server, connect):
    """Refusals of large requests arrive: the body is read before the answer is sent."""
    big = np.zeros((2000, 1000), np.float32)
    for name in TRANSPORTS:
        with pytest.raises(Refused) as caught:
            connect(name, server.rest, server.grpc).attend("self", query=big)
        assert caught.value.code == "INVALID_ARGUMENT"


def test_a_repository_that_fails_stays_not_ready(tmp_path):
    """A repository that cannot be loaded never says that it is ready."""
    repository = Repository(tmp_path, OnnxRuntime("cpu", threads=1), MemoryStore(1), Policy())
    with pytest.raises(Exception, match="no model"):
        repository.load()
    assert not repository.ready


def test_the_faults_of_several_sequences() -> None:
    """An error names each sequence at fault, as far as the headers that clients accept have room."""
    others = [(f"inputs[{i}].text", "a reason of some length " * 4) for i in range(1, 64)]
    for message in ("short", "é" * 600):
        error = errors.InvalidRequest(message, field="inputs[0].text", others=others)
        status = encode_status(error, "id-1")
        (packed,) = (each for each in status.details if each.Is(BadRequest.DESCRIPTOR))
        found = [each.field for each in BadRequest.FromString(packed.value).field_violations]
        assert found == [f"inputs[{i}].text" for i in range(len(found))]
        assert len(found) >= (15 if message == "short" else 5)
        assert len(status.SerializeToString()) * 4 / 3 + 3 * len(status.message.encode()) < 14_000
