"""What every call passes before its method: who watches it, whose it is, and whether there is room for it.

A call that is refused for its credentials is refused before any of its messages is read.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from attention_server.callers import OPEN, Caller, Callers
from attention_server.errors import Unauthenticated
from attention_server.grpc.exchange import peer_of, statuses, trailing_metadata
from attention_server.observe import Observer
from attention_server.watch import Watch

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

Continuation = Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler[Any, Any] | None"]


class Gate(grpc.ServerInterceptor):
    """Lets callers through who are known; those who ask for health need not be."""

    def __init__(self, callers: Callers, observer: Observer) -> None:
        self._callers = callers
        self._observer = observer

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the method, behind the gate; or what refuses the call."""
        handler = continuation(handler_call_details)
        if handler_call_details.method in OPEN:
            return handler
        metadata: Mapping[str, Any] = dict(handler_call_details.invocation_metadata or ())
        entry = _Entry(self._observer, handler_call_details.method.rpartition("/")[2] if handler else "", metadata)
        try:
            caller = self._callers.identify(_text(metadata.get("authorization")))
        except Unauthenticated as error:
            return entry.refusing(error)
        return entry.guarding(handler, caller) if handler else None


def _text(value: str | bytes | None) -> str | None:
    return value if isinstance(value, str) else None


class _Entry:
    """One call's way in.

    Args:
        observer: watches it.
        name: its method's; empty where there is no such method.
        metadata: it came with.
    """

    def __init__(self, observer: Observer, name: str, metadata: Mapping[str, Any]) -> None:
        self._observer = observer
        self._name = name
        self._metadata = metadata

    def refusing(self, error: Unauthenticated) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return what refuses the call."""

        def refuse(_: Iterator[bytes], context: grpc.ServicerContext) -> None:
            with self._watched(context):
                raise error

        # As a stream, which it refuses without reading: a method of one message is called when that is here whole.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def guarding(self, handler: "grpc.RpcMethodHandler[Any, Any]", caller: Caller) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return a method behind the gate. It gives bytes, and is told those of its message: they are watched too."""
        method: Any = getattr(handler, kind_of(handler))
        read: Any = handler.request_deserializer
        write: Any = handler.response_serializer

        def answer_once(request: Any, context: grpc.ServicerContext) -> bytes:
            with self._watched(context, caller) as watch:
                message, watch.request_bytes = request
                answer: bytes = write(method(message, context))
                watch.is_written(len(answer))
                context.set_trailing_metadata(trailing_metadata(watch))
                return answer

        def answer_often(messages: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            with self._watched(context, caller, is_stream=True) as watch:
                context.set_trailing_metadata(trailing_metadata(watch))
                for answer in method(messages, context):
                    # A stream of requests has written its answers, each for the request that it is of.
                    yield answer if isinstance(answer, bytes) else write(answer)

        if handler.response_streaming:
            return replaced(handler, answer_often, read, None)
        return replaced(handler, answer_once, lambda content: (read(content), len(content)), None)

    @contextmanager
    def _watched(
        self, context: grpc.ServicerContext, caller: Caller | None = None, *, is_stream: bool = False
    ) -> Iterator[Watch]:
        """Watch the call and let its caller in; what is raised becomes its status.

        Args:
            context: the call's.
            caller: None for one who is refused.
            is_stream: whether its messages are requests.
        """
        known = caller.name if caller else ""
        watch = self._observer.begin(
            "grpc", self._name, self._metadata, is_stream=is_stream, caller=known or peer_of(context)
        )
        context.attention_watch = watch  # type: ignore[attr-defined]
        try:
            with statuses(context):
                if caller:
                    leave = caller.enter()
                    if not context.add_callback(leave):
                        leave()
                    context.attention_caller = caller  # type: ignore[attr-defined]
                yield watch
        finally:
            self._observer.end(watch)


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
