"""What every call passes before its method: whose it is, and whether there is room for it.

A call that is refused for its credentials is refused before any of its messages is read.
"""

from collections.abc import Callable
from typing import Any

import grpc

from attention_server.callers import OPEN, Caller, Callers
from attention_server.errors import LimitReached, Unauthenticated
from attention_server.grpc.exchange import abort

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

Continuation = Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler[Any, Any] | None"]


class Gate(grpc.ServerInterceptor):
    """Lets callers through who are known; those who ask for health need not be."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the method, behind the gate; or what refuses the call."""
        if handler_call_details.method in OPEN:
            return continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata or ())
        try:
            caller = self._callers.identify(_text(metadata.get("authorization")))
        except Unauthenticated as error:
            return _refusal(error)
        handler = continuation(handler_call_details)
        return None if handler is None else _guarded(handler, caller)


def _text(value: str | bytes | None) -> str | None:
    return value if isinstance(value, str) else None


def _refusal(error: Unauthenticated) -> "grpc.RpcMethodHandler[Any, Any]":
    # As a stream, which it refuses without reading: a method of one message would be called when that is here whole.
    return grpc.stream_stream_rpc_method_handler(lambda _, context: abort(context, error))


def _guarded(handler: "grpc.RpcMethodHandler[Any, Any]", caller: Caller) -> "grpc.RpcMethodHandler[Any, Any]":
    method = getattr(handler, kind_of(handler))

    def behind_the_gate(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            leave = caller.enter()
        except LimitReached as error:
            abort(context, error)
        if not context.add_callback(leave):
            leave()
        context.attention_caller = caller  # type: ignore[attr-defined]
        return method(request, context)

    return replaced(handler, behind_the_gate, handler.request_deserializer)


def kind_of(handler: "grpc.RpcMethodHandler[Any, Any]") -> str:
    """Return which of gRPC's four kinds a method is of."""
    return next(kind for kind in KINDS if getattr(handler, kind))


def replaced(
    handler: "grpc.RpcMethodHandler[Any, Any]",
    method: Callable[..., Any],
    deserialize: Callable[[bytes], Any] | None,
) -> "grpc.RpcMethodHandler[Any, Any]":
    """Return a handler of the same kind, with another method and another reader of messages."""
    make = getattr(grpc, f"{kind_of(handler)}_rpc_method_handler")
    made: grpc.RpcMethodHandler[Any, Any] = make(method, deserialize, handler.response_serializer)
    return made
