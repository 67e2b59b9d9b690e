"""Raw connections to the REST port."""

import socket

import requests
from serving import HANG

ATTEND = "POST /v1/models/dot:attend HTTP/1.1\r\nhost: localhost\r\n"
BODY = b'{"query": [[1.0]]}'


def connect(server) -> socket.socket:
    host, port = server.rest.split(":")
    return socket.create_connection((host, int(port)), timeout=HANG)


def all_of(peer: socket.socket) -> bytes:
    """Read to the end, which a reset is too."""
    received = b""
    try:
        while more := peer.recv(65536):
            received += more
    except ConnectionResetError:
        pass
    return received


def answers(server) -> bool:
    return requests.post(f"{server.url}/v1/models/dot:attend", data=BODY, timeout=HANG).status_code == 200
