"""nghttp2's callbacks: each updates the state of a session, or reports an event.

nghttp2 calls back within `Session.receive` and `Session.data_to_send`; no callback may call either.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import structlog
from _cffi_backend import from_handle  # without the method around it: each callback begins by it

from attention_server.http2.errors import ConnectionBroken
from attention_server.http2.headers import Headers
from attention_server.http2.library import (
    ACK,
    CALLBACK_FAILURE,
    DATA,
    DEFERRED,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    EOF,
    HEADERS,
    NO_COPY,
    NO_END_STREAM,
    NO_ERROR,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ffi,
    load_library,
)
from attention_server.http2.limits import (
    CONTROL_BURST,
    CONTROLS_PER_SECOND,
    FRAME_BYTES,
    HEADER_BYTES,
    HEADER_COUNT,
    HEADER_FACTOR,
    RESET_BURST,
    RESETS_PER_SECOND,
)
from attention_server.http2.share import RateLimit

log = structlog.get_logger()
lib = load_library()
buffer = ffi.buffer

Buffer = bytes | memoryview
HEADER_OVERHEAD = 32  # RFC 9113, 6.5.2


class SessionEvents(Protocol):
    """Receives the events of a session. Streams are given by number."""

    def on_headers(self, stream: int, headers: dict[bytes, bytes], size: int, *, fit: bool) -> None:
        """A request has begun. Names are in lower case; unless the headers `fit` the limits, some are missing.

        `size` is their bytes, of which RFC 9113 has 32 more for each.
        """

    def on_data(self, stream: int, content: memoryview) -> None:
        """Bytes of its body, valid during the call only; `Session.consume` makes room for more."""

    def on_end(self, stream: int) -> None:
        """Its body is complete."""

    def on_closed(self, stream: int) -> None:
        """The stream is over: answered, or reset by the peer."""

    def on_pong(self) -> None:
        """The peer has answered a ping."""


class IncomingHeaders:
    """Headers or trailers that are being received."""

    __slots__ = ("are_trailers", "fields", "fit", "size")

    def __init__(self, *, are_trailers: bool) -> None:
        self.are_trailers = are_trailers
        self.fields: dict[bytes, bytes] = {}
        self.size = 0
        self.fit = True


class OutgoingBody:
    """The unsent part of a response's body.

    Args:
        pieces: the bytes that it has so far.
        trailers: None while more pieces may be added.

    Attributes:
        pieces: the bytes, each piece with a callback for when it was given to the transport.
        size: of all pieces, in bytes.
        trailers: sent behind the pieces; None while more pieces may be added.
        is_deferred: nghttp2 waits for `nghttp2_session_resume_data`.
    """

    __slots__ = ("is_deferred", "pieces", "size", "trailers")

    def __init__(self, pieces: Sequence[Buffer] = (), trailers: Headers | None = None) -> None:
        self.pieces: deque[tuple[memoryview, Callable[[], None] | None]] = deque()
        self.size = 0
        for piece in pieces:
            self.pieces.append((memoryview(piece), None))
            self.size += len(piece)
        self.trailers = trailers
        self.is_deferred = False


class SessionState:
    """The state of a session that its callbacks read and change.

    Args:
        events: receives the peer's actions.

    Attributes:
        session: nghttp2's.
        incoming: headers and trailers that are not complete, by stream.
        bodies: responses that are not sent, by stream.
        receiving: streams with an incomplete request.
        answered: streams with a complete response; further bytes of the request are ignored.
        has_settings: the peer has sent its SETTINGS.
        received_bytes: of bodies, within the current `receive`.
        out: buffers to be sent, within the current `data_to_send`.
        out_size: their bytes.
    """

    session: Any

    def __init__(self, events: SessionEvents) -> None:
        self.events = events
        self.incoming: dict[int, IncomingHeaders] = {}
        self.bodies: dict[int, OutgoingBody] = {}
        self.receiving: set[int] = set()
        self.answered: set[int] = set()
        self.has_settings = False
        self.has_content = False  # of the DATA frame that is being received: padding is none
        self.received_bytes = 0
        self.out: list[Buffer] = []
        self.out_size = 0
        self._resets = RateLimit(RESET_BURST, RESETS_PER_SECOND)
        self._controls = RateLimit(CONTROL_BURST, CONTROLS_PER_SECOND)
        self._is_over_limit = False

    def goaway(self, code: int = NO_ERROR) -> None:
        """Accept no further stream, and tell the peer which was the last."""
        last = lib.nghttp2_session_get_last_proc_stream_id(self.session)
        lib.nghttp2_submit_goaway(self.session, 0, last, code, ffi.NULL, 0)

    def reset(self, stream: int, code: int) -> None:
        """End a stream at once."""
        lib.nghttp2_submit_rst_stream(self.session, 0, stream, code)

    def count_reset(self) -> int:
        """Count a stream that was reset by the peer, or by the server for its fault; return as `count_control` does."""
        return 0 if self._resets.allows() else self._calm_down()

    def count_control(self) -> int:
        """Count a frame that carries nothing: PING, SETTINGS, PRIORITY, an unknown one, or DATA without bytes.

        Returns:
            0; or nghttp2's CALLBACK_FAILURE, which ends the connection. A peer over the limit is sent GOAWAY first; one
            that goes on for another burst is disconnected.
        """
        return 0 if self._controls.allows() else self._calm_down()

    def _calm_down(self) -> int:
        if self._is_over_limit:
            return CALLBACK_FAILURE
        self._is_over_limit = True
        self._resets = RateLimit(RESET_BURST, RESETS_PER_SECOND)
        self._controls = RateLimit(CONTROL_BURST, CONTROLS_PER_SECOND)
        self.goaway(ENHANCE_YOUR_CALM)
        return 0

    def forget(self, stream: int) -> None:
        """Drop the state of a stream that is over."""
        self.incoming.pop(stream, None)
        self.bodies.pop(stream, None)
        self.receiving.discard(stream)
        self.answered.discard(stream)


def check(code: int) -> None:
    """Raise ConnectionBroken for an error code of nghttp2."""
    if code:
        raise error_of(code)


def error_of(code: int) -> ConnectionBroken:
    """Return the error of a code of nghttp2."""
    return ConnectionBroken(str(ffi.string(lib.nghttp2_strerror(code)), errors="replace"))  # type: ignore[arg-type] # bytes


def _log_fault(kind: Any, error: Any, trace: Any) -> None:
    """Log a callback's exception; the connection ends."""
    log.error("a connection ends for a fault of ours", exc_info=(kind, error, trace))


