"""Ways in for hostile input: bytes over gRPC, bodies over HTTP, and bytes on a socket. Each answer is judged."""

import http.client
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import grpc

from tests.trials.subject import Subject, Wrong, judge

SECONDS = 60.0
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
PATIENCE = 0.05  # seconds for an answer to a request that may be incomplete, before this end closes


class GrpcDoor:
    """Sends bytes as messages; several calls at once."""

    def __init__(self, subject: Subject) -> None:
        self.codes: Counter[str] = Counter()
        self._channel = grpc.insecure_channel(subject.server.grpc, [("grpc.use_local_subchannel_pool", 1)])

    def send(self, method: str, bodies: Iterable[bytes]) -> None:
        """Make a call of one message for each of the bodies."""
        call = self._channel.unary_unary(method)
        for body, future in [(body, call.future(body, timeout=SECONDS)) for body in bodies]:
            self._judge(future, method, body)

    def stream(self, method: str, bodies: list[bytes]) -> None:
        """Make a call with the bodies as messages, and read all answers."""
        answers = self._channel.stream_stream(method)(iter(bodies), timeout=SECONDS)
        try:
            for answer in answers:
                judge("", answer.decode("latin-1"))
        except grpc.RpcError:
            pass
        self._judge(answers, method, bodies)

    def _judge(self, call: Any, method: str, body: object) -> None:
        code = call.code().name
        self.codes[code] += 1
        if code != "OK":
            beside = b" ".join(value for _, value in call.trailing_metadata() or () if isinstance(value, bytes))
            judged(code, f"{call.details()} {beside.decode('latin-1')}", f"{method} {body!r}")

    def close(self) -> None:
        self._channel.close()


class HttpDoor:
    """Posts bodies on one connection, which is opened anew when the server closes it."""

    def __init__(self, subject: Subject) -> None:
        self.codes: Counter[str] = Counter()
        self._connection = http.client.HTTPConnection(subject.server.rest, timeout=SECONDS)

    def send(self, path: str, body: bytes, headers: Mapping[str, str], method: str = "POST") -> None:
        try:
            self._connection.request(method, path, body, dict(headers))
            response = self._connection.getresponse()
            text = response.read().decode("latin-1")
        except (ConnectionError, http.client.RemoteDisconnected):  # it hung up on an earlier request
            self._connection.close()
            self.codes["closed"] += 1
            return
        self.codes[str(response.status)] += 1
        what = f"{method} {path} {dict(headers)} {body!r}"
        if response.status >= 400:
            judged(str(response.status), text + str(response.headers), what)
            if path.startswith(("/v1/", "/v2/")) and response.headers["content-type"] not in (
                "application/json",
                "application/x-protobuf",
            ):
                raise Wrong(f"{what} had an error that is no document: {text[:200]}")

    def close(self) -> None:
        self._connection.close()


class SocketDoor:
    """Sends raw bytes, on a connection each."""

    def __init__(self, subject: Subject) -> None:
        host, port = subject.server.rest.split(":")
        self._address = (host, int(port))
        self._lock = threading.Lock()
        self.codes: Counter[str] = Counter()

    def send(self, pieces: list[bytes]) -> None:
        """Send one piece after another, and read the answer."""
        with socket.create_connection(self._address, timeout=SECONDS) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = exchanged(peer, pieces)
        found = [each.decode() for each in STATUS.findall(received)] or ["closed"]
        with self._lock:
            self.codes.update(found)
        for code in found:
            judged(code, received.decode("latin-1") if int(code.replace("closed", "0")) >= 400 else "", repr(pieces))


def exchanged(peer: socket.socket, pieces: list[bytes]) -> bytes:
    """Send pieces, and return all that comes back until the server hangs up."""
    received = b""
    try:
        for piece in pieces:
            peer.sendall(piece)
        peer.settimeout(PATIENCE)
        try:
            while more := peer.recv(65536):
                received += more
        except TimeoutError:
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(SECONDS)
            while more := peer.recv(65536):
                received += more
    except (ConnectionError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise Wrong(f"nothing came of {pieces!r}, and it did not hang up") from error
    return received


def judged(code: str, text: str, what: str) -> None:
    """Judge a refusal; say which part was refused."""
    try:
        judge(code, text)
    except Wrong as wrong:
        raise Wrong(f"{what[:3000]}\n{wrong}") from None
