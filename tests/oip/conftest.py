"""A stub of the protocol's gRPC service, and a server with small limits."""

import grpc
import pytest
from attention_proto.inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from serving import start_server


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def narrow(repository, grpc_server):
    """A server that takes and sends little."""
    with start_server(repository, "--max-message-mib", 1, "--max-answer-mib", 1) as running:
        yield running
