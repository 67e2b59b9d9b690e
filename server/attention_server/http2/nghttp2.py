"""HTTP/2 by nghttp2, behind a protocol small enough to stand in for it. It does no I/O: bytes in, events out; and back.

The library is the system's (Debian's libnghttp2-14), called by its C interface: nothing is compiled here. What its
callbacks are told is passed on as `Events`; none of them may call `receive` or `pull`.
"""

import ctypes.util
import functools
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import structlog
from _cffi_backend import from_handle  # without the method around it: each callback begins by it
from cffi import FFI

log = structlog.get_logger()

Header = tuple[bytes, bytes]
Buffer = bytes | memoryview

DECLARATIONS = """
typedef struct nghttp2_session nghttp2_session;
typedef struct nghttp2_session_callbacks nghttp2_session_callbacks;
typedef struct nghttp2_option nghttp2_option;
typedef struct { size_t length; int32_t stream_id; uint8_t type; uint8_t flags; uint8_t reserved; } nghttp2_frame_hd;
typedef nghttp2_frame_hd nghttp2_frame;
typedef struct { char *name; char *value; size_t namelen; size_t valuelen; uint8_t flags; } nghttp2_nv;
typedef struct { int32_t settings_id; uint32_t value; } nghttp2_settings_entry;
typedef union { int fd; void *ptr; } nghttp2_data_source;
typedef ssize_t (*nghttp2_data_source_read_callback)(nghttp2_session *, int32_t, uint8_t *, size_t, uint32_t *,
    nghttp2_data_source *, void *);
typedef struct { nghttp2_data_source source; nghttp2_data_source_read_callback read_callback; } nghttp2_data_provider;

int nghttp2_session_callbacks_new(nghttp2_session_callbacks **);
void nghttp2_session_callbacks_set_on_begin_headers_callback(nghttp2_session_callbacks *,
    int (*)(nghttp2_session *, const nghttp2_frame *, void *));
void nghttp2_session_callbacks_set_on_header_callback(nghttp2_session_callbacks *,
    int (*)(nghttp2_session *, const nghttp2_frame *, const uint8_t *, size_t, const uint8_t *, size_t, uint8_t,
    void *));
void nghttp2_session_callbacks_set_on_frame_recv_callback(nghttp2_session_callbacks *,
    int (*)(nghttp2_session *, const nghttp2_frame *, void *));
void nghttp2_session_callbacks_set_on_frame_send_callback(nghttp2_session_callbacks *,
    int (*)(nghttp2_session *, const nghttp2_frame *, void *));
void nghttp2_session_callbacks_set_on_data_chunk_recv_callback(nghttp2_session_callbacks *,
    int (*)(nghttp2_session *, uint8_t, int32_t, const uint8_t *, size_t, void *));
void nghttp2_session_callbacks_set_on_stream_close_callback(nghttp2_session_callbacks *,
    int (*)(nghttp2_session *, int32_t, uint32_t, void *));
void nghttp2_session_callbacks_set_send_data_callback(nghttp2_session_callbacks *,
    int (*)(nghttp2_session *, nghttp2_frame *, const uint8_t *, size_t, nghttp2_data_source *, void *));
void nghttp2_session_callbacks_set_data_source_read_length_callback(nghttp2_session_callbacks *,
    ssize_t (*)(nghttp2_session *, uint8_t, int32_t, int32_t, int32_t, uint32_t, void *));

int nghttp2_option_new(nghttp2_option **);
void nghttp2_option_del(nghttp2_option *);
void nghttp2_option_set_no_auto_window_update(nghttp2_option *, int);
void nghttp2_option_set_no_closed_streams(nghttp2_option *, int);
void nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(nghttp2_option *, int);
void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t);

int nghttp2_session_server_new2(nghttp2_session **, const nghttp2_session_callbacks *, void *, const nghttp2_option *);
void nghttp2_session_del(nghttp2_session *);
ssize_t nghttp2_session_mem_recv(nghttp2_session *, const uint8_t *, size_t);
ssize_t nghttp2_session_mem_send(nghttp2_session *, const uint8_t **);
int nghttp2_session_want_read(nghttp2_session *);
int nghttp2_session_want_write(nghttp2_session *);
int nghttp2_session_set_local_window_size(nghttp2_session *, uint8_t, int32_t, int32_t);
int nghttp2_session_consume_connection(nghttp2_session *, size_t);
int nghttp2_session_consume_stream(nghttp2_session *, int32_t, size_t);
int nghttp2_session_resume_data(nghttp2_session *, int32_t);
int32_t nghttp2_session_get_last_proc_stream_id(nghttp2_session *);
int nghttp2_submit_settings(nghttp2_session *, uint8_t, const nghttp2_settings_entry *, size_t);
int nghttp2_submit_response(nghttp2_session *, int32_t, const nghttp2_nv *, size_t, const nghttp2_data_provider *);
int nghttp2_submit_trailer(nghttp2_session *, int32_t, const nghttp2_nv *, size_t);
int nghttp2_submit_rst_stream(nghttp2_session *, uint8_t, int32_t, uint32_t);
int nghttp2_submit_ping(nghttp2_session *, uint8_t, const uint8_t *);
int nghttp2_submit_shutdown_notice(nghttp2_session *);
int nghttp2_submit_goaway(nghttp2_session *, uint8_t, int32_t, uint32_t, const uint8_t *, size_t);
const char *nghttp2_strerror(int);
"""

