"""Turns of the event loop are shared by address: a flood of one address does not delay another address."""

import http.client
import os
import signal
import socket
from contextlib import ExitStack

import pytest
from serving import HANG, start_server

from tests.trials.hostile_cases import DATA, HEADERS, PREFACE, SETTINGS, call_head, frame

CONNECTIONS = 300  # fewer than may wait to be accepted
PIPELINED = 16
CALLING, CALLS = 8, 100  # connections of a flood of gRPC calls, and calls on each
LIST = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n" * PIPELINED


def connect(address: str) -> socket.socket:
    """Connect from an address that is not the good caller's."""
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=HANG, source_address=("127.0.0.2", 0))


@pytest.mark.parametrize("are_open", [False, True], ids=["new connections", "open connections"])
def test_a_flood_of_one_address_has_its_share_of_the_loop(dot_only, are_open):
    """A request that arrives after thousands of another address is answered before a twentieth of them."""
    with start_server(dot_only, "--access-log", "all") as server:
        with ExitStack() as stack:
            good = http.client.HTTPConnection(server.rest, timeout=HANG)
            stack.callback(good.close)
            flood = [stack.enter_context(connect(server.rest)) for _ in range(CONNECTIONS if are_open else 0)]
            if are_open:
                good.request("GET", "/healthz")
                assert good.getresponse().read()
            os.kill(server.process.pid, signal.SIGSTOP)
            for peer in flood or (stack.enter_context(connect(server.rest)) for _ in range(CONNECTIONS)):
                peer.sendall(LIST)
            good.request("GET", "/v1/models", headers={"x-request-id": "good"})
            os.kill(server.process.pid, signal.SIGCONT)
            response = good.getresponse()
            assert (response.status, response.getheader("x-request-id")) == (200, "good")
            assert response.read()
        server.process.terminate()
        assert server.process.wait(HANG) == 0
        answered = [line for line in server.log.splitlines() if "ListModels" in line]
        (at,) = [i for i, line in enumerate(answered) if "request_id=good" in line]
        assert at < CONNECTIONS * PIPELINED / 20


def test_a_flood_of_calls_of_one_address_has_its_share_of_the_loop(dot_only):
    """A request that arrives after hundreds of gRPC calls of another address is answered before most of them."""
    calls = b"".join(
        frame(HEADERS, 4, number, call_head("/attention.v1.AttentionService/ListModels"))
        + frame(DATA, 1, number, bytes(5))
        for number in range(1, 2 * CALLS, 2)
    )
    with start_server(dot_only, "--access-log", "all") as server:
        with ExitStack() as stack:
            good = http.client.HTTPConnection(server.rest, timeout=HANG)
            stack.callback(good.close)
            good.request("GET", "/healthz")
            assert good.getresponse().read()
            flood = [stack.enter_context(connect(server.grpc)) for _ in range(CALLING)]
            for peer in flood:
                peer.sendall(PREFACE + frame(SETTINGS))
                assert peer.recv(1)
            os.kill(server.process.pid, signal.SIGSTOP)
            for peer in flood:
                peer.sendall(calls)
            good.request("GET", "/v1/models", headers={"x-request-id": "good"})
            os.kill(server.process.pid, signal.SIGCONT)
            assert good.getresponse().read()
        server.process.terminate()
        assert server.process.wait(HANG) == 0
        answered = [line for line in server.log.splitlines() if "ListModels" in line]
        (at,) = [i for i, line in enumerate(answered) if "request_id=good" in line]
        assert at < CALLING * CALLS / 8
