"""What every call passes before its method: who watches it, whose it is, and whether there is room for it.

A call that is refused for its credentials is refused before any of its messages is read.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc

from attention_server.callers import OPEN, Caller, Callers
from attention_server.errors import Cancelled, InvalidRequest, Unauthenticated
from attention_server.grpc.exchange import fail, peer_of, trailing_metadata
from attention_server.observe import Observer
from attention_server.service import Service
from attention_server.watch import Watch

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

Continuation = Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler[Any, Any] | None"]


class _Arrival(NamedTuple):
    """What is known of a call before its method: its caller, None for one who is refused; and its metadata."""

    caller: Caller | None
    metadata: Mapping[str, Any]


_arrival: ContextVar[_Arrival] = ContextVar("arrival")  # gRPC runs the interceptors and the method in one context


class _Guarded(NamedTuple):
    """A method behind the gate.

    Attributes:
        handler: of its kind.
        wary: reads its one message only when there is room for it. It does so as a stream, for a method of one message
            is called when that is here whole; to callers it is the same.
    """

    handler: "grpc.RpcMethodHandler[Any, Any]"
    wary: "grpc.RpcMethodHandler[Any, Any] | None" = None


class Gate(grpc.ServerInterceptor):
    """Lets callers through who are known; those who ask for health need not be.

    Args:
        callers: who is known.
        service: the core, whose observer watches the calls.
        computing: methods, by path, that are refused before they are read while more is asked for than can be computed.
    """

    def __init__(self, callers: Callers, service: Service, computing: Collection[str]) -> None:
        self._callers = callers
        self._service = service
        self._computing = computing
        self._guarded: dict[str, _Guarded] = {}  # by path; they serve every call, and hold nothing of one

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the method, behind the gate; or what refuses the call."""
        method = handler_call_details.method
        if method in OPEN:
            return continuation(handler_call_details)
        guarded = self._guarded.get(method) or self._guard(method, continuation(handler_call_details))
        metadata: Mapping[str, Any] = dict(handler_call_details.invocation_metadata or ())
        try:
            _arrival.set(_Arrival(self._callers.identify(_text(metadata.get("authorization"))), metadata))
        except Unauthenticated as error:
            _arrival.set(_Arrival(None, metadata))
            return self._refusing(method if guarded else "", error)
        return guarded and (guarded.wary if guarded.wary and self._service.overload.is_closed else guarded.handler)

    def _guard(self, method: str, handler: "grpc.RpcMethodHandler[Any, Any] | None") -> "_Guarded | None":
        """Put a method behind the gate, once."""
        if handler is None:
            return None
        behind = _Method(self._service, _name(method), handler)
        if handler.response_streaming:
            guarded = _Guarded(replaced(handler, behind.answer_often, handler.request_deserializer, None))
        elif method in self._computing:
            wary: Any = grpc.stream_stream_rpc_method_handler(behind.compute_warily)
            guarded = _Guarded(replaced(handler, behind.compute, None, None), wary)
        else:
            guarded = _Guarded(replaced(handler, behind.answer_once, None, None))
        self._guarded[method] = guarded
        return guarded

    def _refusing(self, method: str, error: Unauthenticated) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return what refuses a call."""

        def refuse(_: Iterator[bytes], context: grpc.ServicerContext) -> None:
            with _Visit(self._service.observer, _name(method), context):
                raise error

        # As a stream, which it refuses without reading: a method of one message is called when that is here whole.
        return grpc.stream_stream_rpc_method_handler(refuse)


class _Method:
    """A method behind the gate; it reads its message itself, and gives bytes.

    Args:
        service: the core.
        name: the method's.
        handler: what gRPC would call.
    """

    def __init__(self, service: Service, name: str, handler: "grpc.RpcMethodHandler[Any, Any]") -> None:
        self._overload = service.overload
        self._observer = service.observer
        self._name = name
        self._answer: Any = getattr(handler, kind_of(handler))
        self._read: Any = handler.request_deserializer
        self._write: Any = handler.response_serializer

    def answer_once(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer a message with one."""
        with _Visit(self._observer, self._name, context) as visit:
            return self._written(request, context, visit.enter())

    def compute(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer a message with one, which has to be computed."""
        with _Visit(self._observer, self._name, context) as visit:
            watch = visit.enter()
            with self._overload.place(watch.caller):
                return self._written(request, context, watch)

    def compute_warily(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Do the same, and read the message only when there is a place for it."""
        with _Visit(self._observer, self._name, context) as visit:
            watch = visit.enter()
            with self._overload.place(watch.caller):
                content = self._written(_only(requests), context, watch)
            yield content

    def answer_often(self, messages: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer with a stream, whose messages may be bytes already."""
        with _Visit(self._observer, self._name, context, is_stream=True) as visit:
            context.set_trailing_metadata(trailing_metadata(visit.enter()))
            for each in self._answer(messages, context):
                yield each if isinstance(each, bytes) else self._write(each)

    def _written(self, request: bytes, context: grpc.ServicerContext, watch: Watch) -> bytes:
        watch.request_bytes = len(request)
        found = self._answer(self._read(request), context)
        content: bytes = found if isinstance(found, bytes) else self._write(found)
        watch.is_written(len(content))
        context.set_trailing_metadata(trailing_metadata(watch))
        return content


class _Visit:
    """One call, watched from its way in to its end; what is raised meanwhile becomes its status.

    Args:
        observer: watches it.
        name: its method's; empty where there is no such method.
        context: its.
        is_stream: whether its messages are requests.
    """

    __slots__ = ("_caller", "_context", "_observer", "_watch")

    def __init__(
        self, observer: Observer, name: str, context: grpc.ServicerContext, *, is_stream: bool = False
    ) -> None:
        self._observer = observer
        self._context = context
        self._caller, metadata = _arrival.get()
        who = (self._caller.name if self._caller else "") or peer_of(context)
        self._watch = observer.begin("grpc", name, metadata, is_stream=is_stream, caller=who)
        context.attention_watch = self._watch  # type: ignore[attr-defined]

    def enter(self) -> Watch:
        """Let its caller in.

        Raises:
            LimitReached: they have as much here as they may.
        """
        assert self._caller is not None
        leave = self._caller.enter()
        if leave and not self._context.add_callback(leave):
            leave()
        self._context.attention_caller = self._caller  # type: ignore[attr-defined]
        return self._watch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Exception):
                fail(self._context, error)
        finally:
            self._observer.end(self._watch)


def kind_of(handler: "grpc.RpcMethodHandler[Any, Any]") -> str:
    """Return which of gRPC's four kinds a method is of."""
    return next(kind for kind in KINDS if getattr(handler, kind))


def replaced(
    handler: "grpc.RpcMethodHandler[Any, Any]",
    method: Callable[..., Any],
    deserialize: Callable[[bytes], Any] | None,
    serialize: Callable[[Any], bytes] | None,
) -> "grpc.RpcMethodHandler[Any, Any]":
    """Return a handler of the same kind, with another method, and other readers and writers of messages."""
    make = getattr(grpc, f"{kind_of(handler)}_rpc_method_handler")
    made: grpc.RpcMethodHandler[Any, Any] = make(method, deserialize, serialize)
    return made


def _only(requests: Iterator[bytes]) -> bytes:
    """Read the message of a method that takes one."""
    try:
        return next(requests)
    except StopIteration as error:
        raise InvalidRequest("the method takes one message") from error
    except grpc.RpcError as error:
        raise Cancelled("the caller has gone") from error


def _name(method: str) -> str:
    """`/package.Service/Method` -> `Method`."""
    return method.rpartition("/")[2]


def _text(value: str | bytes | None) -> str | None:
    return value if isinstance(value, str) else None
