"""GET /metrics: requests answered, refused and in progress, under this service's names and Triton's."""

import re
import subprocess
import threading

import grpc
import numpy as np
import pytest
import requests
from attention_client import AttentionClient, InvalidRequest
from attention_client.streaming.batcher import BATCH_SEQUENCES
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.contexts.memory import HANDLE_BYTES
from serving import HANG, start_server, wait_until

from tests.local_server import IN_A_SLOT, local_server
from tests.observability.conftest import Metrics, metrics_of, scraped
from tests.security.conftest import make_token

QUERY = {"query": [[1.0, 0.0], [0.0, 1.0]]}
INFER = {"inputs": [{"name": "query", "datatype": "FP32", "shape": [3, 2, 2], "data": [1.0] * 12}]}
VERSION = {"model": "dot", "version": "1"}
STREAMED = BATCH_SEQUENCES + 4  # sequences, in two messages


@pytest.fixture(scope="module")
def used(dot_only):
    """A server after requests of each kind, and its metrics."""
    with start_server(dot_only) as server:
        fresh = metrics_of(server)
        post = requests.Session().post
        assert post(f"{server.url}/v1/models/dot:attend", json=QUERY, timeout=HANG).status_code == 200
        assert post(f"{server.url}/v2/models/dot/infer", json=INFER, timeout=HANG).status_code == 200
        assert post(f"{server.url}/v1/models/dot:attend", json={}, timeout=HANG).status_code == 400
        assert post(f"{server.url}/v1/models/nobody:attend", json=QUERY, timeout=HANG).status_code == 404
        assert post(f"{server.url}/v1/nowhere", json=QUERY, timeout=HANG).status_code == 404
        long = {"query": np.ones((900, 2)).tolist(), "outputs": ["weights"]}
        assert (
            post(
                f"{server.url}/v1/models/dot:attend", json=long, headers={"x-request-timeout": "1e-6"}, timeout=HANG
            ).status_code
            == 504
        )
        with AttentionClient(server.grpc) as client:
            client.attend_batch("dot", [np.ones((5, 2), np.float32)] * 2)
            list(client.attend_many("dot", [np.ones((7, 2), np.float32)] * STREAMED))
            with pytest.raises(InvalidRequest, match="reads no text"):
                client.tokenize("dot", ["a"])
            memory = client.create_memory("dot", key=np.ones((9, 2), np.float32))
            client.attend("dot", query=np.ones((1, 2), np.float32), memory=memory)
            with refused_by_client():
                client.attend("dot", query=np.ones((1, 2), np.float32), memory="0" * 32)
        yield fresh, metrics_of(server), scraped(server)


def refused_by_client():
    return pytest.raises(Exception, match="keeps no memory")


def test_requests_are_counted(used):
    """By model, version, protocol, method and code; those of no model that is served name none."""
    _, after, _ = used

    def count(**labels: str) -> float:
        return after("attention_requests_total", **labels)

    assert count(method="Attend", protocol="rest", code="OK", **VERSION) == 1
    assert count(method="Attend", protocol="rest", code="INVALID_ARGUMENT", **VERSION) == 1
    assert count(method="Attend", protocol="rest", code="NOT_FOUND", model="", version="") == 1
    assert count(method="", protocol="rest", code="NOT_FOUND", model="", version="") == 1
    assert count(method="Attend", protocol="rest", code="DEADLINE_EXCEEDED") == 1
    assert count(method="ModelInfer", protocol="rest", code="OK", **VERSION) == 1
    assert count(method="Attend", protocol="grpc", code="OK", **VERSION) == 2
    assert count(method="Attend", protocol="grpc", code="NOT_FOUND", **VERSION) == 1
    assert count(method="AttendStream", protocol="grpc", code="OK", **VERSION) == 2  # messages
    assert count(method="CreateMemory", protocol="grpc", code="OK", **VERSION) == 1
    assert count(method="Tokenize", protocol="grpc", code="INVALID_ARGUMENT", **VERSION) == 1
    assert after.labels("attention_requests_total", "model") == {"", "dot"}
    for name in ("duration_seconds_count", "duration_seconds_sum"):
        assert after(f"attention_request_{name}", method="Attend", protocol="grpc") > 0


def test_causes_are_counted(used):
    """Failed requests are counted by cause."""
    _, after, _ = used
    for reason, count in {"invalid_request": 2, "not_found": 3, "deadline_exceeded": 1}.items():
        assert after("attention_rejections_total", reason=reason) == count, reason


