"""Lines of requests in the log, the id that a caller gets with every answer, and where the time went."""

import re
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from attention_client import AttentionClient
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from serving import HANG, start_server

from tests.observability.conftest import logged
from tests.security.conftest import make_token

QUERY = {"query": [[1.0, 0.0], [0.0, 1.0]]}
TENSOR = pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[1, 2], data=b"\0" * 8)
REQUEST = pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=TENSOR)])
TIMING = re.compile(r"queue;dur=(\d+\.\d{3}), compute;dur=(\d+\.\d{3}), encode;dur=(\d+\.\d{3})")
MADE = re.compile("[0-9a-f]{32}")
TRACE = "0af7651916cd43dd8448eb211c80319c"
HOSTILE = "x\n2026-01-01T00:00:00Z [info     ] ready\x1b[2K\u2028"
CURSOR = "\x1b[2K"


def attend(url: str, body: Any = QUERY, model: str = "dot", **headers: str) -> requests.Response:
    return requests.post(f"{url}/v1/models/{model}:attend", json=body, headers=headers, timeout=HANG)


def test_every_request_has_a_line(dot_only, tmp_path):
    """With `--access-log all` each request has a JSON line: caller, model, code and durations, without the token."""
    token, lines = make_token("search")
    (tmp_path / "tokens").write_text(lines)
    arguments = ("--access-log", "all", "--log-format", "json", "--tokens", tmp_path / "tokens")
    with start_server(dot_only, *arguments) as server:
        bearer = {"authorization": f"Bearer {token}"}
        trace = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-00"}
        answer = attend(server.url, **bearer, **trace, **{"x-request-id": "r-1"})
        with AttentionClient(server.grpc, token=token) as client:
            client.attend_batch("dot", [np.ones((5, 2), np.float32)] * 3)
            list(client.attend_many("dot", [np.ones((1, 2), np.float32)]))
        attend(server.url)
        found = logged(server, 5)  # in any order: a line may come after its answer
        assert token not in server.log

    def line(**wanted: Any) -> dict[str, Any]:
        (only,) = (each for each in found if wanted.items() <= each.items())
        return only

    rest, refused = line(protocol="rest", code="OK"), line(protocol="rest", code="UNAUTHENTICATED")
    assert rest.pop("timestamp")
    times = [rest.pop(f"{name}_ms") for name in ("queue", "compute", "encode", "duration")]
    assert 0 < sum(times[:3]) <= times[3]
    assert rest == {
        "event": "request",
        "level": "info",
        "request_id": "r-1",
        "trace_id": TRACE,
        "caller": "search",
        "protocol": "rest",
        "method": "Attend",
        "model": "dot",
        "version": 1,
        "code": "OK",
        "sequences": 1,
        "tokens": 2,
        "request_bytes": len(answer.request.body),
        "answer_bytes": len(answer.content),
    }
    assert line(protocol="grpc", method="Attend", sequences=3)["tokens"] == 15
    message = line(method="AttendStream", id="0")
    (stream,) = (each for each in found if each.get("method") == "AttendStream" and each is not message)
    assert message["request_id"] == stream["request_id"]
    assert refused["caller"] == "127.0.0.1"


@pytest.mark.parametrize(("setting", "codes"), [("none", []), ("errors", ["NOT_FOUND"]), ("all", ["OK", "NOT_FOUND"])])
def test_which_requests_have_a_line(dot_only, setting, codes):
    """None, those that failed, or all."""
    with start_server(dot_only, "--access-log", setting, "--log-format", "json") as server:
        attend(server.url)
        attend(server.url, model="nobody")
        assert [entry["code"] for entry in logged(server, len(codes))] == codes


@pytest.mark.parametrize("form", ["text", "json"])
def test_nobody_writes_lines_of_their_own(dot_only, form):
    """A caller's text can neither begin a line nor move the cursor, in text and in JSON."""
    with start_server(dot_only, "--access-log", "all", "--log-format", form) as server:
        before = len(server.log.splitlines())
        attend(server.url, model=HOSTILE.replace("\n", "%0A"))
        attend(server.url, {HOSTILE: 1})
        requests.post(f"{server.url}/v1/{HOSTILE}", timeout=HANG)
        with grpc.insecure_channel(server.grpc) as channel:
            stub = AttentionServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.Attend(pb.AttendRequest(model=HOSTILE), timeout=HANG)
            messages = [pb.AttendStreamRequest(id=id_, request=REQUEST) for id_ in (HOSTILE, CURSOR)]
            list(stub.AttendStream(iter(messages), timeout=HANG))
        log = server.log.split("\n")[before:-1]
    assert [line for line in log if "request_id" not in line] == []
    assert len(log) == 7  # the stream has one too
    assert all(line.isprintable() for line in log)


@pytest.mark.parametrize("sent", ["", "a b", "é", "x" * 129, "tab\there"])
def test_an_id_that_is_none_is_replaced(dot_only, sent, server):
    """An id of a caller is printable ASCII of at most 128 characters, or a new one is made."""
    answer = requests.get(f"{server.url}/v1/models", headers={"x-request-id": sent.encode("latin-1")}, timeout=HANG)
    assert MADE.fullmatch(answer.headers["x-request-id"])
    if sent.isascii() and sent.isprintable():
        with grpc.insecure_channel(server.grpc) as channel:
            metadata = (("x-request-id", sent),)
            _, call = AttentionServiceStub(channel).ListModels.with_call(pb.ListModelsRequest(), metadata=metadata)
            assert MADE.fullmatch(dict(call.trailing_metadata())["x-request-id"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics", 200),
        ("GET", "/docs", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v2/trace/setting", 501),
    ],
)
def test_every_answer_of_http_has_an_id(server, method, path, status):
    """The caller's, or one of 32 hexadecimal digits, with every answer."""
    answer = requests.request(method, f"{server.url}{path}", headers={"x-request-id": "!~" * 64}, timeout=HANG)
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "!~" * 64)
    assert MADE.fullmatch(requests.request(method, f"{server.url}{path}", timeout=HANG).headers["x-request-id"])


def test_the_protocols_own_id_is_another(server):
    """The `id` of the Open Inference Protocol goes back in the document, the request's in the header."""
    tensor = {"name": "query", "datatype": "FP32", "shape": [1, 1, 2], "data": [1, 0]}
    answer = requests.post(
        f"{server.url}/v2/models/dot/infer",
        json={"id": "theirs", "inputs": [tensor]},
        headers={"x-request-id": "ours"},
        timeout=HANG,
    )
    assert (answer.json()["id"], answer.headers["x-request-id"]) == ("theirs", "ours")


def test_answers_say_where_the_time_went(server):
    """In the header Server-Timing, or the trailing metadata of that name: milliseconds, where something ran."""
    tensor = {"name": "query", "datatype": "FP32", "shape": [1, 1, 2], "data": [1, 0]}
    infer = requests.post(f"{server.url}/v2/models/dot/infer", json={"inputs": [tensor]}, timeout=HANG)
    told = [attend(server.url).headers["server-timing"], infer.headers["server-timing"]]
    with grpc.insecure_channel(server.grpc) as channel:
        _, call = AttentionServiceStub(channel).Attend.with_call(REQUEST, timeout=HANG)
        told.append(dict(call.trailing_metadata())["server-timing"])
    for each in told:
        found = TIMING.fullmatch(each)
        assert found, each
        assert float(found[2]) > 0
    assert "server-timing" not in requests.get(f"{server.url}/v1/models", timeout=HANG).headers
    assert "server-timing" not in attend(server.url, model="nobody").headers
