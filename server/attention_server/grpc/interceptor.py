"""What every call passes before its method: who watches it, whose it is, and whether there is room for it.

A call that is refused for its credentials, or where more is asked for than can be computed, is refused before any of
its messages is read.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import structlog
from google.protobuf.message import Message

from attention_server.auth.callers import OPEN, Caller, Callers
from attention_server.domain.call import CallContext
from attention_server.domain.request_record import REQUEST_ID, TRACE_HEADERS, RequestRecord, request_id
from attention_server.errors import TooLarge, Unimplemented
from attention_server.grpc.exchange import OK, call_of, fail, told
from attention_server.grpc.offload import Offloader
from attention_server.http2.call import FAULT, Call
from attention_server.http2.nghttp2 import HEAD_BYTES, HEADERS_COUNT, Buffer
from attention_server.scheduling.admission import Permit
from attention_server.service.service import Service
from attention_server.telemetry.observer import Observer

CONTENT_TYPES = (b"application/grpc", b"application/grpc+proto")
OPEN_BYTES = 4096  # of a message from whoever it may be
log = structlog.get_logger()

LOOKED_AT = {name.encode(): name for name in (REQUEST_ID, *TRACE_HEADERS)}


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        name: of the RPC.
        kind: of its requests.
        answer: a message and its call -> what answers it, a message or its bytes, now or when it is awaited; where it
            converses, a stream and its call -> all is said.
        converses: it answers with a stream.
        computes: it is refused before it is read while more is asked for than can be computed.
    """

    name: str
    kind: type[Message]
    answer: Callable[[Any, CallContext], Any]
    converses: bool = False
    computes: bool = False


@dataclass(frozen=True, slots=True)
class MessageStream:
    """A stream, and what its bytes are."""

    rpc: Call
    kind: type[Message]
    offloader: Offloader

    async def next(self) -> tuple[Any, int] | None:
        """Return the next message and how many bytes it has; None behind the last.

        Raises:
            AttentionServiceError: as `Call.next`; InvalidRequest for bytes that are no message.
        """
        content = await self.rpc.next()
        return None if content is None else (await self.offloader.message(self.kind, content), len(content))

    async def one(self) -> Any:
        """Return the only message, where just the answers are a stream. Raises as `next`."""
        return await self.offloader.message(self.kind, await self.rpc.message())


