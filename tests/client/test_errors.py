"""Failed calls: the error, its attributes, and the codes that are retried."""

import asyncio
import json
import pickle
import socket
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from attention_client import AttentionClient, DeadlineExceeded, InvalidRequest, Unavailable, errors
from attention_client.wire import channel, status
from attention_client.wire.call import Call, call_with_retries, run, run_async, send, send_async
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

pytestmark = pytest.mark.both_grpc_servers

QUERY = np.ones((2, 2), np.float32)
FOUR_MIB = np.ones((1024, 1024), np.float32)
ATTEMPTS = channel.SERVICE_CONFIG["methodConfig"][0]["retryPolicy"]["maxAttempts"]


def failure(code, message="no", *details):
    status = Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_has_its_error(ask, target, service, code):
    """Every code becomes the class the table names, the base class else, with message and request id."""
    service.failures = [failure(code, "why")] * ATTEMPTS
    with pytest.raises(errors.AttentionError, match="why") as caught:
        ask(target, "attend", "any", query=QUERY)
    assert type(caught.value) is status.ERROR_CLASSES.get(code, errors.AttentionError)
    assert caught.value.field is None
    assert caught.value.request_id == "r-1"


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
def test_a_broken_connection_is_no_fault_of_the_server(code):
    """INTERNAL and UNKNOWN without a request id come from a broken connection: Unavailable, and worth a retry."""
    call = SimpleNamespace(code=lambda: code, details=lambda: "Internal error from Core", trailing_metadata=tuple)
    assert type(status.from_call(call)) is Unavailable
    call.trailing_metadata = lambda: (("x-request-id", "r-1"),)
    assert type(status.from_call(call)) is errors.InternalError


class Failed(grpc.RpcError):
    """A failed call, as gRPC raises it."""

    def __init__(self, code, details):
        self.code, self.details, self.trailing_metadata = (lambda: code), (lambda: details), tuple


def test_a_connection_that_breaks_in_mid_answer(monkeypatch):
    """gRPC repeats no call that broke while its answer arrived: the client does, after a pause, in the same time."""
    clock = iter([100.0, 101.0, 103.5, 109.0])
    monkeypatch.setattr("attention_client.wire.call.time", SimpleNamespace(monotonic=lambda: next(clock)))
    flow = call_with_retries("method", "request", 30, ())
    assert next(flow) == Call("method", "request", 29.0, ())
    broken = Failed(grpc.StatusCode.UNAVAILABLE, "Stream removed (FD Shutdown)")
    assert flow.send(broken) == Call("method", "request", 26.5 - 0.1, (), 0.1)
    assert flow.send(broken) == Call("method", "request", 21.0 - 0.2, (), 0.2)
    with pytest.raises(Unavailable, match="refused"):
        flow.send(Failed(grpc.StatusCode.UNAVAILABLE, "Connection refused"))


class Breaking:
    """A method whose answers break off, until the time is over."""

    attempts = 0

    def __call__(self, _, *, timeout, **__):
        self.attempts += 1
        code = grpc.StatusCode.UNAVAILABLE if timeout > 0 else grpc.StatusCode.DEADLINE_EXCEEDED
        raise Failed(code, "Stream removed (FD Shutdown)")


@pytest.mark.parametrize("driver", ["blocking", "asyncio"])
def test_a_call_that_breaks_off_is_not_repeated_at_once(driver):
    """The pauses double: half a second has room for four attempts, the last when the time is over."""
    method = Breaking()
    flow = call_with_retries(method, "request", 0.5, ())
    with pytest.raises(DeadlineExceeded):
        run(flow, send) if driver == "blocking" else asyncio.run(run_async(flow, send_async))
    assert method.attempts <= 4


def test_invalid_request_names_the_field(ask, target, service):
    """The field and the reason of a BadRequest reach the caller."""
    violation = BadRequest.FieldViolation(field="inputs[0].query", description="has rank 1; it must be [T, 8]")
    bad_request = BadRequest(field_violations=[violation])
    service.failures = [failure(grpc.StatusCode.INVALID_ARGUMENT, "bad request", bad_request)]
    with pytest.raises(ValueError, match=r"^inputs\[0\].query: has rank 1; it must be \[T, 8\]$") as caught:
        ask(target, "attend", "any", query=QUERY)
    assert isinstance(caught.value, InvalidRequest)
    assert caught.value.field == "inputs[0].query"


