"""One connection: it moves bytes between the transport and the session, and ends a peer that stalls."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from attention_server.http2.call import Call, Inflate
from attention_server.http2.callbacks import Buffer
from attention_server.http2.errors import ConnectionBroken, ConnectionRetired
from attention_server.http2.lease import CALL_BYTES, CONNECTION_BYTES, Lease, OpenLease
from attention_server.http2.limits import Limits, Timeouts
from attention_server.http2.session import PARTS_AT_ONCE, Session, buffer
from attention_server.http2.share import READ_MOST, SLOW_SECONDS, ReadShare, Turns
from attention_server.http2.stall import StallDetector

SENT_AT_ONCE = 256 * 1024  # bytes
INFLATING = 2  # compressed messages at once
CONTENT_TYPES = (b"application/grpc", b"application/grpc+proto")

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class ServerState:
    """The state that all connections of a server share.

    Attributes:
        on_call: receives a call when its headers have arrived; it starts, fails or refuses the call.
        limits: of the server.
        timeouts: of its connections.
        inflate: inflates a compressed message.
        lease: opens the lease of a call or connection.
        certificate_name: returns the name in the certificate of a transport's peer; None without one.
        turns: of the event loop, which the addresses of peers share.
        inflating: held while a compressed message is inflated, which may become as large as any.
        connections: that are open.
        by_host: their number by the peer's address.
        calls: with a running task.
        is_stopping: no further connection is accepted.
        yielding: connections that are not read, since their last turn took long.
        something_ended: set whenever a call or a connection ends.
    """

    on_call: Callable[[Call], None]
    limits: Limits
    timeouts: Timeouts
    inflate: Inflate
    lease: OpenLease
    certificate_name: Callable[[asyncio.BaseTransport], str | None]
    turns: Turns
    inflating: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(INFLATING))
    connections: "set[Connection]" = field(default_factory=set)
    by_host: Counter[str] = field(default_factory=Counter)
    calls: set[Call] = field(default_factory=set)
    is_stopping: bool = False
    yielding: int = 0
    something_ended: asyncio.Event = field(default_factory=asyncio.Event)
    # All connections are read into one buffer: each has processed it before another is read.
    received: bytearray = field(default_factory=lambda: bytearray(READ_MOST))

    def forget_host(self, host: str) -> None:
        """Count a connection of an address no more."""
        self.by_host[host] -= 1
        if not self.by_host[host]:
            del self.by_host[host]


class Connection(asyncio.BufferedProtocol):
    """One connection.

    Args:
        server: the state that all connections share.

    Attributes:
        host: the peer's address, without the port.
        certificate: the name in the peer's certificate; empty without one.
        session: its HTTP/2 session, once it is made.
    """

    def __init__(self, server: ServerState) -> None:
        self.host = ""
        self.certificate = ""
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Call] = {}  # that are open
        self._running = 0  # calls with a running task
        self._received = buffer(server.received)
        self._held = b""  # received, and processed in a later turn
        self._begun_calls = 0
        self._share = ReadShare()
        self._will_flush = False
        self._is_full = False  # the transport takes no more at this moment
        self._is_broken = False
        self._check_timer: asyncio.TimerHandle | None = None
        self._last_call = self._last_byte = self._loop.time()
        self._is_pinged = False
        self._begun = self._last_call + random.uniform(0, server.timeouts.age / 10)  # noqa: S311 # not all at once
        self._retired_at: float | None = None
        self._stall = StallDetector(server.timeouts.stalled_bytes)
        self._lease: Lease | None = None

    # --- asyncio's protocol ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the HTTP/2 session; close the connection if the server stops or has as many as `limits.connections`."""
        server = self._server
        self.session = Session(self, server.limits.concurrent_calls)
        self._transport = transport
        server.connections.add(self)
        peer: Any = transport.get_extra_info("peername")
        self.host = peer[0] if peer else ""
        server.by_host[self.host] += 1
        limits = server.limits
        is_over = len(server.connections) > limits.connections or server.by_host[self.host] > limits.connections_of_host
        if is_over or server.is_stopping:
            transport.abort()
            return
        self.certificate = server.certificate_name(transport) or ""
        self._lease = server.lease(self.certificate or self.host, CONNECTION_BYTES)
        self._check_timer = self._loop.call_later(server.timeouts.check, self._check)
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer to receive into, of as many bytes as are this connection's share."""
        return memoryview(self._server.received)[: self._share.size]

    def buffer_updated(self, nbytes: int) -> None:
        """Process received bytes, in a later turn if much was done for the peer's address in this one."""
        self._stall.received += nbytes
        self._last_byte = self._loop.time()
        since = time.perf_counter()
        done = self._process(self._received, 0, nbytes) if self._server.turns.take(self.host) else 0
        seconds = time.perf_counter() - since
        if done < nbytes:
            self._hold(bytes(memoryview(self._server.received)[done:nbytes]))
        elif self._share.learn(nbytes, seconds):
            self._yield_turn(seconds)

    def _process(self, content: Any, begin: int, end: int) -> int:
        """Process bytes from `begin` to `end`, until the turn of the peer's address is over; return the last's end."""
        turns, share, since, seconds = self._server.turns, self._share, time.perf_counter(), 0.0
        begun = self._begun_calls
        try:
            while begin < end and seconds < SLOW_SECONDS and not turns.is_over(self.host):
                count, calls = min(share.slice, end - begin), self._begun_calls
                self.session.receive(content + begin, count)
                begin += count
                share.learn_slice(self._begun_calls - calls)
                seconds = time.perf_counter() - since
        except ConnectionBroken as error:
            self._break(error)
            begin = end
        if self._begun_calls == begun:  # calls are counted by themselves
            turns.add_seconds(self.host, seconds)
        self.flush()
        return begin

    def _hold(self, content: bytes) -> None:
        """Process bytes in a later turn of the peer's address, and read no more until then."""
        if self._lease is None or self._transport is None or self._transport.is_closing():
            return
        self._share.shrink()
        self._held = content
        self._lease.add(len(content))  # few, see READ_MOST
        self._transport.pause_reading()
        self._server.turns.wait(self.host, self._process_held)

    def _process_held(self) -> None:
        turns, held = self._server.turns, self._held
        turns.add(self.host)
        if self._lease is None or self._transport is None or self._transport.is_closing():
            return
        self._lease.shrink(len(held))
        done = self._process(buffer(held), 0, len(held))
        if done < len(held):
            self._hold(held[done:])
        elif self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    def _yield_turn(self, seconds: float) -> None:
        """Read no more for a while: all connections that do so take at most half of the loop together."""
        if self._transport and not self._transport.is_closing():
            self._server.yielding += 1
            self._transport.pause_reading()
            self._loop.call_later(seconds * self._server.yielding, self._resume_reading)

    def _resume_reading(self) -> None:
        self._server.yielding -= 1
        if self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """Close: a peer that sends nothing more does not flow-control a response either."""
        return False

    def pause_writing(self) -> None:
        """Send no more for the moment."""
        if self._lease and not self._is_full:
            self._lease.add(SENT_AT_ONCE)
        self._is_full = True

    def resume_writing(self) -> None:
        """Go on sending."""
        if self._lease and self._is_full:
            self._lease.shrink(SENT_AT_ONCE)
        self._is_full = False
        self._stall.has_advanced = True
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the calls that are not answered."""
        self._transport = None
        if self._check_timer:
            self._check_timer.cancel()
        for call in list(self._streams.values()):
            call.on_closed()
        self._streams.clear()
        self._server.connections.discard(self)
        self._server.forget_host(self.host)
        self._server.something_ended.set()
        self.session.close()
        if self._lease:
            self._lease.release()

    # --- the session's events ---

    def on_headers(self, stream: int, headers: dict[bytes, bytes], size: int, *, fit: bool) -> None:
        """Begin a call."""
        server = self._server
        self._begun_calls += 1
        server.turns.add_call(self.host)
        lease = server.lease(self.certificate or self.host, CALL_BYTES + size)
        call = Call(
            self,
            stream,
            headers,
            fit=fit,
            message_bytes=server.limits.message_bytes,
            lease=lease,
            inflating=server.inflating,
            inflate=server.inflate,
        )
        if not fit:
            server.on_call(call)
        elif headers.get(b"content-type", b"").partition(b";")[0].strip() not in CONTENT_TYPES:
            call.refuse([(b":status", b"415"), (b"accept", b"application/grpc")])
        elif headers.get(b":method") != b"POST":
            call.refuse([(b":status", b"405"), (b"allow", b"POST")])
        else:
            server.on_call(call)
        self._streams[stream] = call
        if call.is_started:
            self._running += 1
            server.calls.add(call)

    def on_data(self, stream: int, content: memoryview) -> None:
        """Give a call its bytes."""
        call = self._streams.get(stream)
        if call:
            call.on_data(content)

    def on_end(self, stream: int) -> None:
        """Tell a call that its request is complete."""
        call = self._streams.get(stream)
        if call:
            call.on_end()

    def on_closed(self, stream: int) -> None:
        """Tell a call that its stream is over."""
        call = self._streams.pop(stream, None)
        if call:
            self._last_call = self._loop.time()
            call.on_closed()

    def on_pong(self) -> None:
        """Note that the peer is alive, and has received everything before the ping.

        While the server stops, or the connection is retired, send the final GOAWAY.
        """
        self._is_pinged = False
        if self._server.is_stopping or self._retired_at is not None:
            self._send_goaway()

    # --- for its calls ---

    def flush(self) -> None:
        """Send at the end of this turn of the loop, so that all writes of one turn go out together."""
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self._flush)

    def forget(self, call: Call) -> None:
        """Note that a call's task has ended."""
        self._running -= 1
        self._last_call = self._loop.time()
        self._server.calls.discard(call)
        self._server.something_ended.set()

    # --- the end ---

    def begin_shutdown(self) -> None:
        """Ask the peer to send further calls elsewhere; running calls, and calls in transit, are answered."""
        if self._transport:
            self.session.shutdown_notice()
            self._flush()  # or nghttp2 would send the ping before it
            self.session.ping()
            self.flush()
            self._loop.call_later(self._server.timeouts.goaway, self._send_goaway)

    def close(self) -> None:
        """Close the connection when everything is sent."""
        if self._transport and not self._transport.is_closing():
            self._send_goaway()
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport:
            self._transport.abort()

    def _send_goaway(self) -> None:
        if self._transport:
            self.session.goaway()
            self.flush()

    def _flush(self) -> None:
        """Send as much as the transport takes."""
        self._will_flush = False
        try:
            while self._can_send and (parts := self.session.data_to_send(SENT_AT_ONCE)):
                self._write(parts)
                if len(parts) >= PARTS_AT_ONCE:
                    self.flush()
                    return
        except ConnectionBroken as error:
            self._break(error)
        if self._transport and not self._is_broken and self.session.is_over:
            self._transport.close()

    @property
    def _can_send(self) -> bool:
        return self._transport is not None and not (self._is_full or self._is_broken)

    def _write(self, parts: list[Buffer]) -> None:
        assert self._transport is not None
        self._stall.sent += self.session.out_size
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    def _break(self, error: ConnectionBroken) -> None:
        """Disconnect a peer that does not speak HTTP/2; its session may not be used any more."""
        log.debug("a connection ends: it is no HTTP/2, or ended", reason=str(error))
        self._is_broken = True
        self.abort()

    def _check(self) -> None:
        """End stalled transfers: calls, or a connection that takes nothing at all; retire an idle or old connection.

        A quiet peer is pinged, and has until the next check to answer.
        """
        assert self._transport is not None
        timeouts, now, unsent = self._server.timeouts, self._loop.time(), self._transport.get_write_buffer_size()
        is_stalled = self._stall.check(bool(unsent), unsent)
        is_gone = self._is_pinged and self._last_byte < now - timeouts.quiet - timeouts.check
        if is_stalled or is_gone or not self.session.has_settings:
            self.abort()
            return
        for call in list(self._streams.values()):
            call.check_progress(timeouts.stalled_bytes)
        is_idle = not (self._running or self._streams) and self._last_call < now - timeouts.idle
        if self._retired_at is not None:
            if now > self._retired_at + timeouts.grace:
                self._end_calls()
        elif is_idle or 0 < timeouts.age < now - self._begun:
            self._retired_at = now
            self.begin_shutdown()
        elif self._last_byte < now - timeouts.quiet and not self._is_pinged:
            self._is_pinged = True
            self.session.ping()
            self.flush()
        self._check_timer = self._loop.call_later(timeouts.check, self._check)

    def _end_calls(self) -> None:
        """End the calls that are left some time after the connection was retired."""
        for call in list(self._streams.values()):
            call.stop(ConnectionRetired("the connection is as old as it may be; call again on another"))
        if not self._streams:
            self.close()