def test_sizes_are_counted(used):
    """Sequences, lengths, tokens and bytes are counted for each model."""
    _, after, text = used
    lengths = [2, *[2] * 3, *[5] * 2, *[7] * STREAMED, 1]
    assert after("attention_query_length_count", **VERSION) == len(lengths)
    assert after("attention_query_length_sum", **VERSION) == after("attention_tokens_total", **VERSION) == sum(lengths)
    assert after("attention_key_length_sum", **VERSION) == sum(lengths) - 1 + 9
    assert after("attention_query_length_bucket", le="4", **VERSION) == 5
    assert after("attention_request_sequences_sum", **VERSION) == len(lengths)
    assert after("attention_request_sequences_count", **VERSION) == 6
    assert after("attention_pass_sequences_sum", **VERSION) == len(lengths)
    assert after("attention_pass_rows_sum", **VERSION) == sum(lengths)
    assert after("attention_request_bytes_total", method="Attend", protocol="grpc", **VERSION) > 2 * 5 * 2 * 4
    assert (
        after("attention_response_bytes_total", method="AttendStream", protocol="grpc", **VERSION)
        > STREAMED * 7 * 2 * 4
    )
    for part in ("queue", "compute", "encode"):
        assert after(f"attention_{part}_duration_seconds_count", **VERSION) == 6
        assert 0 < after(f"attention_{part}_duration_seconds_sum", **VERSION) < 60
    assert 'le="+Inf"' in text


def test_memories_and_models_are_shown(used):
    """Memories kept and looked up, versions that are ready, and capacities are exposed."""
    fresh, after, _ = used
    of_states = [
        (after("attention_memory_entries", state=state), after("attention_memory_bytes", state=state))
        for state in ("pinned", "held", "idle")
    ]
    assert of_states == [(0, 0), (0, 0), (1, 9 * 2 * 4 + HANDLE_BYTES)]
    assert (after("attention_memory_hits_total"), after("attention_memory_misses_total")) == (1, 1)
    assert after("attention_memory_budget_bytes") > 0
    assert fresh("attention_model_ready", state="READY", **VERSION) == fresh("attention_ready") == 1
    assert fresh("attention_slots") > 0
    assert fresh("attention_queue_capacity") == 128
    assert fresh("attention_streams", method="AttendStream") == after("attention_streams") == 0
    assert after("process_resident_memory_bytes") > 2**20


def test_triton_readers_find_their_names(used):
    """Names, types and labels are Triton's; a version without requests has zeros."""
    fresh, after, text = used
    counters = ["request_success", "request_failure", "count", "exec_count", "request_duration_us", "queue_duration_us"]
    counters += [f"compute_{part}_duration_us" for part in ("input", "infer", "output")]
    for name in counters:
        assert f"# TYPE nv_inference_{name} counter\n" in text
        assert fresh(f"nv_inference_{name}", **VERSION) == 0
        assert after(f"nv_inference_{name}", **VERSION) > 0
    assert "# TYPE nv_inference_pending_request_count gauge\n" in text
    assert after("nv_inference_pending_request_count", **VERSION) == 0
    assert after("nv_inference_request_success", **VERSION) == after("nv_inference_exec_count", **VERSION) == 6
    assert after("nv_inference_count", **VERSION) == 7 + STREAMED
    assert after.labels("nv_inference_request_failure", "reason") == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}
    assert after("nv_inference_request_failure", reason="OTHER", **VERSION) == 2
    inside = ("queue", "compute_input", "compute_infer", "compute_output")
    whole = after("nv_inference_request_duration_us", **VERSION)
    assert sum(after(f"nv_inference_{part}_duration_us", **VERSION) for part in inside) <= whole


def test_prometheus_linter_has_nothing_to_say(used):
    """`promtool check metrics` accepts all but Triton's names."""
    _, _, text = used
    own = re.sub(r"^(# (HELP|TYPE) )?nv_inference_.*\n", "", text, flags=re.MULTILINE)
    assert len(own) > len(text) / 2
    for exposition, status in ((own, 0), (text, 3)):
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=exposition,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG,
        )
        assert done.returncode == status, done
        assert all(line.startswith("nv_inference_") for line in done.stderr.splitlines()), done.stderr