def _callback(signature: str) -> Callable[[Callable[..., int]], Any]:
    return ffi.callback(signature, error=CALLBACK_FAILURE, onerror=_log_fault)


# --- received frames ---


@_callback("int(nghttp2_session *, const nghttp2_frame *, void *)")
def _on_begin_headers(_: Any, frame: Any, user: Any) -> int:
    state: SessionState = from_handle(user)
    stream = frame.stream_id
    state.incoming[stream] = IncomingHeaders(are_trailers=stream in state.receiving)
    state.receiving.add(stream)
    return 0


@_callback(
    "int(nghttp2_session *, const nghttp2_frame *, const uint8_t *, size_t, const uint8_t *, size_t, uint8_t, void *)"
)
def _on_header(_: Any, frame: Any, name: Any, name_size: int, value: Any, value_size: int, __: int, user: Any) -> int:
    state: SessionState = from_handle(user)
    incoming = state.incoming.get(frame.stream_id)
    if incoming is not None:
        incoming.size = size = incoming.size + name_size + value_size + HEADER_OVERHEAD
        fields = incoming.fields
        if size <= HEADER_BYTES and incoming.fit and len(fields) < HEADER_COUNT:
            fields[buffer(name, name_size)[:]] = buffer(value, value_size)[:]
        elif incoming.fit:
            incoming.fit = False
            if incoming.are_trailers:
                state.reset(frame.stream_id, ENHANCE_YOUR_CALM)
        if incoming.size > HEADER_FACTOR * HEADER_BYTES:
            return CALLBACK_FAILURE  # one byte of HPACK may stand for a long header: to decode more would cost more
    return 0


@_callback("int(nghttp2_session *, const nghttp2_frame *, void *)")
def _on_frame_recv(_: Any, frame: Any, user: Any) -> int:
    kind = frame.type
    if kind == DATA:
        return _on_data(from_handle(user), frame)
    if kind == HEADERS:
        _on_headers(from_handle(user), frame)
    elif kind == RST_STREAM:
        return int(from_handle(user).count_reset())
    elif kind == PING and frame.flags & ACK:
        from_handle(user).events.on_pong()
    elif kind != WINDOW_UPDATE:
        state: SessionState = from_handle(user)
        state.has_settings |= kind == SETTINGS
        return state.count_control()
    return 0


def _on_data(state: SessionState, frame: Any) -> int:
    """End the request with its last DATA frame, or count one without content."""
    is_empty, state.has_content = not state.has_content, False
    if frame.flags & END_STREAM:
        _end_request(state, frame.stream_id)
        return 0
    return state.count_control() if is_empty else 0


def _on_headers(state: SessionState, frame: Any) -> None:
    stream = frame.stream_id
    incoming = state.incoming.pop(stream, None)
    if incoming is not None and not incoming.are_trailers:
        state.events.on_headers(stream, incoming.fields, incoming.size, fit=incoming.fit)
    if frame.flags & END_STREAM and (incoming is None or incoming.fit or not incoming.are_trailers):
        _end_request(state, stream)


def _end_request(state: SessionState, stream: int) -> None:
    if stream in state.receiving:
        state.receiving.discard(stream)
        state.events.on_end(stream)


