"""The standard services, health and reflection, with bounds on the streams that a caller may leave open."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from attention_server.errors import Unavailable
from attention_server.grpc.exchange import abort

WATCHES = 256  # of health at once, which need no credentials; each holds memory, none a thread
REFLECTIONS = 8  # at once; each holds a thread
REFLECTION_SECONDS = 60.0  # after which one is ended, for idle ones would keep others out


class Places:
    """A number of places, for streams that stay."""

    def __init__(self, count: int, what: str) -> None:
        self._count = count
        self._what = what
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, context: grpc.ServicerContext) -> None:
        """Take a place until a call ends.

        Raises:
            Unavailable: none is free.
        """
        with self._lock:
            if self._taken >= self._count:
                raise Unavailable(f"{self._count} {self._what} are open, as many as may be")
            self._taken += 1
        if not context.add_callback(self._leave):
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._taken -= 1


class Health(health.HealthServicer):
    """grpc.health.v1."""

    def __init__(self) -> None:
        super().__init__()
        self._places = Places(WATCHES, "watches of health")

    def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Callable[[Any], None] | None = None,
    ) -> Any:
        try:
            self._places.take(context)
        except Unavailable as error:
            abort(context, error)
        return super().Watch(request, context, send_response_callback)


class Reflection(reflection.ReflectionServicer):
    """grpc.reflection.v1alpha."""

    def __init__(self, services: list[str]) -> None:
        super().__init__(services)
        self._places = Places(REFLECTIONS, "streams of reflection")

    def ServerReflectionInfo(  # type: ignore[override] # the server is a synchronous one
        self, request_iterator: Iterator[reflection_pb2.ServerReflectionRequest], context: grpc.ServicerContext
    ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        self._places.take(context)
        end = threading.Timer(REFLECTION_SECONDS, context.cancel)
        end.daemon = True
        end.start()
        try:
            yield from super().ServerReflectionInfo(request_iterator, context)
        except grpc.RpcError:
            return  # the caller has gone, or stayed too long
        finally:
            end.cancel()
