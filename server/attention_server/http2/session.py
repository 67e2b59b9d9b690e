"""The server's side of one HTTP/2 connection, by nghttp2. It does no I/O: bytes go in, events and bytes come out."""

from collections.abc import Callable, Sequence
from typing import Any

from attention_server.http2.callbacks import (
    BODY_PROVIDER,
    CALLBACKS,
    OPTIONS,
    Buffer,
    OutgoingBody,
    SessionEvents,
    SessionState,
    check,
    error_of,
    lib,
)
from attention_server.http2.headers import Headers
from attention_server.http2.library import (
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    ffi,
)
from attention_server.http2.limits import CONNECTION_WINDOW, FRAME_BYTES, HEADER_BYTES, STREAM_WINDOW

PARTS_AT_ONCE = 512  # of frames that are sent at once


class Session(SessionState):
    """One HTTP/2 connection.

    Args:
        events: receives the peer's actions.
        concurrent_streams: requests at once, as the peer is told.
    """

    def __init__(self, events: SessionEvents, concurrent_streams: int) -> None:
        super().__init__(events)
        self._self = ffi.new_handle(self)
        made = ffi.new("nghttp2_session **")
        check(lib.nghttp2_session_server_new2(made, CALLBACKS, self._self, OPTIONS))
        self.session = made[0]
        self._sent = ffi.new("const uint8_t **")
        settings = {
            MAX_CONCURRENT_STREAMS: concurrent_streams,
            INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            MAX_FRAME_SIZE: FRAME_BYTES,
            MAX_HEADER_LIST_SIZE: HEADER_BYTES,
        }
        entries = ffi.new("nghttp2_settings_entry[]", list(settings.items()))
        check(lib.nghttp2_submit_settings(self.session, 0, entries, len(settings)))
        check(lib.nghttp2_session_set_local_window_size(self.session, 0, 0, CONNECTION_WINDOW))

    @property
    def is_over(self) -> bool:
        """Whether neither side has anything more to send."""
        session = self.session
        return not (lib.nghttp2_session_want_read(session) or lib.nghttp2_session_want_write(session))

    def unsent_of(self, stream: int) -> int:
        """Return the bytes of a stream's response that the peer has given no room for, or the transport."""
        body = self.bodies.get(stream)
        return body.size if body else 0

    def receive(self, content: Any, count: int) -> None:
        """Process bytes that the peer has sent.

        Args:
            content: a buffer that begins with the bytes; see `buffer`.
            count: the number of bytes.

        Raises:
            ConnectionBroken: the bytes are not HTTP/2.
        """
        self.received_bytes = 0
        taken = lib.nghttp2_session_mem_recv(self.session, content, count)
        if taken < 0:
            raise error_of(taken)
        if self.received_bytes:  # a stream that is not read does not block the connection
            lib.nghttp2_session_consume_connection(self.session, self.received_bytes)

    def data_to_send(self, most: int) -> list[Buffer]:
        """Return the bytes to send now; an empty list when there is nothing, or the peer has no room.

        Args:
            most: bytes, or one frame more; and PARTS_AT_ONCE buffers.

        Raises:
            ConnectionBroken: nothing more can be sent.
        """
        session, sent, send = self.session, self._sent, lib.nghttp2_session_mem_send
        out: list[Buffer] = []
        self.out = out
        self.out_size = 0
        while self.out_size < most and len(out) < PARTS_AT_ONCE and (count := send(session, sent)):
            if count < 0:
                raise error_of(count)
            out.append(ffi.buffer(sent[0], count)[:])
            self.out_size += count
        return out

    def consume(self, stream: int, count: int) -> None:
        """Make room for as many bytes more of a request's body."""
        lib.nghttp2_session_consume_stream(self.session, stream, count)

    def answer(self, stream: int, headers: Headers, pieces: Sequence[Buffer], trailers: Headers) -> None:
        """Send a whole response: headers, the pieces of a body, which are not copied, and trailers."""
        self.answered.add(stream)
        self.bodies[stream] = OutgoingBody(pieces, trailers)
        lib.nghttp2_submit_response(self.session, stream, headers.pairs, headers.count, BODY_PROVIDER)

    def send_headers(self, stream: int, headers: Headers) -> None:
        """Begin a response with a body."""
        self.bodies[stream] = OutgoingBody()
        lib.nghttp2_submit_response(self.session, stream, headers.pairs, headers.count, BODY_PROVIDER)

    def send_data(self, stream: int, content: Buffer, on_sent: Callable[[], None] | None = None) -> None:
        """Send bytes of a response's body.

        Args:
            stream: its response has begun; where it is over, nothing is sent.
            content: it is not copied.
            on_sent: called when the bytes are given to the transport.
        """
        body = self.bodies.get(stream)
        if body is None:
            return
        body.pieces.append((memoryview(content), on_sent))
        body.size += len(content)
        self._resume(stream, body)

    def send_trailers(self, stream: int, trailers: Headers) -> None:
        """End a response that has a body."""
        body = self.bodies.get(stream)
        if body is not None:
            self.answered.add(stream)
            body.trailers = trailers
            self._resume(stream, body)

    def respond(self, stream: int, headers: Headers) -> None:
        """Send a response without a body."""
        self.answered.add(stream)
        lib.nghttp2_submit_response(self.session, stream, headers.pairs, headers.count, ffi.NULL)

    def ping(self) -> None:
        """Send a PING."""
        lib.nghttp2_submit_ping(self.session, 0, ffi.NULL)

    def shutdown_notice(self) -> None:
        """Ask the peer to send further requests elsewhere; requests in transit are still accepted."""
        lib.nghttp2_submit_shutdown_notice(self.session)

    def close(self) -> None:
        """Free the session. No method may be called afterwards."""
        lib.nghttp2_session_del(self.session)
        del self._self, self.events  # break the reference cycles

    def _resume(self, stream: int, body: OutgoingBody) -> None:
        if body.is_deferred:
            body.is_deferred = False
            lib.nghttp2_session_resume_data(self.session, stream)


def buffer(content: bytes | bytearray) -> Any:
    """Return a buffer in the form that `Session.receive` takes."""
    return ffi.from_buffer("uint8_t[]", content)
