"""An HTTP/1.1 connection with bounds on heads, trailers, requests ahead of their answers, idle time and turns.

Uvicorn bounds neither the size of a request's head and trailers nor the time that a peer takes. This class refuses a
head or trailers that are too large, and closes a connection whose peer stalls while it sends or receives. A peer that
waits for a computation is not cut off. All connections of one address share its turns of the event loop.
"""

import time
from asyncio import TimerHandle, Transport
from collections import Counter
from http import HTTPStatus
from typing import Any, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from attention_server.auth.certificates import common_name
from attention_server.budget.account import OPEN, Account, Lease
from attention_server.errors import AttentionServiceError
from attention_server.http2.lease import CONNECTION_BYTES
from attention_server.http2.stall import StallDetector
from attention_server.transport.peer_turns import PeerTurns
from attention_server.transport.sockets import max_connections, max_connections_of_host

HEAD_BYTES = 64 * 1024  # of the request line and the headers; of trailers too
HEADERS = 128
SLICE_LEAST, SLICE_MOST = 4 * 1024, 64 * 1024  # bytes that are parsed at once; few where the last took long
QUICK_SECONDS, SLOW_SECONDS = 0.0005, 0.002  # a slice that takes longer halves the next; a read stops there
PIPELINED = 16  # requests that a peer may send ahead of their answers
SENT_BYTES = 64 * 1024  # of an answer that may be unsent and counted with the connection
CHECK_SECONDS = 10.0  # between two checks for progress
LEAST_BYTES = 10 * 1024  # least progress between two checks, while bytes are due in either direction

Waiting = Literal["for a head", "for a body", "to send", ""]


