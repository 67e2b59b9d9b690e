"""The standard services, health and reflection, with bounds on the streams that a caller may leave open."""

import asyncio
from functools import cached_property
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from attention_server.budget.shares import Shares
from attention_server.domain.call import CallContext
from attention_server.errors import Cancelled, NotFound, Stopping
from attention_server.grpc.call import GrpcCall
from attention_server.grpc.interceptor import MessageStream

WATCHES = 256  # of health of one address, which need no credentials
REFLECTIONS = 8  # streams of one caller
REFLECTION_SECONDS = 60.0  # of one stream, since idle streams hold slots

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The servicer of grpc.health.v1."""

    def __init__(self) -> None:
        self._slots = Shares(WATCHES, "watches of health")
        self._statuses: dict[str, int] = {}
        self._changed: set[asyncio.Event] = set()  # one of each watch
        self._ended = False

    def set(self, service: str, status: int) -> None:
        """Set a service's status, a `HealthCheckResponse.ServingStatus`, and wake the watches of all services."""
        self._statuses[service] = status
        self._wake_watches()

    def end(self) -> None:
        """End all watches: the server stops."""
        self._ended = True
        self._wake_watches()

    def Check(self, message: HealthCheckRequest, context: CallContext) -> HealthCheckResponse:
        status = self._statuses.get(message.service)
        if status is None:
            raise NotFound(f"there is no service {message.service[:256]!r}")
        return HealthCheckResponse(status=status)

    def List(self, message: Any, context: CallContext) -> Any:
        statuses = {name: HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined] # newer than its types

    async def Watch(self, stream: MessageStream, context: CallContext) -> None:
        request = await stream.read_single()
        changed = asyncio.Event()
        with self._slots.hold(stream.call.host):
            self._changed.add(changed)
            try:
                last = None
                while not self._ended:
                    status = self._statuses.get(request.service, SERVICE_UNKNOWN)
                    if status != last:
                        stream.call.write(HealthCheckResponse(status=status).SerializeToString())
                        last = status
                    await changed.wait()
                    changed.clear()
            finally:
                self._changed.discard(changed)
        raise Stopping("the server is stopping")

    def _wake_watches(self) -> None:
        for changed in self._changed:
            changed.set()


class Reflection:
    """The servicer of grpc.reflection.v1 and v1alpha, of equal messages; gRPC's own computes the answers.

    Args:
        services: names of the services to be listed.
    """

    def __init__(self, services: list[str]) -> None:
        self._slots = Shares(REFLECTIONS, "streams of reflection")
        self._services = services
        self._open: set[GrpcCall] = set()

    @cached_property
    def _servicer(self) -> Any:
        from grpc_reflection.v1alpha import reflection  # noqa: PLC0415 # imports all of gRPC, for this use alone

        return reflection.ReflectionServicer(self._services)

    def end(self) -> None:
        """End the streams: the server stops."""
        for call in list(self._open):
            call.stop(Stopping("the server is stopping"))

    async def ServerReflectionInfo(self, stream: MessageStream, context: CallContext) -> None:
        with self._slots.hold(context.caller):
            self._open.add(stream.call)
            try:
                async with asyncio.timeout(REFLECTION_SECONDS):
                    while (found := await stream.next()) is not None:
                        for answer in self._servicer.ServerReflectionInfo(iter([found[0]]), None):
                            await _write_and_wait(stream.call, answer.SerializeToString())
            except TimeoutError as error:
                raise Cancelled(f"a stream of reflection ends after {REFLECTION_SECONDS:g} s") from error
            finally:
                self._open.discard(stream.call)


async def _write_and_wait(call: GrpcCall, content: bytes) -> None:
    """Send a message, and wait until it is on its way: a caller that does not read is not read either."""
    sent = asyncio.Event()
    call.write(content, sent.set)
    await sent.wait()
