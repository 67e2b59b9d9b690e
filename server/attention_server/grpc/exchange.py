"""What every servicer needs beside its messages: who calls and for how long, and how a failure is told."""

import functools
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote

import grpc
import structlog
from grpc_status import rpc_status

from attention_server.callers import Caller
from attention_server.domain import Call
from attention_server.errors import AttentionServiceError, Unavailable
from attention_server.translate.errors import to_status

REQUEST_ID = "x-request-id"

log = structlog.get_logger()

M = TypeVar("M")
Method = Callable[[Any, M, grpc.ServicerContext], Any]


def answers(method: Method[M]) -> Method[M]:
    """Turn what a method raises into a status: a caller's mistake by its cause; ours goes into the log alone."""

    @functools.wraps(method)
    def answer(servicer: Any, message: M, context: grpc.ServicerContext) -> Any:
        with _statuses(context):
            return method(servicer, message, context)

    return answer


def streams(method: Method[M]) -> Method[M]:
    """Do what `answers` does, for a method whose answers are many: it may raise before and between them."""

    @functools.wraps(method)
    def answer(servicer: Any, messages: M, context: grpc.ServicerContext) -> Iterator[Any]:
        with _statuses(context):
            yield from method(servicer, messages, context)

    return answer


@contextmanager
def _statuses(context: grpc.ServicerContext) -> Iterator[None]:
    context.set_trailing_metadata(((REQUEST_ID, request_id(context)),))
    try:
        yield
    except AttentionServiceError as error:
        abort(context, error)
    except Exception as error:
        log.exception("a request failed for a fault of ours", request_id=request_id(context))
        abort(context, error)


@dataclass(frozen=True)
class _Status(grpc.Status):
    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def call_of(context: grpc.ServicerContext) -> Call:
    """Return who asks, until when, and whether they still do."""
    caller: Caller = context.attention_caller  # type: ignore[attr-defined] # the gate has set it
    call = Call(request_id(context), caller.name or peer_of(context), context.time_remaining(), caller.rights)
    if not context.add_callback(call.leave):
        call.leave()
    return call


def peer_of(context: grpc.ServicerContext) -> str:
    """Return the name in the peer's certificate, where TLS asked for one; else its host, without the port."""
    names: Any = context.auth_context().get("x509_common_name")
    if names:
        return str(names[0], errors="replace")
    host = unquote(context.peer().partition(":")[2].rpartition(":")[0])  # of ipv4:10.0.0.7:4711, ipv6:%5B::1%5D:4711
    return host.strip("[]") or context.peer()


def request_id(context: grpc.ServicerContext) -> str:
    """Return the caller's id for this call, or a new one, the same each time it is asked for."""
    chosen: str | None = getattr(context, "attention_request_id", None)
    if chosen is None:
        sent = dict(context.invocation_metadata()).get(REQUEST_ID, "")
        chosen = sent[:128] if isinstance(sent, str) and sent else uuid.uuid4().hex
        context.attention_request_id = chosen  # type: ignore[attr-defined]
    return chosen


def abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End a call with what an error says of itself."""
    chosen = request_id(context)
    status = rpc_status.to_status(to_status(error, chosen))
    metadata = [*status.trailing_metadata, (REQUEST_ID, chosen)]  # the status replaces what was set before it
    if isinstance(error, Unavailable):
        metadata.append(("grpc-retry-pushback-ms", str(int(error.retry_after * 1000))))  # what gRPC's own retries obey
    context.abort_with_status(_Status(status.code, status.details, tuple(metadata)))
    raise AssertionError("abort_with_status raises")
