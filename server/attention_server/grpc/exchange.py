"""What every servicer needs beside its messages: who calls and for how long, and how a failure is told."""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
import structlog
from grpc_status import rpc_status

from attention_server.callers import Caller
from attention_server.domain import Call
from attention_server.errors import AttentionServiceError, Unavailable
from attention_server.translate.errors import note, to_status
from attention_server.watch import REQUEST_ID, SERVER_TIMING, Watch, request_id

log = structlog.get_logger()


class Aborted(Exception):
    """A call has its status; there is nothing more to say."""


def fail(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End a call for what its method raised: a caller's mistake is told by its cause; ours goes into the log alone."""
    if isinstance(error, Aborted):
        raise error
    if not isinstance(error, AttentionServiceError):
        log.error("a request failed for a fault of ours", request_id=watch_of(context).request_id, exc_info=error)
    abort(context, error)


def trailing_metadata(watch: Watch) -> tuple[tuple[str, str], ...]:
    """Return what a caller is told of every call: its id and, where something ran, where the time went."""
    timing = watch.server_timing()
    return ((REQUEST_ID, watch.request_id), *(((SERVER_TIMING, timing),) if timing else ()))


@dataclass(frozen=True)
class _Status(grpc.Status):
    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def call_of(context: grpc.ServicerContext) -> Call:
    """Return who asks, until when, and whether they still do."""
    caller: Caller = context.attention_caller  # type: ignore[attr-defined] # the gate has set it
    watch = watch_of(context)
    call = Call(watch.request_id, watch.caller, context.time_remaining(), caller.rights, watch)
    if not context.add_callback(call.leave):
        call.leave()
    return call


def peer_of(context: grpc.ServicerContext) -> str:
    """Return the name in the peer's certificate, where TLS asked for one; else its host, without the port."""
    names: Any = context.auth_context().get("x509_common_name")
    if names:
        return str(names[0], errors="replace")
    return _host(context.peer())


@lru_cache(1024)
def _host(peer: str) -> str:
    """`ipv4:10.0.0.7:4711`, `ipv6:%5B::1%5D:4711` -> `10.0.0.7`, `::1`."""
    host = unquote(peer.partition(":")[2].rpartition(":")[0])
    return host.strip("[]") or peer


def watch_of(context: grpc.ServicerContext) -> Watch:
    """Return what takes note of what happens to a call; the gate has set it, but for those who ask for health."""
    watch: Watch = getattr(context, "attention_watch", None) or Watch(request_id=request_id(None))
    return watch


def abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End a call with what an error says of itself."""
    watch = watch_of(context)
    note(watch, error)
    status = rpc_status.to_status(to_status(error, watch.request_id))
    metadata = [*status.trailing_metadata, *trailing_metadata(watch)]  # the status replaces what was set before it
    if isinstance(error, Unavailable):
        metadata.append(("grpc-retry-pushback-ms", str(int(error.retry_after * 1000))))  # what gRPC's own retries obey
    with suppress(Exception):  # by which it ends a method
        context.abort_with_status(_Status(status.code, status.details, tuple(metadata)))
    raise Aborted