# Of RFC 9113.
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM = ACK = 1
NO_ERROR = 0
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 3, 4, 5, 6

# Of nghttp2.
EOF, NO_END_STREAM, NO_COPY = 1, 2, 4
NO_INDEX = 1  # of a header: its value is another each time
DEFERRED = -508
CALLBACK_FAILURE = -902

FRAME_BYTES = 256 * 1024  # the largest that is taken
STREAM_WINDOW = 1024 * 1024  # bytes that a peer may send on a stream ahead of who reads it
CONNECTION_WINDOW = 16 * 1024 * 1024
HEAD_BYTES = 16 * 1024  # of all headers of a request
HEADERS_COUNT = 128
ENOUGH = 8  # times what a head may have, after which nothing more is heard
RESETS, RESETS_A_SECOND = 20_000, 2_000  # that a peer may send: to cancel a call is nothing uncommon


class Http2Error(Exception):
    """The peer does not speak HTTP/2, or speaks it so that there is nothing left to say."""


class Events(Protocol):
    """What a session tells of its peer; streams go by their number."""

    def on_head(self, stream: int, headers: dict[bytes, bytes], *, fits: bool) -> None:
        """A request has begun. Headers are by name in small letters; where they do not fit, some are missing."""

    def on_data(self, stream: int, content: memoryview) -> None:
        """A piece of its body, which lies there for as long as this lasts; `Session.took` makes room for more."""

    def on_end(self, stream: int) -> None:
        """Its body is whole."""

    def on_closed(self, stream: int) -> None:
        """It is over: answered, or the peer wants no answer any more."""

    def on_pong(self) -> None:
        """The peer has answered a ping."""


class _Head:
    """A head that is on its way in."""

    __slots__ = ("fits", "headers", "size")

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.size = 0
        self.fits = True


class _Body:
    """An answer's body that is on its way out.

    Attributes:
        pieces: what is left of it, each with who is told when it is gone.
        trailers: what comes behind it; None while more may come.
        is_deferred: nghttp2 waits to be told that there is more.
    """

    __slots__ = ("is_deferred", "pieces", "size", "trailers")

    def __init__(self) -> None:
        self.pieces: deque[tuple[memoryview, Callable[[], None] | None]] = deque()
        self.size = 0
        self.trailers: Headers | None = None
        self.is_deferred = False


class Settings(NamedTuple):
    """What a server tells its peers.

    Attributes:
        concurrent_streams: requests at once on a connection.
    """

    concurrent_streams: int