class Interceptor:
    """Lets callers through who are known; those who ask for health need not be.

    Args:
        callers: who is known.
        service: the core, whose observer watches the calls.
        methods: by their paths.
        heavy: reads messages.
    """

    def __init__(self, callers: Callers, service: Service, methods: Mapping[str, Method], offloader: Offloader) -> None:
        self._callers = callers
        self._service = service
        self._methods = methods
        self._offloader = offloader

    def arrive(self, rpc: Call, fits: bool) -> None:
        """Take a call whose head is here: refuse it now, or start to answer it."""
        method = self._methods.get(rpc.method)
        kind = rpc.headers.get(b"content-type", b"").partition(b";")[0].strip()
        if fits and kind not in CONTENT_TYPES:
            rpc.refuse([(b":status", b"415"), (b"accept", b"application/grpc")])
        elif fits and rpc.headers.get(b":method") != b"POST":
            rpc.refuse([(b":status", b"405"), (b"allow", b"POST")])
        elif fits and method and rpc.method in OPEN:
            rpc.allow(OPEN_BYTES)
            rpc.start(self._answer_anyone(rpc, method))
        elif fits and method and method.computes and self._service.admission.is_closed:
            self._arrive_in_overload(rpc, method)
        else:
            rpc.start(self._answer(rpc, method, fits=fits))

    async def _answer_anyone(self, rpc: Call, method: Method) -> None:
        """Answer what needs no credentials, and is not counted."""
        record = RequestRecord(request_id=request_id(_headers(rpc).get(REQUEST_ID)))
        try:
            await self._serve(rpc, method, CallContext(record.request_id, record=record))
        except asyncio.CancelledError:
            fail(rpc, record, rpc.why())
        except Exception as error:  # noqa: BLE001 # it is told, or logged
            fail(rpc, record, error)

    async def _answer(self, rpc: Call, method: Method | None, *, fits: bool) -> None:
        with _Visit(self._service.observer, rpc, method) as visit:
            if not fits:
                raise TooLarge(f"the metadata is over {HEAD_BYTES} bytes, or has more than {HEADERS_COUNT} names")
            caller = self._callers.identify(_text(rpc.headers.get(b"authorization")))
            call = visit.enter(caller)
            if method is None:
                raise Unimplemented(f"there is no method {rpc.method[:256]}")
            if method.computes:
                await self._compute(rpc, method, call)
            else:
                await self._serve(rpc, method, call)

    def _arrive_in_overload(self, rpc: Call, method: Method) -> None:
        """Take a call if there is a place for it; else refuse it now, before anything of its message is kept."""
        visit = _Visit(self._service.observer, rpc, method)
        try:
            call = visit.enter(self._callers.identify(_text(rpc.headers.get(b"authorization"))))
            permit = self._service.admission.permit(call.caller)
            permit.__enter__()  # for as long as its task runs
        except Exception as error:  # noqa: BLE001 # it is told, or logged
            self._refuse(visit, rpc, error)
        else:
            rpc.start(self._answer_in_place(visit, permit, rpc, method, call))

    def _refuse(self, visit: "_Visit", rpc: Call, error: Exception) -> None:
        """End a call that has no task; a fault on the way is its own, and not its connection's."""
        try:
            visit.__exit__(type(error), error, None)
        except Exception:
            log.exception("a call could not be refused, for a fault of ours")
            rpc.finish(FAULT)
        finally:
            rpc.left()

    async def _answer_in_place(
        self, visit: "_Visit", permit: Permit, rpc: Call, method: Method, call: CallContext
    ) -> None:
        with visit:
            try:
                await self._reply(rpc, method, call, await rpc.message())
            finally:
                permit.__exit__(None, None, None)

    async def _compute(self, rpc: Call, method: Method, call: CallContext) -> None:
        content = await rpc.message()
        with self._service.admission.permit(call.caller):
            await self._reply(rpc, method, call, content)

    async def _serve(self, rpc: Call, method: Method, call: CallContext) -> None:
        if method.converses:
            await method.answer(MessageStream(rpc, method.kind, self._offloader), call)
            rpc.finish([OK, *told(call.record)])
        else:
            await self._reply(rpc, method, call, await rpc.message())

    async def _reply(self, rpc: Call, method: Method, call: CallContext, content: Buffer) -> None:
        record = call.record
        record.request_bytes = len(content)
        found = method.answer(await self._offloader.message(method.kind, content), call)
        if not isinstance(found, bytes | Message):
            found = await found
        answer = found if isinstance(found, bytes) else found.SerializeToString()
        record.mark_written(len(answer))
        rpc.finish([OK, *told(record)], answer)


class _Visit:
    """One call, watched from its way in to its end; what is raised meanwhile becomes its status.

    Args:
        observer: watches it.
        rpc: it.
        method: what it asks for; None where there is no such method.
    """

    __slots__ = ("_observer", "_record", "_rpc")

    def __init__(self, observer: Observer, rpc: Call, method: Method | None) -> None:
        self._observer = observer
        self._rpc = rpc
        self._record = observer.begin(
            "grpc",
            method.name if method else "",
            _headers(rpc),
            is_stream=method is not None and method.converses,
            caller=rpc.certificate or rpc.host,
        )

    def enter(self, caller: Caller) -> CallContext:
        """Let a caller in.

        Raises:
            LimitReached: they have as much here as they may.
        """
        self._record.caller = caller.name or self._record.caller
        leave = caller.enter()
        if leave:
            self._rpc.on_leaving(leave)
        return call_of(self._rpc, caller, self._record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            if isinstance(error, asyncio.CancelledError):
                error = self._rpc.why()
            if isinstance(error, Exception):
                fail(self._rpc, self._record, error)
        finally:
            self._observer.end(self._record)
        return isinstance(error, Exception)


def _headers(rpc: Call) -> dict[str, str]:
    """Return the headers that who watches a call looks at."""
    sent = rpc.headers
    return {text: sent[name].decode("latin-1") for name, text in LOOKED_AT.items() if name in sent}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
