"""Helpers of every method: the caller's context, trailers, errors, and callbacks on the loop."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from attention_server.auth.callers import Caller
from attention_server.codecs.errors import encode_status, record_error
from attention_server.domain.call import CallContext
from attention_server.domain.request_record import REQUEST_ID, SERVER_TIMING, RequestRecord
from attention_server.errors import AttentionServiceError, Unavailable
from attention_server.grpc.call import GrpcCall, Header, service_error

ID, TIMING = REQUEST_ID.encode(), SERVER_TIMING.encode()
PUSHBACK = b"grpc-retry-pushback-ms"  # obeyed by gRPC's own retries

log = structlog.get_logger()


def fail(call: GrpcCall, record: RequestRecord, error: Exception) -> None:
    """End a call by an error. The caller reads the service's errors; any further exception is logged."""
    error = service_error(error)
    if not isinstance(error, AttentionServiceError):
        log.error("a request failed for a fault of ours", request_id=record.request_id, exc_info=error)
    record_error(record, error)
    status = encode_status(error, record.request_id)
    trailers: tuple[Header, ...] = trailers_of(record)
    if isinstance(error, Unavailable):
        trailers = (*trailers, (PUSHBACK, b"%d" % int(error.retry_after * 1000)))
    call.fail(status.code, status.message, status.SerializeToString(), trailers)


def trailers_of(record: RequestRecord) -> tuple[Header, ...]:
    """Return a call's trailers: its id and, where something was computed, the times that it took."""
    timing = record.server_timing()
    id_ = (ID, record.request_id.encode())
    return (id_, (TIMING, timing.encode())) if timing else (id_,)


def make_context(call: GrpcCall, caller: Caller, record: RequestRecord) -> CallContext:
    """Return a call's context: caller, rights, deadline and cancellation."""
    context = CallContext(record.request_id, record.caller, call.timeout, caller.rights, record)
    call.add_done_callback(context.cancel)
    return context


def make_poster() -> Callable[[Callable[[], Any]], None]:
    """Return a function that runs a callback on the running loop: at once when called by the loop's thread."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()

    def post(callback: Callable[[], Any]) -> None:
        if threading.get_ident() == thread:
            callback()
        else:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(callback)

    return post