@_callback("int(nghttp2_session *, uint8_t, int32_t, const uint8_t *, size_t, void *)")
def _on_data_chunk(_: Any, __: int, stream: int, content: Any, size: int, user: Any) -> int:
    state: SessionState = from_handle(user)
    state.received_bytes += size
    state.has_content = True
    if stream not in state.answered:
        state.events.on_data(stream, memoryview(buffer(content, size)))
    return 0


@_callback("int(nghttp2_session *, int32_t, uint32_t, void *)")
def _on_stream_close(_: Any, stream: int, __: int, user: Any) -> int:
    state: SessionState = from_handle(user)
    state.forget(stream)
    state.events.on_closed(stream)
    return 0


# --- sent frames ---


@_callback("int(nghttp2_session *, const nghttp2_frame *, void *)")
def _on_frame_send(_: Any, frame: Any, user: Any) -> int:
    kind = frame.type
    if kind == HEADERS and frame.flags & END_STREAM:
        # A peer that is answered before its request is complete is told that the rest is not wanted.
        state: SessionState = from_handle(user)
        if frame.stream_id in state.receiving:
            state.reset(frame.stream_id, NO_ERROR)
    elif kind == RST_STREAM:
        reset: Any = ffi.cast("nghttp2_rst_stream *", frame)
        return 0 if reset.error_code == NO_ERROR else int(from_handle(user).count_reset())
    return 0


@_callback("ssize_t(nghttp2_session *, uint8_t, int32_t, int32_t, int32_t, uint32_t, void *)")
def _read_length(_: Any, __: int, ___: int, connection: int, stream: int, frame: int, ____: Any) -> int:
    return max(1, min(connection, stream, frame, FRAME_BYTES))


@_callback("ssize_t(nghttp2_session *, int32_t, uint8_t *, size_t, uint32_t *, nghttp2_data_source *, void *)")
def _read(_: Any, stream: int, __: Any, room: int, flags: Any, ___: Any, user: Any) -> int:
    """Return how many bytes of a body the next frame has, and set whether it is the last."""
    state: SessionState = from_handle(user)
    body = state.bodies[stream]
    trailers = body.trailers
    if body.size <= room and trailers is not None:
        flags[0] = EOF | NO_END_STREAM | NO_COPY
        lib.nghttp2_submit_trailer(state.session, stream, trailers.pairs, trailers.count)
        return body.size
    if not body.size:
        body.is_deferred = True
        return DEFERRED
    flags[0] = NO_COPY
    return min(body.size, room)


@_callback("int(nghttp2_session *, nghttp2_frame *, const uint8_t *, size_t, nghttp2_data_source *, void *)")
def _send_data(_: Any, frame: Any, head: Any, size: int, __: Any, user: Any) -> int:
    """Send a frame's share of a body without copying it."""
    state: SessionState = from_handle(user)
    body = state.bodies[frame.stream_id]
    state.out.append(buffer(head, 9)[:])
    state.out_size += 9 + size
    body.size -= size
    out, pieces = state.out, body.pieces
    while size:
        piece, on_sent = pieces[0]
        length = len(piece)
        if length > size:
            out.append(piece[:size])
            pieces[0] = piece[size:], on_sent
            break
        out.append(piece)
        size -= length
        pieces.popleft()
        if on_sent:
            on_sent()
    return 0


# --- nghttp2's tables ---


def _make_callbacks() -> Any:
    made = ffi.new("nghttp2_session_callbacks **")
    check(lib.nghttp2_session_callbacks_new(made))
    for name, callback in {
        "on_begin_headers": _on_begin_headers,
        "on_header": _on_header,
        "on_frame_recv": _on_frame_recv,
        "on_frame_send": _on_frame_send,
        "on_data_chunk_recv": _on_data_chunk,
        "on_stream_close": _on_stream_close,
        "send_data": _send_data,
        "data_source_read_length": _read_length,
    }.items():
        getattr(lib, f"nghttp2_session_callbacks_set_{name}_callback")(made[0], callback)
    return made[0]


def _make_options() -> Any:
    made = ffi.new("nghttp2_option **")
    check(lib.nghttp2_option_new(made))
    lib.nghttp2_option_set_no_auto_window_update(made[0], 1)
    lib.nghttp2_option_set_no_closed_streams(made[0], 1)
    with suppress(AttributeError):  # before 1.50 there was nothing to be asked off
        # A space at the end of a header's value is no reason to reset a call.
        lib.nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(made[0], 1)
    with suppress(AttributeError):  # before 1.57 there was no such limit
        # `SessionState.count_reset` has its own, in every version; nghttp2's stands behind it.
        lib.nghttp2_option_set_stream_reset_rate_limit(made[0], 4 * RESET_BURST, 4 * RESETS_PER_SECOND)
    return made[0]


def _make_provider() -> Any:
    made: Any = ffi.new("nghttp2_data_provider *")
    made.read_callback = _read
    return made


CALLBACKS = _make_callbacks()
OPTIONS = _make_options()
BODY_PROVIDER = _make_provider()