def test_what_waits_and_runs_is_shown(dot_only):
    """Slots, the queue, requests that are here, Triton's pending ones, and open streams."""
    with local_server(dot_only, max_queued=2, predicted=IN_A_SLOT) as server:
        gate = server.gate
        gate.close()

        def ask(i: int) -> None:
            answers.append(requests.post(f"{server.url}/v1/models/dot:attend", json=QUERY, timeout=HANG).status_code)

        answers: list[int] = []
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: metrics_of(server)("attention_queue_depth") == 2)
        assert requests.post(f"{server.url}/v1/models/dot:attend", json=QUERY, timeout=HANG).status_code == 503
        now = metrics_of(server)
        assert (now("attention_slots"), now("attention_slots_busy")) == (1, 1)
        assert now("attention_queue_capacity") == 2
        assert now("nv_inference_pending_request_count", **VERSION) == 2
        assert now("attention_requests_in_flight", method="Attend", protocol="rest") == 3
        gate.open()
        for thread in threads:
            thread.join()
        assert answers == [200] * 3
        after = metrics_of(server)
        assert (after("attention_queue_depth"), after("attention_slots_busy")) == (0, 0)
        assert after("nv_inference_pending_request_count", **VERSION) == 0
        assert after("attention_requests_total", code="UNAVAILABLE", **VERSION) == 1
        assert after("attention_rejections_total", reason="full") == 1
        assert after("nv_inference_request_failure", reason="REJECTED", **VERSION) == 1


def test_a_stream_that_is_left_leaves_nothing(dot_only):
    """When the caller of a stream disconnects, its messages count as cancelled and none stays in progress."""
    with local_server(dot_only, slots=2, predicted=IN_A_SLOT) as server, grpc.insecure_channel(server.grpc) as channel:
        stream = left_stream(channel, server)
        now = metrics_of(server)
        assert now("attention_streams", method="AttendStream") == 1
        assert now("attention_requests_in_flight", method="AttendStream") == 4
        stream.cancel()
        wait_until(lambda: not server.service.observer.open_records())
        server.gate.open()
        after = metrics_of(server)
        assert after("attention_streams") == 0
        assert after("attention_requests_total", method="AttendStream", code="CANCELLED", **VERSION) == 4


def left_stream(channel, server):
    """Open a stream with four messages of which none is answered yet."""
    tensor = pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[1, 2], data=b"\0" * 8)
    request = pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=tensor)])
    more = threading.Event()

    def messages():
        for i in range(4):
            yield pb.AttendStreamRequest(id=str(i), request=request)
        more.wait(HANG)

    server.gate.close()
    stream = AttentionServiceStub(channel).AttendStream(messages())
    wait_until(lambda: len([each for each in server.service.observer.open_records() if each.submitted]) == 4)
    stream.add_callback(more.set)
    return stream


def test_callers_cannot_make_series(dot_only):
    """Unknown models, methods, paths and codes in requests create no series."""
    with start_server(dot_only) as server:

        def invent(start: int) -> Metrics:
            for i in range(start, start + 20):
                requests.post(f"{server.url}/v1/models/x{i}:attend", json=QUERY, timeout=HANG)
                requests.get(f"{server.url}/path{i}", timeout=HANG)
                requests.post(f"{server.url}/v2/models/dot/versions/{i + 7}/infer", json=INFER, timeout=HANG)
                requests.request(f"METHOD{i}", f"{server.url}/v1/models", timeout=HANG)
                with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError):
                    channel.unary_unary(f"/attention.v1.AttentionService/M{i}")(b"", timeout=HANG)
            return metrics_of(server)

        metrics_of(server)  # is a method too
        before, after = invent(0), invent(100)
        assert before.samples.keys() == after.samples.keys()
        assert after("attention_requests_total", code="NOT_FOUND") == 120


def test_metrics_ask_for_a_token(dot_only, tmp_path):
    """Where tokens are asked for, `/metrics` wants one; one without rights will do."""
    token, lines = make_token("prometheus", "--rights")
    (tmp_path / "tokens").write_text(lines)
    with start_server(dot_only, "--tokens", tmp_path / "tokens") as server:
        assert requests.get(f"{server.url}/metrics", timeout=HANG).status_code == 401
        found = metrics_of(server, authorization=f"Bearer {token}")
        assert found("attention_rejections_total", reason="unauthenticated", protocol="rest") == 1
        with AttentionClient(server.grpc) as client, pytest.raises(Exception, match="Bearer"):
            client.models()
        found = metrics_of(server, authorization=f"Bearer {token}")
        assert found("attention_requests_total", code="UNAUTHENTICATED", protocol="grpc", method="ListModels") == 1
