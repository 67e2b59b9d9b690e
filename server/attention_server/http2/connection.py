"""A connection of gRPC: its bytes, its calls, and how long it may stay when nothing moves."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from attention_server.auth.certificates import common_name
from attention_server.http2.call import Call, Inbound
from attention_server.http2.nghttp2 import Buffer, Http2Error, Session, Settings, buffer
from attention_server.transport import Threads, most_connections

SECONDS = 10.0  # between two looks at a connection
BYTES = 10 * 1024  # that have to move between two looks, where there is something to move
IDLE_SECONDS = 300.0  # without a call, after which it is closed; clients open another when they need one
QUIET_SECONDS = 60.0  # without a byte, after which its peer is asked whether it is there
ENDING_SECONDS = 1.0  # for a peer to take note that it should send elsewhere
PULLED = 256 * 1024  # bytes that are sent in one go
RECEIVED = 256 * 1024  # bytes that are read in one go

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Port:
    """What the connections of a port share.

    Attributes:
        arrive: takes a call when its head is here; where that does not fit, headers are missing.
        max_message_bytes: the largest message.
        concurrent_calls: on one connection.
        inbound: counts the bytes that have come.
        threads: for what would hold up the loop.
        connections: those that are open.
        calls: those under way.
        is_ending: no more are wanted.
        ended: set whenever a call or a connection ends.
    """

    arrive: Callable[[Call, bool], None]
    max_message_bytes: int
    concurrent_calls: int
    inbound: Inbound
    threads: Threads
    connections: "set[Connection]" = field(default_factory=set)
    calls: set[Call] = field(default_factory=set)
    is_ending: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    # Bytes are read into one place by all: a connection has done with them before another's are read.
    received: bytearray = field(default_factory=lambda: bytearray(RECEIVED))


class Connection(asyncio.BufferedProtocol):
    """One connection.

    Args:
        port: what it shares with others.
    """

    def __init__(self, port: Port) -> None:
        self.host = ""
        self.certificate = ""
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._rpcs: dict[int, Call] = {}  # open on the wire
        self._calls = 0  # whose tasks run
        self._received = buffer(port.received)
        self._will_flush = False
        self._is_full = False  # the transport takes no more at this moment
        self._is_broken = False
        self._look: asyncio.TimerHandle | None = None
        self._last_call = self._last_byte = self._loop.time()
        self._pinged = False
        # What has moved since the last look, and whether that was waited for then.
        self._came = self._went = 0
        self._unsent = 0
        self._resumed = False
        self._waited = False

    # --- of asyncio ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or hang up when there are too many."""
        self.session = Session(self, Settings(self._port.concurrent_calls))
        self._transport = transport
        self._port.connections.add(self)
        if len(self._port.connections) > most_connections() or self._port.is_ending:
            transport.abort()
            return
        peer: Any = transport.get_extra_info("peername")
        self.host = peer[0] if peer else ""
        self.certificate = common_name(transport) or ""
        self._look = self._loop.call_later(SECONDS, self._look_at_it)
        self.flush()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Say where bytes are to be put."""
        return self._port.received

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes."""
        self._came += nbytes
        self._last_byte = self._loop.time()
        try:
            self.session.receive(self._received, nbytes)
        except Http2Error as error:
            self._break(error)
        self.flush()

    def eof_received(self) -> bool:
        """Its peer sends nothing any more: nobody is left who could take an answer."""
        return False

    def pause_writing(self) -> None:
        """Send no more for the moment."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Go on sending."""
        self._is_full = False
        self._resumed = True
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the calls that are not answered."""
        self._transport = None
        if self._look:
            self._look.cancel()
        for rpc in list(self._rpcs.values()):
            rpc.closed()
        self._rpcs.clear()
        self._port.connections.discard(self)
        self._port.ended.set()
        self.session.close()

    # --- of nghttp2 ---

    def on_head(self, stream: int, headers: dict[bytes, bytes], *, fits: bool) -> None:
        """Begin a call."""
        port = self._port
        rpc = Call(
            self,
            stream,
            headers,
            max_message_bytes=port.max_message_bytes,
            inbound=port.inbound,
            threads=port.threads,
        )
        port.arrive(rpc, fits)
        self._rpcs[stream] = rpc
        if rpc.is_under_way:
            self._calls += 1
            port.calls.add(rpc)

    def on_data(self, stream: int, content: memoryview) -> None:
        """Give a call its bytes."""
        rpc = self._rpcs.get(stream)
        if rpc:
            rpc.feed(content)

    def on_end(self, stream: int) -> None:
        """Tell a call that all has come."""
        rpc = self._rpcs.get(stream)
        if rpc:
            rpc.fed()

    def on_closed(self, stream: int) -> None:
        """Tell a call that it is over on the wire."""
        rpc = self._rpcs.pop(stream, None)
        if rpc:
            self._last_call = self._loop.time()
            rpc.closed()

    def on_pong(self) -> None:
        """Its peer is there; and has read whatever was sent before."""
        self._pinged = False
        if self._port.is_ending:
            self._end()

    # --- of its calls ---

    def flush(self) -> None:
        """Send what is to be sent, at the end of this turn of the loop: what comes together goes together."""
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what is to be sent, as far as the transport takes it."""
        self._will_flush = False
        try:
            while self._may_send and (parts := self.session.pull(PULLED)):
                self._write(parts)
        except Http2Error as error:
            self._break(error)
        if self._transport and not self._is_broken and self.session.is_over:
            self._transport.close()

    def forget(self, rpc: Call) -> None:
        """Take note that a call is answered."""
        self._calls -= 1
        self._last_call = self._loop.time()
        self._port.calls.discard(rpc)
        self._port.ended.set()

    def warn_of_end(self) -> None:
        """Have its peer send its next calls elsewhere; those under way, or on their way, are answered."""
        if self._transport:
            self.session.warn_of_end()
            self.session.ping()
            self.flush()
            self._loop.call_later(ENDING_SECONDS, self._end)

    def close(self) -> None:
        """End it, when what was sent is on its way."""
        if self._transport and not self._transport.is_closing():
            self._end()
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """End it at once."""
        self._hang_up()

    def _end(self) -> None:
        if self._transport:
            self.session.end()
            self.flush()

    @property
    def _may_send(self) -> bool:
        return self._transport is not None and not (self._is_full or self._is_broken)

    def _write(self, parts: list[Buffer]) -> None:
        assert self._transport is not None
        self._went += self.session.out_size
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    def _break(self, error: Http2Error) -> None:
        """Hang up on a peer with whom no HTTP/2 is to be spoken; nothing of its session may be used any more."""
        log.debug("a connection ends: it is no HTTP/2, or ended", reason=str(error))
        self._is_broken = True
        self._hang_up()

    def _hang_up(self) -> None:
        if self._transport:
            self._transport.abort()

    def _look_at_it(self) -> None:
        """End it where nothing moves that should; ask a quiet peer whether it is there."""
        assert self._transport is not None
        now, unsent = self._loop.time(), self._transport.get_write_buffer_size()
        waits = bool(unsent) or any(rpc.is_on_its_way for rpc in self._rpcs.values())
        moved = self._resumed or max(self._came, self._went, self._unsent - unsent) >= BYTES
        is_stalled = waits and self._waited and not moved
        self._waited, self._unsent, self._came, self._went, self._resumed = waits, unsent, 0, 0, False
        is_gone = self._pinged and self._last_byte < now - QUIET_SECONDS - SECONDS
        if is_stalled or is_gone or not self.session.greeted:
            self._hang_up()
            return
        if not (self._calls or self._rpcs) and self._last_call < now - IDLE_SECONDS:
            self.close()
        elif self._last_byte < now - QUIET_SECONDS and not self._pinged:
            self._pinged = True
            self.session.ping()
            self.flush()
        self._look = self._loop.call_later(SECONDS, self._look_at_it)
