"""The interceptor that every call passes before its method: observation, authentication, admission.

A call that is refused for its credentials, or in overload, is refused before any of its messages is read.
"""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog
from google.protobuf.message import DecodeError, Message

from attention_server.auth.callers import PUBLIC_PATHS, Caller, Callers
from attention_server.budget.account import Lease
from attention_server.budget.current import current_lease
from attention_server.codecs import orca
from attention_server.codecs.errors import INTERNAL, INTERNAL_MESSAGE, encode_status, record_error
from attention_server.codecs.parsed_size import QUICK_FIELDS, ManyFields, check_fields, parsed_bytes
from attention_server.domain.call import CallContext
from attention_server.domain.request_record import REQUEST_ID, SERVER_TIMING, TRACE_HEADERS, RequestRecord, request_id
from attention_server.errors import AttentionServiceError, InvalidRequest, Unavailable, Unimplemented
from attention_server.grpc.call import Buffer, GrpcCall, Header, service_error
from attention_server.service.service import Service
from attention_server.telemetry.observer import Observer
from attention_server.transport.offload import INLINE_BYTES
from attention_server.transport.threads import Threads

OPEN_BYTES = 4096  # of a message to a method that needs no credentials
BEGIN_SECONDS = 0.05  # until a stream without an answer begins its response
HELD_BYTES = 256 * 1024  # bytes of answered calls that may stay counted
ID, TIMING = REQUEST_ID.encode(), SERVER_TIMING.encode()
PUSHBACK = b"grpc-retry-pushback-ms"  # obeyed by gRPC's own retries
OBSERVED_HEADERS = {name.encode(): name for name in (REQUEST_ID, *TRACE_HEADERS)}
OBSERVED_NAMES = frozenset(OBSERVED_HEADERS)

