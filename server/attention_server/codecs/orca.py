"""ORCA load reports: https://github.com/cncf/xds, xds/data/orca/v3/orca_load_report.proto.

A report stands beside an answer: over gRPC as the trailer `endpoint-load-metrics-bin`, which the policy
`weighted_round_robin` of gRPC's clients reads (gRFC A51 and A58), and over HTTP as the header `endpoint-load-metrics`,
which Envoy reads.
"""

import struct

from attention_server.telemetry.load import Load

TRAILER, HEADER = b"endpoint-load-metrics-bin", "endpoint-load-metrics"
FIELDS = {"cpu_utilization": 1, "rps_fractional": 6, "eps": 7}  # numbers of the message, all doubles


def encode_protobuf(load: Load) -> bytes:
    """Return a serialized `xds.data.orca.v3.OrcaLoadReport`."""
    return b"".join(struct.pack("<Bd", FIELDS[name] << 3 | 1, value) for name, value in _values(load).items())


def encode_text(load: Load) -> str:
    """Return the header's value in the form TEXT: `TEXT cpu_utilization=0.25,rps_fractional=12`."""
    return "TEXT " + ",".join(f"{name}={value:.6g}" for name, value in _values(load).items())


def _values(load: Load) -> dict[str, float]:
    return {"cpu_utilization": load.cpu, "rps_fractional": load.requests, "eps": load.errors}
