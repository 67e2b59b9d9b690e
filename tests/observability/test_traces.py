"""OpenTelemetry: spans over the wire to a collector, in the trace of the caller."""

import asyncio
import os
import subprocess
import sys
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import requests
from attention_client import AsyncAttentionClient, AttentionClient, InvalidRequest
from attention_client.streaming.batcher import BATCH_SEQUENCES
from attention_proto.attention.v1 import attention_pb2 as pb
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import TracerProvider
from serving import HANG, clean_env, run_server, start_server

from tests.observability.conftest import attributes, logged, run_collector

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
QUERY = {"query": [[1.0, 0.0], [0.0, 1.0]]}
PARTS = ["compute", "encode", "queue"]
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}  # milliseconds between two sendings


@contextmanager
def traced_server(models, collector, *arguments, **env):
    own = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}", **SOON, **env}
    with start_server(models, *arguments, env=own) as server:
        yield server


def test_a_request_is_a_span_with_its_parts(dot_only):
    """Over both transports and protocols: a span in the caller's trace, and in it queue, compute and encode."""
    infer = {"inputs": [{"name": "query", "datatype": "FP32", "shape": [1, 1, 2], "data": [1, 0]}]}
    with run_collector() as collector, traced_server(dot_only, collector) as server:
        headers = {"traceparent": TRACEPARENT, "x-request-id": "r-1"}
        for path, body in (("v1/models/dot:attend", QUERY), ("v2/models/dot/infer", infer)):
            assert requests.post(f"{server.url}/{path}", json=body, headers=headers, timeout=HANG).status_code == 200
        with grpc.insecure_channel(server.grpc) as channel:
            attend = channel.unary_unary("/attention.v1.AttentionService/Attend")
            message = pb.AttendRequest(
                model="dot",
                inputs=[pb.Sequence(query=pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[1, 2], data=b"\0" * 8))],
            )
            attend(message.SerializeToString(), metadata=tuple(headers.items()), timeout=HANG)
        spans = collector.wait_for(lambda spans: len(spans) == 12)
        assert collector.resource["service.name"] == "attention-service"
    roots = [span for span in spans if span.kind == trace_pb2.Span.SPAN_KIND_SERVER]
    assert sorted(span.name for span in roots) == ["Attend", "Attend", "ModelInfer"]
    for root in roots:
        assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
        told = attributes(root.attributes)
        assert (told["attention.model"], told["attention.version"], told["attention.code"]) == ("dot", 1, "OK")
        assert told["attention.request_id"] == "r-1"
        within = sorted((span for span in spans if span.parent_span_id == root.span_id), key=lambda span: span.name)
        assert [span.name for span in within] == PARTS
        for span in within:
            assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert (
                span.end_time_unix_nano <= root.end_time_unix_nano + 1_000_000
            )  # two clocks are read one after another


def test_failures_are_told(dot_only):
    """A caller's error is recorded without an error status; a trace that the caller does not sample is not sent."""
    with run_collector() as collector:
        with traced_server(dot_only, collector, "--log-format", "json") as server:
            wrong = requests.post(f"{server.url}/v1/models/dot:attend", json={}, timeout=HANG)
            assert wrong.status_code == 400
            unsampled = {"traceparent": TRACEPARENT[:-1] + "0"}
            requests.post(f"{server.url}/v1/models/dot:attend", json=QUERY, headers=unsampled, timeout=HANG)
            (entry,) = logged(server, 1)
        (span,) = collector.spans  # all was sent when the server stopped
    told = attributes(span.attributes)
    assert (told["attention.code"], told["attention.reason"]) == ("INVALID_ARGUMENT", "invalid_request")
    assert span.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    assert entry["trace_id"] == span.trace_id.hex()