class Session:
    """One connection, as a server.

    Args:
        events: is told what the peer does.
        settings: told to the peer.
    """

    def __init__(self, events: Events, settings: Settings) -> None:
        self.events = events
        self.heads: dict[int, _Head] = {}
        self.bodies: dict[int, _Body] = {}
        self.unended: set[int] = set()  # requests whose bodies are not whole
        self.answered: set[int] = set()  # those for which a body that still comes makes no difference
        self.greeted = False  # the peer has sent its settings
        self.came = 0  # bytes of bodies, by what is being received
        self.out: list[Buffer] = []
        self.out_size = 0
        self._self = ffi.new_handle(self)
        made = ffi.new("nghttp2_session **")
        _check(lib.nghttp2_session_server_new2(made, _callbacks, self._self, _options))
        self._session = made[0]
        self._sent = ffi.new("const uint8_t **")
        told = {
            MAX_CONCURRENT_STREAMS: settings.concurrent_streams,
            INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            MAX_FRAME_SIZE: FRAME_BYTES,
            MAX_HEADER_LIST_SIZE: HEAD_BYTES,
        }
        entries = ffi.new("nghttp2_settings_entry[]", list(told.items()))
        _check(lib.nghttp2_submit_settings(self._session, 0, entries, len(told)))
        _check(lib.nghttp2_session_set_local_window_size(self._session, 0, 0, CONNECTION_WINDOW))

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be said, by either side."""
        session = self._session
        return not (lib.nghttp2_session_want_read(session) or lib.nghttp2_session_want_write(session))

    def receive(self, content: Any, count: int) -> None:
        """Take bytes that the peer sent.

        Args:
            content: a buffer that begins with them; see `buffer`.
            count: how many there are.

        Raises:
            Http2Error: they are no HTTP/2.
        """
        self.came = 0
        taken = lib.nghttp2_session_mem_recv(self._session, content, count)
        if taken < 0:
            raise _error(taken)
        if self.came:  # one stream that is not read holds up no other
            lib.nghttp2_session_consume_connection(self._session, self.came)

    def pull(self, most: int) -> list[Buffer]:
        """Return what is to be sent now; empty when nothing is, or the peer has no room.

        Args:
            most: bytes, or a frame more.

        Raises:
            Http2Error: nothing more can be sent.
        """
        session, sent, send = self._session, self._sent, lib.nghttp2_session_mem_send
        self.out = out = []
        self.out_size = 0
        while self.out_size < most and (count := send(session, sent)):
            if count < 0:
                raise _error(count)
            out.append(ffi.buffer(sent[0], count)[:])
            self.out_size += count
        return out

    def took(self, stream: int, count: int) -> None:
        """Make room for more of a request's body: so many bytes of it were taken."""
        lib.nghttp2_session_consume_stream(self._session, stream, count)

    def begin(self, stream: int, headers: "Headers") -> None:
        """Begin an answer whose body follows."""
        self.bodies[stream] = _Body()
        lib.nghttp2_submit_response(self._session, stream, headers.pairs, headers.count, _provider)

    def send(self, stream: int, content: Buffer, is_gone: Callable[[], None] | None = None) -> None:
        """Send a piece of an answer's body.

        Args:
            stream: whose answer has begun; where it is over nothing is sent.
            content: it is not copied.
            is_gone: called when it is on its way.
        """
        body = self.bodies.get(stream)
        if body is None:
            return
        body.pieces.append((memoryview(content), is_gone))
        body.size += len(content)
        self._resume(stream, body)

    def finish(self, stream: int, trailers: "Headers") -> None:
        """End an answer behind its body."""
        body = self.bodies.get(stream)
        if body is not None:
            self.answered.add(stream)
            body.trailers = trailers
            self._resume(stream, body)

    def answer(self, stream: int, headers: "Headers") -> None:
        """Answer without a body."""
        self.answered.add(stream)
        lib.nghttp2_submit_response(self._session, stream, headers.pairs, headers.count, ffi.NULL)

    def reset(self, stream: int, code: int) -> None:
        """End a stream at once."""
        lib.nghttp2_submit_rst_stream(self._session, 0, stream, code)

    def ping(self) -> None:
        """Ask the peer whether it is there."""
        lib.nghttp2_submit_ping(self._session, 0, ffi.NULL)

    def warn_of_end(self) -> None:
        """Tell the peer to send its next requests elsewhere; those that are on their way are taken."""
        lib.nghttp2_submit_shutdown_notice(self._session)

    def end(self) -> None:
        """Take no request any more that has not come, and tell the peer which was the last."""
        last = lib.nghttp2_session_get_last_proc_stream_id(self._session)
        lib.nghttp2_submit_goaway(self._session, 0, last, NO_ERROR, ffi.NULL, 0)

    def close(self) -> None:
        """Let everything go; nothing may be called any more."""
        lib.nghttp2_session_del(self._session)
        del self._self, self.events  # they hold this

    def forget(self, stream: int) -> None:
        """Keep nothing of a stream that is over."""
        self.heads.pop(stream, None)
        self.bodies.pop(stream, None)
        self.unended.discard(stream)
        self.answered.discard(stream)

    def write_trailers(self, stream: int, trailers: "Headers") -> None:
        """Write what ends an answer; from within `pull`."""
        lib.nghttp2_submit_trailer(self._session, stream, trailers.pairs, trailers.count)

    def _resume(self, stream: int, body: _Body) -> None:
        if body.is_deferred:
            body.is_deferred = False
            lib.nghttp2_session_resume_data(self._session, stream)


