"""The bounds of a server, its connections and calls."""

from dataclasses import dataclass

FRAME_BYTES = 256 * 1024  # the largest DATA frame that is received or sent
STREAM_WINDOW = 1024 * 1024  # bytes that a peer may send on a stream ahead of its reader
CONNECTION_WINDOW = 16 * 1024 * 1024
HEADER_BYTES = 16 * 1024  # of all headers of a request, or all trailers; 32 are added for each (RFC 9113, 6.5.2)
HEADER_COUNT = 128
HEADER_FACTOR = 8  # times HEADER_BYTES: the connection of a peer that sends as much ends
RESET_BURST = 1_000  # streams that a peer may reset at once, or have reset by its errors, before its connection ends
RESETS_PER_SECOND = 100  # beyond the burst
CONTROL_BURST = 5_000  # frames that carry nothing, at once
CONTROLS_PER_SECOND = 500  # beyond the burst; clients that measure a line send a PING for each of its turns


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a server.

    Attributes:
        message_bytes: of one request message, as it is sent and as it is when inflated.
        concurrent_calls: on one connection; peers are told so.
        connections: open at once; a further one is closed when it is made.
        connections_of_host: of these, by one address.
    """

    message_bytes: int
    concurrent_calls: int
    connections: int
    connections_of_host: int = 2**31


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a connection may stay when nothing moves, in seconds.

    Attributes:
        check: between two checks of a connection.
        stalled_bytes: least bytes that move between two checks of a transfer; its call ends, or the connection if it
            takes nothing at all.
        idle: without a call; the peer is then told to open a new connection for its next call, and this one is closed.
        age: of a connection; the peer is then told to open a new one, and calls end as at `idle`. 0 for any age.
        grace: that calls on a connection have from its age to their end; a client opens its streams again.
        quiet: without a byte; the peer is then pinged, and has until the next check to answer.
        goaway: between the first GOAWAY of a shutdown and the second, where the peer does not answer the ping.
    """

    check: float = 10.0
    stalled_bytes: int = 10 * 1024
    idle: float = 300.0
    age: float = 0.0
    grace: float = 30.0
    quiet: float = 60.0
    goaway: float = 1.0
