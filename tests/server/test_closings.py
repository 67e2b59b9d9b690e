"""Connections that the native server closes, because of their age or because they are idle, lose no call."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import grpc
import numpy as np
import pytest
from attention_client import AttentionClient
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.grpc import native
from attention_server.http2.connection import Connection
from attention_server.http2.limits import Timeouts
from local_server import local_server
from serving import HANG

from tests.messages import request_message

ONES = np.ones((1, 2), np.float32)
BURST = 10  # calls between two pauses, while a connection becomes idle
SHORT, LONG = (1_000, 20), (10_000, 100)  # calls, closings

pytestmark = pytest.mark.native_grpc("its core closes connections at times of its own")


def shipped(address: str):
    """Return a call through the client of this project, and its end."""
    client = AttentionClient(address)
    return lambda: client.attend("dot", query=ONES, timeout=HANG).output, client.close


def plain(address: str):
    """Return a call through gRPC's own client, with its own defaults, and its end."""
    channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
    attend = AttentionServiceStub(channel).Attend
    request = request_message("dot", [{"query": ONES}])
    return lambda: attend(request, timeout=HANG).results[0].outputs[0].tensor, channel.close


@pytest.mark.parametrize("client", [shipped, plain], ids=lambda client: client.__name__)
@pytest.mark.parametrize("reason", ["age", "idle"])
@pytest.mark.parametrize(
    ("calls", "closings"), [SHORT, pytest.param(*LONG, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_a_closing_loses_no_call(dot_only, monkeypatch, client, reason, calls, closings):
    """Of thousands of calls, made while connections are closed one after another, each is answered."""
    made = count()
    connect = Connection.connection_made
    connections = [0]

    def counted(self, transport):
        connections[0] = next(made)
        connect(self, transport)

    monkeypatch.setattr(Connection, "connection_made", counted)
    idle = 0.02 if reason == "idle" else 300.0
    monkeypatch.setattr(native, "TIMEOUTS", Timeouts(check=0.01, stalled_bytes=0, idle=idle))
    age = {"max_connection_age": 0.05} if reason == "age" else {}
    callers = 4 if reason == "age" else 1  # a connection with one caller is idle in each of its pauses
    with local_server(dot_only, max_queued=64, **age) as server:
        call, close = client(server.grpc)
        answered, lock = [0], threading.Lock()
        draw = random.Random(1)

        def ask() -> None:
            while answered[0] < calls or connections[0] < closings:
                for _ in range(BURST):
                    assert call() is not None
                    with lock:
                        answered[0] += 1
                if reason == "idle":
                    time.sleep(draw.uniform(0, 2.5 * idle))  # about when the server closes the connection

        with ThreadPoolExecutor(callers) as pool:
            for each in [pool.submit(ask) for _ in range(callers)]:
                each.result()
        close()
    print(answered[0], "calls over", connections[0], "closings")
