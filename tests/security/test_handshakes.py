"""Connections on a port of TLS before the handshake is complete, on both ports of a real server."""

import socket
from contextlib import ExitStack

import pytest
import requests
from attention_client import AttentionClient, Unavailable
from attention_client.wire import channel
from attention_server.auth.certificates import Certificates
from attention_server.grpc import native
from attention_server.rest import server as rest_server
from attention_server.transport import listener
from serving import HANG, wait_until

from tests.local_server import local_server

CONNECTIONS = 3


@pytest.fixture(params=["rest", "grpc"])
def port(request):
    return request.param


def connect(server, port) -> socket.socket:
    host, number = getattr(server, port).split(":")
    return socket.create_connection((host, int(number)), timeout=HANG)


def is_closed(connection: socket.socket) -> bool:
    """Read to the end of a connection that nothing was sent on."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def answers(server, pems) -> bool:
    try:
        with AttentionClient(server.grpc, credentials=channel.tls(pems.ca), timeout=HANG) as client:
            models = client.models()
        return bool(models) and requests.get(f"https://{server.rest}/readyz", verify=str(pems.ca), timeout=HANG).ok
    except (Unavailable, requests.ConnectionError):
        return False


def test_a_handshake_has_a_time(dot_only, pems, port, monkeypatch):
    """A peer that does not begin its handshake, or does not end it, is disconnected after a while."""
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 0.3)
    with local_server(dot_only, certificates=Certificates(pems.cert, pems.key)) as server:
        with connect(server, port) as silent, connect(server, port) as halting:
            halting.sendall(b"\x16\x03\x01\x02\x00\x01")  # the begin of a ClientHello
            assert is_closed(silent)
            assert is_closed(halting)
        monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 10.0)
        assert answers(server, pems)


def test_a_handshake_is_counted(dot_only, pems, port, monkeypatch):
    """Of more connections than there may be the last is closed, whether or not the first handshakes are complete."""
    for module in (native, rest_server):
        monkeypatch.setattr(module, "max_connections", lambda: CONNECTIONS)
    with local_server(dot_only, certificates=Certificates(pems.cert, pems.key)) as server, ExitStack() as stack:
        held = [stack.enter_context(connect(server, port)) for _ in range(CONNECTIONS)]
        with connect(server, port) as another:
            assert is_closed(another)
        for each in held:
            each.setblocking(False)
            with pytest.raises(BlockingIOError):
                each.recv(1)  # it is open
            each.close()
        wait_until(lambda: answers(server, pems))