def test_unavailable_says_when_to_come_back(ask, target, service):
    """A server that stays full says after how many seconds it wants to be asked again."""
    full = failure(grpc.StatusCode.UNAVAILABLE, "queue full", RetryInfo(retry_delay=Duration(nanos=250_000_000)))
    service.failures = [full] * ATTEMPTS
    with pytest.raises(Unavailable, match="queue full") as caught:
        ask(target, "attend", "any", query=QUERY)
    assert caught.value.retry_after == 0.25
    assert service.attempts == ATTEMPTS


def test_no_server_at_the_address(ask):
    """An address without a server is Unavailable, without a time to come back."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="refused") as caught:
            ask(f"127.0.0.1:{unheard.getsockname()[1]}", "models", timeout=60)
    assert caught.value.retry_after is None


def test_deadline(ask):
    """A server that never answers costs the timeout and no more."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError) as caught:
        ask(f"127.0.0.1:{silent.getsockname()[1]}", "attend", "any", query=QUERY, timeout=0.2)
    assert isinstance(caught.value, DeadlineExceeded)


def test_large_requests_are_tried_again(ask, target, service):
    """A request of 4 MiB survives two failed attempts."""
    service.failures = [failure(grpc.StatusCode.UNAVAILABLE), failure(grpc.StatusCode.CANCELLED)]
    ask(target, "attend", "any", query=FOUR_MIB[:4], key=FOUR_MIB)
    assert service.attempts == 3


def test_without_the_retry_buffer_they_are_not(ask, target, service, monkeypatch):
    """gRPC gives up retries past 256 KiB by default: the test above passes by this option alone."""
    plain = tuple(option for option in channel.OPTIONS if option[0] != "grpc.per_rpc_retry_buffer_size")
    monkeypatch.setattr(channel, "OPTIONS", plain)
    service.failures = [failure(grpc.StatusCode.UNAVAILABLE)] * 2
    with pytest.raises(Unavailable):
        ask(target, "attend", "any", query=FOUR_MIB[:4], key=FOUR_MIB)
    assert service.attempts == 1


def test_faults_of_the_request_are_not_tried_again(ask, target, service):
    """A call is repeated for UNAVAILABLE and CANCELLED alone."""
    service.failures = [failure(grpc.StatusCode.INVALID_ARGUMENT)]
    with pytest.raises(InvalidRequest):
        ask(target, "attend", "any", query=QUERY)
    assert service.attempts == 1


def test_answers_have_no_size_limit(ask, target):
    """An answer above gRPC's default limit of 4 MiB arrives."""
    assert ask(target, "attend", "any", query=FOUR_MIB, outputs=["weights"]).weights.nbytes == 4 * 2**20


@pytest.mark.parametrize(
    ("target", "uri"),
    [
        ("10.0.0.1:50051", "ipv4:10.0.0.1:50051"),
        ("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("server:50051", "server:50051"),
        ("unix:/run/attention.sock", "unix:/run/attention.sock"),
    ],
)
def test_targets(target, uri):
    """IPv4 addresses are balanced over; everything else is gRPC's to understand."""
    assert channel.uri(target) == uri


def test_calls_are_balanced(target, service, replica):
    """Calls go round all addresses."""
    other_target, other_service = replica
    with AttentionClient(f"{target},{other_target}") as client:
        while not (service.attempts and other_service.attempts):
            client.attend("any", query=QUERY)


def test_a_missing_replica_fails_no_call(target, service):
    """Calls go to the addresses that answer."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        with AttentionClient(f"127.0.0.1:{unheard.getsockname()[1]},{target}") as client:
            for _ in range(10):
                client.attend("any", query=QUERY)
    assert service.attempts == 10


def test_service_config_is_valid():
    """The service config is JSON, and repeats every method of the service."""
    config = json.loads(dict(channel.OPTIONS)["grpc.service_config"])
    assert config["methodConfig"][0]["name"] == [{"service": "attention.v1.AttentionService"}]


@pytest.mark.parametrize(
    "kind", dict.fromkeys([*status.ERROR_CLASSES.values(), errors.NotRequested]), ids=lambda kind: kind.__name__
)
def test_errors_travel_between_processes(kind):
    """An error survives pickling whole, as worker pools need it."""
    error = pickle.loads(pickle.dumps(kind("why", field="inputs[0]", request_id="r-1")))
    assert (type(error), str(error), error.request_id) == (kind, "inputs[0]: why", "r-1")