def buffer(content: bytearray) -> Any:
    """Return a buffer as `Session.receive` takes it."""
    return ffi.from_buffer("uint8_t[]", content)


def _load() -> Any:
    name = ctypes.util.find_library("nghttp2") or "libnghttp2.so.14"
    try:
        return ffi.dlopen(name)
    except OSError as error:
        raise ImportError(
            "gRPC is served by libnghttp2, which is not there: apt-get install libnghttp2-14, or what your system "
            f"calls it ({error})"
        ) from error


def _check(code: int) -> None:
    if code:
        raise _error(code)


def _error(code: int) -> Http2Error:
    return Http2Error(str(ffi.string(lib.nghttp2_strerror(code)), errors="replace"))  # type: ignore[arg-type] # bytes


class Headers:
    """Headers as nghttp2 takes them, which copies them when they are submitted.

    Args:
        headers: names in small letters, and values.
    """

    __slots__ = ("_kept", "count", "pairs")

    def __init__(self, headers: Sequence[Header]) -> None:
        self._kept = headers  # they stay where they are
        self.count = len(headers)
        self.pairs = pairs = ffi.new(PAIRS, self.count)
        for i, (name, value) in enumerate(headers):
            pair = pairs[i]
            indexed = name in INDEXED
            pair.name, pair.namelen = _pointer(name), len(name)
            pair.value, pair.valuelen = _pointer(value) if indexed else ffi.from_buffer(value), len(value)
            pair.flags = 0 if indexed else NO_INDEX


@functools.cache
def _pointer(word: bytes) -> Any:
    """Return where a word of the server's own is, and will be: names, and values that are the same again and again."""
    return ffi.from_buffer(word)


INDEXED = frozenset({b":status", b"content-type", b"grpc-status", b"grpc-accept-encoding"})

ffi = FFI()
ffi.cdef(DECLARATIONS)
lib = _load()
PAIRS = ffi.typeof("nghttp2_nv[]")


def _fault(kind: Any, error: Any, trace: Any) -> None:
    """Log what a callback raised; the connection ends by it."""
    log.error("a connection ends for a fault of ours", exc_info=(kind, error, trace))


def _callback(signature: str) -> Callable[[Callable[..., int]], Any]:
    return ffi.callback(signature, error=CALLBACK_FAILURE, onerror=_fault)


@_callback("int(nghttp2_session *, const nghttp2_frame *, void *)")
def _on_begin_headers(_: Any, frame: Any, user: Any) -> int:
    session: Session = from_handle(user)
    stream = frame.stream_id
    if stream not in session.unended:  # or they are trailers, of which gRPC has none that count
        session.heads[stream] = _Head()
        session.unended.add(stream)
    return 0


@_callback(
    "int(nghttp2_session *, const nghttp2_frame *, const uint8_t *, size_t, const uint8_t *, size_t, uint8_t, void *)"
)
def _on_header(_: Any, frame: Any, name: Any, name_size: int, value: Any, value_size: int, __: int, user: Any) -> int:
    head = from_handle(user).heads.get(frame.stream_id)
    if head is not None:
        head.size += name_size + value_size + 32
        if head.fits and head.size <= HEAD_BYTES and len(head.headers) < HEADERS_COUNT:
            head.headers[ffi.buffer(name, name_size)[:]] = ffi.buffer(value, value_size)[:]
        else:
            head.fits = False
        if head.size > ENOUGH * HEAD_BYTES:
            return CALLBACK_FAILURE  # a byte on the wire may stand for a long header: who goes on is hung up on
    return 0