class Connection(HttpToolsProtocol):
    """Uvicorn's HTTP connection with bounds.

    A request's state gets `certificate`: the common name of the peer's certificate, or None without a certificate; and
    `connection`: this connection.

    Args:
        account: of the bytes of connections.
        by_host: counts the connections of a server by the peer's address.
        turns: of the event loop, which the connections of a server share.
        given: Uvicorn's arguments.
    """

    _certificate: str | None = None
    _check: TimerHandle | None = None
    _unanswered: tuple[RequestResponseCycle, ...] = ()
    _in_head = True
    _offers_upgrade = False
    _head_bytes = 0
    _slice = SLICE_LEAST
    _bytes_since_body = 0  # bytes of chunk headers and trailers since the last byte of a body

    def __init__(
        self,
        *,
        account: Account = OPEN,
        by_host: Counter[str] | None = None,
        turns: PeerTurns | None = None,
        **given: Any,
    ) -> None:
        super().__init__(**given)
        self._account = account
        self._by_host = Counter() if by_host is None else by_host
        self._turns = turns or PeerTurns()
        self._lease: Lease | None = None
        self._held: list[bytes] = []  # received, and to be parsed in a later turn
        self._unsent: list[Lease] = []  # of answers that the transport has not taken

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Accept a connection; abort it if there are too many."""
        self._stall = StallDetector(LEAST_BYTES)
        super().connection_made(transport)
        self._host = self.client[0] if self.client else ""
        self._by_host[self._host] += 1
        most = max_connections()
        if len(self.connections) > most or self._by_host[self._host] > max_connections_of_host(most):
            transport.abort()
            return
        self._certificate = common_name(transport)
        self._lease = self._account.lease(self._certificate or self._host)
        self._lease.add(CONNECTION_BYTES)
        self._check = self.loop.call_later(CHECK_SECONDS, self._check_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        """Disconnect every unanswered request and stop the checks."""
        super().connection_lost(exc)
        self._disconnect_requests()  # Uvicorn disconnects only the last of several pipelined requests
        self._by_host.subtract({self._host: 1})
        if not self._by_host[self._host]:
            del self._by_host[self._host]
        self._release_sent()
        if self._lease:
            self._lease.release()
        if self._check:
            self._check.cancel()

    def release_when_sent(self, lease: Lease) -> None:
        """Release the lease of an answer when the transport has sent it, or the peer has gone."""
        if self.transport.is_closing() or self.transport.get_write_buffer_size() <= SENT_BYTES:
            lease.release()
        else:
            self._unsent.append(lease)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, in a later turn if much was done for the peer's address in this one."""
        self._stall.received += len(data)
        if not self._held and self._turns.take(self._host):
            data = self._read_some(data)
        if data:
            self._hold(data)

    def _hold(self, data: bytes) -> None:
        """Parse bytes in a later turn, and read no more until then."""
        assert self._lease is not None
        try:
            self._lease.grow(len(data))
        except AttentionServiceError:  # there is no room to wait in
            self.transport.abort()
            return
        self.transport.pause_reading()
        if not self._held:
            self._turns.wait(self._host, self._read_held)
        self._held.append(data)

    def _read_held(self) -> None:
        self._turns.add(self._host)
        data, self._held = b"".join(self._held), []
        if self.transport.is_closing() or self._lease is None:
            return
        self._lease.shrink(len(data))
        left = self._read_some(data)
        if left:
            self._hold(left)
        elif not (self.flow.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def _read_some(self, data: bytes) -> bytes:
        """Parse bytes until this turn of the peer's address is over; return those that are left."""
        begin, since, seconds = 0, time.perf_counter(), 0.0
        while begin < len(data) and seconds < SLOW_SECONDS and not self.transport.is_closing():
            before = seconds
            self._read(data[begin : begin + self._slice])
            begin += self._slice
            seconds = time.perf_counter() - since
            if seconds - before > QUICK_SECONDS:
                self._slice = max(SLICE_LEAST, self._slice // 2)
            else:
                self._slice = min(SLICE_MOST, 2 * self._slice)
        self._turns.add_seconds(self._host, seconds)
        return b"" if self.transport.is_closing() else data[begin:]

    def _read(self, data: bytes) -> None:
        """Parse bytes; refuse a head or trailers that grow too large."""
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._bytes_since_body += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if (self._head_bytes if self._in_head else self._bytes_since_body) > HEAD_BYTES:
            self._refuse()

    def on_message_begin(self) -> None:
        """Begin a request, and add the peer's certificate to its state."""
        super().on_message_begin()
        self.scope["state"].update(certificate=self._certificate, connection=self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; drop a trailer, which must not change headers that were checked."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is too large."""
        self._turns.add(self._host)
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > HEAD_BYTES or len(self.headers) > HEADERS:
            self._refuse()
            raise ValueError  # stops the parser
        self._unanswered = tuple([each for each in self._unanswered if not each.response_complete])
        if len(self._unanswered) >= PIPELINED:
            self.transport.close()
            self._disconnect_requests()
            raise ValueError
        self._offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._offers_upgrade:
            return
        self._in_head = False
        self._head_bytes = 0
        self._bytes_since_body = 0
        self._stall.has_advanced = True
        super().on_headers_complete()
        self._unanswered = (*self._unanswered, self.cycle)

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        self._bytes_since_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the next head."""
        if self._offers_upgrade:
            return  # the parser takes what follows the head for another protocol
        self._in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, unless the connection is already closing."""
        if not self.transport.is_closing():
            super().send_400_response(msg)
            self._disconnect_requests()

    def on_response_complete(self) -> None:
        """Begin the next pipelined request, in a later turn if much was done for the peer's address in this one."""
        if self.pipeline and not self._turns.take(self._host):
            self._turns.wait(self._host, self._begin_pipelined)
        else:
            super().on_response_complete()

    def _begin_pipelined(self) -> None:
        self._turns.add(self._host)
        super().on_response_complete()

    def resume_writing(self) -> None:
        """Record progress in sending."""
        self._stall.has_advanced = True
        self._release_sent()
        super().resume_writing()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._offers_upgrade:
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)  # the last one reads nothing behind Connection: close
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as Uvicorn's own
                self._parse(head + data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def _head_without_upgrade(self) -> bytes:
        """Return the head of the request that was parsed last; the parser reads no body behind one with Upgrade."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    def _refuse(self) -> None:
        """Close the connection because of a large head or trailers; answer 431 unless a response has begun."""
        if self.transport.is_closing():
            return
        if self._may_answer():
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            words = f"a head may have {HEAD_BYTES} bytes and {HEADERS} headers".encode()
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain\r\nconnection: close\r\n"
            self.transport.write(head.encode() + b"content-length: %d\r\n\r\n" % len(words) + words)
        self.transport.close()
        self._disconnect_requests()

    def _may_answer(self) -> bool:
        """Return whether bytes sent now would be read as the response to the refused request."""
        if not self._in_head:  # its trailers are refused
            return not self.cycle.response_started
        return not any(each.response_started and not each.response_complete for each in self._unanswered)

    def _release_sent(self) -> None:
        sent, self._unsent = self._unsent, []
        for lease in sent:
            lease.release()

    def _disconnect_requests(self) -> None:
        """Mark every unanswered request of this connection as disconnected."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def _check_progress(self) -> None:
        """Abort the connection if its peer has stalled."""
        self._check = self.loop.call_later(CHECK_SECONDS, self._check_progress)
        if self._stall.check(self._state(), self.transport.get_write_buffer_size()):
            self.transport.abort()

    def _state(self) -> Waiting:
        if self.transport.get_write_buffer_size():
            return "to send"
        if self.cycle is None or self.cycle.response_complete:
            return "for a head"
        return "for a body" if self.cycle.more_body and not self.flow.read_paused else ""
