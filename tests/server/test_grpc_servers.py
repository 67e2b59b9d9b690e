"""The choice of the server of gRPC: the native server, grpcio's, or the one that this machine can run."""

import grpc
import pytest
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from serving import HANG, ROOT, run_server, start_server

# The command of the server on a machine without libnghttp2: the name of its file leads nowhere.
HIDDEN = """
from attention_server.http2 import library
library.FILE = "libnghttp2.so.0"
from attention_server import app
app.main()
"""
WITHOUT_LIBRARY = (ROOT / ".venv/bin/python", "-c", HIDDEN)


def answers(address: str) -> bool:
    """Return whether a server answers a request over gRPC."""
    query = pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=(1, 2), data=bytes(8))
    request = pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=query)])
    with grpc.insecure_channel(address) as channel:
        return len(AttentionServiceStub(channel).Attend(request, timeout=HANG).results) == 1


def test_the_library_is_missing(dot_only):
    """Where libnghttp2 is missing, grpcio serves gRPC, and the log says why."""
    with start_server(dot_only, command=WITHOUT_LIBRARY) as server:
        assert answers(server.grpc)
        assert "apt-get install libnghttp2" in server.log


@pytest.mark.parametrize("kind", ["native", "grpcio"])
def test_a_server_that_is_chosen(dot_only, kind):
    """Either server can be chosen by name."""
    with start_server(dot_only, "--grpc-server", kind) as server:
        assert answers(server.grpc)


def test_native_without_its_library(dot_only):
    """The native server that is asked for and cannot run is one line with the package to install, and status 1."""
    done = run_server("--models", dot_only, "--grpc-server", "native", command=WITHOUT_LIBRARY)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("attention-server: ")
    assert "apt-get install libnghttp2" in last
