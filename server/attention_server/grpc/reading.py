"""Messages that are none of their kind: the caller's mistake, and told as that.

gRPC's own answer to bytes that do not parse is INTERNAL, with a traceback in the log.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from attention_server.errors import InvalidRequest
from attention_server.grpc.exchange import abort
from attention_server.grpc.gate import Continuation, kind_of, replaced


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What stands in the place of a message that could not be read."""


class Reading(grpc.ServerInterceptor):
    """Refuses unreadable messages, whichever method they are for."""

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the method, which no unreadable message reaches."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = getattr(handler, kind_of(handler))
        assert handler.request_deserializer is not None
        return replaced(
            handler,
            _of_stream(method) if handler.request_streaming else _of_one(method),
            _tolerant(handler.request_deserializer),
            handler.response_serializer,
        )


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError:
            return Unreadable()

    return read


def _of_one(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)  # health's has attributes that gRPC looks for
    def answer(message: Any, context: grpc.ServicerContext, *more: Any) -> Any:
        try:
            return method(_readable(message), context, *more)
        except InvalidRequest as error:
            abort(context, error)

    return answer


def _of_stream(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def answer(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
        return method(map(_readable, messages), context)

    return answer


def _readable(message: Any) -> Any:
    if isinstance(message, Unreadable):
        raise InvalidRequest("the bytes are no message of the type that this method takes")
    return message
