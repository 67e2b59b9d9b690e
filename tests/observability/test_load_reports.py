"""ORCA load reports beside answers, read by the messages that gRPC's own xDS client has."""

import base64
import json
import os
import subprocess
import sys

import pytest
import requests
from attention_server.codecs import orca
from attention_server.telemetry.load import Load, LoadMeter
from serving import HANG, ROOT, start_server

from tests.http2.peer import message
from tests.server.wire import call_headers, ends_call, peer_of, request, whole

pytestmark = pytest.mark.both_grpc_servers
READ = """
import base64, sys
from google.protobuf.json_format import MessageToJson
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport
print(MessageToJson(OrcaLoadReport.FromString(base64.b64decode(sys.argv[1])), preserving_proto_field_name=True))
"""


def read(content: bytes) -> dict[str, float]:
    """Return the fields of a report, read by the package xds-protos in a process of its own."""
    command = [sys.executable, "-c", READ, base64.b64encode(content)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".venv-clients/xds")}
    done = subprocess.run(command, env=env, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_a_report_is_the_message_of_xds():
    """Its bytes are an OrcaLoadReport, and its text names the same fields."""
    load = Load(cpu=0.25, requests=12.5, errors=0.5)
    assert read(orca.encode_protobuf(load)) == {"cpu_utilization": 0.25, "rps_fractional": 12.5, "eps": 0.5}
    assert orca.encode_text(load) == "TEXT cpu_utilization=0.25,rps_fractional=12.5,eps=0.5"


def test_a_load_is_that_of_the_last_second_or_longer():
    """Rates are of ended requests, the share is of the cores' time; within a window the load stays."""
    now, cpu = [10.0], [3.0]
    meter = LoadMeter(lambda: now[0], lambda: cpu[0], cores=2)
    for is_error in (False, False, True):
        meter.count(is_error=is_error)
    now[0], cpu[0] = 10.5, 3.9
    assert meter.load() == Load()
    now[0] = 12.0
    assert meter.load() == Load(cpu=pytest.approx(0.225), requests=1.5, errors=0.5)
    now[0] = 12.5
    assert meter.load().requests == 1.5
    now[0] = 13.0
    assert meter.load() == Load()


def test_answers_have_a_report_where_it_is_asked_for(dot_only, grpc_server):
    """With --load-reports each answer has one, over gRPC as a binary trailer, over REST as a header.

    The trailer is read as a frame: gRPC's library for Python keeps it to itself.
    """
    with start_server(dot_only, "--load-reports") as server, peer_of(server) as peer:
        peer.send(call_headers(1), whole(1, message(request().SerializeToString())))
        trailers = next(frame for frame in peer.frames() if ends_call(frame)).fields
        encoded = trailers["endpoint-load-metrics-bin"]
        report = read(base64.b64decode(encoded + "=" * (-len(encoded) % 4)))
        assert trailers["grpc-status"] == "0"
        assert 0 <= report.get("cpu_utilization", 0) <= 1
        answer = requests.get(f"http://{server.rest}/v1/models", timeout=HANG)
        assert answer.headers["endpoint-load-metrics"].startswith("TEXT cpu_utilization=")


def test_no_answer_has_a_report_by_default(server):
    """Without the setting nothing is measured and nothing sent."""
    answer = requests.get(f"http://{server.rest}/v1/models", timeout=HANG)
    assert "endpoint-load-metrics" not in answer.headers
