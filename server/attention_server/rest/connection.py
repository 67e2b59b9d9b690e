"""A connection of HTTP: what is known of the peer, and how much and how slowly it may speak.

Uvicorn bounds neither the head of a request nor the time that a peer takes. Here a head that is too large is refused,
and a peer that stalls, while it sends or receives, is hung up on; one whose request is being computed is not.
"""

from asyncio import TimerHandle, Transport
from http import HTTPStatus
from typing import Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from attention_server.auth.certificates import common_name
from attention_server.transport import most_connections

HEAD_BYTES = 64 * 1024  # of the request line and the headers
HEADERS = 128
SECONDS = 10.0  # between two looks at a connection
BYTES = 10 * 1024  # that have to move between two looks, where there is something to move

Waiting = Literal["for a head", "for a body", "to send", ""]


class Connection(HttpToolsProtocol):
    """Uvicorn's, with bounds. What a request's state has of it: `certificate`, the name in the peer's, if any."""

    _certificate: str | None = None
    _look: TimerHandle | None = None
    _cycles: tuple[RequestResponseCycle, ...] = ()  # requests that have no answer yet
    _in_head = True
    _head = 0
    # What has moved since the last look, and what was waited for then.
    _heads = 0
    _received = 0
    _resumed = False
    _unsent = 0
    _waiting: Waiting = ""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Take a connection, or hang up when there are too many."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
            return
        self._certificate = common_name(transport)
        self._look = self.loop.call_later(SECONDS, self._look_at_it)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        super().connection_lost(exc)
        self._leave()  # Uvicorn tells only the last of several requests
        if self._look:
            self._look.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes; refuse a head that grows too large."""
        self._received += len(data)
        self._head += len(data) if self._in_head else 0
        super().data_received(data)
        if self._in_head and self._head > HEAD_BYTES:
            self._refuse()

    def on_message_begin(self) -> None:
        """Begin a request, which is told of the peer."""
        super().on_message_begin()
        self.scope["state"]["certificate"] = self._certificate

    def on_headers_complete(self) -> None:
        """Pass the request on, unless its head is too large."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > HEAD_BYTES or len(self.headers) > HEADERS:
            self._refuse()
            raise ValueError  # by which the parser stops
        self._in_head = False
        self._head = 0
        self._heads += 1
        super().on_headers_complete()
        self._cycles = (*(each for each in self._cycles if not each.response_complete), self.cycle)

    def on_message_complete(self) -> None:
        """Expect the next head."""
        self._in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless it was answered."""
        if not self.transport.is_closing():
            super().send_400_response(msg)
            self._leave()

    def resume_writing(self) -> None:
        """Take note that what was sent is on its way."""
        self._resumed = True
        super().resume_writing()

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            words = f"a head may have {HEAD_BYTES} bytes and {HEADERS} headers".encode()
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain\r\nconnection: close\r\n"
            self.transport.write(head.encode() + b"content-length: %d\r\n\r\n" % len(words) + words)
            self.transport.close()
            self._leave()

    def _leave(self) -> None:
        """Tell requests that came before on this connection, and are not answered yet, that they never will be."""
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def _look_at_it(self) -> None:
        """Hang up if what was waited for at the last look still is, and hardly anything has moved since."""
        waiting, unsent = self._waits(), self.transport.get_write_buffer_size()
        moved = self._heads or self._resumed or self._received >= BYTES or self._unsent - unsent >= BYTES
        stalled = waiting and waiting == self._waiting and not moved
        self._waiting, self._unsent = waiting, unsent
        self._heads, self._received, self._resumed = 0, 0, False
        self._look = self.loop.call_later(SECONDS, self._look_at_it)
        if stalled:
            self.transport.abort()

    def _waits(self) -> Waiting:
        if self.transport.get_write_buffer_size():
            return "to send"
        if self.cycle is None or self.cycle.response_complete:
            return "for a head"
        return "for a body" if self.cycle.more_body and not self.flow.read_paused else ""