@_callback("int(nghttp2_session *, const nghttp2_frame *, void *)")
def _on_frame_recv(_: Any, frame: Any, user: Any) -> int:
    kind = frame.type
    if kind in (DATA, HEADERS):
        session: Session = from_handle(user)
        stream = frame.stream_id
        if kind == HEADERS:
            head = session.heads.pop(stream, None)
            if head is not None:
                session.events.on_head(stream, head.headers, fits=head.fits)
        if frame.flags & END_STREAM and stream in session.unended:
            session.unended.discard(stream)
            session.events.on_end(stream)
    elif kind == SETTINGS:
        from_handle(user).greeted = True
    elif kind == PING and frame.flags & ACK:
        from_handle(user).events.on_pong()
    return 0


@_callback("int(nghttp2_session *, const nghttp2_frame *, void *)")
def _on_frame_send(_: Any, frame: Any, user: Any) -> int:
    # Who is answered before they have sent all is told that the rest is not wanted.
    if frame.type == HEADERS and frame.flags & END_STREAM:
        session: Session = from_handle(user)
        if frame.stream_id in session.unended:
            session.reset(frame.stream_id, NO_ERROR)
    return 0


@_callback("int(nghttp2_session *, uint8_t, int32_t, const uint8_t *, size_t, void *)")
def _on_data_chunk(_: Any, __: int, stream: int, content: Any, size: int, user: Any) -> int:
    session: Session = from_handle(user)
    session.came += size
    if stream not in session.answered:
        session.events.on_data(stream, memoryview(ffi.buffer(content, size)))
    return 0


@_callback("int(nghttp2_session *, int32_t, uint32_t, void *)")
def _on_stream_close(_: Any, stream: int, __: int, user: Any) -> int:
    session: Session = from_handle(user)
    session.forget(stream)
    session.events.on_closed(stream)
    return 0


@_callback("ssize_t(nghttp2_session *, uint8_t, int32_t, int32_t, int32_t, uint32_t, void *)")
def _read_length(_: Any, __: int, ___: int, connection: int, stream: int, frame: int, ____: Any) -> int:
    return max(1, min(connection, stream, frame, FRAME_BYTES))


@_callback("ssize_t(nghttp2_session *, int32_t, uint8_t *, size_t, uint32_t *, nghttp2_data_source *, void *)")
def _read(_: Any, stream: int, __: Any, room: int, flags: Any, ___: Any, user: Any) -> int:
    """Say how much of a body the next frame has, and whether it is the last."""
    session: Session = from_handle(user)
    body = session.bodies[stream]
    if body.size <= room and body.trailers is not None:
        flags[0] = EOF | NO_END_STREAM | NO_COPY
        session.write_trailers(stream, body.trailers)
        return body.size
    if not body.size:
        body.is_deferred = True
        return DEFERRED
    flags[0] = NO_COPY
    return min(body.size, room)


@_callback("int(nghttp2_session *, nghttp2_frame *, const uint8_t *, size_t, nghttp2_data_source *, void *)")
def _send_data(_: Any, frame: Any, head: Any, size: int, __: Any, user: Any) -> int:
    """Send so much of a body as it stands."""
    session: Session = from_handle(user)
    body = session.bodies[frame.stream_id]
    session.out.append(ffi.buffer(head, 9)[:])
    session.out_size += 9 + size
    body.size -= size
    while size:
        piece, is_gone = body.pieces[0]
        if len(piece) > size:
            session.out.append(piece[:size])
            body.pieces[0] = piece[size:], is_gone
            break
        session.out.append(piece)
        size -= len(piece)
        body.pieces.popleft()
        if is_gone:
            is_gone()
    return 0


def _made_callbacks() -> Any:
    made = ffi.new("nghttp2_session_callbacks **")
    _check(lib.nghttp2_session_callbacks_new(made))
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


def _made_options() -> Any:
    made = ffi.new("nghttp2_option **")
    _check(lib.nghttp2_option_new(made))
    lib.nghttp2_option_set_no_auto_window_update(made[0], 1)
    lib.nghttp2_option_set_no_closed_streams(made[0], 1)
    with suppress(AttributeError):  # before 1.50 there was nothing to be asked off
        # A space at the end of a header's value is no reason to end a call without a word.
        lib.nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(made[0], 1)
    with suppress(AttributeError):  # before 1.57 resets had no bound, unless the distribution brought it
        lib.nghttp2_option_set_stream_reset_rate_limit(made[0], RESETS, RESETS_A_SECOND)
    return made[0]


_callbacks = _made_callbacks()
_options = _made_options()
_provider: Any = ffi.new("nghttp2_data_provider *")
_provider.read_callback = _read