log = structlog.get_logger()

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        name: of the RPC.
        request_type: of its request messages.
        handler: of a request message and its context; returns the response message or its bytes, or an awaitable of
            either. Of a streaming method: of a `MessageStream` and the context; it has sent everything when it returns.
        is_streaming: it answers with a stream.
        computes: in overload it is refused before its request is read.
    """

    name: str
    request_type: type[Message]
    handler: Callable[[Any, CallContext], Any]
    is_streaming: bool = False
    computes: bool = False


@dataclass(frozen=True, slots=True)
class MessageStream:
    """The request messages of a streaming call, parsed.

    Attributes:
        call: the call, to which responses are written.
        request_type: of its messages.
        threads: for parsing large ones.
    """

    call: GrpcCall
    request_type: type[Message]
    threads: Threads

    async def next(self) -> tuple[Any, int] | None:
        """Return the next message and its bytes; None behind the last.

        Raises:
            InvalidRequest: the bytes are no message of the type.
            Exception: as `GrpcCall.read`.
        """
        content = await self.call.read()
        if content is None:
            return None
        return await _parse(self.request_type, content, self.threads, self.call.lease), len(content)

    async def read_single(self) -> Any:
        """Return the only message, where only the responses are a stream. Raises as `next`."""
        return await _parse(self.request_type, await read_single(self.call), self.threads, self.call.lease)


class Interceptor:
    """Authenticates, admits and observes calls, and runs the methods.

    Args:
        callers: the known callers; health needs no credentials.
        service: the core.
        methods: by path.
        threads: for parsing large messages.
    """

    def __init__(self, callers: Callers, service: Service, methods: Mapping[str, Method], threads: Threads) -> None:
        self._callers = callers
        self._service = service
        self._methods = methods
        self._threads = threads

    def on_call(self, call: GrpcCall) -> None:
        """Refuse a new call at once, or start to answer it; a fault on the way ends the call, not its connection."""
        try:
            method = self._methods.get(call.method) if call.headers_error is None else None
            if method and call.method in PUBLIC_PATHS:
                call.limit_message(OPEN_BYTES)
                call.start(self._answer_open(call, method))
            elif method and method.computes and self._service.admission.is_shedding:
                self._on_call_in_overload(call, method)
            else:
                call.start(self._answer(call, method))
        except Exception:
            log.exception("a call could not be started or refused, for a fault of ours")
            call.fail(INTERNAL.grpc, INTERNAL_MESSAGE)

    async def _answer_open(self, call: GrpcCall, method: Method) -> None:
        """Answer a method that needs no credentials, and is not observed."""
        record = RequestRecord(request_id=request_id(_observed_headers(call).get(REQUEST_ID)))
        try:
            await self._run(call, method, CallContext(record.request_id, record=record))
        except asyncio.CancelledError:
            _fail(call, record, call.stop_reason())
        except Exception as error:  # noqa: BLE001 # the caller is told, or it is logged
            _fail(call, record, error)

    async def _answer(self, call: GrpcCall, method: Method | None) -> None:
        with _Observation(self._service.observer, call, method) as observation:
            if call.headers_error is not None:
                raise call.headers_error
            call.lease.check()
            caller = self._callers.authenticate(_text(call.headers.get(b"authorization")))
            context = observation.enter(caller)
            if method is None:
                raise Unimplemented(f"there is no method {call.method[:256]}")
            if method.computes:
                await self._compute(call, method, context)
            else:
                await self._run(call, method, context)

    def _on_call_in_overload(self, call: GrpcCall, method: Method) -> None:
        """Start a call if there is a permit for it; otherwise refuse it now, before its message is received."""
        with ExitStack() as entered:
            observation = entered.enter_context(_Observation(self._service.observer, call, method))
            context = observation.enter(self._callers.authenticate(_text(call.headers.get(b"authorization"))))
            entered.enter_context(self._service.admission.acquire(context.caller))
            call.start(self._answer_admitted(entered.pop_all(), call, method, context), must_run=True)

    async def _answer_admitted(self, entered: ExitStack, call: GrpcCall, method: Method, context: CallContext) -> None:
        with entered:
            call.lease.check()
            await self._reply(call, method, context, await read_single(call))

    async def _compute(self, call: GrpcCall, method: Method, context: CallContext) -> None:
        content = await read_single(call)
        with self._service.admission.acquire(context.caller):
            await self._reply(call, method, context, content)

    async def _run(self, call: GrpcCall, method: Method, context: CallContext) -> None:
        if method.is_streaming:
            beginning = asyncio.get_running_loop().call_later(BEGIN_SECONDS, call.begin_response)
            try:
                await method.handler(MessageStream(call, method.request_type, self._threads), context)
            finally:
                beginning.cancel()
            call.finish(self._trailers(context.record))
        else:
            await self._reply(call, method, context, await read_single(call))

    async def _reply(self, call: GrpcCall, method: Method, context: CallContext, content: Buffer) -> None:
        record = context.record
        record.request_bytes = len(content)
        current_lease.set(context.lease)
        found = method.handler(await _parse(method.request_type, content, self._threads, context.lease), context)
        if not isinstance(found, bytes | Message):
            found = await found
        answer = found if isinstance(found, bytes) else found.SerializeToString()
        record.mark_written(len(answer))
        if context.lease.size > HELD_BYTES:
            context.lease.settle(len(answer))
        call.finish(self._trailers(record), answer)

    def _trailers(self, record: RequestRecord) -> tuple[Header, ...]:
        """Return the trailers of an answered call, with a load report if answers have one."""
        meter = self._service.observer.meter
        if meter is None:
            return _trailers(record)
        return (*_trailers(record), (orca.TRAILER, b64encode(orca.encode_protobuf(meter.load()))))


async def read_single(call: GrpcCall) -> Buffer:
    """Return the message of a call that has one.

    Raises:
        Unimplemented: there is none, or more than one.
        Exception: as `GrpcCall.read`.
    """
    content = await call.read()
    if content is None:
        raise Unimplemented("the method takes one message; none was sent")
    if call.has_more:
        raise Unimplemented("the method takes one message; more were sent")
    return content


async def _parse(kind: type[M], content: Buffer, threads: Threads, lease: Lease) -> M:
    """Parse a message, one that is large or of many fields in a thread, and hold the bytes of its parsed form.

    Raises:
        InvalidRequest: the bytes are no message of this type.
        Full: all threads are busy, or there is no room.
        TooLarge: it has too many fields.
    """
    parse: Callable[[Any], M] = kind.FromString  # which takes a memoryview too

    def parse_large() -> M:
        lease.grow(check_fields(content, kind.DESCRIPTOR))
        return parse(content)

    try:
        if len(content) > INLINE_BYTES:
            return await threads.run(parse_large)
        with suppress(ManyFields):
            lease.grow(parsed_bytes(content, kind.DESCRIPTOR, QUICK_FIELDS))
            return parse(content)
        return await threads.run(parse_large)
    except DecodeError as error:
        raise InvalidRequest("the bytes are no message of the type that this method takes") from error


class _Observation:
    """The observation of one call, from its headers to its end; an error raised within becomes the call's status.

    Args:
        observer: of the service.
        call: the call.
        method: its method; None where there is no such method.
    """

    __slots__ = ("_call", "_observer", "_record")

    def __init__(self, observer: Observer, call: GrpcCall, method: Method | None) -> None:
        self._observer = observer
        self._call = call
        self._record = observer.begin(
            "grpc",
            method.name if method else "",
            _observed_headers(call),
            is_stream=method is not None and method.is_streaming,
            caller=call.certificate or call.host,
        )

    def enter(self, caller: Caller) -> CallContext:
        """Count the call as its caller's, and return its context.

        Raises:
            LimitReached: the caller has as many calls as it may.
        """
        self._record.caller = caller.name or self._record.caller
        leave = caller.begin_request()
        if leave:
            self._call.add_done_callback(leave)
        record, lease, timeout = self._record, self._call.lease, self._call.timeout
        owner = caller.name or self._call.certificate or ""
        lease.move(record.caller)
        context = CallContext(record.request_id, record.caller, timeout, caller.rights, record, owner, lease)
        self._call.add_done_callback(context.cancel)
        return context

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            if isinstance(error, asyncio.CancelledError):
                error = self._call.stop_reason()
            if isinstance(error, Exception):
                _fail(self._call, self._record, error)
        finally:
            self._observer.end(self._record)
        return isinstance(error, Exception)


def _fail(call: GrpcCall, record: RequestRecord, error: Exception) -> None:
    """End a call by an error. The caller reads the service's errors; any further exception is logged."""
    error = service_error(error)
    if not isinstance(error, AttentionServiceError):
        log.error("a request failed for a fault of ours", request_id=record.request_id, exc_info=error)
    record_error(record, error)
    status = encode_status(error, record.request_id)
    trailers: tuple[Header, ...] = _trailers(record)
    if isinstance(error, Unavailable):
        trailers = (*trailers, (PUSHBACK, b"%d" % int(error.retry_after * 1000)))
    call.fail(status.code, status.message, status.SerializeToString(), trailers)


def _trailers(record: RequestRecord) -> tuple[Header, ...]:
    """Return a call's trailers: its id and, where something was computed, the times that it took."""
    timing = record.server_timing()
    id_ = (ID, record.request_id.encode())
    return (id_, (TIMING, timing.encode())) if timing else (id_,)


def _observed_headers(call: GrpcCall) -> dict[str, str]:
    """Return the headers that the observer reads."""
    sent = call.headers
    if OBSERVED_NAMES.isdisjoint(sent):
        return {}
    return {text: sent[name].decode("latin-1") for name, text in OBSERVED_HEADERS.items() if name in sent}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
