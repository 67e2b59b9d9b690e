"""What every method needs beside its messages: who calls and for how long, and how a failure is told."""

import asyncio
import base64
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import quote

import structlog

from attention_server.auth.callers import Caller
from attention_server.codecs.errors import note, to_status
from attention_server.domain.call import CallContext
from attention_server.domain.request_record import REQUEST_ID, SERVER_TIMING, RequestRecord
from attention_server.errors import AttentionServiceError, DeadlineExceeded, Unavailable
from attention_server.http2.call import Call
from attention_server.http2.nghttp2 import Header
from attention_server.scheduling.future import Future

T = TypeVar("T")

OK = (b"grpc-status", b"0")
ID, TIMING = REQUEST_ID.encode(), SERVER_TIMING.encode()
PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # what a message of gRPC has as it is

log = structlog.get_logger()


def fail(rpc: Call, record: RequestRecord, error: Exception) -> None:
    """End a call for what its method raised: a caller's mistake is told by its cause; ours goes into the log alone."""
    if not isinstance(error, AttentionServiceError):
        log.error("a request failed for a fault of ours", request_id=record.request_id, exc_info=error)
    note(record, error)
    status = to_status(error, record.request_id)
    trailers = [
        (b"grpc-status", b"%d" % status.code),
        (b"grpc-message", quote(status.message, safe=PLAIN).encode()),
        (b"grpc-status-details-bin", base64.b64encode(status.SerializeToString()).rstrip(b"=")),
        *told(record),
    ]
    if isinstance(error, Unavailable):  # what gRPC's own retries obey
        trailers.append((b"grpc-retry-pushback-ms", b"%d" % int(error.retry_after * 1000)))
    rpc.finish(trailers)


def told(record: RequestRecord) -> tuple[Header, ...]:
    """Return what a caller is told of every call: its id and, where something ran, where the time went."""
    timing = record.server_timing()
    id_ = (ID, record.request_id.encode())
    return (id_, (TIMING, timing.encode())) if timing else (id_,)


def call_of(rpc: Call, caller: Caller, record: RequestRecord) -> CallContext:
    """Return who asks, until when, and whether they still do."""
    call = CallContext(record.request_id, record.caller, rpc.seconds, caller.rights, record)
    rpc.on_leaving(call.cancel)
    return call


async def answered(future: "Future[T]", call: CallContext) -> T:
    """Wait for what the core computes for a call, which waits for it already.

    Raises:
        DeadlineExceeded: it came too late.
        Exception: what the future holds.
    """
    try:
        answer = await on_loop(future)
    finally:
        call.detach()
    if call.is_expired:
        raise DeadlineExceeded("the deadline passed while the request ran")
    return answer


def on_loop(future: "Future[T]") -> "asyncio.Future[T]":
    """Return what can be awaited of a future that any thread may settle; the loop's own does so without a detour."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    found: asyncio.Future[T] = loop.create_future()

    def settle() -> None:
        if found.done():
            return
        if future.cancelled():
            found.cancel()
        elif error := future.exception():
            found.set_exception(error)
        else:
            found.set_result(future.result())

    def done(_: "Future[T]") -> None:
        if threading.get_ident() == thread:
            settle()
        else:
            with suppress(RuntimeError):  # the loop has ended, and with it whoever would want to know
                loop.call_soon_threadsafe(settle)

    future.add_done_callback(done)
    return found


def poster() -> Callable[[Callable[[], Any]], None]:
    """Return what has the loop do something: at once where it is called by the loop's thread."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()

    def post(task: Callable[[], Any]) -> None:
        if threading.get_ident() == thread:
            task()
        else:
            with suppress(RuntimeError):  # as above
                loop.call_soon_threadsafe(task)

    return post