def test_each_message_of_a_stream_is_a_span(dot_only):
    """A stream is a span; each of its messages is one within it, with its own parts."""
    with run_collector() as collector, traced_server(dot_only, collector) as server:
        with AttentionClient(server.grpc) as client:
            assert len(list(client.attend_many("dot", [np.ones((2, 2), np.float32)] * 70))) == 70
        spans = collector.wait_for(
            lambda spans: any(span.name == "AttendStream" and not span.parent_span_id for span in spans)
        )
    (stream,) = [span for span in spans if not span.parent_span_id]
    messages = [span for span in spans if span.parent_span_id == stream.span_id]
    assert len(messages) == -(-70 // BATCH_SEQUENCES) > 1
    for message in messages:
        assert sorted(span.name for span in spans if span.parent_span_id == message.span_id) == PARTS


def test_the_client_hands_its_trace_on(dot_only):
    """Where the caller has OpenTelemetry and is in a span, every call of the client is in its trace."""
    tracer = TracerProvider().get_tracer("test")
    with run_collector() as collector, traced_server(dot_only, collector) as server:
        with tracer.start_as_current_span("caller") as span, AttentionClient(server.grpc) as client:
            client.attend("dot", query=np.ones((1, 2), np.float32))
            client.models()
            list(client.attend_many("dot", [np.ones((1, 2), np.float32)]))
            with pytest.raises(InvalidRequest):
                client.attend("dot", query=np.ones((1, 2), np.float32), outputs=["nothing"])
        with tracer.start_as_current_span("caller") as other:

            async def ask():
                async with AsyncAttentionClient(server.grpc) as client:
                    await client.attend("dot", query=np.ones((1, 2), np.float32))

            asyncio.run(ask())
        spans = collector.wait_for(
            lambda spans: sum(each.kind == trace_pb2.Span.SPAN_KIND_SERVER for each in spans) == 6
        )
    own, others = ({f"{each.get_span_context().trace_id:032x}"} for each in (span, other))
    assert {each.trace_id.hex() for each in spans} == own | others
    of_parent = span.get_span_context().span_id.to_bytes(8, "big")
    names = sorted(each.name for each in spans if each.parent_span_id == of_parent)
    assert names == ["Attend", "Attend", "AttendStream", "ListModels"]


def test_without_opentelemetry_the_client_works(dot_only):
    """The client does not need it."""
    asked = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from attention_client import AttentionClient\n"
        "with AttentionClient(sys.argv[1]) as client: print(client.attend('dot', query=[[1, 0]]).output.shape)"
    )
    with start_server(dot_only) as server:
        done = subprocess.run(
            [sys.executable, "-c", asked, server.grpc], capture_output=True, text=True, check=True, env=clean_env()
        )
    assert done.stdout == "(1, 2)\n"


def test_what_is_not_asked_for_is_not_imported(dot_only):
    """Without the variables OpenTelemetry is not loaded; variables that disable traces are obeyed."""
    asked = (
        "import attention_server.app as app, attention_server.telemetry.tracing as tracing, sys\n"
        "assert tracing.open_tracing() is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    off = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    for env in ({}, off | {"OTEL_SDK_DISABLED": "true"}, off | {"OTEL_TRACES_EXPORTER": "none"}):
        done = subprocess.run(
            [sys.executable, "-c", asked], capture_output=True, text=True, check=True, env={**os.environ, **env}
        )
        assert done.stdout == "[]\n"


def test_a_collector_that_is_not_there_stops_nothing(dot_only):
    """Without a collector requests are answered and the server stops cleanly."""
    nowhere = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **SOON}
    with start_server(dot_only, env=nowhere) as server:
        assert requests.post(f"{server.url}/v1/models/dot:attend", json=QUERY, timeout=HANG).status_code == 200


@pytest.mark.parametrize("protocol", ["http/json", "http/protobuf"])
def test_a_protocol_that_cannot_be_spoken_is_said(protocol, dot_only):
    """An exporter that is unknown or not installed ends the start with one line."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    done = run_server("--models", dot_only, "--rest-port", 0, "--grpc-port", 0, env=env)
    assert done.returncode == 1
    assert "http/protobuf" in done.stderr.splitlines()[-1]
