"""libnghttp2: its declarations for cffi, and how it is loaded."""

import ctypes.util
import functools
from typing import Any

from cffi import FFI

from attention_server.http2.errors import LibraryError

FILE = ctypes.util.find_library("nghttp2") or "libnghttp2.so.14"
VERSION = (1, 41, 0)  # the first that bounds the entries of a SETTINGS frame (CVE-2020-11080)

DECLARATIONS = """
typedef struct nghttp2_session nghttp2_session;
typedef struct nghttp2_session_callbacks nghttp2_session_callbacks;
typedef struct nghttp2_option nghttp2_option;
typedef struct { size_t length; int32_t stream_id; uint8_t type; uint8_t flags; uint8_t reserved; } nghttp2_frame_hd;
typedef nghttp2_frame_hd nghttp2_frame; /* each begins by it */
typedef struct { nghttp2_frame_hd hd; uint32_t error_code; } nghttp2_rst_stream;
typedef struct { int age; int version_num; const char *version_str; const char *proto_str; } nghttp2_info;
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
nghttp2_info *nghttp2_version(int);
"""

# Of RFC 9113.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM = ACK = 1
NO_ERROR, CANCEL, ENHANCE_YOUR_CALM = 0, 8, 11
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 3, 4, 5, 6

# Of nghttp2.
EOF, NO_END_STREAM, NO_COPY = 1, 2, 4
NO_INDEX = 1  # flag of a header with a value that does not repeat
DEFERRED = -508
CALLBACK_FAILURE = -902

ffi = FFI()
ffi.cdef(DECLARATIONS)


def check_library() -> None:
    """Check that libnghttp2 is installed.

    Raises:
        LibraryError: it is missing or too old.
    """
    load_library()


@functools.cache
def load_library() -> Any:
    """Return the library.

    Raises:
        LibraryError: it is missing or too old.
    """
    try:
        lib: Any = ffi.dlopen(FILE)
    except OSError as error:
        raise LibraryError(f"{_needs()}, which is not there: {_how_to_install()} ({error})") from error
    major, minor, patch = VERSION
    if not lib.nghttp2_version(major << 16 | minor << 8 | patch):
        found = ffi.string(lib.nghttp2_version(0).version_str).decode()  # type: ignore[union-attr] # bytes
        raise LibraryError(f"{_needs()}; {FILE} is version {found}: {_how_to_install()}")
    return lib


def _needs() -> str:
    return f"gRPC is served by libnghttp2 {'.'.join(map(str, VERSION))} or later"


def _how_to_install() -> str:
    return "apt-get install libnghttp2-14, or what your system calls it"
